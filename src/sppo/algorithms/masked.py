"""Reductions over response tokens. A loss is a weighted sum; the weights carry the mask and the global count.

With the weights fixed for the whole mini-batch, the sum over any cut into micro-batches is the same loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]


def token_weights(
    mask: Tensor, aggregation: Aggregation, tokens: float, sequences: float, longest: float = 1.0
) -> Tensor:
    """Returns [B, T] weights that add a mini-batch up.

    Args:
        mask: [B, T] bool of the mini-batch, or of one rank's share of it.
        aggregation: "token_mean" weighs all tokens alike; "sequence_mean" gives each sequence the same weight, shared
            by its tokens; "sequence_sum" divides sums by a constant instead of the length (Dr. GRPO).
        tokens: response tokens of the whole mini-batch, over all ranks.
        sequences: rows of the whole mini-batch, over all ranks.
        longest: the constant L of "sequence_sum", the longest response allowed.

    Formulas: token_mean 1 / sum(T_i); sequence_mean 1 / (B T_i); sequence_sum 1 / (B L).
    """
    assert mask.ndim == 2, f"mask has shape {tuple(mask.shape)}, not [B, T]"
    assert mask.dtype == torch.bool, f"mask is {mask.dtype}, not bool"
    weights = mask.to(torch.float32)
    if aggregation == "token_mean":
        return weights / max(tokens, 1.0)
    if aggregation == "sequence_sum":
        return weights / (sequences * longest)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1) / sequences


def last_inside(mask: Tensor) -> Tensor:
    """[B, T] int64: the last column inside the mask [B, T] at or before each column; -1 where there is none."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, -1).cummax(dim=1).values


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean of `values` [B, T] over the mask; 0 where the mask is empty."""
    assert values.shape == mask.shape, f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ"
    count = int(mask.sum())
    return float(torch.where(mask, values, 0.0).sum() / count) if count else 0.0


def blame_least_likely(advantages: Tensor, logprobs: Tensor, mask: Tensor, share: float) -> Tensor:
    """Advantages with 0 at all but the least likely tokens of each failed response: where it went wrong, if anywhere.

    A token without advantage adds nothing to the surrogate, whatever its weight; the weights, and with them the loss's
    denominators, stay. So do the KL and the entropy term, which no advantage weighs: they hold the policy at every
    token. (arXiv 2606.17250 keeps the least likely tenth.)

    Args:
        advantages: [B, T], the same at all tokens of a response; it failed where they are below 0.
        logprobs: [B, T] of the policy that sampled: what was unlikely when it was chosen.
        mask: [B, T] bool, the policy's own tokens.
        share: of these, rounded to the nearest number and at least one a response; of equals the earlier are kept. 1
            keeps all.
    """
    assert advantages.shape == logprobs.shape == mask.shape, "advantages, logprobs and mask differ in shape"
    if share == 1:
        return advantages
    count = (mask.sum(dim=1, keepdim=True, dtype=torch.float64) * share + 0.5).floor().clamp(min=1)  # [B, 1]
    order = torch.where(mask, logprobs, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)  # [B, T]: 0 for the least likely
    return torch.where((advantages < 0) & (rank >= count), 0.0, advantages)


def whiten(advantages: Tensor, mask: Tensor, measure: Literal["none", "sequence", "token"]) -> Tensor:
    """Shifts and scales advantages to mean 0 and standard deviation 1 over the batch.

    (A - mean) / (std + 1e-8), population standard deviation. Where nothing varies, the result is 0.

    Args:
        advantages: [B, 1] or [B, T].
        mask: [B, T] bool.
        measure: what counts once: each "sequence" (for [B, T]: its mean over tokens sets no weight, each token weighs
            1 / T_i), each "token", or "none" for no whitening.
    """
    if measure == "none":
        return advantages
    # In float64: where all advantages are alike, their float32 rounding would be blown up to deviation 1.
    weights = mask.double()
    if measure == "sequence":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    total = weights.sum().clamp(min=1e-12)
    spread = advantages.double().expand_as(weights)
    mean = (weights * spread).sum() / total
    variance = (weights * (spread - mean) ** 2).sum() / total
    return ((advantages - mean) / (variance.sqrt() + 1e-8)).to(advantages.dtype)
