"""Choosing prompts: what each rule takes, the control group, that no prompt starves, and exact resume."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial

import numpy as np
import pytest

from sppo.data.adaptive import responses
from sppo.data.gain import Gain
from sppo.data.selection import RULES, BeliefSelection, UniformSelection, curriculum, sqrt, top
from sppo.data.stream import PromptStream
from sppo.errors import RunFolderError
from sppo.runs.seeds import derive_seed
from sppo.types import Beliefs, Prompt


def beliefs(means, worth=1e9) -> Beliefs:
    mean = np.asarray(means, np.float64)
    return Beliefs(mean, np.full(len(mean), float(worth)))


def pool(n: int) -> list[Prompt]:
    return [Prompt(str(i), f"problem {i}") for i in range(n)]


def selection(n: int, rule: str | None, **options) -> BeliefSelection:
    prompts = pool(n)
    streams = PromptStream(prompts, 1), PromptStream(prompts, 2)
    return BeliefSelection(*streams, rule=rule, steps=10, seed=partial(derive_seed, 0, "selection"), **options)


def believing(rates):
    """A critic that knows each prompt's rate."""
    return lambda prompts: beliefs([rates[int(prompt.id)] for prompt in prompts])


def ids(chosen) -> list[int]:
    return [int(prompt.id) for prompt in chosen.prompts]


def test_spread_is_the_expected_squared_advantage():
    # Beta(1, 3): E[p (1 - p)] = 1 * 3 / (4 * 5).
    assert Beliefs(np.array([0.25]), np.array([4.0])).spread == pytest.approx([3 / 20])
    assert beliefs([0.0, 0.5, 1.0]).spread == pytest.approx([0, 0.25, 0])


def test_top_takes_those_nearest_one_half_and_the_earlier_of_equals():
    assert top(beliefs([0.9, 0.5, 0.1, 0.4, 0.5]), 3, random.Random(0), 0.0).tolist() == [1, 4, 3]
    assert top(beliefs([0.3] * 4), 2, random.Random(0), 0.0).tolist() == [0, 1]


def test_top_prefers_what_is_known_to_be_uncertain_to_what_is_not_known():
    # Worth 1 at one half: p may as well be 0 or 1. E[p (1 - p)] is 1/8, of a known .2 it is .16.
    known = Beliefs(np.array([0.5, 0.2]), np.array([1.0, 1e9]))
    assert top(known, 1, random.Random(0), 0.0).tolist() == [1]


def test_sqrt_draws_with_weights_of_the_square_root():
    # One of two: P = w1 / (w1 + w2) with w = sqrt(b (1 - b)) + .02: .52 against .12.
    given = beliefs([0.5, 0.5 - np.sqrt(0.25 - 0.01)])
    drawn = Counter(int(sqrt(given, 1, random.Random(seed), 0.0)[0]) for seed in range(4000))
    share, expected = drawn[0] / 4000, 0.52 / 0.64
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)


def test_sqrt_still_draws_what_is_believed_dead():
    drawn = Counter(int(sqrt(beliefs([0.0, 0.5]), 1, random.Random(seed), 0.0)[0]) for seed in range(4000))
    assert abs(drawn[0] / 4000 - 0.02 / 0.54) < 0.012


def test_a_curriculum_goes_from_easy_to_hard():
    given = beliefs([0.1, 0.9, 0.5, 0.7])
    assert curriculum(given, 2, random.Random(0), 0.0).tolist() == [1, 3]
    assert curriculum(given, 2, random.Random(0), 0.5).tolist() == [3, 2]
    assert curriculum(given, 2, random.Random(0), 1.0).tolist() == [2, 0]


@pytest.mark.parametrize("rule", RULES)
def test_no_prompt_comes_twice_in_a_step_and_the_control_group_has_its_share(rule):
    chooser = selection(70, rule, uniform_share=0.25)
    for step in range(1, 40):
        chosen = chooser.take(step, 8, believing(np.linspace(0, 1, 70)))
        assert len(set(ids(chosen))) == 8
        assert chosen.control.tolist() == [True] * 2 + [False] * 6
        assert chosen.beliefs is not None
        assert chosen.beliefs.mean == pytest.approx([i / 69 for i in ids(chosen)])


def test_the_control_group_is_a_walk_of_its_own_over_the_whole_pool():
    chooser = selection(60, "top", uniform_share=0.25)
    rates = np.where(np.arange(60) < 12, 0.5, 0.0)
    asked = [ids(chooser.take(step, 8, believing(rates))) for step in range(1, 31)]
    control = Counter(i for step in asked for i in step[:2])
    assert control == dict.fromkeys(range(60), 1)  # 30 steps of 2: all 60 of them once, whatever is believed
    assert all(rates[i] == 0.5 for step in asked for i in step[2:])


