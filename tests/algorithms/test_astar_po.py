"""A*-PO: V* and the regression on R - V* against numbers and closed forms worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sppo.algorithms.astar_po import optimal_value
from sppo.algorithms.masked import token_weights
from sppo.algorithms.options import AstarPoOptions
from sppo.algorithms.policy_loss import LossOptions, PolicyLoss, policy_loss
from sppo.algorithms.table import ALGORITHMS, settle_algorithm
from sppo.config import AlgorithmConfig


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.0] * 8, 0.0),
        ([1.0] * 8, 1.0),
        # exp(1 / .5) = e^2: of 8 samples 4 solved, 1/2 ln((4 + 4 e^2) / 8), and 1 solved, 1/2 ln((7 + e^2) / 8).
        ([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 0.5 * math.log((1 + math.e**2) / 2)),
        ([0.0] * 7 + [1.0], 0.5 * math.log((7 + math.e**2) / 8)),
        ([0.5], 0.5),
        ([-2.0, 3.0], 0.5 * math.log((math.e**-4 + math.e**6) / 2)),
    ],
)
def test_the_optimal_value_by_hand(rewards, expected):
    assert optimal_value(rewards, 0.5) == pytest.approx(expected, abs=1e-12)


def test_the_optimal_value_lies_between_the_mean_and_the_greatest_reward():
    rewards = [0.0, 0.25, 1.0]
    values = [optimal_value(rewards, beta) for beta in (1e-3, 0.1, 0.5, 2.0, 1e6)]
    assert values == sorted(values, reverse=True)
    # At 1e-3 all but the greatest vanish, exp(-750) of it: what is left is its share of the samples, ln(1/3).
    assert values[0] == pytest.approx(1.0 - 1e-3 * math.log(3))
    assert values[-1] == pytest.approx(sum(rewards) / 3, abs=1e-6)


@pytest.mark.parametrize("rewards", [[1e5, -1e5], [-1e5, -1e5]])
def test_no_reward_is_too_large_for_it(rewards):
    assert optimal_value(rewards, 0.5) == pytest.approx(max(rewards), abs=1)


def regression(logprobs: Tensor, reference: Tensor, advantages: list[float], mask: Tensor, beta: float) -> PolicyLoss:
    loss = settle_algorithm(AlgorithmConfig(name="astar_po", options={"beta": beta}), 1).loss
    weights = token_weights(mask, loss.aggregation, int(mask.sum()), len(mask))
    old = torch.full_like(logprobs, -7.0)  # what the sampler says is no part of it
    return policy_loss(logprobs, old, torch.tensor(advantages)[:, None], weights, loss, ref_logprobs=reference)


def test_the_loss_of_two_responses_by_hand():
    # Log-ratios .3 of one token, and -.2 + .6 = .4 of two; padding holds garbage. A = 1 and -.5, beta = 2:
    # (2 * .3 - 1)^2 = .16 and (2 * .4 + .5)^2 = 1.69, each response counting once.
    mask = torch.tensor([[True, False], [True, True]])
    reference = torch.tensor([[-1.0, math.nan], [-2.0, -3.0]])
    logprobs = torch.tensor([[-0.7, math.inf], [-2.2, -2.4]])
    found = regression(logprobs, reference, [1.0, -0.5], mask, beta=2.0)
    assert found.loss.item() == pytest.approx((0.16 + 1.69) / 2)
    assert not found.clipped.any()


@pytest.mark.parametrize("beta", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("advantage", [0.8, -0.3])
def test_the_gradient_on_a_model_of_two_tokens_is_the_closed_form(beta, advantage):
    # Tokens "a" and "b" with p(a) = sigmoid(theta), whatever came before; the responses are "ab" and "aa".
    theta, start = torch.tensor(0.4, requires_grad=True), torch.tensor(-0.1)

    def said(logit: Tensor) -> Tensor:
        a, b = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
        return torch.stack([torch.stack([a, b]), torch.stack([a, a])])

    mask = torch.ones(2, 2, dtype=torch.bool)
    found = regression(said(theta), said(start), [advantage, 0.1], mask, beta)
    (gradient,) = torch.autograd.grad(found.loss, theta)
    # d log p(a) / d theta = 1 - p and d log p(b) / d theta = -p; d loss = mean of 2 beta (beta S - A) dS.
    p, q = (1 / (1 + math.exp(-logit)) for logit in (0.4, -0.1))
    ab, aa = math.log(p / q) + math.log((1 - p) / (1 - q)), 2 * math.log(p / q)
    expected = beta * ((beta * ab - advantage) * (1 - 2 * p) + (beta * aa - 0.1) * 2 * (1 - p))
    assert gradient.item() == pytest.approx(expected, rel=1e-4)
    assert found.loss.item() == pytest.approx(((beta * ab - advantage) ** 2 + (beta * aa - 0.1) ** 2) / 2, rel=1e-4)


def test_every_response_of_the_regularised_optimum_has_no_loss_and_no_gradient():
    # Four responses of one token; pi* = ref exp((R - V*) / beta), with V* of the whole distribution.
    beta, rewards = 0.5, torch.tensor([1.0, 0.0, 0.3, -1.0])
    reference = torch.tensor([0.1, 0.4, 0.2, 0.3])
    value = beta * float((reference * (rewards / beta).exp()).sum().log())
    optimum = (reference * ((rewards - value) / beta).exp()).log()[:, None].requires_grad_()
    assert optimum.exp().sum().item() == pytest.approx(1.0)
    found = regression(optimum, reference.log()[:, None], (rewards - value).tolist(), torch.ones(4, 1).bool(), beta)
    assert found.loss.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(found.loss, optimum)[0].abs().max() < 1e-6


def test_near_the_reference_it_is_reinforce_with_the_optimal_value_as_its_baseline():
    logprobs, mask = torch.tensor([[-0.5, -1.0], [-2.0, -0.1]], requires_grad=True), torch.ones(2, 2).bool()
    found = regression(logprobs, logprobs.detach(), [0.6, -0.4], mask, beta=1e-3)
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    # 2 beta (beta 0 - A) / 2 for each token of a response, however long the response is.
    assert gradient.tolist() == [pytest.approx([-0.6e-3] * 2), pytest.approx([0.4e-3] * 2)]


def test_the_published_settings():
    assert AstarPoOptions() == AstarPoOptions(beta_value=0.5, beta=1e-3, offline_samples=8)
    assert ALGORITHMS["astar_po"].loss == LossOptions(
        ratio="joint", surrogate="regression", aggregation="sequence_mean", regression_beta=1e-3
    )
