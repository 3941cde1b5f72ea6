"""What all critics that learn by gradients share: optimiser, mini-batches, the start of V."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sppo.batch import Batch
from sppo.config import CriticConfig
from sppo.critics.critic import Metrics
from sppo.critics.models import PRIORS, ScalarHead
from sppo.runs import ranks
from sppo.update.steps import StepGuard, make_optimizer, mean_of_finite, minibatches

Learner = TypeVar("Learner", bound=ScalarHead)


class _ModelCritic(Generic[Learner]):
    """What all critics that learn by gradients share."""

    def __init__(
        self,
        model: Learner,
        config: CriticConfig,
        *,
        rows: int = 1,
        guard: StepGuard | None = None,
        name: str = "critic",
    ) -> None:
        """Wraps the model.

        Args:
            model: trunk and head.
            config: learning rate, mini-batches, epochs, prior.
            rows: B when no sample is left out; fixes the number of mini-batches.
            guard: takes the optimiser steps; default: one of its own.
            name: of its optimiser.
        """
        self.model = model
        self.config = config
        self.rows = rows
        self.name = name
        self.guard = guard or StepGuard(max_skipped=1)
        self.adam = make_optimizer(model, config.learning_rate, config.weight_decay)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {name: self.adam}
        if config.prior is not None and not model.started:
            self._begin_at(config.prior)

    @property
    def started(self) -> bool:
        """Whether V has a place to start from."""
        return self.model.started

    def _begin_at(self, prior: float) -> None:
        if self.model.probability:
            self.model.set_prior(prior)
        else:
            self.model.set_bias(prior)
        self.model.started = True

    def policy_moved(self) -> None:
        """Nothing: a model follows the policy by learning."""

    def _start(self, batch: Batch) -> Tensor | None:
        """Before its first batch, V of everything becomes that batch's mean reward, where there is no prior.

        Returns:
            [B, 1] V of that first batch where V comes from it: the mean reward of the other prompts, so that no
            response's own outcome is in its V. None elsewhere: V is what the model says.
        """
        if self.model.started:
            return None
        self._begin_at(float(batch.rewards.mean()))
        of_others = means_of_others(batch.rewards, batch.groups)
        return (of_others.clamp(*PRIORS) if self.model.probability else of_others)[:, None]

    def save_pretrained(self, folder: Path) -> None:
        """Writes trunk, tokenizer and head."""
        self.model.save_pretrained(folder)

    def _learn(
        self,
        losses: Callable[[list[int]], Iterator[Tensor]],
        total: int,
        seed: int,
    ) -> Metrics:
        """One optimiser step a mini-batch; `losses` yields the loss of each micro-batch of some rows, of this rank."""
        sums: list[float] = []
        norms: list[float] = []
        for rows in minibatches(total, self.rows, self.config.minibatch_size, self.config.epochs, seed):
            loss = 0.0
            for part_loss in losses(rows):
                part_loss.backward()
                loss += float(part_loss.detach())
            loss = ranks.total(loss)
            norms.append(self.guard.step(self.name, self.adam, self.model, loss))
            sums.append(loss)
        return {"critic/loss": mean_of_finite(sums), "critic/grad_norm": mean_of_finite(norms)}


def means_of_others(rewards: Tensor, groups: Tensor) -> Tensor:
    """[B] the mean reward of the responses to other prompts; one half where there is no other prompt.

    Args:
        rewards: [B].
        groups: [B] int64 from 0 on, equal for responses to one prompt.
    """
    total = torch.zeros(int(groups.max()) + 1).index_add(0, groups, rewards)[groups]
    count = torch.bincount(groups)[groups]
    others = len(rewards) - count
    return torch.where(others > 0, (rewards.sum() - total) / others.clamp(min=1), 0.5)
