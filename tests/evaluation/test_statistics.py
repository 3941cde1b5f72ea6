"""pass@k, maj@k, intervals and paired tests: numbers by hand, brute force, and simulated coverage."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from sppo.evaluation.statistics import (
    MOST_SAMPLES,
    Spread,
    majority_at_k,
    mean_spread,
    mean_variances,
    pass_at_k,
    pass_variance,
    powers_of_two,
    sampling_spread,
    sign_flip_p_value,
    total_spread,
)


def test_powers_of_two():
    assert [powers_of_two(n) for n in (0, 1, 3, 16)] == [[], [1], [1, 2], [1, 2, 4, 8, 16]]


# ---- pass@k


@pytest.mark.parametrize(("n", "c", "k", "wanted"), [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 2, 4, 1)])
def test_pass_at_k_by_hand(n, c, k, wanted):
    assert pass_at_k(n, c, k) == pytest.approx(wanted)


def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased():
    """Its mean over Binomial(n, p) is 1 - (1 - p)^k, summed exactly."""
    n, p = 8, 0.3
    for k in powers_of_two(n):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_the_variance_of_pass_at_1_is_that_of_a_mean():
    assert pass_variance(8, 2, 1) == pytest.approx(mean_variances([[1, 1, 0, 0, 0, 0, 0, 0]])[0])
    assert pass_variance(8, 8, 4) == pass_variance(1, 1, 1) == 0


# ---- maj@k


@pytest.mark.parametrize(
    ("n", "right", "wrong", "k", "wanted"),
    [
        (2, 1, (1,), 2, 0.5),  # a tie of two
        (3, 1, (1, 1), 3, 1 / 3),  # a tie of three
        (3, 2, (1,), 3, 1.0),
        (3, 1, (2,), 3, 0.0),
        (3, 1, (), 3, 1.0),  # silent samples have no vote
        (3, 1, (), 1, 1 / 3),
        (4, 1, (2,), 2, (1 + 2 * 0.5) / 6),  # of 6 pairs: right + silent wins, right + either wrong one ties
    ],
)
def test_majority_by_hand(n, right, wrong, k, wanted):
    assert majority_at_k(n, right, wrong, k) == pytest.approx(wanted)


def test_majority_is_the_mean_over_all_subsets():
    choices = random.Random(0)
    for _ in range(150):
        n = choices.randint(1, 8)
        answers = [choices.choice(["right", "a", "b", "c", None]) for _ in range(n)]
        k = choices.randint(1, n)
        shares = []
        for subset in itertools.combinations(answers, k):
            votes = Counter(answer for answer in subset if answer is not None)
            best = [answer for answer, count in votes.items() if count == max(votes.values())]
            shares.append(("right" in best) / len(best) if best else 0.0)
        counts = Counter(answer for answer in answers if answer is not None)
        wrong = tuple(count for answer, count in counts.items() if answer != "right")
        assert majority_at_k(n, counts["right"], wrong, k) == pytest.approx(sum(shares) / len(shares))


def test_majority_of_one_is_the_accuracy_and_many_votes_are_exact_enough():
    assert majority_at_k(16, 5, (4, 3), 1) == pytest.approx(5 / 16)
    assert majority_at_k(64, 30, (10, 8, 8, 2, 2), 64) == pytest.approx(1.0)
    assert majority_at_k(512, 200, (201,), 512) == pytest.approx(0.0, abs=1e-12)
    assert majority_at_k(MOST_SAMPLES, 512, (512,), 512) == pytest.approx(0.5)


# ---- intervals


def test_total_interval_by_hand():
    """Means 0, .5, 1: sd .5, standard error .5 / sqrt(3), t quantile at 2 degrees of freedom 4.3027."""
    spread = total_spread([0.0, 0.5, 1.0])
    assert spread is not None
    assert (spread.stderr, spread.freedom) == (pytest.approx(0.5 / math.sqrt(3)), 2)
    assert spread.margin() == pytest.approx(4.302653 * 0.288675, rel=1e-5)
    interval = spread.interval(0.5)
    assert (interval.low, interval.high) == (0, 1)
    assert total_spread([0.5]) is None


def test_sampling_interval_by_hand():
    """Two problems of 4 samples, 1 and 3 right: each mean has variance (1/4)(3/4)/3; df = 2 * 3."""
    rewards = [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert mean_variances(rewards) == pytest.approx([0.0625, 0.0625])
    spread = sampling_spread(mean_variances(rewards), [4, 4])
    assert spread is not None
    assert (spread.variance, spread.freedom) == (pytest.approx(0.125 / 4), pytest.approx(6))
    assert sampling_spread([0.0, 0.0], [1, 1]) is None
    # A third problem that errors left with one sample: its variance is the others' 4 * 0.0625.
    left = sampling_spread([0.0625, 0.0625, 0.0], [4, 4, 1])
    assert left is not None
    assert (left.variance, left.freedom) == (pytest.approx((0.125 + 0.25) / 9), pytest.approx(6))


def test_no_variation_proves_no_certainty():
    """30 of 30: the exact bound of a binomial, 1 - .025^(1/30) = 11.6%; with 4 samples each 3.0%."""
    spread = total_spread([1.0] * 30)
    assert spread is not None
    assert spread.interval(1.0).low == pytest.approx(1 - 0.115703, abs=1e-5)
    inside = sampling_spread([0.0] * 30, [4] * 30)
    assert inside is not None
    assert inside.interval(1.0).low == pytest.approx(0.025 ** (1 / 120))


def test_the_exact_bound_of_pass_at_k():
    """Of 8 samples none is right, for 10 problems: 20 independent draws of 4, so pass@4 <= 1 - .025^(1/20)."""
    spread = sampling_spread([0.0] * 10, [8] * 10, 4)
    assert spread is not None
    assert spread.interval(0.0).high == pytest.approx(1 - 0.025 ** (1 / 20))
    # The bound itself: at p with 1 - (1 - p)^4 that large, 80 failures in a row have probability .025.
    p = 1 - (1 - spread.margin()) ** (1 / 4)
    assert (1 - p) ** 80 == pytest.approx(0.025)


def test_differences_that_are_all_alike():
    """Of 30 differences in [-1, 1], all 1: another problem's may be -1, twice as far as where all are 0."""
    won, even = total_spread([1.0] * 30, low=-1.0), total_spread([0.0] * 30, low=-1.0)
    assert won is not None
    assert even is not None
    assert won.interval(1.0, low=-1.0).low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 30)))
    assert even.margin() == pytest.approx(1 - 0.025 ** (1 / 30))


