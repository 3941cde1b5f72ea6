"""Credit in whole runs: whose samples are compared, and rows that count for baselines but are not trained on.

Those have no weight in the loss, and none in the whitening.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sppo.algorithms.masked import token_weights, whiten
from sppo.runs.folder import read_summary
from tests.conftest import train_on

LONGEST = 24
"""Tokens: about half of the responses end before, so that half of the rows are masked."""


def first_step(output: Path, reward: Callable[..., list[float]], **options: Any) -> dict[str, float]:
    """Metrics of a step of REINFORCE, A = R, in one mini-batch; the ratio is 1."""
    settings = {"prompts_per_step": 32, "algorithm__name": "reinforce_pp", "algorithm__whitening": "none"}
    (metrics,) = train_on(
        ["1+2="] * 40, output, reward, sampling__max_response_tokens=LONGEST, **{**settings, **options}
    )
    assert 0.2 < metrics["response/clipped_share"] < 0.8
    return metrics


def all_right(prompts, completions, **columns):
    return [1.0] * len(prompts)


def if_cut(prompts, completions, **columns):
    """1 for those responses that were cut whose every token is text."""
    return [float(len(text) == LONGEST) for text in completions]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_a_mean_is_taken_over_the_rows_that_are_trained_on(tmp_path, aggregation):
    # A = 1: each trained token's loss is -1, so is any mean over them.
    metrics = first_step(tmp_path, all_right, algorithm__truncated="mask", algorithm__aggregation=aggregation)
    assert metrics["policy/loss"] == pytest.approx(-1.0, abs=1e-4)
    assert metrics["policy/grad_norm"] > 0


@pytest.mark.parametrize(("whitening", "aggregation"), [("token", "token_mean"), ("sequence", "sequence_mean")])
def test_advantages_are_whitened_over_the_rows_that_are_trained_on(tmp_path, whitening, aggregation):
    # Responses that were cut have reward 0, so the mean over all rows lies below the one over those that are trained
    # on. The mean loss is minus the mean of the whitened advantages, thus 0.
    metrics = first_step(
        tmp_path, lambda prompts, completions, **_: [float(len(text) < LONGEST / 2) for text in completions],
        algorithm__truncated="mask", algorithm__whitening=whitening, algorithm__aggregation=aggregation,
    )  # fmt: skip
    assert metrics["policy/loss"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["policy/grad_norm"] > 0
    assert 0.1 < metrics["reward/mean"] < 0.9


def test_a_response_that_was_cut_is_not_trained_on(tmp_path):
    # The others have an advantage of 0, and leave nothing to learn.
    metrics = first_step(tmp_path, if_cut, algorithm__truncated="mask")
    assert metrics["reward/mean"] > 0
    assert (metrics["policy/loss"], metrics["policy/grad_norm"]) == (0.0, 0.0)


def test_a_response_that_was_cut_is_left_out_where_that_is_asked_for(tmp_path):
    metrics = first_step(tmp_path, if_cut, algorithm__truncated="drop")
    assert metrics["reward/mean"] > 0
    assert (metrics["advantage/mean"], metrics["policy/loss"]) == (0.0, 0.0)
    assert read_summary(tmp_path)["responses_left_out"] == 32 * metrics["response/clipped_share"]


def test_the_overlong_penalty_is_part_of_the_advantage(tmp_path):
    # From the first token on, by 1 over all of them: R = 1 - length / longest.
    metrics = first_step(tmp_path, all_right, algorithm__overlong_penalty_tokens=LONGEST)
    assert metrics["advantage/mean"] == pytest.approx(1 - metrics["response/length_mean"] / LONGEST, abs=1e-5)


def test_samples_are_compared_with_those_of_the_same_drawing_of_their_prompt(tmp_path):
    # One prompt, drawn twice in a step. RLOO: 1 and 0 have the advantages 1 and -1, 0 and 0 none. Were the four of them
    # one group, the deviation would be the root of 1/3.
    (metrics,) = train_on(
        ["1+2="], tmp_path, lambda prompts, completions, **_: [1.0, *[0.0] * (len(prompts) - 1)], prompts_per_step=2,
        sampling__samples_per_prompt=2, algorithm__name="rloo",
    )  # fmt: skip
    assert metrics["advantage/std"] == pytest.approx(0.5**0.5, abs=1e-6)


# Hand-computed: row 1 is masked, and has an advantage that would move any mean

MASK = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", [0.25] * 3 + [0] * 3 + [0.25, 0, 0]), ("sequence_mean", [1 / 6] * 3 + [0] * 3 + [0.5, 0, 0])],
)
def test_a_masked_row_has_no_weight_and_takes_none(aggregation, expected):
    weights = token_weights(MASK, aggregation, tokens=4, sequences=2)
    assert weights.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("measure", "mean", "deviation"),
    # Each trained row once: 3 and 1. Each trained token once: 3, 3, 3 and 1, of variance 0.75.
    [("sequence", 2.0, 1.0), ("token", 2.5, 0.75**0.5)],
)
def test_a_masked_row_moves_neither_mean_nor_deviation(measure, mean, deviation):
    found = whiten(torch.tensor([[3.0], [100.0], [1.0]]), MASK, measure)
    assert found[[0, 2], 0].tolist() == pytest.approx([(3 - mean) / deviation, (1 - mean) / deviation])
