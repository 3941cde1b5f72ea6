"""SPPO: Sequence-Level PPO (Wang et al., ACL 2026, arXiv 2604.08865).

Reasoning as a contextual bandit: the prompt is the context, the whole response one action, and

    A(prompt, response) = R - V(prompt)

one number for all tokens of the response; not divided by a standard deviation, not whitened. V is read before the
critic's update of the step and is trained on R by binary cross-entropy. Edge case: with G > 1 samples of a prompt
each keeps its own R - V; there is no group baseline. SPO (spo.py) has the same advantage from another V.
"""

from __future__ import annotations

from sppo.algorithms.options import NoOptions
from sppo.batch import Credit, Outcomes


def sppo_credit(outcomes: Outcomes, options: NoOptions) -> Credit:
    """Returns A = R - V(prompt) [B, 1] and R as the critic's target [B, 1]."""
    values, rewards = outcomes.values, outcomes.sequence_rewards[:, None]  # [B, 1]
    assert values is not None, "SPPO needs the critic's values"
    assert values.shape == rewards.shape, f"values {tuple(values.shape)}, rewards {tuple(rewards.shape)}"
    return Credit(advantages=rewards - values, value_targets=rewards)
