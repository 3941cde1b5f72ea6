"""Grading: routing by the prompt's field, users' reward functions, and every way they can go wrong."""

from __future__ import annotations

import json
import math

import pytest

from sppo.config import VerificationConfig
from sppo.errors import ConfigError, RewardError
from sppo.grading import Grader, function_name, grading_metrics, load_reward_function
from sppo.types import Completion, Prompt, Rollout, Verdict
from sppo.verifiers.tools import Tools


def rollout(text: str, gold: str | None = "5", finish: str = "stop", **fields: object) -> Rollout:
    prompt = Prompt(id=str(fields.pop("id", "p")), content=fields.pop("content", "2+3?"), gold=gold, **fields)  # type: ignore[arg-type]
    return Rollout(prompt, (1,), Completion((2,), (-0.1,), finish), text, 0)  # type: ignore[arg-type]


def test_each_prompt_goes_to_the_verifier_it_names():
    verdicts = Grader(tools=Tools(VerificationConfig(time_limit=10))).grade(
        [
            rollout(r"\boxed{5}"),
            rollout(r"\boxed{\sqrt{8}}", r"2\sqrt2"),
            rollout("2+3#5", verifier="final_answer"),
            rollout("2+3#5", verifier="final_answer", finish="length"),
            rollout("5", verifier="exact"),
            rollout(r"\boxed{\sqrt{8}+1}", r"2\sqrt2"),
        ]
    )
    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    assert Grader().grade([]) == []


def test_a_prompt_that_opens_thinking_needs_it_closed():
    rollouts = [rollout(r"hm \boxed{5}"), rollout(r"hm \boxed{4}</think> \boxed{5}"), rollout(r"<think>\boxed{5}")]
    assert [v.reward for v in Grader().grade(rollouts)] == [1.0, 1.0, 0.0]
    assert [v.reward for v in Grader(prompt_opens_thinking=True).grade(rollouts)] == [0.0, 1.0, 0.0]


def test_a_missing_gold_or_an_unknown_verifier_is_named():
    with pytest.raises(ConfigError, match=r"Prompt 'row 3' has no gold answer.*data\.reward"):
        Grader().grade([rollout("5", None, id="row 3")])
    with pytest.raises(ConfigError, match=r"no verifier 'mth'.*Did you mean 'math'"):
        Grader().grade([rollout("5", verifier="mth")])


def test_the_reward_function_sees_what_trl_would_give_it():
    seen: dict[str, object] = {}

    def reward(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5] * len(prompts)

    chat = ({"role": "user", "content": "hi"},)
    verdicts = Grader(reward).grade([rollout("a", columns={"level": 3}), rollout("b", None, content=chat)])
    assert [verdict.reward for verdict in verdicts] == [0.5, 0.5]
    assert seen == {
        "prompts": ["2+3?", [{"role": "user", "content": "hi"}]],
        "completions": ["a", [{"role": "assistant", "content": "b"}]],
        "level": [3, None],
        "answer": ["5", None],
    }


def test_a_data_column_called_answer_wins_over_the_gold():
    def reward(answer, completions):
        return [float(a == "column") for a in answer]

    assert Grader(reward).grade([rollout("a", columns={"answer": "column", "other": 1})])[0].reward == 1.0


def test_none_leaves_a_sample_out_and_is_no_error():
    verdict = Grader(lambda completions: [None]).grade([rollout("a")])[0]
    assert verdict == Verdict(None, reason="left out by the reward function")


def test_any_finite_number_is_a_reward():
    import numpy as np

    rewards = [True, -3, np.float32(0.5), 1e6]
    verdicts = Grader(lambda completions: rewards).grade([rollout("a")] * 4)
    assert [verdict.reward for verdict in verdicts] == [1.0, -3.0, 0.5, 1e6]


def broken(completions):
    raise KeyError("level")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            broken,
            r"test_grading:broken raised KeyError: 'level' \(test_grading.py, line \d+\) for sample 0 \(prompt 'f",
        ),
        (lambda completions: [1 / (text != "b") for text in completions], r"for sample 1 \(prompt 'second'\)"),
        (lambda completions: [1 / (2 - len(completions))], r"for 2 completions together, but for none of them alone"),
        (lambda completions: [json.loads("{")], r"JSONDecodeError: .* \(test_grading.py, line \d+\)"),
        (lambda completions: [1.0], r"returned 1 rewards for 2 completions"),
        (lambda completions: 1.0, r"returned a float, but must return a list"),
        (lambda completions: None, r"returned a NoneType"),
        (lambda completions: "11", r"returned a str"),
        (lambda completions: [1.0, math.nan], r"returned nan for sample 1 \(prompt 'second'\)"),
        (lambda completions: [math.inf, 1.0], r"returned inf for sample 0 \(prompt 'first'\)"),
        (lambda completions: ["1", 1.0], r"returned '1' for sample 0"),
        (lambda: [1.0, 1.0, 1.0], r"returned 3 rewards for 2"),
        (
            lambda nonsense: [1.0, 1.0],
            r"raised TypeError: .*'nonsense'. It can take .*: prompts, completions, answer\.",
        ),
    ],
)
def test_what_a_reward_function_does_wrong_is_named(function, message):
    with pytest.raises(RewardError, match=message):
        Grader(function).grade([rollout("a", id="first"), rollout("b", id="second")])


def test_the_users_exception_is_chained():
    with pytest.raises(RewardError) as caught:
        Grader(broken).grade([rollout("a")])
    assert isinstance(caught.value.__cause__, KeyError)


def test_loading_a_function_from_a_file_and_a_module(tmp_path, monkeypatch):
    path = tmp_path / "my_reward.py"
    path.write_text("def length(completions):\n    return [float(len(c)) for c in completions]\n")
    function = load_reward_function(f"{path}:length")
    assert Grader(function).grade([rollout("abc")])[0].reward == 3.0
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward_function("my_reward:length")(["ab"]) == [2.0]
    assert function_name(function) == f"{path}:length"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("function", "must be package.module:function"),
        (":f", "must be package.module:function"),
        ("m:", "must be package.module:function"),
        ("{folder}/none.py:f", "there is no file"),
        ("{folder}/ok.py:g", "has no 'g'. Functions there: f"),
        ("{folder}/ok.py:number", "is a int, not a function"),
        ("{folder}/bad.py:f", "could not be run: ZeroDivisionError"),
        ("{folder}/syntax.py:f", "could not be run: SyntaxError"),
        ("no_such_module_here:f", "there is no module 'no_such_module_here'"),
        ("json.no_such:f", "there is no module 'json.no_such'"),
        ("needs_other:f", "needs 'surely_not_installed', which is not installed"),
        ("json:no_such", "has no 'no_such'"),
    ],
)
def test_every_way_loading_can_fail_is_named(target, message, tmp_path, monkeypatch):
    (tmp_path / "ok.py").write_text("number = 1\ndef f(completions): return []\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "needs_other.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_reward_function(target.format(folder=tmp_path))


def test_metrics_by_hand():
    verdicts = [Verdict(1.0), Verdict(0.0), Verdict(None, error="timed out"), Verdict(None, reason="left out")]
    assert grading_metrics(verdicts) == {
        "reward/mean": 0.5,
        "reward/error_share": 0.25,
        "reward/left_out_share": 0.25,
    }
    assert "reward/mean" not in grading_metrics([Verdict(None, error="x")])
    assert grading_metrics([]) == {}
