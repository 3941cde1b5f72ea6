"""RLOO: REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740).

    A_i = R_i - mean of the other N - 1 rewards = N / (N - 1) (R_i - mean)

An unbiased baseline. Edge case: a sample that is alone in its group (the others were left out) has no baseline and
gets 0 rather than R.
"""

from __future__ import annotations

import torch

from sppo.algorithms.groups import group_statistics
from sppo.algorithms.options import NoOptions
from sppo.batch import Credit, Outcomes


def rloo_credit(outcomes: Outcomes, options: NoOptions) -> Credit:
    """Returns the leave-one-out advantage [B, 1]."""
    rewards = outcomes.sequence_rewards
    group = group_statistics(rewards, outcomes.groups)
    factor = torch.where(group.count > 1, group.count / (group.count - 1).clamp(min=1), 0.0)
    return Credit((factor * (rewards - group.mean)).float()[:, None])
