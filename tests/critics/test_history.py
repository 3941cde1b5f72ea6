"""History: the posterior by hand and by brute force, its worth, its grid's weights, and what comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import beta as beta_distribution
from scipy.stats import betabinom

from sppo.critics.belief import PRIOR_WORTH
from sppo.critics.history import DISCOUNTS, WORTHS, History

FREE = math.inf


def keys(*numbers):
    return np.array(numbers, np.uint64)


def floats(*numbers):
    return np.array(numbers, np.float64)


def learn(history, of, values, rewards, limit=FREE):
    """A step's outcomes, after which the policy moves."""
    history.learn(keys(*of), floats(*values), np.full(len(of), limit), floats(*rewards))
    history.policy_moved()


def believe(history, key, value, limit=FREE):
    beliefs = history.fuse(keys(key), floats(value), floats(limit))
    return beliefs.mean.item(), beliefs.worth.item()


def only(history, m, gamma):
    """Makes one pair of the grid certain."""
    history.log_likelihood[:] = -1e9
    history.log_likelihood[WORTHS.tolist().index(m), DISCOUNTS.tolist().index(gamma)] = 0.0
    return history


def test_a_belief_of_known_worth_and_discount_by_hand():
    history = History()
    learn(history, [5], [0.4], [1.0])
    learn(history, [5, 8], [0.4, 0.4], [0.0, 1.0])
    learn(history, [8], [0.4], [1.0])
    only(history, 2.0, 0.5)
    # At clock 3 the outcomes of 5 are 3 and 2 steps old: alpha 1/8, beta 1/4. Those of 8 are 2 and 1 old: alpha 3/4.
    assert believe(history, 5, 0.4) == pytest.approx(((0.8 + 0.125) / 2.375, 2.375))
    assert believe(history, 8, 0.1) == pytest.approx((0.95 / 2.75, 2.75))
    assert believe(history, 9, 0.3) == pytest.approx((0.3, 2.0))  # never seen: V, worth m
    only(history, 2.0, 1.0)
    assert believe(history, 5, 0.4) == pytest.approx((1.8 / 4, 4.0))


def test_without_outcomes_the_belief_is_v_with_the_prior_worth():
    for value in (0.03, 0.5, 0.9):
        mean, worth = believe(History(), 1, value)
        assert mean == pytest.approx(value)
        assert worth == pytest.approx(PRIOR_WORTH, abs=0.02)


def test_mean_and_variance_are_those_of_the_mixture():
    history, generator = History(), np.random.default_rng(1)
    for _ in range(6):
        of = generator.integers(0, 5, 12).tolist()
        learn(history, of, [0.2 + 0.1 * key for key in of], (generator.random(12) < 0.6).astype(float))
    mean, worth = believe(history, 3, 0.5)
    drawn, number = [], 2_000
    row = history.store.find(keys(3))[0]
    age = history.clock - history.store.seen[row]
    for i, m in enumerate(WORTHS):
        for k, gamma in enumerate(DISCOUNTS):
            a = m * 0.5 + history.store.alpha[row, k] * gamma**age
            b = m * 0.5 + history.store.beta[row, k] * gamma**age
            quantiles = (np.arange(number) + 0.5) / number
            points = beta_distribution.ppf(quantiles, a, b)
            drawn.append((history.weights[i, k], points.mean(), (points**2).mean()))
    first = sum(w * one for w, one, _ in drawn)
    second = sum(w * two for w, _, two in drawn)
    assert mean == pytest.approx(first, abs=1e-4)
    assert worth == pytest.approx(first * (1 - first) / (second - first**2) - 1, rel=1e-2)


def test_the_weights_are_beta_binomial_likelihoods_that_fade():
    history = History()
    learn(history, [4], [0.3], [1.0])
    # The first outcome of a prompt says nothing of the pairs: under each it has the probability V.
    assert history.log_likelihood == pytest.approx(np.full((8, 5), 0.9 * math.log(0.3)))
    learn(history, [4, 4, 4, 6], [0.3, 0.3, 0.3, 0.5], [1.0, 0.0, 1.0, 0.0])
    for i, m in enumerate(WORTHS[:-1]):
        for k, gamma in enumerate(DISCOUNTS):
            # Three outcomes of 4 in a certain order; binomial coefficient taken out.
            own = betabinom.logpmf(2, 3, m * 0.3 + gamma, m * 0.7) - math.log(3)
            expected = 0.9 * (0.9 * math.log(0.3) + own + math.log(0.5))
            assert history.log_likelihood[i, k] == pytest.approx(expected)
    assert history.log_likelihood[-1, 0] == pytest.approx(
        0.9 * (0.9 * math.log(0.3) + math.log(0.3 * 0.7 * 0.3) + math.log(0.5)), abs=1e-4
    )


