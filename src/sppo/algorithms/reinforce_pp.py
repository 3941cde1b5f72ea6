"""REINFORCE++ (Hu, arXiv 2501.03262).

    A_t = R - beta sum over s >= t of k1_s, whitened over the tokens of the whole batch

k1 is log policy - log reference at each token, which `algorithm.kl_coefficient` weighs with `kl_place: reward` and
`kl_estimator: k1`; without it A is R, whitened. With N > 1 samples a prompt the paper's baseline variant applies: the
group's mean is taken from R first. No critic.
"""

from __future__ import annotations

import torch

from sppo.algorithms.groups import group_statistics
from sppo.algorithms.options import NoOptions
from sppo.algorithms.shaping import rewards_to_go
from sppo.batch import Credit, Outcomes


def reinforce_pp_credit(outcomes: Outcomes, options: NoOptions) -> Credit:
    """Returns [B, 1], or [B, T] where single tokens earn something; whitening is the loss option of that name."""
    group = group_statistics(outcomes.rewards, outcomes.groups)
    outcome = torch.where(group.count > 1, outcomes.rewards - group.mean, outcomes.rewards).float()[:, None]  # [B, 1]
    extra = outcomes.token_rewards
    return Credit(outcome if extra is None else outcome + rewards_to_go(extra))