def test_no_prompt_starves_with_a_single_control_prompt_a_step():
    chooser = selection(20, "top", uniform_share=0.01)
    rates = np.where(np.arange(20) < 8, 0.5, 0.0)
    seen = {i for step in range(1, 21) for i in ids(chooser.take(step, 4, believing(rates)))}
    assert seen == set(range(20))


@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (2, 0.8), (8, 1.0)])
def test_where_all_are_the_control_group_nobody_else_is_judged(count, share):
    chooser = selection(70, "top", uniform_share=share)
    chosen = chooser.take(1, count, believing(np.linspace(0, 1, 70)))
    assert chosen.control.all()
    assert len(chosen.judged) == count
    assert chooser.observe(chosen, np.arange(count), np.ones(count))["selection/candidates"] == 1.0


def test_candidates_are_the_next_ones_of_the_epoch_chosen_or_not():
    chooser = selection(40, "top", candidates=2, uniform_share=0.25)
    asked = []
    chooser.take(1, 4, lambda prompts: asked.extend(int(p.id) for p in prompts) or beliefs([0.5] * len(prompts)))
    control, candidates = asked[:1], asked[1:]
    order = [int(p.id) for p in PromptStream(pool(40), 1).take(40)]
    assert candidates == [i for i in order if i not in control][:7]  # 2 x 4, the control prompt among them
    assert chooser.stream.epoch == pytest.approx((7 + (control[0] in order[:7])) / 40)


def test_a_step_larger_than_the_pool_takes_what_comes():
    chooser = selection(5, "top")
    assert ids(chooser.take(1, 12, believing([0.5] * 5))) == [int(p.id) for p in PromptStream(pool(5), 1).take(12)]


def test_unknown_prompts_count_as_one_half_at_the_worth_of_a_sample():
    chooser = selection(12, "top", uniform_share=0.01)
    known = [0.02] * 11
    chosen = chooser.take(1, 2, lambda prompts: beliefs([np.nan if p.id == "7" else known[0] for p in prompts]))
    assert 7 in ids(chosen)


def test_uniform_is_the_stream_itself():
    chooser = UniformSelection(PromptStream(pool(9), 4))
    assert [ids(chooser.take(step, 4, None)) for step in (1, 2, 3)] == [
        [int(p.id) for p in part] for part in (lambda s: [s.take(4), s.take(4), s.take(4)])(PromptStream(pool(9), 4))
    ]


# Gain and auto


def fill(gain: Gain, best: float, rest: float, prompts: int = 600) -> None:
    """A control group of which a sixth is above the bar."""
    above = np.arange(prompts) < prompts / 6
    gain.add(np.where(above, best, rest), np.ones(prompts, np.bool_), above, 1 / 6)


def test_the_gain_is_that_of_the_best_sixth_over_all():
    gain = Gain()
    fill(gain, 0.2, 0.02)
    # Five prompts as good as the best ones are taken to be among the 500 others.
    assert gain.ratio == pytest.approx(0.2 / (0.2 / 6 + 5 / 6 * (500 * 0.02 + 5 * 0.2) / 505))
    assert gain.metrics() == {"selection/gain": gain.ratio}


def test_chosen_prompts_tell_of_the_best_but_not_of_the_others():
    gain, same = Gain(), Gain()
    fill(gain, 0.2, 0.02)
    fill(same, 0.2, 0.02)
    above = np.arange(100) < 50
    # Below the bar they were taken as the best of what was left.
    same.add(np.where(above, 0.2, 0.15), np.zeros(100, np.bool_), above, 1 / 6)
    assert same.ratio == pytest.approx(gain.ratio)


@pytest.mark.parametrize(
    ("best", "rest", "hardness"), [(0.1, 0.1, 0.0), (0.25, 0.15, 0.0), (0.25, 0.1, 0.333), (0.25, 0.01, 1.0)]
)
def test_the_choice_is_as_hard_as_the_gain_speaks_for(best, rest, hardness):
    gain = Gain()
    fill(gain, best, rest, 600_000)
    assert gain.hardness() == pytest.approx(hardness, abs=0.01)


def test_nothing_is_chosen_while_little_is_known():
    gain = Gain()
    fill(gain, 0.2, 0.0, 54)
    assert gain.hardness() == 0.0
    assert gain.metrics() == {}


def test_a_critic_that_knows_nothing_tells_no_gain():
    chooser = selection(2000, None)
    chosen = chooser.take(1, 300, lambda prompts: beliefs([np.nan] * len(prompts)))
    metrics = chooser.observe(chosen, np.arange(300), np.ones(300))
    assert "selection/gain" not in metrics
    assert chooser.gain.hardness() == 0.0


