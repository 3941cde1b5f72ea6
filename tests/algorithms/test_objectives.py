"""SPPO's objectives: expected gradients, summed over all responses, against the gradients of what they promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sppo
from sppo.algorithms.options import SppoOptions
from sppo.algorithms.table import ALGORITHMS, settle_algorithm
from sppo.batch import Credit, Outcomes
from sppo.config import AlgorithmConfig, Config, CriticConfig, ModelConfig
from sppo.config.settle import check
from sppo.errors import ConfigError
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from tests.conftest import tiny_config

LOGITS = torch.tensor([[0.3, -1.0, 0.8], [-2.0, 0.5, 1.5]], dtype=torch.float64)
"""Of three responses to each of two prompts."""
REWARDS = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Solved with probability .902 and .022."""


def credit(
    rewards: Tensor, values: Tensor, share: float = 1.0, name: str = "sppo", **options: str | float | int
) -> Credit:
    """Of single responses, each to a prompt of its own."""
    algorithm = settle_algorithm(AlgorithmConfig(name=name, options=options), 1, critic=CriticConfig(share=share))
    rows = len(rewards)
    return algorithm.assign_credit(
        Outcomes(rewards, torch.ones(rows, 1, dtype=torch.bool), torch.arange(rows), values=values[:, None])
    )


def solve_rates(logits: Tensor) -> Tensor:
    return (logits.softmax(dim=1) * REWARDS).sum(dim=1)


