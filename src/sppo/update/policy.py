"""The policy's update.

A loss is a weighted sum whose weights are fixed for the whole mini-batch before it is cut into micro-batches, so the
loss and its gradient don't depend on the cut. Shapes: B sequences of a step, b of a micro-batch, T response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.algorithms.masked import blame_least_likely, token_weights, whiten
from sppo.algorithms.policy_loss import LossOptions, policy_loss
from sppo.batch import Batch, Credit, Estimates
from sppo.config import OptimizerConfig, SamplingConfig
from sppo.models.logprobs import response_loss
from sppo.models.packing import TokenRow
from sppo.runs import ranks
from sppo.update.deal import DUMMY_ROW, dealt
from sppo.update.logprobs import row_logprobs, token_rows
from sppo.update.steps import StepGuard, mean_of_finite, minibatches


def update_policy(
    policy: PreTrainedModel,
    adam: torch.optim.Optimizer,
    batch: Batch,
    before: Estimates,
    credit: Credit,
    *,
    loss_options: LossOptions,
    optimizer: OptimizerConfig,
    sampling: SamplingConfig,
    expected_rows: int,
    seed: int,
    guard: StepGuard,
) -> dict[str, float]:
    """One step's optimiser steps on the policy.

    Args:
        policy: to train.
        adam: its optimiser.
        batch: B graded responses.
        before: old log-probabilities and importance weights.
        credit: advantages [B, 1] or [B, T]; whitened here, over the step's batch, where the loss says so.
        loss_options: the loss's form.
        optimizer: mini-batch size, epochs, micro-batches.
        sampling: temperature and longest response.
        expected_rows: B when no sample is left out; fixes the number of mini-batches.
        seed: of the order of rows.
        guard: takes the optimiser steps.

    Returns:
        Metrics: means over the optimiser steps, and over the tokens that they trained on, each as often as it was.
        What a skipped step read is no part of them; a mean of nothing is nan.
    """
    by_token = credit.advantages.shape[1] > 1
    assert loss_options.ratio == "token" or not by_token, "a ratio of whole responses has no place for token advantages"
    advantages = whiten(credit.advantages, batch.loss_mask, loss_options.whitening).expand_as(batch.mask)
    advantages = blame_least_likely(advantages, batch.sampler_logprobs, batch.mask, loss_options.negative_share)
    losses: list[float] = []
    norms: list[float] = []
    means = _TokenMeans(batch.mask)
    lengths = batch.lengths
    for rows in minibatches(len(batch), expected_rows, optimizer.minibatch_size, optimizer.epochs, seed):
        weights = _minibatch_weights(batch, rows, loss_options, sampling.max_response_tokens)
        if weights is None:
            continue
        loss, read = 0.0, []
        for part in dealt([lengths[row] for row in rows], optimizer.tokens_per_microbatch, optimizer.layout):
            if not part:
                _no_loss(policy, optimizer).backward()
                continue
            members = [rows[index] for index in part]
            losing = _Losing.of(before, advantages, weights[part], members, loss_options, policy.device)
            part_loss = _part_loss(policy, losing, token_rows(batch, members), optimizer, sampling.temperature)
            part_loss.backward()
            loss += float(part_loss.detach())
            read.append((members, losing))
        loss = ranks.total(loss)
        norms.append(guard.step("policy", adam, policy, loss))
        losses.append(loss)
        if math.isfinite(norms[-1]):
            means.add(read)
    return {"policy/loss": mean_of_finite(losses), "policy/grad_norm": mean_of_finite(norms), **means.metrics()}


_SEEN = ("clipfrac", "approx_kl", "entropy")
"""What is noted of each token while its loss is made."""

Place = Any
"""Index into [b, T]: everything, or the rows and columns of some tokens, each [n, 1]."""


@dataclass(frozen=True)
class _Losing:
    """What the loss of one micro-batch is made of, [b, T] each, and what is noted on the way."""

    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    ref_logprobs: Tensor | None
    importance_weights: Tensor | None
    options: LossOptions
    seen: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        before: Estimates,
        advantages: Tensor,
        weights: Tensor,
        rows: Sequence[int],
        options: LossOptions,
        device: torch.device,
    ) -> _Losing:
        old = before.old_logprobs[rows].to(device)
        return cls(
            old_logprobs=old,
            advantages=advantages[rows].to(device),
            weights=weights.to(device),
            ref_logprobs=None if before.ref_logprobs is None else before.ref_logprobs[rows].to(device),
            importance_weights=None
            if before.importance_weights is None
            else before.importance_weights[rows].to(device),
            options=options,
            seen={name: torch.zeros_like(old) for name in _SEEN},
        )

    def loss(self, logprobs: Tensor, entropy: Tensor, place: Place) -> Tensor:
        """The loss of the tokens at `place`, whose log-probabilities and entropies have that place's shape."""
        result = policy_loss(
            logprobs,
            self.old_logprobs[place],
            self.advantages[place],
            self.weights[place],
            self.options,
            entropy=entropy,
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[place],
            importance_weights=None if self.importance_weights is None else self.importance_weights[place],
        )
        self.seen["clipfrac"][place] = result.clipped.float()
        self.seen["approx_kl"][place] = result.approx_kl
        self.seen["entropy"][place] = entropy.detach()
        return result.loss


