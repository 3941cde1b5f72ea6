"""The policy's loss on tokens: PPO's clipped surrogate (Schulman et al., arXiv 1707.06347) and its relatives.

The ratio is one of
    token       r_t = pi(y_t) / old(y_t)
    sequence    s = exp(mean over t of log r_t), the same for all tokens (GSPO, arXiv 2507.18071)
    joint       exp(sum over t of log pi(y_t) / ref(y_t)), the whole response's, to the *reference* policy (the early
                write-ups of SPPO; FSPO, arXiv 2509.09177). Clipped in log space: at T = 8,000 tokens a clip of 0.2
                leaves 2.5e-5 nats a token; `joint_band` c instead allows abs(sum) <= c sqrt(T), at most 80 nats.

The surrogate is PPO's clip, with the dual clip (arXiv 1912.09729), or CISPO's, which clips the weight and keeps every
token's gradient: -stop_gradient(clip(r)) A log pi (arXiv 2506.13585); or none, where the log-ratio itself is regressed
on the advantage: (beta log r - A)^2 (A*-PO, arXiv 2505.20686).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sppo.algorithms.masked import Aggregation

LOG_RATIO_LIMIT = 20.0
"""Nats. Beyond it, where that is outside the clip, a ratio grows no further and has no gradient: exp() would near
infinity, whose product with a clipped gradient of 0 is nan."""
WIDEST_CLIP = 80.0
"""Nats. No clip reaches further, as exp() leaves float32 at 88."""


@dataclass(frozen=True)
class LossOptions:
    """How advantages become a loss."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """c > 1: for A < 0 a token's loss is at most -c A."""
    ratio: Literal["token", "sequence", "joint"] = "token"
    surrogate: Literal["ppo", "cispo", "regression"] = "ppo"
    aggregation: Aggregation = "token_mean"
    whitening: Literal["none", "sequence", "token"] = "none"
    negative_share: float = 1.0
    """Share of a response's tokens, the least likely ones, that an advantage below 0 is given to."""
    joint_band: float | None = None
    """c of the joint ratio's band in log space; None: the clip range."""
    regression_beta: float = 1.0
    """beta of the regression, advantage a nat."""
    kl_coefficient: float = 0.0
    """Weight of the KL term in the loss; 0 where it is in the reward."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Not k1, whose gradient is 0 in the mean: see `kl_estimate`."""
    entropy_coefficient: float = 0.0
    """Weight of each token's entropy beside its loss; like the KL term, aggregated with it."""


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
    options: LossOptions,
    *,
    entropy: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    importance_weights: Tensor | None = None,
) -> PolicyLoss:
    """Weighted sum of the tokens' losses.

    PPO: L_t = -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A); with dual clip c and A < 0: min(L_t, -c A).
    Regression: L_t = (beta log r - A)^2, the same for all tokens of a response where they share the ratio.
    loss = sum(weights * (importance_weights * L_t + kl_coefficient * kl_t - entropy_coefficient * H_t))

    Args:
        logprobs: [b, T] of the policy being trained, with gradient.
        old_logprobs: [b, T] of the policy that sampled.
        advantages: [b, 1], shared by all tokens of a sequence, or [b, T].
        weights: [b, T] from `token_weights` of the whole mini-batch; 0 outside the mask.
        options: the loss's form.
        entropy: [b, T] with gradient, where it has a coefficient.
        ref_logprobs: [b, T] of the reference policy, where the KL term or the joint ratio needs them.
        importance_weights: [b, T] truncated importance weights, or None.
    """
    assert logprobs.shape == old_logprobs.shape == weights.shape, "logprobs, old_logprobs and weights differ in shape"
    assert advantages.shape in (logprobs.shape, (logprobs.shape[0], 1)), f"advantages {tuple(advantages.shape)}"
    inside = weights > 0
    # Padding holds arbitrary numbers; a log-ratio of 0 there keeps infinities out of the products with 0.
    token_log_ratio = torch.where(inside, logprobs - old_logprobs, 0.0)
    log_ratio, low, high = _ratio(token_log_ratio, logprobs, ref_logprobs, inside, options)
    if options.surrogate == "cispo":
        loss, cut = _cispo(log_ratio, logprobs, advantages, inside, options)
    elif options.surrogate == "regression":
        loss, cut = (options.regression_beta * log_ratio - advantages) ** 2, torch.zeros_like(inside)
    else:
        loss, cut = _clipped(log_ratio, low, high, advantages, options.dual_clip)
    if importance_weights is not None:
        loss = loss * importance_weights
    if options.kl_coefficient:
        assert ref_logprobs is not None, "the KL term needs the reference's log-probabilities"
        kl = kl_estimate(
            torch.where(inside, logprobs, 0.0), torch.where(inside, ref_logprobs, 0.0), options.kl_estimator
        )
        loss = loss + options.kl_coefficient * kl
    if options.entropy_coefficient:
        assert entropy is not None, "the entropy bonus needs the entropy"
        loss = loss - options.entropy_coefficient * entropy
    moved = token_log_ratio.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return PolicyLoss(
        loss=torch.where(inside, weights * loss, 0.0).sum(),
        clipped=cut & inside,
        approx_kl=moved.exp() - 1 - moved,
    )


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(policy || reference) at each token [B, T], nats, from one sample of the policy (Schulman's k1, k2, k3).

    With d = log policy - log reference: k1 = d, unbiased but may be negative; k2 = d^2 / 2, biased; k3 =
    exp(-d) - 1 + d, unbiased and never negative.

    Which of them holds the policy near the reference is another matter, as the mean of a gradient is not the gradient
    of a mean. Over the tokens y of a policy p, E[grad log p(y)] = sum of grad p(y) = grad 1 = 0, so with reference q

        in the loss, E[grad k]           k1: E[grad log p] = 0
                                         k2: E[d grad log p] = grad KL(p || q)
                                         k3: E[(1 - q/p) grad log p] = -sum of q grad log p = grad KL(q || p)
        in the reward, E[k grad log p]   k1: E[d grad log p] = grad KL(p || q)
                                         k2: E[d^2/2 grad log p], which vanishes as d^2
                                         k3: grad KL(p || q) - grad KL(q || p), which vanishes as d^2

    So k1 belongs in the reward alone, and k2 or k3 (GRPO's, which pulls by the divergence in the other direction) in
    the loss alone. All of this is for samples of p itself: after the first optimiser step it holds nearly.
    """
    assert logprobs.shape == ref_logprobs.shape, "log-probabilities differ in shape"
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    # Where the reference is far likelier exp() would run away. On the other side k3 grows as d does, and its pull, the
    # more needed the further the policy has gone, must not end.
    difference = difference.clamp(min=-LOG_RATIO_LIMIT)
    return (-difference).exp() - 1 + difference


def truncated_importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """min(p_trainer / p_sampler, cap) for each token [B, T]: corrects a sampler that differs from the trainer."""
    assert trainer_logprobs.shape == sampler_logprobs.shape, "log-probabilities differ in shape"
    return (trainer_logprobs - sampler_logprobs).exp().clamp(max=cap)


def _ratio(
    token_log_ratio: Tensor, logprobs: Tensor, ref_logprobs: Tensor | None, inside: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-ratio [b, T] or [b, 1], and the bounds of its clip in log space [b, 1]."""
    count = inside.sum(dim=1, keepdim=True).clamp(min=1)  # [b, 1]
    low = torch.full_like(count, max(1 - options.clip_low, 1e-9), dtype=torch.float32).log()
    high = torch.full_like(count, 1 + options.clip_high, dtype=torch.float32).log()
    if options.ratio == "token":
        return token_log_ratio, low, high
    if options.ratio == "sequence":
        return token_log_ratio.sum(dim=1, keepdim=True) / count, low, high
    assert ref_logprobs is not None, "the joint ratio needs the reference's log-probabilities"
    joint = torch.where(inside, logprobs - ref_logprobs, 0.0).sum(dim=1, keepdim=True)
    if options.joint_band is not None:
        high = options.joint_band * count.sqrt()
        low = -high
    return joint, low, high


def _clipped(
    log_ratio: Tensor, low: Tensor, high: Tensor, advantages: Tensor, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    low, high = low.clamp(min=-WIDEST_CLIP), high.clamp(max=WIDEST_CLIP)
    # True to a little beyond the clip, however far that reaches.
    bounded = log_ratio.clamp((low - 1).clamp(max=-LOG_RATIO_LIMIT), (high + 1).clamp(min=LOG_RATIO_LIMIT))
    unclipped = -bounded.exp() * advantages
    clipped = -bounded.clamp(low, high).exp() * advantages
    loss = torch.maximum(unclipped, clipped)
    cut = (clipped > unclipped) | (bounded != log_ratio)
    if dual_clip is not None:
        bound = -dual_clip * advantages
        over = (advantages < 0) & (loss > bound)
        loss = torch.where(over, bound, loss)
        cut = cut | over
    return loss, cut


def _cispo(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, inside: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    ratio = log_ratio.detach().exp()
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    return -bounded * advantages * torch.where(inside, logprobs, 0.0), bounded != ratio
