"""Weights on their way to engines in other processes: a folder that is there whole or not at all.

It holds every weight under its name in a checkpoint, tied ones under both, in safetensors, and a list of the names to
count by. Written by the main rank, one file's worth in memory at a time; read tensor by tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sppo.models.adapters import plain_weights
from sppo.rollouts.engines.weights import second_names, weight_names
from sppo.runs import ranks

_FILE_BYTES = 2**31
"""Of a file, about: what the main rank has in memory on a host beside the tensor that comes."""
_LIST = "weights.json"


@dataclass(frozen=True)
class Handed:
    """A folder of weights."""

    folder: Path
    label: str
    """Which weights they are; no two have the same."""
    names: frozenset[str]
    """Of all that a policy has."""
    second: frozenset[str]
    """Those of them under which a tied weight comes once more."""
    files: tuple[str, ...]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with its name, read as it is asked for."""
        for file in self.files:
            with safe_open(str(self.folder / file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    yield name, opened.get_tensor(name)


def write_weights(policy: nn.Module, folder: Path, label: str, precision: torch.dtype) -> None:
    """Writes a policy's present weights; every rank has to call it, and the main one writes.

    Args:
        policy: may be sharded, or have an adapter, which is added.
        folder: that is there afterwards, and not before.
        label: which weights they are.
        precision: of floating-point tensors in the files.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    files: list[str] = []
    waiting: dict[str, Tensor] = {}

    def flush() -> None:
        if waiting:
            files.append(f"model-{len(files) + 1:05}.safetensors")
            save_file(waiting, partial / files[-1])
            waiting.clear()

    if ranks.is_main():
        partial.mkdir(parents=True)
    for name, weight in plain_weights(policy):
        if ranks.is_main():
            target = precision if weight.is_floating_point() else weight.dtype
            # A copy of each: tied tensors are one, which safetensors refuses.
            waiting[name] = weight.to("cpu", target, copy=True).contiguous()
            if sum(tensor.nbytes for tensor in waiting.values()) >= _FILE_BYTES:
                flush()
    if ranks.is_main():
        flush()
        names = {"names": sorted(weight_names(policy)), "second": sorted(second_names(policy))}
        (partial / _LIST).write_text(json.dumps({"label": label, **names, "files": files}))
        partial.rename(folder)


def read_weights(folder: Path) -> Handed:
    """Opens a folder that `write_weights` has written.

    Raises:
        OSError: it isn't there, or can't be read.
        ValueError: it is no such folder.
    """
    listed = json.loads((folder / _LIST).read_text())
    try:
        return Handed(
            folder,
            listed["label"],
            frozenset(listed["names"]),
            frozenset(listed["second"]),
            tuple(listed["files"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / _LIST} is no list of weights") from error


def delete_weights(folder: Path) -> None:
    """Deletes such a folder, or what there is of it."""
    for place in (folder, folder.with_name(f"{folder.name}.partial")):
        shutil.rmtree(place, ignore_errors=True)
