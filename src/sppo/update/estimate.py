"""What the models say of a batch before any of the step's updates."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.algorithms.masked import masked_mean
from sppo.algorithms.policy_loss import kl_estimate, truncated_importance_weights
from sppo.batch import Batch, Estimates
from sppo.config import AlgorithmConfig, OptimizerConfig, SamplingConfig
from sppo.models.adapters import reference_of
from sppo.update.logprobs import batch_logprobs


@torch.no_grad()
def estimate(
    batch: Batch,
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    values: Tensor | None,
    algorithm: AlgorithmConfig,
    optimizer: OptimizerConfig,
    sampling: SamplingConfig,
) -> tuple[Estimates, dict[str, float]]:
    """Reads old and reference log-probabilities before any update.

    Args:
        batch: B graded responses.
        policy: as it sampled.
        reference: what training started from, where the algorithm asks for it; the policy itself: its base.
        values: of the critic, as they were before its update.
        algorithm: old log-probabilities' source, importance cap, KL penalty.
        optimizer: micro-batches.
        sampling: temperature, and whether any token could be sampled.

    Returns:
        The estimates, and metrics of the gap between sampler and trainer, where the two can be compared.
    """
    metrics: dict[str, float] = {}
    old, importance = batch.sampler_logprobs, None
    if algorithm.old_logprobs == "trainer":
        old = batch_logprobs(policy, batch, optimizer, sampling.temperature)
        comparable = _samples_any_token(sampling)
        if comparable:
            gap = (old - batch.sampler_logprobs).abs()
            metrics["sampler/logprob_gap_mean"] = masked_mean(gap, batch.mask)
            metrics["sampler/logprob_gap_max"] = float(gap[batch.mask].max())
        if comparable and algorithm.importance_cap is not None:
            importance = truncated_importance_weights(old, batch.sampler_logprobs, algorithm.importance_cap)
            metrics["sampler/importance_weight_mean"] = masked_mean(importance, batch.loss_mask)
    ref = penalty = None
    if reference is not None:
        with reference_of(policy, reference) as started_from:
            ref = batch_logprobs(started_from, batch, optimizer, sampling.temperature)
        # Over all responses: without those that aren't trained on it would be of other responses than the policy's.
        metrics["policy/kl_to_reference"] = masked_mean(kl_estimate(old, ref, "k3"), batch.mask)
        if algorithm.kl_coefficient and algorithm.kl_place == "reward":
            kl = kl_estimate(old, ref, "k1")
            penalty = torch.where(batch.mask, algorithm.kl_coefficient * kl, 0.0)
    return Estimates(old, values, ref, penalty, importance), metrics


def sampler_notes(algorithm: AlgorithmConfig, sampling: SamplingConfig) -> list[str]:
    """What a person should know of the sampler's log-probabilities before training; mostly nothing."""
    if algorithm.old_logprobs != "trainer" or _samples_any_token(sampling):
        return []
    correction = "" if algorithm.importance_cap is None else ", and algorithm.importance_cap is off"
    return [
        f"With sampling.top_p {sampling.top_p:g} and top_k {sampling.top_k} the sampler's log-probabilities are of the "
        "tokens that those leave, the trainer's of all tokens, so that no gap between them can be told: "
        f"sampler/logprob_gap_* are not measured{correction}. Set top_p to 1 and top_k to 0 to have them."
    ]


def _samples_any_token(sampling: SamplingConfig) -> bool:
    """Whether the sampler's log-probabilities are of the trainer's distribution, so that their quotient says something.

    With top_p or top_k the quotient is mostly the probability of the tokens that were left (at top_p 0.7: weights of
    0.7 and a gap of 0.34 nats where the truth is 1 and 0). To cut the trainer's distribution in the same way would take
    a sort of the vocabulary for every token; and where the two differ at all, they differ in which tokens they leave,
    so that rounding alone would give weights of 0 and gaps without end. Nothing is compared or corrected then.
    """
    return sampling.top_p == 1 and sampling.top_k == 0
