"""The critics as the loop sees them: values before the update, one update a step, whole in a checkpoint.

Three kinds: a model that values prompts (SPPO), a model that values every token (PPO), and counts of each prompt's own
past (SPO). Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sppo.batch import Batch, Credit, Estimates
from sppo.types import Prompt
from sppo.update.steps import StepGuard

Metrics = dict[str, float]


class Critic(Protocol):
    """What the loop asks of a critic."""

    optimizers: Mapping[str, torch.optim.Optimizer]
    """"critic" where it is a model."""

    def values(self, batch: Batch) -> Tensor:
        """V [B, 1] or [B, T] before this step's update, no gradient, on the CPU."""

    def prompt_values(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """V of each prompt, for calibration; None where this critic can't tell."""

    def unseen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts that the critic must first be started on."""

    def start(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Starts the critic on an unseen prompt from offline rewards."""

    def set_prior(self, solve_rate: float) -> None:
        """Starts V at the solve rate of the first batch."""

    def update(
        self, batch: Batch, before: Estimates, credit: Credit, *, expected_rows: int, seed: int, guard: StepGuard
    ) -> Metrics:
        """One step's learning; returns its metrics."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the critic into a checkpoint."""
