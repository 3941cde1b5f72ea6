"""Optimisers' states in a checkpoint: tensors by torch.distributed.checkpoint, each rank its part, the rest as JSON.

torch.distributed.checkpoint's own form is read with pickle, which runs whatever code a stranger's file holds. Its form
of safetensors has no pickle in it, and is loaded on any number of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sppo.errors import RunFolderError
from sppo.models.sharding import load_optimizer_states
from sppo.runs import ranks
from sppo.runs.checkpoint import read_old_optimizers
from sppo.runs.files import read_json, write_json

_PLAN = "optimizers.json"
Optimizers = Mapping[str, torch.optim.Optimizer]


def save_moments(optimizers: Optimizers, folder: Path) -> None:
    """Writes the optimisers' states; every rank has to call it, with a folder that all of them see."""
    import torch.distributed.checkpoint as dcp

    tensors: dict[str, Tensor] = {}
    plan: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        saved = optimizer.state_dict()
        plan[name] = {"param_groups": saved["param_groups"], "state": {}}
        for number, state in saved["state"].items():
            plan[name]["state"][str(number)] = {key: _described(value) for key, value in state.items()}
            tensors |= {
                f"{name}.{number}.{key}": value
                for key, value in state.items()
                if isinstance(value, Tensor) and value.ndim
            }
    write_json(folder / _PLAN, plan)
    if tensors:
        with _quiet():
            writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=ranks.world_size() == 1)


def load_optimizers(optimizers: Optimizers, checkpoint: Path) -> None:
    """Puts optimisers back to where they were when a checkpoint was written, by this version or one before.

    Raises:
        RunFolderError: as `load_moments`.
    """
    old = read_old_optimizers(checkpoint)
    if old is None:
        load_moments(optimizers, checkpoint / "optimizers")
    else:
        load_optimizer_states(optimizers, old)


def load_moments(optimizers: Optimizers, folder: Path) -> None:
    """Puts optimisers back to what `save_moments` wrote, on any number of ranks; each keeps its part.

    Raises:
        RunFolderError: the folder lacks an optimiser, or a tensor of one, or holds one of another shape.
    """
    import torch.distributed.checkpoint as dcp

    plan = read_json(folder / _PLAN) or {}
    tensors: dict[str, Tensor] = {}
    states: dict[str, dict[int, dict[str, Any]]] = {}
    for name, optimizer in optimizers.items():
        if name not in plan:
            raise RunFolderError(f"{folder} has no optimiser {name!r}: there are {', '.join(plan) or 'none'}.")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states[name] = {}
        for number, state in plan[name]["state"].items():
            own = states[name][int(number)] = {}
            for key, described in state.items():
                if described == "tensor":
                    like = torch.empty_like(parameters[int(number)], dtype=torch.float32)
                    own[key] = tensors[f"{name}.{number}.{key}"] = like.requires_grad_(False)
                else:
                    own[key] = torch.tensor(described["tensor"]) if isinstance(described, dict) else described
    if tensors:
        try:
            with _quiet():
                reader = dcp.HuggingFaceStorageReader(str(folder))
                dcp.load(tensors, storage_reader=reader, no_dist=ranks.world_size() == 1)
        except (Exception, dcp.CheckpointException) as error:  # which isn't one, and has the others' tracebacks in it
            last = str(error).strip().splitlines()
            raise RunFolderError(f"{folder} can't be read: {last[-1] if last else type(error).__name__}") from error
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict({"param_groups": plan[name]["param_groups"], "state": states[name]})


def _described(value: Any) -> Any:
    """What the plan says of a part of a state: "tensor" of one that is saved apart, or its number."""
    if not isinstance(value, Tensor):
        return value
    return "tensor" if value.ndim else {"tensor": value.item()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a process by itself is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
