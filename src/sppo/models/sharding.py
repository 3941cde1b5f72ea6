"""Models whose weights are spread over ranks (FSDP2): each rank keeps a part of every tensor, and of its moments.

The parts are float32, or bfloat16 where that is asked for; what is gathered to compute with may be bfloat16. That is
worth it on one GPU too: under autocast over float32 weights the residual stream and the cache's keys stay float32, 1.5
times the cache.

A layer's weights are gathered when it runs and let go afterwards. What runs a model's parts instead of its forward, as
losses do that project a few tokens at a time, goes `inside`, so that the weights outside of all layers are there too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo.models.precision import Precision
from sppo.runs import ranks

Result = TypeVar("Result")


def shard(module: nn.Module, precision: Precision, *, alone: Sequence[nn.Module] = ()) -> None:
    """Spreads a model's weights over all ranks, in place; on a single rank only to compute in less than float32.

    A single rank on a CUDA device is sharded too, in whichever precision, so that there is one way to train there.

    Its parameters are others afterwards, so that its optimiser is made after this. Gradients are sums over ranks: a
    rank's loss is its share of the mini-batch's.

    Args:
        module: a model, or what holds one.
        precision: to compute in, and to keep weights in; sums of gradients over ranks are made in float32.
        alone: parts that are float32, whatever the others are.
    """
    device = next(module.parameters()).device.type
    if ranks.world_size() == 1 and device != "cuda" and precision.compute == torch.float32:
        return
    apart = {id(parameter) for part in alone for parameter in part.parameters()}
    for parameter in module.parameters():
        if id(parameter) not in apart:
            parameter.data = parameter.data.to(precision.weights)
    ranks.group_of_one()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (ranks.world_size(),))
    policy = MixedPrecisionPolicy()
    if precision.compute != torch.float32:
        policy = MixedPrecisionPolicy(precision.compute, torch.float32, cast_forward_inputs=False)
    for layer in _layers(module):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for part in alone:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    for part in _sharded_parts(module):
        # Gathered weights take over which of them are trained as they are made, so that is now.
        part.unshard()
        part.reshard()
        if ranks.world_size() > 1:  # by itself a rank's sum is its own, and torch would copy it to divide it by 1
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # else a scaled sum, which gloo doesn't have
    module._run_inside = _run  # type: ignore[assignment]
    register_fsdp_forward_method(module, "_run_inside")


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has spread this module's weights, which then decides on its precision."""
    return hasattr(module, "_run_inside")


def inside(module: nn.Module, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """`function` as a part of the module's forward: the weights outside of its layers are there meanwhile.

    Args:
        module: what was given to `shard`, or a model that wasn't.
        function: runs parts of it; returns tensors, or a tuple of some.
        *arguments: of the function.
        **named: of the function.
    """
    run: Callable[..., Result] = getattr(module, "_run_inside", _run)
    return run(function, *arguments, **named)


def let_go(module: nn.Module) -> None:
    """Drops the outermost weights that a forward pass has kept for a backward pass that doesn't come."""
    parts = _sharded_parts(module)
    if module in parts:
        parts[0].reshard()


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights, and forward passes need no other rank; nothing of a model by itself."""
    parts = _sharded_parts(module)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            # The outermost keeps its weights from forward to backward, as they are needed first there.
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


def sum_gradients(module: nn.Module) -> None:
    """Sums gradients over ranks, in place; those of weights that are spread over ranks are sums already."""
    if ranks.world_size() == 1:
        return
    from torch.distributed.tensor import DTensor

    for parameter in module.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            ranks.sum_over_ranks(parameter.grad)


def whole_state(module: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor] | None:
    """The module's state dict with whole tensors, on the main rank's CPU; empty on others; None if it isn't sharded.

    Every rank has to call it.

    Args:
        module: what was given to `shard`, a part of it, or any other.
        wanted: whether a tensor of this name is.
    """
    if not _sharded_parts(module):
        return None
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if wanted(name):
            full = whole(tensor)
            if ranks.is_main():
                state[name] = full.cpu()
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        # Tied weights come once for each name; as one tensor they are saved once.
        if name in state:
            state[name] = state[first.setdefault(id(parameter), name)]
    return state


def renew_flags(module: nn.Module) -> None:
    """Has gathered weights require gradients as their parts do, whose flags have been changed after `shard`."""
    if not _sharded_parts(module):
        return
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    with whole_weights(module):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(flags[name])


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over ranks; every rank has to call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be spread over ranks."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_as(like: Tensor, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape of which each rank has a part as it has of `like`; the part itself where it has all."""
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return part
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape), stride=strides
    )


def number_of_parts(tensor: Tensor) -> int:
    """Over how many ranks a tensor is spread; 1 where each has all of it."""
    from torch.distributed.tensor import DTensor

    return tensor.device_mesh.size() if isinstance(tensor, DTensor) else 1


def load_optimizer_states(
    optimizers: Mapping[str, torch.optim.Optimizer], saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Puts optimisers back to state dicts with whole tensors; each rank keeps its part."""
    for name, optimizer in optimizers.items():
        _load_optimizer_state(optimizer, saved[name])


def _load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {name: part_of(value, parameters[number]) for name, value in entry.items()}
        for number, entry in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def part_of(value: Any, parameter: Tensor) -> Any:
    """A whole tensor of a parameter's shape as one that is spread over ranks like it; anything else as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    there = value.to(parameter.device)
    # Every rank has read the whole, so that none needs to send.
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _run(function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    return function(*arguments, **named)


def _sharded_parts(module: nn.Module) -> list[Any]:
    """The groups of weights that are gathered together, the module's own first."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the models inside: what transformers says must stay in one place."""
    names = {
        name
        for part in module.modules()
        if isinstance(part, PreTrainedModel)
        for name in (getattr(part, "_no_split_modules", None) or ())
    }
    return [part for part in module.modules() if type(part).__name__ in names]
