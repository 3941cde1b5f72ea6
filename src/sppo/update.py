"""The two updates of a step: the critic's, then the policy's.

A loss is a weighted sum whose weights are fixed for the whole mini-batch before it is cut into micro-batches, so the
loss and its gradient don't depend on the cut. Shapes: B sequences of a step, b of a micro-batch, T response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo.algorithms.masked import masked_mean, token_weights
from sppo.algorithms.policy_loss import policy_loss, truncated_importance_weights
from sppo.algorithms.value_loss import bce_value_loss
from sppo.batch import Batch, Credit, Estimates, microbatches
from sppo.config import AlgorithmConfig, CriticConfig, OptimizerConfig
from sppo.distributed import sum_over_ranks
from sppo.errors import TrainingError
from sppo.models.critic import PromptCritic
from sppo.models.loading import trainable_parameters
from sppo.models.logprobs import TokenLogprobs, response_logprobs


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
    critic: PromptCritic | None,
    algorithm: AlgorithmConfig,
    optimizer: OptimizerConfig,
    temperature: float,
) -> tuple[Estimates, dict[str, float]]:
    """Reads old log-probabilities and values before any update.

    Returns:
        The estimates, and metrics of the gap between sampler and trainer.
    """
    values = critic.values(batch.prompts) if critic is not None else None
    if algorithm.old_logprobs == "sampler":
        return Estimates(batch.sampler_logprobs, values), {}
    old = torch.zeros_like(batch.sampler_logprobs)
    for rows in microbatches(batch.lengths, optimizer.tokens_per_microbatch, optimizer.layout):
        old[rows] = _forward(policy, batch, rows, optimizer, temperature).logprobs.cpu()
    gap = (old - batch.sampler_logprobs).abs()
    metrics = {
        "sampler/logprob_gap_mean": masked_mean(gap, batch.mask),
        "sampler/logprob_gap_max": float(gap[batch.mask].max()),
    }
    weights = None
    if algorithm.importance_cap is not None:
        weights = truncated_importance_weights(old, batch.sampler_logprobs, algorithm.importance_cap)
        metrics["sampler/importance_weight_mean"] = masked_mean(weights, batch.mask)
    return Estimates(old, values, weights), metrics


def update_policy(
    policy: PreTrainedModel,
    adam: torch.optim.Optimizer,
    batch: Batch,
    before: Estimates,
    credit: Credit,
    *,
    algorithm: AlgorithmConfig,
    optimizer: OptimizerConfig,
    temperature: float,
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
        credit: advantages [B, 1] or [B, T].
        algorithm: clip range and aggregation.
        optimizer: mini-batch size, epochs, micro-batches.
        temperature: of sampling.
        expected_rows: B when no sample is left out; fixes the number of mini-batches.
        seed: of the order of rows.
        guard: takes the optimiser steps.

    Returns:
        Metrics, each a mean over the tokens or optimiser steps of the whole step.
    """
    losses: list[float] = []
    norms: list[float] = []
    cut = torch.zeros_like(batch.mask)
    kl = torch.zeros_like(batch.sampler_logprobs)
    entropy = torch.zeros_like(batch.sampler_logprobs)
    for rows in minibatches(len(batch), expected_rows, optimizer.minibatch_size, optimizer.epochs, seed):
        weights = torch.zeros_like(batch.sampler_logprobs)
        counts = sum_over_ranks(torch.tensor([batch.mask[rows].sum(), len(rows)], dtype=torch.float64))
        weights[rows] = token_weights(batch.mask[rows], algorithm.aggregation, *counts.tolist())
        loss = 0.0
        for part in _parts(rows, batch.lengths, optimizer):
            said = _forward(policy, batch, part, optimizer, temperature)
            result = policy_loss(
                said.logprobs,
                before.old_logprobs[part].to(said.logprobs.device),
                credit.advantages[part].to(said.logprobs.device),
                weights[part].to(said.logprobs.device),
                clip_low=algorithm.clip_low,
                clip_high=algorithm.clip_high,
                dual_clip=algorithm.dual_clip,
                importance_weights=_rows_of(before.importance_weights, part, said.logprobs.device),
            )
            result.loss.backward()
            loss += float(result.loss.detach())
            cut[part], kl[part], entropy[part] = result.clipped.cpu(), result.approx_kl.cpu(), said.entropy.cpu()
        norms.append(guard.step("policy", adam, policy, loss, optimizer.max_grad_norm))
        losses.append(loss)
    return {
        "policy/loss": _mean(losses),
        "policy/grad_norm": _mean(norms),
        "policy/clipfrac": masked_mean(cut.float(), batch.mask),
        "policy/approx_kl": masked_mean(kl, batch.mask),
        "policy/entropy": masked_mean(entropy, batch.mask),
    }


