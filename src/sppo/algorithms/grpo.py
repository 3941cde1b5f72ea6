"""GRPO: Group Relative Policy Optimization (Shao et al., arXiv 2402.03300).

    A = (R - mean) / (std + 1e-6)        over the N samples of one prompt

Clip 0.2, mean over sequences of their token means; optionally a k3 KL term in the loss. DAPO, GSPO and CISPO use the
same advantage with other losses. Edge cases: a group that is all right or all wrong gives 0; so does a sample that is
alone in its group (the others were left out).
"""

from __future__ import annotations

from sppo.algorithms.groups import group_statistics
from sppo.algorithms.options import NoOptions
from sppo.batch import Credit, Outcomes


def grpo_credit(outcomes: Outcomes, options: NoOptions) -> Credit:
    """Returns the group-normalised advantage [B, 1]."""
    rewards = outcomes.sequence_rewards
    group = group_statistics(rewards, outcomes.groups)
    return Credit(((rewards - group.mean) / (group.std + 1e-6)).float()[:, None])
