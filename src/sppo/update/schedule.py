"""Learning rates by step: a linear rise, then constant, or falling to 0 along a line or half a cosine.

A rate depends on the number of the step of training alone, not on optimiser steps, so that a run which was stopped and
resumed, or which skipped a mini-batch, has the rates that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sppo.config import CriticConfig, OptimizerConfig
from sppo.config.options import Decay


@dataclass(frozen=True)
class Curve:
    """One optimiser's learning rate at each step of training."""

    peak: float
    """The highest rate."""
    steps: int
    """Of the whole run."""
    warmup: int = 0
    """Steps of the linear rise: step s of them has peak * s / warmup."""
    decay: Decay = "constant"
    """What follows. The last step still moves the weights: 0 would be reached a step after it."""

    @classmethod
    def of(cls, options: OptimizerConfig | CriticConfig, steps: int) -> Curve:
        """The curve that a section's options say, over a run of so many steps."""
        return cls(options.learning_rate, steps, options.learning_rate_warmup, options.learning_rate_decay)

    def at(self, step: int) -> float:
        """The rate of a step, from 1 to `steps`."""
        assert 1 <= step <= self.steps, f"step {step} of {self.steps}"
        if step < self.warmup:
            return self.peak * step / self.warmup
        if self.decay == "constant":
            return self.peak
        highest = max(self.warmup, 1)  # the step that has the peak
        done = (step - highest) / (self.steps - highest + 1)
        return self.peak * (1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all of an optimiser's weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def follow(curves: Mapping[str, Curve], optimizers: Mapping[str, torch.optim.Optimizer], step: int) -> dict[str, float]:
    """Sets each optimiser's rate for a step; returns them as metrics.

    Args:
        curves: by the optimiser's name.
        optimizers: by name.
        step: of training, from 1 on.
    """
    rates = {name: curve.at(step) for name, curve in curves.items()}
    for name, rate in rates.items():
        set_learning_rate(optimizers[name], rate)
    return {f"{name}/learning_rate": rate for name, rate in rates.items()}
