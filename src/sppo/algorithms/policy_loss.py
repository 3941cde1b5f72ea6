"""PPO's clipped surrogate on tokens (Schulman et al., arXiv 1707.06347), with the dual clip (arXiv 1912.09729)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of a part of a mini-batch, and sums from which the whole mini-batch's metrics are made."""

    loss: Tensor
    """Scalar with gradient: the weighted sum over this part's tokens."""
    clipped: Tensor
    """[b, T] bool: tokens whose gradient the clip cut off."""
    approx_kl: Tensor
    """[b, T] float32, no gradient: k3 estimate r - 1 - log r of KL(old || new), nats a token."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    importance_weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped policy-gradient loss.

    r_t = exp(logprobs - old_logprobs)
    L_t = -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A); with dual clip c and A < 0: L_t = min(L_t, -c A)
    loss = sum(weights * importance_weights * L_t)

    Args:
        logprobs: [b, T] of the policy being trained, with gradient.
        old_logprobs: [b, T] of the policy that sampled.
        advantages: [b, 1], shared by all tokens of a sequence, or [b, T].
        weights: [b, T] from `token_weights` of the whole mini-batch; 0 outside the mask.
        clip_low: width of the clip below 1.
        clip_high: width of the clip above 1.
        dual_clip: c > 1, or None.
        importance_weights: [b, T] truncated importance weights, or None.
    """
    assert logprobs.shape == old_logprobs.shape == weights.shape, "logprobs, old_logprobs and weights differ in shape"
    assert advantages.shape in (logprobs.shape, (logprobs.shape[0], 1)), f"advantages {tuple(advantages.shape)}"
    inside = weights > 0
    # Padding holds arbitrary numbers; a ratio of exactly 1 there keeps infinities out of the products with 0.
    # Beyond 20 nats exp() nears infinity, whose product with a clipped gradient of 0 would be nan.
    log_ratio = torch.where(inside, logprobs - old_logprobs, 0.0).clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(unclipped, clipped)
    cut = clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        over = (advantages < 0) & (loss > bound)
        loss = torch.where(over, bound, loss)
        cut = cut | over
    if importance_weights is not None:
        weights = weights * importance_weights
    return PolicyLoss(
        loss=(weights * loss).sum(),
        clipped=cut & inside,
        approx_kl=(ratio - 1 - log_ratio).detach(),
    )


def truncated_importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """min(p_trainer / p_sampler, cap) for each token [B, T]: corrects a sampler that differs from the trainer."""
    assert trainer_logprobs.shape == sampler_logprobs.shape, "log-probabilities differ in shape"
    return (trainer_logprobs - sampler_logprobs).exp().clamp(max=cap)
