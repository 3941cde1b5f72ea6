"""Reductions over response tokens. A loss is a weighted sum; the weights carry the mask and the global count.

With the weights fixed for the whole mini-batch, the sum over any cut into micro-batches is the same loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean"]


def token_weights(mask: Tensor, aggregation: Aggregation, tokens: float, sequences: float) -> Tensor:
    """Returns [B, T] weights that sum to 1 over a mini-batch.

    Args:
        mask: [B, T] bool of the mini-batch, or of one rank's share of it.
        aggregation: "token_mean" weighs all tokens alike; "sequence_mean" gives each sequence the same weight, shared
            by its tokens.
        tokens: response tokens of the whole mini-batch, over all ranks.
        sequences: rows of the whole mini-batch, over all ranks.

    Formulas: token_mean 1 / sum(T_i); sequence_mean 1 / (B T_i).
    """
    assert mask.ndim == 2, f"mask has shape {tuple(mask.shape)}, not [B, T]"
    assert mask.dtype == torch.bool, f"mask is {mask.dtype}, not bool"
    weights = mask.to(torch.float32)
    if aggregation == "token_mean":
        return weights / tokens
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1) / sequences


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean of `values` [B, T] over the mask; 0 where the mask is empty."""
    assert values.shape == mask.shape, f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ"
    count = int(mask.sum())
    return float(torch.where(mask, values, 0.0).sum() / count) if count else 0.0
