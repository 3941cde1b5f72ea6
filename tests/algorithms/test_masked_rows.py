"""Rows that count for baselines but are not trained on: they have no weight in the loss, and none in the whitening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sppo.algorithms.masked import token_weights, whiten
from tests.conftest import train_on

LONGEST = 24
"""Tokens: about half of the responses end before, so that half of the rows are masked."""


def first_step(output: Path, reward: Callable[..., list[float]], **options: str) -> dict[str, float]:
    """Metrics of a step in which truncated responses are masked; the ratio is 1."""
    (metrics,) = train_on(
        ["1+2="] * 40, output, reward, prompts_per_step=32, sampling__max_response_tokens=LONGEST,
        algorithm__name="reinforce_pp", algorithm__truncated="mask", **options,
    )  # fmt: skip
    assert 0.2 < metrics["response/clipped_share"] < 0.8
    assert metrics["policy/grad_norm"] > 0
    return metrics


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_a_mean_is_taken_over_the_rows_that_are_trained_on(tmp_path, aggregation):
    # A = R = 1 and ratio 1: each trained token's loss is -1, so is any mean over them.
    metrics = first_step(
        tmp_path, lambda prompts, completions, **_: [1.0] * len(prompts), algorithm__whitening="none",
        algorithm__aggregation=aggregation,
    )  # fmt: skip
    assert metrics["policy/loss"] == pytest.approx(-1.0, abs=1e-4)


@pytest.mark.parametrize(("whitening", "aggregation"), [("token", "token_mean"), ("sequence", "sequence_mean")])
def test_advantages_are_whitened_over_the_rows_that_are_trained_on(tmp_path, whitening, aggregation):
    # Responses that were cut have reward 0, so the mean over all rows lies below the one over those that are trained
    # on. The mean loss is minus the mean of the whitened advantages, thus 0.
    metrics = first_step(
        tmp_path, lambda prompts, completions, **_: [float(len(text) < LONGEST / 2) for text in completions],
        algorithm__whitening=whitening, algorithm__aggregation=aggregation,
    )  # fmt: skip
    assert metrics["policy/loss"] == pytest.approx(0.0, abs=1e-4)
    assert 0.1 < metrics["reward/mean"] < 0.9


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
