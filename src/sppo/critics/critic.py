"""The critics as the loop sees them: values before the update, one update a step, whole in a checkpoint.

Four kinds: a model that values prompts (SPPO), a model that values every token (PPO), counts of each prompt's own past
(SPO), and the optimal value from offline outcomes (A*-PO). Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sppo.batch import Batch, Credit, Estimates
from sppo.types import Beliefs, Prompt

Metrics = dict[str, float]


class Critic(Protocol):
    """What the loop asks of a critic."""

    optimizers: Mapping[str, torch.optim.Optimizer]
    """"critic" where it is a model."""

    def values(self, batch: Batch) -> Tensor | None:
        """V [B, 1] or [B, T] before this step's learning, no gradient, on the CPU; None of no critic."""

    def beliefs(self, prompts: Sequence[Prompt]) -> Beliefs | None:
        """How solvable each prompt is; None where V is no probability of solving a prompt, or there is no V."""

    def lacking(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """How many outcomes of each prompt the critic wants before it can value it; they are sampled for it."""

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Takes in the outcomes that it lacked, those that have a reward."""

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """One step's learning; `seed` fixes the order of rows. Returns its metrics."""

    def policy_moved(self) -> None:
        """The policy was updated: outcomes that were seen before are of an older one."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the critic into a checkpoint."""


class NoCritic:
    """Stands in for a critic where the algorithm has none."""

    optimizers: Mapping[str, torch.optim.Optimizer] = {}

    def values(self, batch: Batch) -> None:
        """No V."""

    def beliefs(self, prompts: Sequence[Prompt]) -> None:
        """No V of any prompt."""

    def lacking(self, prompts: Sequence[Prompt]) -> list[int]:
        """Nothing."""
        return [0] * len(prompts)

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Never asked for outcomes, so never given any."""

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """Nothing to learn."""
        return {}

    def policy_moved(self) -> None:
        """Nothing gets older."""

    def save_pretrained(self, folder: Path) -> None:
        """Nothing to save."""