class _TokenMeans:
    """Means over tokens and optimiser steps of what was noted, [B, T] each."""

    def __init__(self, mask: Tensor) -> None:
        self._sums = {name: torch.zeros(mask.shape) for name in _SEEN}
        self._counts = torch.zeros(mask.shape, dtype=torch.int64)

    def add(self, read: Sequence[tuple[list[int], _Losing]]) -> None:
        """Takes in the micro-batches of one optimiser step: rows, and what was noted of them."""
        for rows, losing in read:
            trained = losing.weights > 0
            self._counts[rows] += trained.cpu()
            for name, values in losing.seen.items():
                self._sums[name][rows] += torch.where(trained, values, 0.0).cpu()

    def metrics(self) -> dict[str, float]:
        """Means over the tokens that all ranks have read; every rank has to call it."""
        count = int(ranks.sum_over_ranks(self._counts).sum())
        whole = {name: ranks.sum_over_ranks(sums).sum() for name, sums in self._sums.items()}
        return {f"policy/{name}": float(sum_ / count) if count else math.nan for name, sum_ in whole.items()}


def _part_loss(
    policy: PreTrainedModel, losing: _Losing, rows: Sequence[TokenRow], optimizer: OptimizerConfig, temperature: float
) -> Tensor:
    """The loss of one micro-batch, with gradient."""
    if losing.options.ratio != "token":
        said = row_logprobs(policy, rows, losing.weights.shape[1], optimizer, temperature)
        return losing.loss(said.logprobs, said.entropy, ...)
    # No token's loss looks at another's, so that each may pass for a sequence of its own.
    return response_loss(
        policy,
        rows,
        lambda logprobs, entropy, row, column: losing.loss(
            logprobs[:, None], entropy[:, None], (row[:, None], column[:, None])
        ),
        temperature=temperature,
        layout=optimizer.layout,
    )


def _no_loss(policy: PreTrainedModel, optimizer: OptimizerConfig) -> Tensor:
    """A loss of 0 whose backward pass meets those of other ranks, where this one has no rows for it."""
    return response_loss(policy, [DUMMY_ROW], lambda logprobs, *others: logprobs.sum() * 0.0, layout=optimizer.layout)


def _minibatch_weights(batch: Batch, rows: Sequence[int], loss: LossOptions, longest: int) -> Tensor | None:
    """[b, T] weights of a mini-batch's tokens, by its counts; None where no token of it is trained on.

    AdamW would move the weights then too, by decay and momentum, without having learned anything.
    """
    mask = batch.loss_mask[rows]
    tokens, sequences = float(mask.sum()), float(mask.any(dim=1).sum())
    return token_weights(mask, loss.aggregation, tokens, sequences, longest) if tokens else None
