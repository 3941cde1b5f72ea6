"""The policy's update, and what the critics' updates share with it.

A loss is a weighted sum whose weights are fixed for the whole mini-batch before it is cut into micro-batches, so the
loss and its gradient don't depend on the cut. Shapes: B sequences of a step, b of a micro-batch, T response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo.algorithms.masked import masked_mean, token_weights, whiten
from sppo.algorithms.policy_loss import LossOptions, kl_estimate, policy_loss, truncated_importance_weights
from sppo.batch import Batch, Credit, Estimates, microbatches
from sppo.config import AlgorithmConfig, OptimizerConfig, SamplingConfig
from sppo.distributed import sum_over_ranks
from sppo.errors import TrainingError
from sppo.models.loading import trainable_parameters
from sppo.models.logprobs import TokenLogprobs, response_logprobs, response_loss
from sppo.models.packing import TokenRow


@dataclass
class StepGuard:
    """Takes optimiser steps, skipping those whose loss or gradient is not finite; gives up after too many in a row."""

    max_skipped: int
    """Skipped steps in a row after which training stops."""
    skipped_total: int = 0
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)

    def step(
        self, name: str, optimizer: torch.optim.Optimizer, module: nn.Module, loss: float, max_norm: float
    ) -> float:
        """Sums gradients over ranks, clips them and steps; leaves the weights alone where something is not finite.

        Args:
            name: whose step it is, for the message.
            optimizer: to step.
            module: holds the gradients.
            loss: of this rank's share of the mini-batch.
            max_norm: gradient norm above which it is scaled down.

        Returns:
            The gradient norm before clipping; nan where the step was skipped.

        Raises:
            TrainingError: `max_skipped` steps in a row were skipped.
        """
        gradients = [p.grad for p in trainable_parameters(module) if p.grad is not None]
        total_loss = sum_over_ranks(torch.tensor(loss))
        for gradient in gradients:
            sum_over_ranks(gradient)
        norm = nn.utils.clip_grad_norm_(trainable_parameters(module), max_norm)
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(total_loss))
        if finite:
            optimizer.step()
            self.skipped_in_a_row[name] = 0
        else:
            self.skipped_total += 1
            self.skipped_in_a_row[name] = self.skipped_in_a_row.get(name, 0) + 1
        optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row[name] >= self.max_skipped:
            raise TrainingError(
                f"The {name}'s loss or gradient was not finite in {self.max_skipped} optimiser steps in a row "
                f"(last loss {float(total_loss):g}, gradient norm {float(norm):g}). The weights are as before "
                "those steps. Lower the learning rate, or look at the rewards and log-probabilities in rollouts.jsonl."
            )
        return float(norm) if finite else float("nan")


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters."""
    return torch.optim.AdamW(
        list(trainable_parameters(module)), lr=learning_rate, betas=betas, weight_decay=weight_decay
    )


