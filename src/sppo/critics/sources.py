"""Two sources of V beside a model: two models whose disagreement is read, and one running mean for all prompts.

Shapes: B sequences, N prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sppo.batch import Batch, Credit, Estimates
from sppo.critics.critic import Metrics
from sppo.critics.models import require_file
from sppo.critics.prompt import PromptModelCritic
from sppo.runs.seeds import derive_seed
from sppo.types import Prompt

SECOND_FOLDER = "second"
"""Of the second model, in the folder of the first."""
RATE_FILE = "mean_rate.safetensors"
RATE_DISCOUNT = 0.7
"""What a step's responses count for in the running mean a step later: about three steps, as the policy moves."""


@dataclass
class PairSource:
    """Two models of the same kind, whose mini-batches come in other orders: where they differ, neither is sure."""

    first: PromptModelCritic
    second: PromptModelCritic

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Of both."""
        return {**self.first.optimizers, **self.second.optimizers}

    @property
    def probability(self) -> bool:
        """Of both."""
        return self.first.probability

    @property
    def started(self) -> bool:
        """Of both."""
        return self.first.started

    def values(self, batch: Batch) -> Tensor:
        """[B, 2]."""
        return torch.cat([self.first.values(batch), self.second.values(batch)], dim=1)

    def prompt_values(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, 2]."""
        return torch.cat([self.first.prompt_values(prompts), self.second.prompt_values(prompts)], dim=1)

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """Both learn the same targets; the mean of their metrics."""
        first = self.first.learn(batch, before, credit, seed=seed)
        second = self.second.learn(batch, before, credit, seed=derive_seed(seed, "second critic"))
        return {name: (value + second[name]) / 2 for name, value in first.items()}

    def policy_moved(self) -> None:
        """Nothing: models follow the policy by learning."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the first as a single critic is written, and the second in a folder in it."""
        self.first.save_pretrained(folder)
        self.second.save_pretrained(folder / SECOND_FOLDER)


@dataclass
class RateSource:
    """One V for all prompts, the running mean reward: for history alone, without a model."""

    prior: float = 0.5
    """V before any outcome, worth one."""
    solved: float = 0.0
    """Discounted sum of rewards."""
    samples: float = 0.0
    """Discounted number of them."""
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)

    @property
    def probability(self) -> bool:
        """Always."""
        return True

    @property
    def started(self) -> bool:
        """Always: there is a prior."""
        return True

    @property
    def rate(self) -> float:
        """The mean, with the prior as one more outcome."""
        return (self.solved + self.prior) / (self.samples + 1)

    def values(self, batch: Batch) -> Tensor:
        """[B, 1]."""
        return torch.full((len(batch), 1), self.rate)

    def prompt_values(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, 1]."""
        return torch.full((len(prompts), 1), self.rate)

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """Counts the targets."""
        assert credit.value_targets is not None, "there is nothing to count"
        self.solved += float(credit.value_targets.sum())
        self.samples += len(batch)
        return {}

    def policy_moved(self) -> None:
        """Earlier outcomes count for less."""
        self.solved *= RATE_DISCOUNT
        self.samples *= RATE_DISCOUNT

    def save_pretrained(self, folder: Path) -> None:
        """Writes both sums."""
        folder.mkdir(exist_ok=True)
        save_file({"rate": np.array([self.solved, self.samples])}, folder / RATE_FILE)

    def load(self, folder: Path) -> None:
        """Reads them.

        Raises:
            ModelError: the folder holds another kind of critic.
        """
        require_file(folder, RATE_FILE)
        self.solved, self.samples = load_file(folder / RATE_FILE)["rate"].tolist()
