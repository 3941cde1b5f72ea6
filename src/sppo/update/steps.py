"""Optimiser steps: mini-batches, AdamW, and a guard that skips what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from sppo.errors import TrainingError
from sppo.models.loading import trainable_parameters
from sppo.models.sharding import sum_gradients
from sppo.update.eight_bit import BLOCK, AdamW8bit

MOMENT_BYTES = {torch.float32: 8.0, torch.bfloat16: 2 * (1 + 4 / BLOCK)}
"""Of AdamW's two moments of a weight, by what weights are kept in: float32, or 8 bits and a scale for each block."""
_IDLE = "step"
"""Key of whole steps of training."""


@dataclass(kw_only=True)
class StepGuard:
    """Takes optimiser steps, skipping those whose loss or gradient is not finite; gives up after too many in a row."""

    max_norm: float = 1.0
    """Gradient norm above which a gradient is scaled down."""
    max_skipped: int = 5
    """Skipped steps in a row, of an optimiser or of training, after which training stops: a single odd batch is
    skipped, a broken model isn't."""
    skipped_total: int = 0
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)
    """By whose optimiser steps they are; and whole steps of training that had nothing to train on."""
    taken: dict[str, int] = field(default_factory=dict)
    """Steps taken of each model: how often its weights have changed."""

    def count_idle(self, idle: bool) -> int:
        """Counts a step without a response to train on, or ends their row; returns how many in a row there are now."""
        self.skipped_in_a_row[_IDLE] = self.skipped_in_a_row.get(_IDLE, 0) + 1 if idle else 0
        return self.skipped_in_a_row[_IDLE]

    def step(self, name: str, optimizer: torch.optim.Optimizer, module: nn.Module, loss: float) -> float:
        """Sums gradients over ranks, clips them and steps; leaves the weights alone where something is not finite.

        Every rank calls it, with the same loss.

        Args:
            name: of the model.
            optimizer: to step.
            module: holds the gradients.
            loss: of the whole mini-batch.

        Returns:
            The gradient norm before clipping; nan where the step was skipped.

        Raises:
            TrainingError: `max_skipped` steps in a row were skipped.
        """
        sum_gradients(module)
        norm = float(nn.utils.clip_grad_norm_(trainable_parameters(module), self.max_norm))
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            optimizer.step()
            self.taken[name] = self.taken.get(name, 0) + 1
            self.skipped_in_a_row[name] = 0
        else:
            self.skipped_total += 1
            self.skipped_in_a_row[name] = self.skipped_in_a_row.get(name, 0) + 1
        optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row[name] >= self.max_skipped:
            raise TrainingError(
                f"The {name}'s loss or gradient was not finite in {self.max_skipped} optimiser steps in a row "
                f"(last loss {loss:g}, gradient norm {norm:g}). The weights are as before "
                "those steps. Lower the learning rate, or look at the rewards in rollouts/."
            )
        return norm if finite else float("nan")


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Returns AdamW over the trainable parameters; where some are bfloat16, the one that rounds them at random."""
    parameters = list(trainable_parameters(module))
    if any(parameter.dtype == torch.bfloat16 for parameter in parameters):
        return AdamW8bit(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
    # Of weights that are spread over ranks torch would take one at a time, each with several passes.
    fused = True if parameters[0].device.type == "cuda" else None
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=fused)


def minibatches(total: int, expected: int, size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Shuffled, near-equal mini-batches of `total` rows, as many an epoch as `expected` rows would make.

    Samples that were left out make mini-batches smaller, never fewer: the number of optimiser steps stays as planned
    as long as there is a row for each.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(total, generator=generator)
        for rows in order.tensor_split(min(max(expected // size, 1), total)):
            yield rows.tolist()


def mean_of_finite(values: Sequence[float]) -> float:
    """Mean of the finite values, nan where there is none: a skipped step has no gradient norm."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")
