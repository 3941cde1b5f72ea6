"""What the first steps tell: when an alarm is raised, and what it says."""

from __future__ import annotations

import pytest

from sppo.runs.alarms import (
    FIRST,
    FLAT_STEPS,
    count_reasons,
    flat_reward,
    same_reason,
    say_flat_reward,
    say_same_reason,
)


def test_only_the_first_verdicts_count():
    seen = count_reasons({}, ["no final answer"] * 40)
    assert seen == {"no final answer": 40}
    assert same_reason(seen) is None
    seen = count_reasons(seen, ["no final answer"] * 24 + ["equal"] * 9)
    assert seen == {"no final answer": FIRST}
    assert count_reasons(seen, ["equal"]) == seen
    assert same_reason(seen) == "no final answer"


def test_two_reasons_are_no_alarm_nor_is_none_at_all():
    assert same_reason(count_reasons({}, ["no final answer"] * 63 + ["equal"])) is None
    assert same_reason(count_reasons({}, [""] * 64)) is None
    assert same_reason({}) is None


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("no final answer", "data.instruction"),
        ("no boxed answer", "verification.extraction to wide"),
        ("the thinking block is not closed", "sampling.max_response_tokens"),
        ("cut off at the length limit", "sampling.max_response_tokens"),
        ("not equal as integers", "compare the two"),
        ("equal as strings", "too easy"),
        ("no block of Python code", "block of Python code"),
        ("whatever else", "as it should be"),
    ],
)
def test_a_reason_that_all_share_comes_with_advice_and_a_response(reason, advice):
    said = say_same_reason(reason, 0.0, "I think\n it is " + "x" * 1000 + " seven.", "7")
    assert f"first {FIRST} responses got reward 0 for the same reason: {reason}." in said
    assert advice in said
    assert "I think it is xx" in said
    assert said.endswith("x seven.")
    assert len(said) < 900
    assert "One of them: Hm" in say_same_reason(reason, 0.0, "Hm", None)


def line(step, mean, std=0.0):
    return {"step": step, "reward/mean": mean, "reward/std": std}


def test_a_reward_that_never_varies():
    flat = [line(step, 0.1) for step in range(1, FLAT_STEPS + 1)]
    assert flat_reward(flat) == 0.1
    assert flat_reward(flat[1:]) is None
    assert flat_reward([{"step": 0, "eval/accuracy": 0.5}, *flat[1:]]) is None
    # Within a step or from one to the next.
    assert flat_reward([*flat[:-1], line(99, 0.1, 0.3)]) is None
    assert flat_reward([*flat[:-1], line(99, 0.2)]) is None
    # What was before doesn't matter, nor does a step without a reward.
    assert flat_reward([line(0, 1.0, 0.5), *flat]) == 0.1
    assert flat_reward([*flat, {"step": 99}]) == 0.1
    # Lines of earlier versions have no spread.
    assert flat_reward([{"reward/mean": 0.0}] * 20) is None


def test_what_is_said_of_a_flat_reward():
    assert "it was 0 for every response" in say_flat_reward(0.0)
    assert "sppo audit" in say_flat_reward(0.0)
    assert "harder" in say_flat_reward(1.0)
