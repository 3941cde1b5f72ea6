"""Grading: routing by the prompt's field, users' reward functions, and every way they can go wrong."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import pytest

from sppo.commands.train import train
from sppo.config.verification import CompositeOptions, CompositePart, VerificationConfig
from sppo.errors import ConfigError, RewardError, VerifierError
from sppo.runs.folder import read_metrics
from sppo.types import Completion, Prompt, Rollout, Verdict
from sppo.verifiers.functions import function_name, load_function
from sppo.verifiers.grading import ErrorWatch, Grader, grading_metrics
from sppo.verifiers.table import VERIFIERS
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Verifier
from tests.conftest import tiny_config


def rollout(text: str, gold: str | None = "5", finish: str = "stop", **fields: object) -> Rollout:
    prompt = Prompt(id=str(fields.pop("id", "p")), content=fields.pop("content", "2+3?"), gold=gold, **fields)  # type: ignore[arg-type]
    return Rollout(prompt, (1,), Completion((2,), (-0.1,), finish), text)  # type: ignore[arg-type]


def test_each_prompt_goes_to_the_verifier_it_names():
    verdicts = Grader(tools=Tools(VerificationConfig(time_limit=60))).grade(
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


def test_any_gold_answer_of_a_prompt_is_right():
    texts = (r"\boxed{5}", r"\boxed{\frac12}", r"\boxed{.5}", r"\boxed{6}")
    verdicts = Grader().grade([rollout(text, other_golds=("1/2",)) for text in texts])
    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, 1.0, 0.0]


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
        (lambda completions: {0: 1.0, 1: 0.0}, r"returned a dict, but must return a list"),
        (lambda completions: {0.0, 1.0}, r"returned a set"),
        (lambda completions: [1.0, math.nan], r"returned nan for sample 1 \(prompt 'second'\)"),
        (lambda completions: [math.inf, 1.0], r"returned inf for sample 0 \(prompt 'first'\)"),
        (lambda completions: ["1", 1.0], r"returned '1' for sample 0"),
        (lambda completions: [1.0, 10**400], r"for sample 1 \(prompt 'second'\); a reward is a finite number"),
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
    function = load_function(f"{path}:length")
    assert Grader(function).grade([rollout("abc")])[0].reward == 3.0
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function("my_reward:length")(["ab"]) == [2.0]
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
        load_function(target.format(folder=tmp_path))


def test_metrics_by_hand():
    verdicts = [
        Verdict(1.0, parts={"format": 1.0, "math": 1.0}),
        Verdict(0.0, parts={"format": 0.0, "math": None}),
        Verdict(None, error="timed out after 3 s", caused_by="response"),
        Verdict(None, error="out of memory", caused_by="verifier"),
        Verdict(None, reason="left out"),
    ]
    assert grading_metrics(verdicts) == {
        "reward/mean": 0.5,
        "reward/error_share": 0.2,
        "reward/response_error_share": 0.2,
        "reward/timeout_share": 0.2,
        "reward/left_out_share": 0.2,
        "reward/part/format": 0.5,
        "reward/part/math": 1.0,
    }
    assert "reward/mean" not in grading_metrics([Verdict(None, error="x")])
    assert grading_metrics([]) == {}


# verl's signature, and asynchronous functions


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "acc": True, "pred": solution_str, "note": "x"}


def test_verls_signature_is_called_once_a_response():
    seen = []

    def score(data_source, solution_str, ground_truth, extra_info):
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return [1, 0.5, None][len(seen) - 1]

    rollouts = [
        rollout("5", columns={"data_source": "gsm8k", "extra_info": {"split": "train"}}),
        rollout("6", None, columns={"level": 3}),
        rollout("7", content=({"role": "user", "content": "hi"},)),
    ]
    assert [verdict.reward for verdict in Grader(score).grade(rollouts)] == [1.0, 0.5, None]
    assert seen == [("gsm8k", "5", "5", {"split": "train"}), ("", "6", None, {"level": 3}), ("", "7", "5", {})]


def test_a_dict_gives_its_score_and_its_other_numbers_as_parts():
    verdict = Grader(compute_score).grade([rollout("5")])[0]
    assert verdict.reward == 1.0
    assert verdict.parts == {"acc": 1.0}
    assert verdict.extracted == "5"
    assert grading_metrics([verdict])["reward/part/acc"] == 1.0


def test_only_what_a_function_of_verls_takes_is_given():
    assert Grader(lambda solution_str: len(solution_str)).grade([rollout("abc")])[0].reward == 3.0
    everything = Grader(lambda solution_str, **rest: len(rest)).grade([rollout("abc")])[0]
    assert everything.reward == 3.0  # data_source, ground_truth, extra_info


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda solution_str: 1 / (solution_str != "b"), r"ZeroDivisionError.* for sample 1 \(prompt 'second'\)"),
        (lambda solution_str: {"acc": 1.0}, r'a dict without "score" for sample 0 .* its keys are acc'),
        (lambda solution_str: {"score": "1"}, r"returned '1' for sample 0"),
        (lambda solution_str: (1.0, "why"), r"returned \(1.0, 'why'\) for sample 0"),
        (lambda solution_str, reference: 1.0, r"raised TypeError: .*'reference'"),
    ],
)
def test_what_a_function_in_verls_signature_does_wrong_is_named(function, message):
    with pytest.raises(RewardError, match=message):
        Grader(function).grade([rollout("a", id="first"), rollout("b", id="second")])


async def slow_reward(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


async def slow_score(solution_str, ground_truth):
    await asyncio.sleep(0)
    return 1 / (solution_str != "bad")


def test_asynchronous_functions_in_both_signatures():
    rollouts = [rollout("a"), rollout("abc")]
    assert [verdict.reward for verdict in Grader(slow_reward).grade(rollouts)] == [1.0, 3.0]
    assert [verdict.reward for verdict in Grader(slow_score).grade(rollouts)] == [1.0, 1.0]

    async def inside() -> list[Verdict]:  # as in a notebook, whose own loop is running
        return Grader(slow_reward).grade(rollouts)

    assert asyncio.run(inside())[1].reward == 3.0
    with pytest.raises(RewardError, match=r"slow_score raised ZeroDivisionError.* for sample 1 \(prompt 'x'\)"):
        Grader(slow_score).grade([rollout("a"), rollout("bad", id="x")])


def test_functions_see_the_response_as_sampled_and_verifiers_with_what_the_template_opened():
    grader = Grader(lambda completions: [float(text == "hm") for text in completions], prompt_opens_thinking=True)
    assert grader.grade([rollout("hm")])[0].reward == 1.0
    assert grader.submission(rollout("hm")).response == "<think>hm"
    assert grader.submission(rollout("<think>hm")).response == "<think>hm"


# Errors: tried again, counted apart, and the end of a run where they are too many


def scripted(monkeypatch, *calls: list[Verdict]) -> list[int]:
    """Lets the verifier final_answer say this, call by call; returns the sizes of the batches, as they come."""
    sizes, script = [], iter(calls)

    def grade(submissions, tools):
        sizes.append(len(submissions))
        assert (tools.own_pool is not None) == (len(sizes) > 1), "alone in a fresh process, but not at first"
        return next(script)

    monkeypatch.setitem(VERIFIERS, "final_answer", replace(VERIFIERS["final_answer"], grade=grade))
    return sizes


def test_what_fails_is_tried_once_more_alone(monkeypatch):
    right, wrong = Verdict(1.0), Verdict(0.0)
    sizes = scripted(
        monkeypatch,
        [right, error(), error(), error(), wrong, Verdict(None, error="no sandbox", caused_by="verifier")],
        [error()], [wrong], [error("out of memory at 1024 MiB")],
    )  # fmt: skip
    verdicts = Grader().grade([rollout("5", verifier="final_answer")] * 6)
    assert sizes == [6, 1, 1, 1]
    assert [verdict.reward for verdict in verdicts] == [1.0, None, 0.0, None, 0.0, None]
    assert [verdict.caused_by for verdict in verdicts] == ["", "response", "", "verifier", "", "verifier"]


def test_an_evaluation_counts_what_the_response_caused_as_wrong(monkeypatch):
    scripted(monkeypatch, [Verdict(1.0), error(), error()], [error()], [error("out of memory")])
    verdicts = Grader().grade([rollout("5", verifier="final_answer")] * 3, evaluation=True)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, None]
    assert [verdict.error for verdict in verdicts] == [None, "timed out after 3 s", "out of memory"]


def test_where_a_good_part_of_a_batch_fails_the_verifier_is_broken(monkeypatch):
    sizes = scripted(monkeypatch, [error()] * 17 + [Verdict(1.0)] * 13)
    verdicts = Grader().grade([rollout("5", verifier="final_answer")] * 30, evaluation=True)
    assert sizes == [30]
    assert [verdict.reward for verdict in verdicts] == [None] * 17 + [1.0] * 13
    assert {verdict.caused_by for verdict in verdicts[:17]} == {"verifier"}


def test_a_part_of_a_composite_is_tried_again_and_no_function_is_asked_twice(monkeypatch):
    scripted(monkeypatch, [error(), error()], [error()], [Verdict(1.0)])
    asked = []

    def counting(completions):
        asked.append(len(completions))
        return [1.0] * len(completions)

    monkeypatch.setattr("sppo.verifiers.composite.load_function", lambda target, key: counting)
    parts = [CompositePart(reward="rewards.py:counting"), CompositePart("final_answer")]
    tools = Tools(VerificationConfig(composite=CompositeOptions(parts)))
    verdicts = Grader(tools=tools).grade([rollout("5", verifier="composite")] * 2)
    assert asked == [2]
    assert [(verdict.reward, verdict.caused_by) for verdict in verdicts] == [(None, "response"), (1.0, "")]


def test_bombs_do_not_raise_an_evaluations_accuracy():
    rollouts = [rollout(r"\boxed{5}"), rollout(r"\boxed{9^{9^{9^9}}}"), rollout(r"\boxed{4}")]
    tools = Tools(VerificationConfig(time_limit=2.0))
    verdicts = Grader(tools=tools).grade(rollouts, evaluation=True)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert verdicts[1].caused_by == "response"
    verdict = Grader(tools=tools).grade(rollouts[1:2])[0]
    assert (verdict.reward, verdict.caused_by) == (None, "response")


def error(message: str = "timed out after 3 s") -> Verdict:
    return Verdict(None, error=message)


def test_more_errors_than_allowed_end_the_run_and_say_whose_and_which():
    watch = ErrorWatch(0.1)
    watch.note(["math"] * 100, [error()] * 10 + [Verdict(0.0)] * 90)
    with pytest.raises(VerifierError) as caught:
        watch.note(["math"] * 80 + ["code"] * 20, [error()] * 9 + [Verdict(0.0)] * 89 + [error("no sandbox")] * 2)
    message = str(caught.value)
    assert "failed on 11 of the latest 100 responses (11%; math 9 of 80, code 2 of 20)" in message
    assert "verification.max_error_share allows 0.1" in message
    assert "'timed out after 3 s' (9 times); 'no sandbox' (2 times)" in message
    assert "--resume" in message


def test_small_steps_are_judged_together_and_large_ones_alone():
    watch = ErrorWatch(0.25)
    for _ in range(3):
        watch.note(["math"] * 30, [error()] * 30)  # fewer than 100 are too few to judge by
    with pytest.raises(VerifierError, match="90 of the latest 120"):
        watch.note(["math"] * 30, [Verdict(1.0)] * 30)
    watch = ErrorWatch(0.25)
    watch.note(["math"] * 400, [Verdict(1.0)] * 400)
    with pytest.raises(VerifierError, match="30 of the latest 100"):
        watch.note(["math"] * 100, [error()] * 30 + [Verdict(1.0)] * 70)


@pytest.mark.parametrize(("limit", "errors"), [(0.0, 1), (1.0, None)])
def test_the_limits_of_the_limit(limit, errors):
    watch = ErrorWatch(limit)
    watch.note(["math"] * 100, [Verdict(0.0)] * 100)
    if errors is None:
        watch.note(["math"] * 100, [error()] * 100)
    else:
        with pytest.raises(VerifierError):
            watch.note(["math"] * 100, [error()] * errors + [Verdict(0.0)] * (100 - errors))


def breaking(monkeypatch, after: int) -> None:
    """Lets the verifier final_answer fail once it has seen so many responses."""
    real, seen = VERIFIERS["final_answer"], []

    def grade(submissions, tools):
        seen.extend(submissions)
        broken = [error("the sandbox is gone")] * len(submissions)
        return broken if len(seen) > after else real.grade(submissions, tools)

    monkeypatch.setitem(VERIFIERS, "final_answer", replace(real, grade=grade))


def test_a_run_whose_verifier_breaks_stops_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    config = tiny_config(
        tmp_path / "run", steps=3, prompts_per_step=128, optimizer__minibatch_size=64, critic__minibatch_size=64,
        evaluation__every=0, evaluation__final_samples_per_prompt=1,
    )  # fmt: skip
    whole = train(replace(config, output=str(tmp_path / "whole")))
    # The first evaluation, two steps of 128, and the evaluation of their two checkpoints.
    breaking(monkeypatch, after=20 + 2 * (128 + 20))
    with pytest.raises(VerifierError, match=r"final_answer 128 of 128.*the sandbox is gone"):
        train(config)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2]
    monkeypatch.undo()
    raised = replace(config.verification, max_error_share=0.5, time_limit=10.0)
    resumed = train(replace(config, verification=raised), resume=True)
    assert resumed["steps"] == 3
    for name in ("accuracy_after", "responses", "calibration_in_training", "examples"):
        assert resumed[name] == whole[name]


def test_an_evaluation_whose_verifier_breaks_stops_too(tmp_path, monkeypatch):
    breaking(monkeypatch, after=0)
    config = tiny_config(tmp_path / "run", evaluation__prompts=100, evaluation__data__options={"prompts": 100})
    with pytest.raises(VerifierError, match=r"200 of the latest 200 responses \(100%; final_answer 200 of 200\)"):
        train(config)


def test_a_few_errors_are_left_out_and_counted(tmp_path, monkeypatch):
    def grade(submissions, tools):
        verdicts = VERIFIERS["exact"].grade(submissions, tools)
        return [error() if index % 20 == 0 else verdict for index, verdict in enumerate(verdicts)]

    monkeypatch.setitem(VERIFIERS, "final_answer", Verifier("final_answer", "", "1", grade, lambda given: None))
    summary = train(tiny_config(tmp_path / "run", steps=2))
    line = read_metrics(tmp_path / "run")[1]
    assert line["reward/response_error_share"] == line["reward/timeout_share"] == 1 / 16
    assert line["reward/error_share"] == 0.0
    assert summary["responses_left_out"] == 2


def by_length(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": min(len(solution_str) / 10, 1.0), "marked": "#" in solution_str}


def test_a_run_with_a_function_in_verls_signature(tmp_path):
    config = tiny_config(tmp_path / "run", steps=1, data__reward=f"{__name__}:by_length", evaluation__data=None)
    assert train(config)["measure"] == "mean reward"
    line = read_metrics(tmp_path / "run")[1]
    assert 0 < line["reward/mean"] < 1
    assert 0 <= line["reward/part/marked"] <= 1
