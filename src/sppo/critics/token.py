"""V before every response token by a model (PPO)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sppo.algorithms.masked import masked_mean
from sppo.algorithms.value_loss import bce_value_loss, clipped_value_loss
from sppo.batch import Batch, Credit, Estimates
from sppo.config import CriticConfig
from sppo.critics.critic import Metrics
from sppo.critics.learning import _ModelCritic
from sppo.critics.models import TokenCritic
from sppo.models.sharding import let_go
from sppo.runs import ranks
from sppo.types import Prompt
from sppo.update.deal import DUMMY_ROW, dealt
from sppo.update.logprobs import token_rows
from sppo.update.steps import StepGuard


class TokenModelCritic(_ModelCritic[TokenCritic]):
    """V before every response token by a model that reads the policy's token ids (PPO)."""

    def __init__(
        self,
        model: TokenCritic,
        config: CriticConfig,
        *,
        probability: bool,
        value_clip: float | None,
        rows: int = 1,
        guard: StepGuard | None = None,
    ) -> None:
        """Wraps the model.

        Args:
            model: trunk and head.
            config: learning rate, mini-batches, epochs.
            probability: V is a sigmoid and learns by cross-entropy; else V is the output and learns by squares.
            value_clip: width of the value clip of the squared loss.
            rows: B when no sample is left out.
            guard: takes the optimiser steps.
        """
        model.probability = probability
        super().__init__(model, config, rows=rows, guard=guard)
        self.value_clip = value_clip

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """[B, T], 0 outside the mask: what the policy didn't write has no V of its own."""
        first = self._start(batch)
        if first is not None:
            return torch.where(batch.mask, first, 0.0)
        raw = torch.zeros_like(batch.sampler_logprobs)
        for rows in dealt(batch.lengths, self.model.tokens_per_microbatch):
            said = self._outputs(batch, rows).cpu()
            if rows:
                raw[rows] = said
        let_go(self.model)
        ranks.sum_over_ranks(raw)
        return torch.where(batch.mask, raw.sigmoid() if self.model.probability else raw, 0.0)

    def beliefs(self, prompts: Sequence[Prompt]) -> None:
        """None: V belongs to states of a response."""

    def lacking(self, prompts: Sequence[Prompt]) -> list[int]:
        """Nothing: a model has a value for every prompt."""
        return [0] * len(prompts)

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Never given any, as it lacks none."""
        raise AssertionError("a model lacks no outcomes")

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """The value loss, token mean over each mini-batch."""
        assert credit.value_targets is not None, "the algorithm gave the critic nothing to learn"
        assert before.values is not None, "values are read before they are updated"
        values, targets, lengths = before.values, credit.value_targets, batch.lengths

        def losses(rows: list[int]) -> Iterator[Tensor]:
            tokens = float(batch.mask[rows].sum())
            for part in dealt([lengths[row] for row in rows], self.model.tokens_per_microbatch):
                members = [rows[index] for index in part]
                yield (
                    self._loss(batch, values, targets, members, tokens)
                    if part
                    else self._outputs(batch, []).sum() * 0.0
                )

        metrics = self._learn(losses, len(batch), seed)
        gap = (targets - values).abs()
        return {
            **metrics,
            "critic/value_mean": masked_mean(values, batch.mask),
            "critic/error_mean": masked_mean(gap, batch.mask),
        }

    def _outputs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """[r, T] of some rows; of a dummy where there are none."""
        return self.model.response_values(token_rows(batch, rows) or [DUMMY_ROW], batch.mask.shape[1])

    def _loss(self, batch: Batch, old: Tensor, targets: Tensor, rows: Sequence[int], tokens: float) -> Tensor:
        outputs = self._outputs(batch, rows)
        weights = (batch.mask[rows].float() / tokens).to(outputs.device)
        aims = targets[rows].to(outputs.device)
        if self.model.probability:
            return bce_value_loss(outputs, aims, weights)
        assert self.value_clip is not None, "the squared loss has a value clip"
        return clipped_value_loss(outputs, old[rows].to(outputs.device), aims, weights, self.value_clip)
