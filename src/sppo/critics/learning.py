"""What both critics that are models share: optimiser, mini-batches, the start of V."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from sppo.config import CriticConfig
from sppo.critics.critic import Metrics
from sppo.critics.models import Model
from sppo.types import Prompt
from sppo.update.steps import StepGuard, make_optimizer, mean_of_finite, minibatches


class _ModelCritic(Generic[Model]):
    """What both critics that are models share."""

    def __init__(self, model: Model, config: CriticConfig) -> None:
        self.model = model
        self.config = config
        self.adam = make_optimizer(model, config.learning_rate, config.weight_decay)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"critic": self.adam}

    def unseen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """None: a model has a value for every prompt."""
        return []

    def start(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Never called, as no prompt is unseen."""
        raise AssertionError("a model needs no start")

    def set_prior(self, solve_rate: float) -> None:
        """V of everything becomes the solve rate, or the mean reward where V is no probability."""
        if self.model.probability:
            self.model.set_prior(solve_rate)
        else:
            self.model.set_bias(solve_rate)

    def save_pretrained(self, folder: Path) -> None:
        """Writes trunk, tokenizer and head."""
        self.model.save_pretrained(folder)

    def _learn(
        self,
        losses: Callable[[list[int]], Iterator[Tensor]],
        total: int,
        expected_rows: int,
        seed: int,
        guard: StepGuard,
    ) -> Metrics:
        """One optimiser step a mini-batch; `losses` yields the loss of each micro-batch of some rows."""
        sums: list[float] = []
        norms: list[float] = []
        for rows in minibatches(total, expected_rows, self.config.minibatch_size, self.config.epochs, seed):
            loss = 0.0
            for part_loss in losses(rows):
                part_loss.backward()
                loss += float(part_loss.detach())
            norms.append(guard.step("critic", self.adam, self.model, loss, self.config.max_grad_norm))
            sums.append(loss)
        return {"critic/loss": mean_of_finite(sums), "critic/grad_norm": mean_of_finite(norms)}
