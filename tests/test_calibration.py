from __future__ import annotations

import math

import pytest

from sppo import calibration as c

VALUES = [0.9, 0.8, 0.3, 0.1]
REWARDS = [1.0, 0.0, 0.0, 0.0]


def test_measures_by_hand():
    assert c.brier(VALUES, REWARDS) == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)
    expected = -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.9)) / 4
    assert c.binary_cross_entropy(VALUES, REWARDS) == pytest.approx(expected)
    # Bins [.9, 1): .9 against 1; [.8, .9): .8 against 0; [.3, .4): .3 against 0; [.1, .2): .1 against 0.
    assert c.expected_calibration_error(VALUES, REWARDS) == pytest.approx((0.1 + 0.8 + 0.3 + 0.1) / 4)
    # R - V = .1, -.8, -.3, -.1: mean -.275, variance .111875; variance of R: .1875.
    assert c.explained_variance(VALUES, REWARDS) == pytest.approx(1 - 0.111875 / 0.1875)


def test_correlations_by_hand():
    assert c.pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    assert c.spearman([1, 2, 3], [2, 4, 70]) == pytest.approx(1.0)
    assert c.spearman([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(4 / math.sqrt(5 * 4))


def test_correlation_with_a_constant_is_undefined_not_zero():
    assert math.isnan(c.pearson([0.3 + 1e-17] * 3, [0, 1, 1]))
    assert math.isnan(c.spearman([0.3] * 3, [0, 1, 1]))
    assert "pearson" not in c.calibration_metrics([0.3] * 3, [0, 1, 1])


def test_one_belongs_to_the_last_bin():
    (only,) = c.reliability([1.0, 0.95], [1.0, 0.0])
    assert (only.low, only.high, only.count, only.solve_rate) == (0.9, 1.0, 2, 0.5)


def test_bins_of_two_steps_merge_as_if_binned_together():
    first, second = ([0.05, 0.55], [0.0, 1.0]), ([0.51, 0.52, 0.95], [0.0, 0.0, 1.0])
    merged = c.add_reliability(c.reliability_rows(*first), c.reliability_rows(*second))
    together = c.reliability_rows(first[0] + second[0], first[1] + second[1])
    assert [row["low"] for row in merged] == [row["low"] for row in together]
    for ours, whole in zip(merged, together, strict=True):
        assert ours == pytest.approx(whole)


def test_certain_and_wrong_is_finite():
    assert math.isfinite(c.binary_cross_entropy([0.0, 1.0], [1.0, 0.0]))