@torch.no_grad()
def estimate(
    batch: Batch,
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    values: Tensor | None,
    algorithm: AlgorithmConfig,
    optimizer: OptimizerConfig,
    temperature: float,
) -> tuple[Estimates, dict[str, float]]:
    """Reads old and reference log-probabilities before any update.

    Args:
        batch: B graded responses.
        policy: as it sampled.
        reference: what training started from, where the algorithm asks for it.
        values: of the critic, as they were before its update.
        algorithm: old log-probabilities' source, importance cap, KL penalty.
        optimizer: micro-batches.
        temperature: of sampling.

    Returns:
        The estimates, and metrics of the gap between sampler and trainer.
    """
    metrics: dict[str, float] = {}
    old, importance = batch.sampler_logprobs, None
    if algorithm.old_logprobs == "trainer":
        old = batch_logprobs(policy, batch, optimizer, temperature)
        gap = (old - batch.sampler_logprobs).abs()
        metrics["sampler/logprob_gap_mean"] = masked_mean(gap, batch.mask)
        metrics["sampler/logprob_gap_max"] = float(gap[batch.mask].max())
        if algorithm.importance_cap is not None:
            importance = truncated_importance_weights(old, batch.sampler_logprobs, algorithm.importance_cap)
            metrics["sampler/importance_weight_mean"] = masked_mean(importance, batch.mask)
    ref = penalty = None
    if reference is not None:
        ref = batch_logprobs(reference, batch, optimizer, temperature)
        metrics["policy/kl_to_reference"] = masked_mean(kl_estimate(old, ref, "k3"), batch.mask)
        if algorithm.kl_coefficient and algorithm.kl_place == "reward":
            kl = kl_estimate(old, ref, algorithm.kl_estimator)
            penalty = torch.where(batch.mask, algorithm.kl_coefficient * kl, 0.0)
    return Estimates(old, values, ref, penalty, importance), metrics


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
        Metrics, each a mean over the tokens or optimiser steps of the whole step.
    """
    advantages = whiten(credit.advantages, batch.loss_mask, loss_options.whitening).expand_as(batch.mask)
    losses: list[float] = []
    norms: list[float] = []
    seen = {name: torch.zeros_like(batch.sampler_logprobs) for name in ("clipfrac", "approx_kl", "entropy")}
    lengths = batch.lengths
    for rows in minibatches(len(batch), expected_rows, optimizer.minibatch_size, optimizer.epochs, seed):
        weights = _minibatch_weights(batch, rows, loss_options, sampling.max_response_tokens)
        loss = 0.0
        for part in microbatches([lengths[row] for row in rows], optimizer.tokens_per_microbatch, optimizer.layout):
            members = [rows[index] for index in part]
            losing = _Losing.of(before, advantages, weights[part], members, loss_options, policy.device)
            part_loss = _part_loss(policy, losing, token_rows(batch, members), optimizer, sampling.temperature)
            part_loss.backward()
            loss += float(part_loss.detach())
            for name, values in losing.seen.items():
                seen[name][members] = values.cpu()
        norms.append(guard.step("policy", adam, policy, loss, optimizer.max_grad_norm))
        losses.append(loss)
    means = {f"policy/{name}": masked_mean(values, batch.mask) for name, values in seen.items()}
    return {"policy/loss": mean_of_finite(losses), "policy/grad_norm": mean_of_finite(norms), **means}


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
            seen={name: torch.zeros_like(old) for name in ("clipfrac", "approx_kl", "entropy")},
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
        chunk=optimizer.logprob_chunk_tokens,
        layout=optimizer.layout,
    )


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


def token_rows(batch: Batch, rows: Sequence[int]) -> list[TokenRow]:
    """Prompt and response ids of some rows."""
    chosen = [batch.rollouts[row] for row in rows]
    return [(rollout.prompt_token_ids, rollout.completion.token_ids) for rollout in chosen]


def row_logprobs(
    model: PreTrainedModel, rows: Sequence[TokenRow], width: int, optimizer: OptimizerConfig, temperature: float
) -> TokenLogprobs:
    """`response_logprobs` of one micro-batch, as the options say."""
    return response_logprobs(
        model,
        rows,
        width=width,
        temperature=temperature,
        chunk=optimizer.logprob_chunk_tokens,
        layout=optimizer.layout,
    )


@torch.no_grad()
def batch_logprobs(model: PreTrainedModel, batch: Batch, optimizer: OptimizerConfig, temperature: float) -> Tensor:
    """[B, T] log-probabilities of the whole batch, on the CPU; 0 outside the responses."""
    result = torch.zeros_like(batch.sampler_logprobs)
    for rows in microbatches(batch.lengths, optimizer.tokens_per_microbatch, optimizer.layout):
        said = row_logprobs(model, token_rows(batch, rows), batch.mask.shape[1], optimizer, temperature)
        result[rows] = said.logprobs.cpu()
    return result


def mean_of_finite(values: Sequence[float]) -> float:
    """Mean of the finite values, nan where there is none: a skipped step has no gradient norm."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")


def _minibatch_weights(batch: Batch, rows: Sequence[int], loss: LossOptions, longest: int) -> Tensor:
    """[b, T] weights of a mini-batch's tokens, by counts over all ranks."""
    mask = batch.loss_mask[rows]
    counts = sum_over_ranks(torch.tensor([mask.sum(), mask.any(dim=1).sum()], dtype=torch.float64))
    tokens, sequences = counts.tolist()
    return token_weights(mask, loss.aggregation, tokens, max(sequences, 1.0), longest)
