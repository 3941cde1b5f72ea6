"""SPPO: Sequence-Level PPO (Wang et al., ACL 2026, arXiv 2604.08865).

Reasoning as a contextual bandit: the prompt is the context, the whole response one action, and

    A(prompt, response) = R - V(prompt)

one number for all tokens of the response; not divided by a standard deviation, not whitened. V is read before the
critic's update of the step and is trained on R by binary cross-entropy. Edge case: with G > 1 samples of a prompt
each keeps its own R - V; there is no group baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppo.batch import Batch, Credit, Estimates
from sppo.errors import RewardError


def sppo_credit(batch: Batch, before: Estimates) -> Credit:
    """Returns A = R - V(prompt) [B, 1] and R as the critic's target [B, 1].

    Raises:
        RewardError: a reward outside [0, 1], which a critic that is a probability cannot learn.
    """
    assert before.values is not None, "SPPO needs the critic's values"
    rewards = batch.rewards[:, None]  # [B, 1]
    assert before.values.shape == rewards.shape, f"values {tuple(before.values.shape)}, rewards {tuple(rewards.shape)}"
    check_unit_rewards(batch)
    return Credit(advantages=rewards - before.values, value_targets=rewards)


def check_unit_rewards(batch: Batch) -> None:
    """Refuses rewards outside [0, 1].

    Raises:
        RewardError: names the first such sample and how to rescale.
    """
    outside: Tensor = torch.nonzero((batch.rewards < 0) | (batch.rewards > 1)).flatten()
    if len(outside):
        row = int(outside[0])
        raise RewardError(
            f"The reward of prompt {batch.rollouts[row].prompt.id!r} is {float(batch.rewards[row]):g}, but the critic "
            "predicts a probability, so rewards must lie in [0, 1] "
            f"({len(outside)} of {len(batch)} in this step do not). Rescale them in the reward function, "
            "for example (reward - lowest) / (highest - lowest)."
        )
