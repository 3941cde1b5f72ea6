"""AdamW for weights that are kept in bfloat16: moments in 8 bits, and weights that are rounded at random.

A step at RL's learning rates is far below a bfloat16 weight's resolution, and rounded to the nearest it would be lost.
Rounded up or down at random, with the probabilities that make the mean right, the weights follow the steps on average.
Moments are held in 8 bits, in blocks of 256 that share a scale (Dettmers et al., arXiv 2110.02861).

The arithmetic is torchao's. Its own optimiser is not used: it steps on tensors that are spread over ranks, which fails
without a compiler, and holds the moments of small tensors in bfloat16, in which a second moment never moves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sppo.models.sharding import local, number_of_parts, spread_as

BLOCK = 256
"""Numbers that share a scale."""
_LEAST = 4096
"""Numbers of a tensor, on each rank, from which its moments are held in 8 bits."""
_EPSILON = 1e-8
_SHAPES = 256
"""Of tensors that the step is compiled for; a model has a dozen, and torch stops at 8 by itself."""
MOMENTS = "exp_avg", "exp_avg_sq"
"""The first is signed."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in 8 bits; bfloat16 weights are rounded at random, float32 ones not at all."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """Takes parameters, whole or spread over ranks; moments are made at the first step."""
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Takes a step with the gradients that are there."""
        assert closure is None, "losses are computed before the step"
        for group in self.param_groups:
            rate = torch.tensor(group["lr"], dtype=torch.float32)  # as a number each rate would be compiled anew
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, rate, group["betas"], group["weight_decay"])

    def _move(self, parameter: nn.Parameter, rate: Tensor, betas: tuple[float, float], weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state |= {name: empty_moments(parameter, signed=name == MOMENTS[0]) for name in MOMENTS}
        state["step"] += 1
        assert parameter.grad is not None
        part, gradient, moments = local(parameter), local(parameter.grad), (state[name] for name in MOMENTS)
        if not part.numel():  # of a small tensor on many ranks
            return
        rounded = parameter.dtype == torch.bfloat16
        decays = rate, *betas, weight_decay, _EPSILON
        with nullcontext() if parameter.is_cpu else torch._dynamo.config.patch(recompile_limit=_SHAPES):
            _rule(parameter.is_cpu)(part, gradient, state["step"], *moments, None, *decays, True, rounded)


@dataclass(frozen=True)
class Packed:
    """Moments in 8 bits as two plain tensors, spread over ranks as their parameter is."""

    codes: Tensor
    """uint8, of the parameter's shape."""
    scale: Tensor
    """[numbers / 256] float32."""


def is_packed(moments: Tensor) -> bool:
    """Whether these are held in 8 bits."""
    return hasattr(moments, "codes")


def packed(moments: Tensor, parameter: nn.Parameter) -> Packed | None:
    """The two tensors that hold a parameter's moments in 8 bits; None of moments in float32."""
    if not is_packed(moments):
        return None
    held: Any = moments
    scales = (parameter.numel() // BLOCK,)
    return Packed(spread_as(parameter, held.codes, tuple(parameter.shape)), spread_as(parameter, held.scale, scales))


def in_full(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """The float32 numbers that codes and their scales stand for."""
    kind = _torchao("subclass_8bit").OptimState8bit
    values: Tensor = kind(codes, scale, kind.zeros((BLOCK,), signed, BLOCK, codes.device).qmap, signed).dequantize()
    return values


def empty_moments(parameter: Tensor, *, signed: bool) -> Tensor:
    """Moments of zeros, of this rank's part of a parameter: in 8 bits, or in float32 where it is small or uneven."""
    own = local(parameter)
    if not _in_even_blocks(parameter):
        return torch.zeros_like(own, dtype=torch.float32)
    made: Tensor = _torchao("subclass_8bit").OptimState8bit.zeros(own.shape, signed, BLOCK, own.device)
    return made


def _in_even_blocks(parameter: Tensor) -> bool:
    """Whether every rank has as many whole blocks of it, so that scales are spread as codes are."""
    count = number_of_parts(parameter)
    own, rest = divmod(parameter.numel(), count)
    even = parameter.dim() > 0 and not parameter.shape[0] % count and not rest
    return even and own >= _LEAST and not own % BLOCK


@cache
def _rule(on_cpu: bool) -> Callable[..., None]:
    """AdamW's step on one tensor; compiled on a GPU, where its parts would each take a pass and float32's room."""
    rule: Callable[..., None] = _torchao("adam").single_param_adam
    return rule if on_cpu else torch.compile(rule, fullgraph=True, dynamic=False)


@cache
def _torchao(name: str) -> Any:
    """A module of torchao's optimisers, imported without its remarks on kernels that are not used here."""
    import importlib

    with _silence():
        return importlib.import_module(f"torchao.optim.{name}")


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