def gradient_of(objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the objective's mean over prompts, made of their solve rates."""
    logits = LOGITS.clone().requires_grad_()
    objective(solve_rates(logits)).mean().backward()
    assert logits.grad is not None
    return logits.grad


def expected_gradient(values: Tensor, share: float, **options: str | float | int) -> Tensor:
    """The mean over prompts of the sum over responses of pi A grad log pi."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(dim=1)
    per_response = credit(REWARDS.flatten(), values.float().repeat_interleave(3), share, **options).advantages
    (logprobs.exp().detach() * per_response.reshape(2, 3).double() * logprobs).sum(dim=1).mean().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("options", "objective"),
    [
        ({}, lambda p: p),
        ({"objective": "log_likelihood", "floor": 0.01}, lambda p: p.log()),
        # .022 is below the floor: the tangent there.
        ({"objective": "log_likelihood", "floor": 0.25}, lambda p: torch.where(p > 0.25, p.log(), p / 0.25)),
        ({"objective": "pass_at_k", "k": 1}, lambda p: p),
        ({"objective": "pass_at_k", "k": 4}, lambda p: 1 - (1 - p) ** 4),
    ],
)
def test_with_the_solve_rate_as_v_the_gradient_is_the_objectives_for_every_share(share, options, objective):
    expected = gradient_of(objective)
    assert expected.norm() > 1e-2
    torch.testing.assert_close(expected_gradient(solve_rates(LOGITS), share, **options), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_with_another_v_it_is_that_of_solve_rates_with_weights_that_stand_still(share):
    values = torch.tensor([0.5, 0.2])
    found = expected_gradient(values, share, objective="log_likelihood")
    torch.testing.assert_close(found, gradient_of(lambda p: p / values), atol=1e-6, rtol=0)
    found = expected_gradient(values, share, objective="pass_at_k", k=3)
    torch.testing.assert_close(found, gradient_of(lambda p: 3 * torch.tensor([0.25, 0.64]) * p), atol=1e-6, rtol=0)


def test_a_v_with_the_response_in_it_would_pull_elsewhere():
    values = solve_rates(LOGITS)
    leaked = 0.5 * values[:, None] + 0.5 * REWARDS
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(dim=1)
    advantages = credit(REWARDS.flatten(), leaked.float().flatten(), objective="log_likelihood").advantages
    (logprobs.exp().detach() * advantages.reshape(2, 3).double() * logprobs).sum(dim=1).mean().backward()
    assert logits.grad is not None
    assert (logits.grad - gradient_of(lambda p: p.log())).norm() > 0.01


@pytest.mark.parametrize(
    ("options", "share", "expected"),
    [
        ({}, 1.0, [1.0, 0.0, 0.75, -0.25, 0.0, -1.0]),
        ({}, 0.5, [1.0, 0.0, 0.875, -0.125, 0.5, -0.5]),
        ({"objective": "log_likelihood", "floor": 0.125}, 1.0, [8.0, 0.0, 3.0, -1.0, 0.0, -1.0]),
        ({"objective": "log_likelihood", "floor": 0.5}, 0.0, [2.0, 0.0, 2.0, 0.0, 1.0, 0.0]),
        ({"objective": "pass_at_k", "k": 3}, 1.0, [3.0, 0.0, 27 / 16 * 0.75, -27 / 16 * 0.25, 0.0, 0.0]),
        ({"objective": "pass_at_k", "k": 1}, 1.0, [1.0, 0.0, 0.75, -0.25, 0.0, -1.0]),
    ],
)
def test_advantages_by_hand_and_the_critic_learns_the_reward_whatever_they_are(options, share, expected):
    rewards = torch.tensor([1.0, 0.0] * 3)
    found = credit(rewards, torch.tensor([0.0, 0.0, 0.25, 0.25, 1.0, 1.0]), share, **options)
    assert found.advantages.flatten().tolist() == pytest.approx(expected)
    assert found.value_targets is not None
    assert found.value_targets.flatten().tolist() == rewards.tolist()


def test_a_share_of_the_counts_v_is_spos_baseline_too():
    found = credit(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.25]), 0.5, name="spo")
    assert found.advantages.flatten().tolist() == [0.75, -0.125]


@pytest.mark.parametrize("name", [name for name, made in ALGORITHMS.items() if not made.values_the_prompt])
def test_without_a_v_of_prompts_there_is_no_share_of_it(name):
    has = {None: "no critic", "token": "a critic of tokens", "optimal": r"V\*"}[ALGORITHMS[name].critic]
    with pytest.raises(ConfigError, match=rf"critic\.share is 0\.5, .* but {name} has {has}.*Set critic\.share to 1"):
        settle_algorithm(AlgorithmConfig(name=name), 8, critic=CriticConfig(share=0.5))


def test_objectives_of_a_probability_are_refused_where_v_is_none():
    weighted = AlgorithmConfig(options={"objective": "pass_at_k"})
    assert settle_algorithm(weighted, 1).options == SppoOptions("pass_at_k", k=8)
    with pytest.raises(ConfigError, match=r"objective is pass_at_k.*with critic\.loss mse V is no probability"):
        settle_algorithm(weighted, 1, critic=CriticConfig(loss="mse"))
    assert settle_algorithm(AlgorithmConfig(), 1, critic=CriticConfig(loss="mse", share=0.5)).share == 0.5


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (AlgorithmConfig(options={"k": 4}), "options.k is for objective pass_at_k, but .* is solve_rate"),
        (AlgorithmConfig(options={"objective": "pass_at_k", "floor": 0.1}), "floor is for objective log_likelihood"),
        (AlgorithmConfig(options={"objective": "pass_at_k", "k": 0}), r"options.k is 0, but must be in \[1, 1024\]"),
        (AlgorithmConfig(options={"objective": "accuracy"}), "options.objective is 'accuracy'"),
        (AlgorithmConfig(options={"lambda": 1}), r"no option of sppo, .* objective \(default solve_rate\): "),
        (AlgorithmConfig(name="spo", options={"objective": "pass_at_k"}), "objective is no option of spo"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_option(algorithm, message):
    with pytest.raises(ConfigError, match=message):
        check(Config(model=ModelConfig(path="some/model"), algorithm=algorithm))


def test_a_run_records_v_itself_and_the_advantage_that_it_trained_on(tmp_path):
    settings = {"critic__share": 0.5, "algorithm__options": {"objective": "log_likelihood", "floor": 0.6}}
    config = tiny_config(tmp_path, steps=1, critic__prior=0.25, **settings)
    sppo.train(config, reward=lambda prompts, completions, **columns: [float(len(c) % 2) for c in completions])
    records = list(read_records(tmp_path))
    assert {record["reward"] for record in records} == {0.0, 1.0}
    for record in records:
        assert record["value"] == pytest.approx(0.25, abs=0.1)
        weight = 1 / max(record["value"], 0.6)
        assert record["advantage"] == pytest.approx(weight * (record["reward"] - 0.5 * record["value"]))
    values = [record["value"] for record in records]
    assert read_metrics(tmp_path)[1]["critic/value_mean"] == pytest.approx(sum(values) / len(values))


def test_the_gradient_of_chosen_prompts_is_that_of_their_own_mean_solve_rate():
    """Choosing changes which prompts the objective is of, and no expectation within one: no weight takes it back."""
    for chosen in ([0], [1], [0, 1], [1, 1]):
        logits = LOGITS.clone().requires_grad_()
        log_probabilities = logits.log_softmax(dim=1)
        expected = torch.zeros(())
        for prompt in chosen:
            for response in range(3):
                # V of the prompt may be anything that was there before the response, such as what it was chosen by.
                value = torch.tensor([0.1 + 0.6 * prompt])
                advantage = credit(REWARDS[prompt, response][None], value, share=0.5).advantages[0, 0]
                log_probability = log_probabilities[prompt, response]
                expected = expected + log_probability.detach().exp() * advantage * log_probability / len(chosen)
        (found,) = torch.autograd.grad(expected, logits, retain_graph=True)
        (wanted,) = torch.autograd.grad(solve_rates(logits)[chosen].mean(), logits)
        torch.testing.assert_close(found, wanted)
