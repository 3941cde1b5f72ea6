"""ReMax (Li et al., arXiv 2310.10505).

    A = R - R(greedy response to the same prompt)

One sampled and one greedy response a prompt; no critic, no group. The greedy ones are generated and graded beside the
sampled ones and count as responses, but nothing is trained on them. Edge case: where the verifier failed on the greedy
response there is no baseline, and A is 0.
"""

from __future__ import annotations

import torch

from sppo.algorithms.options import NoOptions
from sppo.batch import Credit, Outcomes


def remax_credit(outcomes: Outcomes, options: NoOptions) -> Credit:
    """Returns R - R(greedy) [B, 1]; `outcomes.greedy_rewards` is nan where it is unknown."""
    assert outcomes.greedy_rewards is not None, "ReMax needs the rewards of greedy responses"
    advantages = outcomes.sequence_rewards - outcomes.greedy_rewards
    return Credit(torch.where(outcomes.greedy_rewards.isnan(), 0.0, advantages)[:, None])
