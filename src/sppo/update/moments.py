"""Optimisers' states in a checkpoint: tensors by torch.distributed.checkpoint, each rank its part, the rest as JSON.

torch.distributed.checkpoint's own form is read with pickle, which runs whatever code a stranger's file holds. Its form
of safetensors has no pickle in it, and is loaded on any number of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppo.errors import RunFolderError
from sppo.models.sharding import load_optimizer_states, local, part_of, spread_as
from sppo.runs import ranks
from sppo.runs.checkpoint import read_old_optimizers
from sppo.runs.files import read_json, write_json
from sppo.update.eight_bit import BLOCK, MOMENTS, AdamW8bit, empty_moments, in_full, is_packed, packed

_PLAN = "optimizers.json"
_FULL, _EIGHT_BITS = "tensor", "8 bits"
_CODES, _SCALE = ".codes", ".scale"
Optimizers = Mapping[str, torch.optim.Optimizer]


def stage_moments(optimizers: Optimizers) -> Callable[[Path], None]:
    """Copies the optimisers' states to the host; returns what writes them, while the optimisers go on.

    Every rank has to call both, the second with a folder that all of them see, perhaps in a thread `ranks.within` a
    group of its own.
    """
    tensors: dict[str, Tensor] = {}
    plan: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        saved = optimizer.state_dict()
        plan[name] = {"param_groups": saved["param_groups"], "state": {}}
        parameters = _parameters(optimizer)
        for number, state in saved["state"].items():
            plan[name]["state"][str(number)] = {key: _described(value) for key, value in state.items()}
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    own = _written(f"{name}.{number}.{key}", value, parameters[number])
                    tensors |= {part: tensor.detach().to("cpu", copy=True) for part, tensor in own.items()}
    return partial(_write, plan, tensors)


def _write(plan: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    write_json(folder / _PLAN, plan)
    if tensors:
        with _quiet():
            writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
            alone = ranks.world_size() == 1
            dcp.save(tensors, storage_writer=writer, no_dist=alone, process_group=ranks.own_group())


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
    """Puts optimisers back to what `stage_moments` had written, on any number of ranks; each keeps its part.

    Raises:
        RunFolderError: the folder lacks an optimiser, or a tensor of one, or holds one of another shape.
    """
    import torch.distributed.checkpoint as dcp

    plan = read_json(folder / _PLAN) or {}
    tensors: dict[str, Tensor] = {}
    states: dict[str, dict[int, dict[str, Any]]] = {}
    readings: list[_Reading] = []
    for name, optimizer in optimizers.items():
        if name not in plan:
            raise RunFolderError(f"{folder} has no optimiser {name!r}: there are {', '.join(plan) or 'none'}.")
        parameters = _parameters(optimizer)
        states[name] = {}
        for number, state in plan[name]["state"].items():
            own = states[name][int(number)] = {}
            for key, described in state.items():
                if described in (_FULL, _EIGHT_BITS):
                    moments = _Reading(optimizer, parameters[int(number)], key, described)
                    tensors |= {f"{name}.{number}.{key}{end}": tensor for end, tensor in moments.parts.items()}
                    readings.append(moments)
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
    for one in readings:
        # Not by load_state_dict, which would have them in the parameter's own precision.
        one.optimizer.state[one.parameter][one.key] = one.moments()


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _written(name: str, moments: Tensor, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The tensors of a file that moments are written as, by name, spread over ranks as their parameter is."""
    eight = packed(moments, parameter)
    if eight is not None:
        return {f"{name}{_CODES}": eight.codes, f"{name}{_SCALE}": eight.scale}
    return {name: spread_as(parameter, local(moments), tuple(parameter.shape))}


class _Reading:
    """A parameter's moments as they are read: the tensors to read into, and what is made of them."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str, written: str) -> None:
        self.optimizer, self.parameter, self.key = optimizer, parameter, key
        self._signed = key == MOMENTS[0]
        self._own = empty_moments(parameter, signed=self._signed) if isinstance(optimizer, AdamW8bit) else None
        eight = None if self._own is None else packed(self._own, parameter)
        self._as_written = eight is not None and written == _EIGHT_BITS
        self.parts: dict[str, Tensor]
        """By the ends of their names."""
        if written == _FULL:
            self.parts = {"": torch.empty_like(parameter, dtype=torch.float32, requires_grad=False)}
        elif eight is not None:
            self.parts = {_CODES: eight.codes, _SCALE: eight.scale}
        else:  # of other ranks' blocks, or for another optimiser
            codes = torch.empty(parameter.shape, dtype=torch.uint8, device=parameter.device)
            self.parts = {_CODES: codes, _SCALE: torch.empty(codes.numel() // BLOCK, device=parameter.device)}

    def moments(self) -> Tensor:
        """As the optimiser holds them, once the parts have been read."""
        if self._as_written:
            assert self._own is not None
            return self._own
        read = self.parts.get("")
        if read is None:
            full = in_full(self.parts[_CODES], self.parts[_SCALE], signed=self._signed)
            read = part_of(full, self.parameter)
        return read if self._own is None else self._own.copy_(local(read))


def _described(value: Any) -> Any:
    """What the plan says of a part of a state: how a tensor is written that is saved apart, or its number."""
    if not isinstance(value, Tensor):
        return value
    if not value.ndim:
        return {"tensor": value.item()}
    return _EIGHT_BITS if is_packed(value) else _FULL


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a process by itself is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
