"""Recalibration: the fit against its own conditions, halves by prompt, and that no outcome reaches its own V."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from sppo.critics.history import History
from sppo.critics.recalibration import Line, first_half, fit, recalibrated

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.uniform(0.02, 0.98, 200)
REWARDS = (GENERATOR.random(200) < VALUES**0.4).astype(np.float64)


def penalised(line, values, rewards):
    v = 1 / (1 + np.exp(-(line[0] * np.log(values / (1 - values)) + line[1])))
    losses = -rewards * np.log(v) - (1 - rewards) * np.log(1 - v)
    return losses.sum() + 10 * (line[0] - 1) ** 2 + line[1] ** 2


def test_the_fit_is_the_least_of_the_penalised_loss():
    for values, rewards in ((VALUES, REWARDS), (VALUES[:3], REWARDS[:3]), (VALUES, REWARDS * 0.3)):
        expected = minimize(penalised, [1.0, 0.0], args=(values, rewards), tol=1e-12).x
        assert fit(values, rewards) == pytest.approx(tuple(expected), abs=1e-5)


def test_one_outcome_at_a_half_moves_the_shift_as_far_as_the_ridge_lets_it():
    # z = 0: c alone is fitted, and sigma(c) - 1 + 2 c = 0 at c = 0.2223.
    assert fit(np.array([0.5]), np.array([1.0])) == pytest.approx((1.0, 0.2223), abs=1e-4)


def test_outcomes_that_are_all_alike_and_values_at_the_edge_leave_it_finite():
    for reward in (0.0, 1.0):
        for values in (np.full(500, 0.5), np.array([0.0, 1.0] * 250), VALUES):
            line = fit(values, np.full(len(values), reward))
            assert np.isfinite(line).all()
            moved = line.apply(values)
            assert np.isfinite(moved).all()
            assert ((moved > 0) & (moved < 1)).all()
    assert fit(np.array([np.nan, 0.5]), np.array([0.0, 1.0])) == Line(1.0, 0.0)
    assert fit(np.empty(0), np.empty(0)) == Line(1.0, 0.0)


def test_halves_are_of_distinct_prompts_and_know_their_keys_alone():
    keys = np.array([7, 3, 7, 9, 1, 3], np.uint64)
    assert first_half(keys).tolist() == [False, True, False, False, True, True]
    assert first_half(keys[::-1]).tolist() == first_half(keys)[::-1].tolist()
    assert first_half(np.array([4, 4], np.uint64)).tolist() == [True, True]  # one prompt, one half


def test_each_half_gets_the_line_of_the_other():
    keys = np.arange(200, dtype=np.uint64)
    found = recalibrated(VALUES, REWARDS, keys)
    assert found[:100].tolist() == fit(VALUES[100:], REWARDS[100:]).apply(VALUES[:100]).tolist()
    assert found[100:].tolist() == fit(VALUES[:100], REWARDS[:100]).apply(VALUES[100:]).tolist()
    assert np.mean((found - REWARDS) ** 2) < np.mean((VALUES - REWARDS) ** 2) - 0.01


def test_no_outcome_of_a_prompt_reaches_a_value_of_it():
    keys, values = np.repeat(np.arange(10, dtype=np.uint64), 4), np.repeat(VALUES[:10], 4)
    before = recalibrated(values, REWARDS[:40], keys)
    for row in range(40):
        flipped = REWARDS[:40].copy()
        flipped[row] = 1 - flipped[row]
        after = recalibrated(values, flipped, keys)
        siblings = keys == keys[row]
        assert after[siblings].tolist() == before[siblings].tolist()
        assert (after != before).any()


def test_a_prompt_alone_keeps_its_value():
    assert recalibrated(np.full(3, 0.3), np.ones(3), np.full(3, 8, np.uint64)).tolist() == [0.3] * 3


@pytest.mark.parametrize(("noise", "lag"), [(0.5, 0.8), (4.0, 2.0)])
def test_a_lagging_v_is_better_recalibrated_before_it_is_fused_than_after(noise, lag):
    # Prompts whose solve rates rise; V lags behind by so many logits, and misreads each prompt by so many.
    errors: dict[str, list[float]] = {"neither": [], "history": [], "before": [], "after": []}
    for seed in range(6):
        generator = np.random.default_rng(seed)
        base, misread = generator.normal(0, 2, 300), generator.normal(0, noise, 300)
        plain, straight, free = History(), History(), np.full(128, np.inf)
        for step in range(20):
            of = generator.choice(300, 128, replace=False)
            rates = 1 / (1 + np.exp(-(base[of] - 2 + step / 5)))
            values = 1 / (1 + np.exp(-(0.8 * (base + misread)[of] - 2 + step / 5 - lag)))
            rewards, keys = (generator.random(128) < rates).astype(np.float64), of.astype(np.uint64)
            first, fused = recalibrated(values, rewards, keys), plain.fuse(keys, values, free).mean
            found = {
                "neither": values, "history": fused, "before": straight.fuse(keys, first, free).mean,
                "after": recalibrated(fused, rewards, keys),
            }  # fmt: skip
            plain.learn(keys, values, free, rewards)
            straight.learn(keys, first, free, rewards)
            plain.policy_moved()
            straight.policy_moved()
            for name, belief in found.items():
                errors[name].append(float(np.mean((belief - rates) ** 2)))
    excess = {name: np.mean(all_of) for name, all_of in errors.items()}
    assert excess["before"] < 0.97 * excess["after"] < 0.9 * excess["history"] < 0.9 * excess["neither"]
