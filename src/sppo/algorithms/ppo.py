"""PPO with a token critic (Schulman et al., arXiv 1707.06347), and the SPPO paper's ablation PPO + BCE.

    r_t = R at the last token, 0 before; plus process rewards at the last token of each step
          (sppo.algorithms.shaping), minus beta k_t at each token, where there are such
    delta_t = r_t + gamma V_{t+1} - V_t, V after the last token 0
    A_t = sum over l of (gamma lambda)^l delta_{t+l}          (GAE, arXiv 1506.02438)

The sum goes over the tokens that the policy wrote, one after the other: what it was answered between two of them (tool
output, others' turns) is a part of the state that the second is written in, has no V, no reward and no discount.
The value target is A_t + V_t. `ppo` learns it by a clipped squared error; `ppo_bce` makes V_t a probability and learns
R itself at every token by cross-entropy. Advantages are whitened over tokens. Published: gamma = lambda = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppo.algorithms.masked import last_inside
from sppo.algorithms.options import GaeOptions
from sppo.batch import Credit, Outcomes


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """GAE [B, T] in one pass backwards over tokens, all sequences at once.

    Args:
        rewards: [B, T] reward of each token.
        values: [B, T] V(s_t), before token t.
        mask: [B, T] bool, True on tokens that the policy wrote; the others are passed over.
        gamma: discount.
        gae_lambda: weight of longer estimates.
    """
    assert rewards.shape == values.shape == mask.shape, "rewards, values and mask differ in shape"
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(running)
    for t in range(values.shape[1] - 1, -1, -1):
        inside = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(inside, delta + gamma * gae_lambda * running, running)
        following = torch.where(inside, values[:, t], following)
        advantages[:, t] = torch.where(inside, running, 0.0)
    return advantages


def ppo_credit(outcomes: Outcomes, options: GaeOptions) -> Credit:
    """Returns GAE [B, T], and A_t + V_t [B, T] as the critic's target."""
    advantages, values = _advantages(outcomes, options)
    return Credit(advantages, value_targets=advantages + values)


def ppo_bce_credit(outcomes: Outcomes, options: GaeOptions) -> Credit:
    """Returns GAE [B, T], and R at every token [B, T] as the critic's target."""
    advantages, values = _advantages(outcomes, options)
    return Credit(advantages, value_targets=outcomes.rewards[:, None].expand_as(values).clone())


def _advantages(outcomes: Outcomes, options: GaeOptions) -> tuple[Tensor, Tensor]:
    assert outcomes.values is not None, "PPO needs the critic's values"
    extra = outcomes.token_rewards
    rewards = torch.zeros_like(outcomes.values) if extra is None else extra.clone()
    last = last_inside(outcomes.mask)[:, -1]
    rewards[torch.arange(len(outcomes.rewards)), last] += outcomes.rewards
    values = outcomes.values
    advantages = generalized_advantages(rewards, values, outcomes.mask, options.gamma, options.gae_lambda)
    return advantages, values
