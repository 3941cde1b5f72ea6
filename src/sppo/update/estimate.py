"""What the models say of a batch before any of the step's updates."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.algorithms.masked import masked_mean
from sppo.algorithms.policy_loss import kl_estimate, truncated_importance_weights
from sppo.batch import Batch, Estimates
from sppo.config import AlgorithmConfig, OptimizerConfig
from sppo.update.logprobs import batch_logprobs


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
            metrics["sampler/importance_weight_mean"] = masked_mean(importance, batch.loss_mask)
    ref = penalty = None
    if reference is not None:
        ref = batch_logprobs(reference, batch, optimizer, temperature)
        # Over all responses: without those that aren't trained on it would be of other responses than the policy's.
        metrics["policy/kl_to_reference"] = masked_mean(kl_estimate(old, ref, "k3"), batch.mask)
        if algorithm.kl_coefficient and algorithm.kl_place == "reward":
            kl = kl_estimate(old, ref, "k1")
            penalty = torch.where(batch.mask, algorithm.kl_coefficient * kl, 0.0)
    return Estimates(old, values, ref, penalty, importance), metrics
