"""Losses of critics, on logits: the critic is a classifier of solvability, so its loss is cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bce_value_loss(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Binary cross-entropy of V = sigmoid(logit) against R, in nats: the sum over these rows divided by `count`.

    BCE(V, R) = -R log V - (1 - R) log(1 - V), SPPO section 4.

    Args:
        logits: [b, 1].
        targets: [b, 1] in [0, 1].
        count: rows of the whole mini-batch, so that the sum over its micro-batches is its mean.
    """
    assert logits.shape == targets.shape, f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ"
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / count