def update_critic(
    critic: PromptCritic,
    adam: torch.optim.Optimizer,
    batch: Batch,
    credit: Credit,
    *,
    config: CriticConfig,
    expected_rows: int,
    seed: int,
    guard: StepGuard,
) -> dict[str, float]:
    """One step's optimiser steps on the critic: BCE of V(prompt) against R; equal prompts are computed once.

    Args:
        critic: to train.
        adam: its optimiser.
        batch: B graded responses.
        credit: value targets [B, 1].
        config: mini-batch size, epochs, gradient norm.
        expected_rows: B when no sample is left out.
        seed: of the order of rows.
        guard: takes the optimiser steps.

    Returns:
        Metrics, means over the optimiser steps.
    """
    assert credit.value_targets is not None, "the algorithm gave the critic nothing to learn"
    token_rows, inverse = critic.distinct(batch.prompts)
    losses: list[float] = []
    norms: list[float] = []
    for rows in minibatches(len(batch), expected_rows, config.minibatch_size, config.epochs, seed):
        used, local = inverse[rows].unique(return_inverse=True)  # [U], [b]
        targets = credit.value_targets[rows]
        count = int(sum_over_ranks(torch.tensor(len(rows))))
        loss = 0.0
        for part in microbatches([len(token_rows[u]) for u in used.tolist()], critic.tokens_per_microbatch):
            logits = critic.logits([token_rows[u] for u in used[part].tolist()])  # [U', 1]
            place = torch.full((len(used),), -1)
            place[part] = torch.arange(len(part))
            members = place[local] >= 0
            chosen = logits[place[local][members].to(logits.device)]
            part_loss = bce_value_loss(chosen, targets[members].to(logits.device), count=count)
            part_loss.backward()
            loss += float(part_loss.detach())
        norms.append(guard.step("critic", adam, critic, loss, config.max_grad_norm))
        losses.append(loss)
    return {"critic/loss": _mean(losses), "critic/grad_norm": _mean(norms)}


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


def _forward(
    policy: PreTrainedModel, batch: Batch, rows: Sequence[int], optimizer: OptimizerConfig, temperature: float
) -> TokenLogprobs:
    chosen = [batch.rollouts[row] for row in rows]
    return response_logprobs(
        policy,
        [(rollout.prompt_token_ids, rollout.completion.token_ids) for rollout in chosen],
        width=batch.mask.shape[1],
        temperature=temperature,
        chunk=optimizer.logprob_chunk_tokens,
        layout=optimizer.layout,
    )


def _parts(rows: Sequence[int], lengths: Sequence[int], optimizer: OptimizerConfig) -> list[list[int]]:
    local = microbatches([lengths[row] for row in rows], optimizer.tokens_per_microbatch, optimizer.layout)
    return [[rows[index] for index in part] for part in local]


def _rows_of(tensor: Tensor | None, rows: Sequence[int], device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor[rows].to(device)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if value == value]
    return sum(finite) / len(finite) if finite else float("nan")
