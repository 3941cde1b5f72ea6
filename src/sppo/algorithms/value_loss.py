"""Losses of critics: cross-entropy for one of solvability, which is a classifier; squares; PPO's clipped square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bce_value_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of V = sigmoid(logit) against R, in nats: the weighted sum.

    BCE(V, R) = -R log V - (1 - R) log(1 - V), SPPO section 4.

    Args:
        logits: [b, 1] or [b, T].
        targets: the same shape, in [0, 1].
        weights: the same shape; 1 / count over the whole mini-batch, 0 on padding.
    """
    assert logits.shape == targets.shape == weights.shape, "logits, targets and weights differ in shape"
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(weights > 0, weights * losses, 0.0).sum()


def squared_value_loss(values: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Squared error (V - R)^2 of a critic whose V is its output: the weighted sum.

    Args:
        values: [b, 1] with gradient.
        targets: the same shape.
        weights: the same shape; 1 / count over the whole mini-batch.
    """
    assert values.shape == targets.shape == weights.shape, "values, targets and weights differ in shape"
    return (weights * (values - targets) ** 2).sum()


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, weights: Tensor, clip: float) -> Tensor:
    """PPO's squared error, the worse of the value and the value kept near the old one: the weighted sum.

    0.5 max((v - G)^2, (clip(v, v_old - clip, v_old + clip) - G)^2)

    Args:
        values: [b, T] with gradient.
        old_values: [b, T] before this step's updates.
        targets: [b, T] returns G.
        weights: [b, T]; 1 / count over the whole mini-batch, 0 on padding.
        clip: width on either side of the old value.
    """
    assert values.shape == old_values.shape == targets.shape == weights.shape, "shapes differ"
    near = old_values + (values - old_values).clamp(-clip, clip)
    losses = 0.5 * torch.maximum((values - targets) ** 2, (near - targets) ** 2)
    return torch.where(weights > 0, weights * losses, 0.0).sum()
