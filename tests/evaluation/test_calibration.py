from __future__ import annotations

import math

import numpy as np
import pytest

from sppo.evaluation import calibration as c

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


def test_auroc_by_hand_with_ties_half():
    # Solved .9 and .3 against failed .8, .3, .1: .9 beats 3; .3 beats .1 and ties with .3.
    assert c.auroc([0.9, 0.3, 0.8, 0.3, 0.1], [1, 1, 0, 0, 0]) == pytest.approx((3 + 1 + 0.5) / 6)
    assert c.auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert c.auroc([0.9, 0.8, 0.2], [0, 0, 1]) == 0.0
    assert c.auroc([0.4, 0.4, 0.4], [0, 1, 1]) == 0.5
    assert math.isnan(c.auroc([0.1, 0.9], [1, 1]))
    assert math.isnan(c.auroc([0.1, 0.9], [0, 0]))


def test_auroc_of_solve_rates_is_that_of_the_responses():
    values, rewards = [0.2, 0.6, 0.6, 0.9], [[0, 0, 1], [1, 0], [1, 1, 0, 0], [1, 1, 1]]
    responses = [(v, r) for v, of_prompt in zip(values, rewards, strict=True) for r in of_prompt]
    rates = [sum(of_prompt) / len(of_prompt) for of_prompt in rewards]
    single = c.auroc([v for v, _ in responses], [r for _, r in responses])
    assert c.auroc(values, rates, [len(of_prompt) for of_prompt in rewards]) == pytest.approx(single)


def test_what_a_perfect_critic_reaches_by_hand():
    rewards = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    # p (1 - p) / (n - 1): .25 / 3, .1875 / 3, 0.
    noise = (0.25 / 3 + 0.1875 / 3) / 3
    assert c.sampling_noise(rewards) == pytest.approx(noise)
    # Rates .5, .25, 1: mean 7/12, squared deviations (1 + 16 + 25) / 144, over 2.
    assert c.reachable_pearson(rewards) == pytest.approx(math.sqrt(1 - noise / (42 / 144 / 2)))


def test_what_a_perfect_critic_reaches_in_a_simulation():
    rng = np.random.default_rng(0)
    rates = rng.beta(0.6, 0.4, 4000)
    rewards = rng.random((4000, 8)) < rates[:, None]
    measured = rewards.mean(axis=1)
    samples = rewards.astype(float).tolist()
    assert c.sampling_noise(samples) == pytest.approx(c.brier(rates, measured), rel=0.05)
    assert c.reachable_pearson(samples) == pytest.approx(c.pearson(rates, measured), abs=0.005)


@pytest.mark.parametrize("rewards", [[[1, 1], [1, 1]], [[1, 0]], [[1], [0]]])
def test_reachable_correlation_is_undefined_without_spread_or_repeats(rewards):
    assert math.isnan(c.reachable_pearson(rewards))


def test_noise_can_be_all_there_is():
    assert c.reachable_pearson([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]]) == 0.0
    assert math.isnan(c.sampling_noise([[1.0], [0.0, 1.0]]))


def test_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    values = rng.random(60)
    rates = np.clip(values + rng.normal(0, 0.2, 60), 0, 1)
    for measure in (c.pearson, c.brier):
        ours = c.bootstrap_interval(measure, values, rates)
        theirs = bootstrap(
            (values, rates), measure, paired=True, vectorized=False, n_resamples=2000, method="BCa"
        ).confidence_interval
        assert ours == pytest.approx((theirs.low, theirs.high), abs=0.25 * (theirs.high - theirs.low))
        assert ours[0] < measure(values, rates) < ours[1]


def test_bootstrap_draws_prompts_by_a_seed():
    values, rates = [0.1, 0.5, 0.6, 0.9, 0.2, 0.7], [0.0, 0.5, 0.9, 1.0, 0.4, 0.6]
    first = c.bootstrap_interval(c.brier, values, rates, resamples=200, seed=3)
    assert first == c.bootstrap_interval(c.brier, values, rates, resamples=200, seed=3)
    assert first != c.bootstrap_interval(c.brier, values, rates, resamples=200, seed=4)


@pytest.mark.parametrize(
    ("measure", "values", "rates"),
    [
        (c.pearson, [0.3] * 5, [0.0, 0.5, 1.0, 0.2, 0.4]),
        (c.auroc, [0.1, 0.2, 0.3, 0.4], [1.0] * 4),
        (c.brier, [0.5], [1.0]),
        (c.brier, [0.5, 0.6], [1.0, 0.0]),
        (c.brier, [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        (c.pearson, [0.1, 0.9, 0.9, 0.9], [0.0, 1.0, 1.0, 1.0]),
    ],
    ids=["constant V", "all solved", "one prompt", "two prompts", "no spread", "one prompt makes it all"],
)
def test_no_interval_where_there_is_nothing_to_tell(measure, values, rates):
    assert c.bootstrap_interval(measure, values, rates, resamples=200) is None


def test_an_interval_survives_some_undefined_draws():
    # A draw without the three unsolved prompts, which is one in forty, has no correlation.
    values, rates = [0.9, 0.8, 0.95, 0.85, 0.7, 0.75, 0.3, 0.2, 0.6], [1.0] * 6 + [0.2, 0.0, 0.9]
    interval = c.bootstrap_interval(c.pearson, values, rates, resamples=400)
    assert interval is not None
    assert interval[0] < c.pearson(values, rates) <= 1.0


@pytest.mark.parametrize("damaged", [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings("error")
def test_a_value_that_is_not_finite_makes_measures_undefined_and_lies_in_no_bin(damaged):
    values, rewards = [damaged, 0.8, 0.3, 0.1], [1.0, 0.0, 1.0, 0.0]
    for measure in (c.expected_calibration_error, c.explained_variance, c.pearson, c.spearman, c.auroc):
        assert math.isnan(measure(values, rewards)), measure.__name__
        assert math.isnan(measure([damaged] * 4, rewards)), measure.__name__
    assert not math.isfinite(c.brier(values, rewards))
    assert "ece" not in c.calibration_metrics([damaged] * 4, rewards)
    assert "mse" not in c.regression_metrics([damaged] * 4, rewards)
    assert [row["count"] for row in c.reliability_rows(values, rewards)] == [1, 1, 1]
    assert c.reliability_rows([damaged] * 4, rewards) == []