def test_outcomes_tell_what_v_is_worth_and_how_fast_they_go_stale():
    generator, steady, text = np.random.default_rng(2), History(), History()
    rates = generator.choice([0.05, 0.95], 40)
    for _ in range(30):
        of = generator.integers(0, 40, 32)
        rewards = (generator.random(32) < rates[of]).astype(float)
        learn(steady, of.tolist(), [0.5] * 32, rewards)  # V knows nothing, the prompts stay what they are
        learn(text, of.tolist(), rates[of], rewards)  # V knows all
    assert steady.worth < 1
    assert steady.discount > 0.95
    assert text.worth > 100
    changing = History()
    for step in range(60):
        rate = rates if step // 3 % 2 else 1 - rates  # turned round every third step
        learn(changing, range(40), [0.5] * 40, (generator.random(40) < rate).astype(float))
    assert changing.discount < 0.75


def test_two_critics_that_disagree_limit_what_v_is_worth():
    history = History()
    learn(history, [1], [0.5], [1.0])
    only(history, 32.0, 1.0)
    assert believe(history, 1, 0.5) == pytest.approx((17 / 33, 33))
    assert believe(history, 1, 0.5, limit=1.0) == pytest.approx((1.5 / 2, 2))
    mean, worth = believe(history, 2, 0.5, limit=0.0)
    assert (mean, worth) == pytest.approx((0.5, 0.01))


def test_a_group_counts_as_its_outcomes_one_by_one():
    together, apart = History(), History()
    learn(together, [1, 2, 1, 1], [0.5] * 4, [1.0, 0.25, 0.0, 1.0])
    assert together.store.alpha[:, 0].tolist() == [2.0, 0.25]
    assert together.store.beta[:, 0].tolist() == [1.0, 0.75]
    learn(apart, [1, 1, 1, 2], [0.5] * 4, [1.0, 1.0, 0.0, 0.25])
    assert together.log_likelihood == pytest.approx(apart.log_likelihood)


def test_known_rates_begin_counts_and_go_stale_as_outcomes_do():
    history = History()
    history.start(keys(3, 4, 3), floats(0.2, 1.0, 0.4), 8.0)
    only(history, 2.0, 0.5)
    assert believe(history, 3, 0.9) == pytest.approx(((1.8 + 8 * 0.3) / 10, 10))  # the mean of its two rows
    assert believe(history, 4, 0.9) == pytest.approx(((1.8 + 8) / 10, 10))
    learn(history, [7], [0.5], [1.0])
    only(history, 2.0, 0.5)
    assert believe(history, 3, 0.9) == pytest.approx(((1.8 + 4 * 0.3) / 6, 6))


def test_values_at_the_edge_and_damaged_ones_do_no_harm():
    history = History()
    learn(history, [1, 2, 3], [0.0, 1.0, math.nan], [1.0, 0.0, 1.0])
    assert np.isfinite(history.log_likelihood).all()
    for key, value in ((1, 0.0), (2, 1.0), (9, 0.0), (9, 1.0)):
        mean, worth = believe(history, key, value)
        assert 0 < mean < 1
        assert worth > 0
    assert math.isnan(believe(history, 3, math.nan)[0])
    assert believe(history, 3, 0.5)[0] > 0.5  # its outcome was counted all the same


def test_history_comes_back_bit_for_bit(tmp_path):
    history, again, generator = History(), History(), np.random.default_rng(3)
    for step in range(5):
        learn(history, generator.integers(0, 9, 8).tolist(), [0.4] * 8, generator.random(8).round(step % 3))
    save_file(history.arrays(), tmp_path / "history.safetensors")
    again.load(load_file(tmp_path / "history.safetensors"))
    for one in (history, again):
        learn(one, [1, 20], [0.4, 0.6], [1.0, 0.0])
    assert {name: array.tolist() for name, array in again.arrays().items()} == {
        name: array.tolist() for name, array in history.arrays().items()
    }
    assert believe(again, 1, 0.4) == believe(history, 1, 0.4)


def test_outcomes_of_a_policy_at_rest_stay_fresh():
    rested, at_once = History(), History()
    for key, reward in ((1, 1.0), (2, 0.0), (3, 1.0)):
        rested.learn(keys(key), floats(0.5), floats(FREE), floats(reward))
    at_once.learn(keys(1, 2, 3), floats(0.5, 0.5, 0.5), np.full(3, FREE), floats(1.0, 0.0, 1.0))
    assert believe(rested, 1, 0.5) == pytest.approx(believe(rested, 3, 0.5))
    assert believe(rested, 1, 0.5) == pytest.approx(believe(at_once, 1, 0.5))
    assert rested.log_likelihood == pytest.approx(at_once.log_likelihood)
    rested.policy_moved()
    assert believe(rested, 1, 0.5)[0] < believe(at_once, 1, 0.5)[0]