def test_beliefs_that_are_all_level_tell_no_gain():
    chooser = selection(2000, None)
    chosen = chooser.take(1, 300, believing(np.full(2000, 0.3)))
    metrics = chooser.observe(chosen, np.arange(300), np.arange(300) % 3 == 0)
    assert "selection/gain" not in metrics
    assert chooser.gain.hardness() == 0.0


def test_what_is_old_fades():
    gain = Gain()
    fill(gain, 0.2, 0.0)
    for _ in range(3):
        fill(gain, 0.2, 0.2)
    assert gain.ratio == pytest.approx(1.0, abs=0.02)


def rewards_of(rates, chosen, rng) -> np.ndarray:
    return (rng.random(len(chosen.prompts)) < np.array([rates[i] for i in ids(chosen)])).astype(np.float64)


@pytest.mark.parametrize(
    ("dead", "gains", "candidates"), [(0.0, (1.2, 1.8), (1, 2)), (0.5, (2.2, 3.4), (3, 5.8)), (0.8, (4.0, 6.0), (6, 6))]
)
def test_auto_chooses_as_hard_as_the_share_of_dead_prompts_speaks_for(dead, gains, candidates):
    rng = np.random.default_rng(0)
    rates = np.where(rng.random(2000) < dead, rng.integers(0, 2, 2000), rng.random(2000))
    chooser = selection(2000, None)
    found, ratios = [], []
    for step in range(1, 121):
        chosen = chooser.take(step, 128, believing(rates))
        metrics = chooser.observe(chosen, np.arange(128), rewards_of(rates, chosen, rng))
        ratios.append(metrics["selection/gain"])
        found.append(metrics["selection/candidates"])
        assert metrics["selection/control_share"] == (1.0 if found[-1] == 1 else 13 / 128)
    assert gains[0] < np.mean(ratios) < gains[1]
    assert candidates[0] <= np.mean(found[3:]) <= candidates[1]
    assert found[0] == 1.0


def test_what_is_said_of_a_step_is_said_of_its_control_group():
    chooser = selection(60, "top", uniform_share=0.5)
    rates = np.where(np.arange(60) < 30, 0.5, 0.0)
    chosen = chooser.take(1, 8, believing(rates))
    rewards = np.where(chosen.control, 0.25, 1.0)
    metrics = chooser.observe(chosen, np.arange(8), rewards)
    assert metrics["selection/control_reward"] == 0.25
    assert metrics["selection/chosen_reward"] == 1.0


def test_the_dead_share_is_that_of_all_that_were_judged():
    asked = []
    rates = np.where(np.arange(60) < 30, 0.5, 0.0)

    def believe(prompts):
        asked.extend(int(prompt.id) for prompt in prompts)
        return believing(rates)(prompts)

    chooser = selection(60, "top", uniform_share=0.5)
    chosen = chooser.take(1, 8, believe)
    metrics = chooser.observe(chosen, np.arange(8), np.ones(8))
    assert len(asked) == 48
    assert metrics["selection/dead_share"] == np.mean([rates[i] == 0 for i in asked])


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_choice_goes_on_exactly_where_it_stopped(rule, stop):
    rng = np.random.default_rng(1)
    rates = np.where(rng.random(300) < 0.8, 0.0, rng.random(300))

    def run(chooser, steps, seen):
        for step in steps:
            chosen = chooser.take(step, 64, believing(rates))
            seen.append((ids(chosen), chosen.control.tolist()))
            chooser.observe(chosen, np.arange(64), np.array([float(i % 3 == 0) for i in ids(chosen)]))

    whole, parts = [], []
    run(selection(300, rule), range(1, 11), whole)
    first = selection(300, rule)
    run(first, range(1, stop + 1), parts)
    second = selection(300, rule)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    run(second, range(stop + 1, 11), parts)
    assert parts == whole


def test_other_prompts_are_refused():
    with pytest.raises(RunFolderError, match="other prompts"):
        selection(30, "top").load_state_dict(selection(31, "top").state_dict())


# Second and third responses


def test_second_responses_go_where_most_is_expected_and_third_ones_where_twice_as_much():
    assert responses(beliefs([0.5, 0.1, 0.02]), 1) == [2, 1, 1]
    assert responses(beliefs([0.5, 0.1, 0.02]), 2) == [3, 1, 1]  # .25 / 2 is more than .09
    assert responses(beliefs([0.5, 0.3, 0.02]), 2) == [2, 2, 1]  # and less than .21
    assert responses(beliefs([0.5, 0.5, 0.5]), 100) == [3, 3, 3]
    assert sum(responses(beliefs(np.linspace(0, 1, 50)), 30)) == 80
