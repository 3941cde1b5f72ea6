"""Beliefs by hand: what a prompt's solve rate is taken to be, and what that is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sppo.config import CriticConfig
from sppo.critics.belief import PRIOR_WORTH
from sppo.critics.fusion import BeliefCritic
from sppo.critics.models import PromptCritic
from sppo.critics.prompt import PromptModelCritic
from sppo.types import Beliefs, Prompt


def test_the_spread_is_the_mean_of_p_times_one_minus_p():
    # Beta(1, 1): the integral of p (1 - p) is 1/6. Beta(2, 6): E[p] - E[p^2] = 1/4 - (2 * 3) / (8 * 9) = 1/6.
    beliefs = Beliefs(np.array([0.5, 0.25, 0.5, 0.0]), np.array([2.0, 8.0, 0.0, 3.0]))
    assert beliefs.spread.tolist() == pytest.approx([1 / 6, 1 / 6, 0.0, 0.0], abs=1e-9)


def test_what_is_unknown_has_no_value():
    assert Beliefs(np.array([0.5, math.nan]), np.array([2.0, 0.0])).values == [0.5, None]


def test_a_prompt_critics_belief_is_v_with_a_constant_worth(policy, tokenizer):
    model = PromptCritic(policy.model, tokenizer)
    with torch.no_grad():
        model.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    critic, prompts = BeliefCritic(PromptModelCritic(model, CriticConfig())), [Prompt("a", "1+1="), Prompt("b", "7-3=")]
    assert critic.beliefs(prompts).values == [None, None]  # before V has a place to start from
    model.started = True
    beliefs = critic.beliefs(prompts)
    assert beliefs.mean.tolist() == pytest.approx(model.values(prompts).flatten().tolist())
    assert beliefs.mean[0] != beliefs.mean[1]
    assert beliefs.worth.tolist() == [PRIOR_WORTH] * 2
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    assert critic.beliefs(prompts).values == [None, None]
    model.probability = False
    assert critic.beliefs(prompts) is None