def test_the_average_of_two_means():
    spread = mean_spread([Spread(0.04, 10), Spread(0.04, 10)])
    assert spread is not None
    assert (spread.variance, spread.freedom) == (pytest.approx(0.02), pytest.approx(20))
    # A benchmark on which nothing was solved is not known exactly: its bound enters the average's interval.
    unsolved = mean_spread([Spread(0.04, 10), Spread(0.0, 29, slack=0.1)])
    assert unsolved is not None
    assert unsolved.margin() == pytest.approx(math.hypot(2.228139 * 0.2, 0.1) / 2, rel=1e-6)
    assert mean_spread([Spread(0.04, 10), None]) is None
    assert mean_spread([]) is None


@pytest.mark.parametrize(("problems", "samples"), [(30, 16), (30, 4), (200, 2)])
def test_intervals_cover_the_truth_19_times_in_20(problems, samples):
    """Solve rates as of a reasoning benchmark, most near 0 or 1; 600 simulated benchmarks, +-2.5% is 3 s.e."""
    generator = np.random.default_rng(0)
    covered = {"total": 0, "sampling": 0}
    rounds = 600
    for _ in range(rounds):
        rates = generator.beta(0.5, 0.7, size=problems)
        rewards = (generator.random((problems, samples)) < rates[:, None]).astype(float)
        mean = rewards.mean()
        variances = rewards.var(axis=1, ddof=1) / samples
        for name, spread, truth in (
            ("total", total_spread(rewards.mean(axis=1)), 0.5 / 1.2),
            ("sampling", sampling_spread(variances, [samples] * problems), rates.mean()),
        ):
            assert spread is not None
            interval = spread.interval(mean)
            covered[name] += interval.low <= truth <= interval.high
    assert covered["total"] / rounds == pytest.approx(0.95, abs=0.025)
    assert covered["sampling"] / rounds == pytest.approx(0.95, abs=0.025)


def test_intervals_cover_where_nothing_was_solved():
    """One problem in 30 is solved one time in 16: mostly all zeros, where a plain t-interval would be [0, 0]."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        rewards = np.zeros((30, 8))
        rewards[0] = generator.random(8) < 1 / 16
        spread = sampling_spread(rewards.var(axis=1, ddof=1) / 8, [8] * 30)
        assert spread is not None
        covered += spread.interval(rewards.mean()).high >= 1 / 16 / 30
    assert covered / 300 > 0.95


# ---- paired


def test_sign_flips_by_hand():
    """Three wins of equal size: 2 of 8 sign patterns are as extreme. One loss in four: 10 of 16."""
    assert sign_flip_p_value([1, 1, 1]) == pytest.approx(2 / 8)
    assert sign_flip_p_value([1, 1, 1, -1]) == pytest.approx(10 / 16)
    assert sign_flip_p_value([0, 0, 1]) == sign_flip_p_value([0.0, 0.0]) == sign_flip_p_value([]) == 1
    assert sign_flip_p_value([1, 1, 1, -1], weights=[1, 1, 1, 0]) == pytest.approx(2 / 8)


def test_the_p_value_is_uniform_where_two_models_are_alike_and_small_where_not():
    generator = np.random.default_rng(0)
    p_values, alternative = [], []
    rounds = 200
    for _ in range(rounds):
        # Many samples, so that few differences are exactly 0: those make the p-value coarse, on the safe side.
        rates = generator.beta(2, 2, size=11)
        a, b = generator.binomial(64, rates, size=(2, 11)) / 64
        p_values.append(sign_flip_p_value(a - b))
        better = generator.binomial(64, np.minimum(1, rates + 0.15), size=11) / 64
        alternative.append(sign_flip_p_value(better - b))
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        share = np.mean(np.array(p_values) <= level)
        assert share == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / rounds))
    assert np.mean(np.array(alternative) <= 0.05) > 0.8


def test_a_p_value_of_many_problems_is_repeatable():
    differences = np.random.default_rng(2).normal(0.05, 1, size=60)
    assert sign_flip_p_value(differences) == sign_flip_p_value(differences)
