"""Dr. GRPO: GRPO done right (Liu et al., arXiv 2503.20783).

    A = R - mean        over the N samples of one prompt

No division by the standard deviation, which favours prompts that are nearly always or never solved; and the loss is a
sum over tokens divided by a constant, the longest response allowed, so that long wrong answers are not favoured.
"""

from __future__ import annotations

from sppo.algorithms.groups import group_statistics
from sppo.algorithms.options import NoOptions
from sppo.batch import Credit, Outcomes


def dr_grpo_credit(outcomes: Outcomes, options: NoOptions) -> Credit:
    """Returns R - mean [B, 1]."""
    rewards = outcomes.sequence_rewards
    return Credit((rewards - group_statistics(rewards, outcomes.groups).mean).float()[:, None])
