"""SPPO: Sequence-Level PPO (Wang et al., ACL 2026, arXiv 2604.08865).

Reasoning as a contextual bandit: the prompt is the context, the whole response one action, and

    A(prompt, response) = R - V(prompt)

one number for all tokens of the response; not divided by a standard deviation, not whitened. V is read before the
critic's update of the step and is trained on R by binary cross-entropy. Edge case: with G > 1 samples of a prompt
each keeps its own R - V; there is no group baseline. SPO (spo.py) has the same advantage from another V.

Beyond the paper, both 1 there:

    A = f'(V) (R - kappa V)

kappa, the share of V that is the baseline (`critic.share`). Any kappa leaves the expected gradient as it is, since
E[grad log pi] = 0 and V knows nothing of the response; rare failures have far larger gradients than the many successes
of a prompt that is mostly solved, so that the variance is often least below 1.

f', the weight of a prompt under the objective E[f(p)], where p = E[R | prompt] and grad f(p) = f'(p) grad p:

    solve_rate      f = p                   f' = 1
    log_likelihood  f = log p               f' = 1 / max(p, floor)      (MaxRL, arXiv 2602.02710, from groups there)
    pass_at_k       f = 1 - (1 - p)^k       f' = k (1 - p)^(k - 1)

V stands for p, and given the prompt f'(V) is a constant, as V was read before it learned from the response: the
expected gradient is exactly that of E[f'(V) p], V held fixed, and that of E[f(p)] where V = p. (An error of V is an
error of the weight alone. That is why p must not be the mean of a group with the response in it.) Below the floor
log p goes on along its tangent, p / floor. Edge cases: V = 0 weighs 1 / floor and k; V = 1 weighs 1 and, for k > 1, 0,
so that pass_at_k learns nothing from a prompt that is sure to be solved; k = 1 is solve_rate. The weights change the
gradient's size, which AdamW takes out and `optimizer.max_grad_norm` does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppo.algorithms.options import SppoOptions
from sppo.batch import Credit, Outcomes


def sppo_credit(outcomes: Outcomes, options: SppoOptions) -> Credit:
    """Returns A = f'(V) (R - share V) [B, 1] and R as the critic's target [B, 1]."""
    values, rewards = outcomes.values, outcomes.sequence_rewards[:, None]  # [B, 1]
    assert values is not None, "SPPO needs the critic's values"
    assert values.shape == rewards.shape, f"values {tuple(values.shape)}, rewards {tuple(rewards.shape)}"
    advantages = prompt_weights(values, options) * (rewards - outcomes.share * values)
    return Credit(advantages=advantages, value_targets=rewards)


def prompt_weights(values: Tensor, options: SppoOptions) -> Tensor:
    """f'(V) of each prompt, shaped as the values, which are probabilities unless the objective is solve_rate."""
    if options.objective == "log_likelihood":
        return 1 / values.clamp(min=options.floor)
    if options.objective == "pass_at_k":
        return options.k * (1 - values) ** (options.k - 1)
    return torch.ones_like(values)
