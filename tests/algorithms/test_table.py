"""Advantages and losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sppo.algorithms.masked import masked_mean, token_weights
from sppo.algorithms.options import SppoOptions
from sppo.algorithms.policy_loss import LossOptions, policy_loss, truncated_importance_weights
from sppo.algorithms.sppo import sppo_credit
from sppo.algorithms.table import ALGORITHMS, get_algorithm
from sppo.algorithms.value_loss import bce_value_loss
from sppo.batch import Estimates, Outcomes
from sppo.errors import ConfigError
from sppo.training.collate import collate
from sppo.types import Verdict
from tests.conftest import make_rollout


def batch_of(rewards: list[float]):
    rollouts = [make_rollout(f"p{i}", [5, 6], [7] * (i + 1)) for i in range(len(rewards))]
    return collate(rollouts, [Verdict(reward) for reward in rewards])


def test_sppo_advantage_is_reward_minus_value_and_nothing_else():
    batch = batch_of([1.0, 0.0, 1.0])
    values = torch.tensor([[0.25], [0.75], [1.0]])
    credit = sppo_credit(Outcomes.of(batch, Estimates(batch.sampler_logprobs, values)), SppoOptions())
    assert credit.advantages.tolist() == [[0.75], [-0.75], [0.0]]
    assert credit.value_targets is not None
    assert credit.value_targets.tolist() == [[1.0], [0.0], [1.0]]


def test_sppo_keeps_fractional_rewards():
    batch = batch_of([0.5])
    credit = sppo_credit(Outcomes.of(batch, Estimates(batch.sampler_logprobs, torch.tensor([[0.2]]))), SppoOptions())
    assert credit.advantages.item() == pytest.approx(0.3)


def one_token_loss(ratio: float, advantage: float, **options) -> tuple[float, float]:
    """Loss, and gradient with respect to the log-probability, of a single token."""
    logprobs = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    importance = options.pop("importance_weights", None)
    result = policy_loss(
        logprobs, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), torch.ones(1, 1), LossOptions(**options),
        importance_weights=importance,
    )  # fmt: skip
    result.loss.backward()
    assert logprobs.grad is not None
    return result.loss.item(), logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "loss", "gradient"),
    [
        (1.0, 0.5, {}, -0.5, -0.5),
        (1.1, 0.5, {}, -0.55, -0.55),
        (1.5, 0.5, {}, -0.6, 0.0),  # clipped above: no further push
        (0.5, 0.5, {}, -0.25, -0.25),  # a good token that became rare is still pushed up
        (0.5, -0.5, {}, 0.4, 0.0),  # clipped below
        (1.5, -0.5, {}, 0.75, 0.75),  # a bad token that became likely is still pushed down
        (10.0, -0.5, {}, 5.0, 5.0),
        (10.0, -0.5, {"dual_clip": 3.0}, 1.5, 0.0),  # the dual clip bounds it
        (2.0, -0.5, {"dual_clip": 3.0}, 1.0, 1.0),
        (10.0, 0.5, {"dual_clip": 3.0}, -0.6, 0.0),
        (1.25, 1.0, {"clip_high": 0.28}, -1.25, -1.25),
        (0.75, -1.0, {"clip_low": 0.3}, 0.75, 0.75),
        (1.0, 1.0, {"importance_weights": torch.tensor([[0.5]])}, -0.5, -0.5),
    ],
)
def test_policy_loss_of_one_token(ratio, advantage, options, loss, gradient):
    found = one_token_loss(ratio, advantage, **options)
    assert found == (pytest.approx(loss, rel=1e-5), pytest.approx(gradient, rel=1e-5))


def test_a_ratio_beyond_measure_leaves_the_gradient_finite():
    loss, gradient = one_token_loss(1.0, 1.0)
    logprobs = torch.tensor([[100.0, -1.0]], requires_grad=True)
    result = policy_loss(
        logprobs, torch.tensor([[-1.0, -1.0]]), torch.ones(1, 1), torch.full((1, 2), 0.5), LossOptions()
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-(1.2 + 1.0) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, pytest.approx(gradient / 2)]]
    assert loss == -1.0


def test_policy_loss_of_two_sequences_by_hand():
    # Sequence 0: one token, ratio 1, A = 1. Sequence 1: three tokens, ratio 1.1, A = -0.5. Padding holds garbage.
    logprobs = torch.tensor([[0.0, 9.0, float("inf")], [math.log(1.1)] * 3])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    advantages = torch.tensor([[1.0], [-0.5]])
    old = torch.zeros(2, 3)
    by_token = policy_loss(logprobs, old, advantages, token_weights(mask, "token_mean", 4, 2), LossOptions())
    assert by_token.loss.item() == pytest.approx((-1.0 + 3 * 0.55) / 4)
    by_sequence = policy_loss(logprobs, old, advantages, token_weights(mask, "sequence_mean", 4, 2), LossOptions())
    assert by_sequence.loss.item() == pytest.approx((-1.0 + 0.55) / 2)


def test_metrics_of_the_policy_loss():
    logprobs = torch.log(torch.tensor([[1.0, 1.5, 1.1]]))
    result = policy_loss(logprobs, torch.zeros(1, 3), torch.ones(1, 1), torch.tensor([[0.5, 0.5, 0.0]]), LossOptions())
    assert result.clipped.tolist() == [[False, True, False]]
    assert result.approx_kl[0, 1].item() == pytest.approx(0.5 - math.log(1.5))


def test_truncated_importance_weights():
    trainer = torch.log(torch.tensor([[0.5, 0.9, 0.1]]))
    sampler = torch.log(torch.tensor([[0.5, 0.1, 0.4]]))
    assert truncated_importance_weights(trainer, sampler, 2.0).tolist() == [[1.0, 2.0, pytest.approx(0.25)]]


def test_bce_by_hand():
    logits = torch.tensor([[0.0], [math.log(3.0)]])  # V = 0.5 and 0.75
    targets = torch.tensor([[1.0], [0.0]])
    expected = (-math.log(0.5) - math.log(0.25)) / 2
    assert bce_value_loss(logits, targets, torch.full((2, 1), 0.5)).item() == pytest.approx(expected)


def test_token_weights_sum_to_one():
    mask = torch.tensor([[True, False], [True, True]])
    for aggregation in ("token_mean", "sequence_mean"):
        assert token_weights(mask, aggregation, 3, 2).sum().item() == pytest.approx(1.0)


def test_masked_mean_ignores_padding():
    assert masked_mean(torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]])) == 1.0


def test_an_unknown_algorithm_is_named_with_its_neighbours():
    assert get_algorithm("sppo") is ALGORITHMS["sppo"]
    with pytest.raises(ConfigError, match="Did you mean 'sppo'"):
        get_algorithm("sppp")
