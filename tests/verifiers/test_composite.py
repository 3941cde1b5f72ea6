"""Composite rewards: gates, weighted means, errors that stay errors, and parts that are not asked in vain."""

from __future__ import annotations

import pytest

from sppo.commands.train import train
from sppo.config.recipes import load_recipe
from sppo.config.verification import CompositeOptions, CompositePart, VerificationConfig
from sppo.data.tasks import load_prompts
from sppo.errors import ConfigError
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from sppo.training.build import check
from sppo.training.given import Given
from sppo.types import Completion, Prompt, Rollout, Submission, Verdict
from sppo.verifiers import check_golds, get_verifier
from sppo.verifiers.composite import parts_of
from sppo.verifiers.grading import Grader, grading_metrics
from sppo.verifiers.table import VERIFIERS
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Verifier
from tests.conftest import tiny_config

ASKED: list[list[str]] = []
grade = VERIFIERS["composite"].grade


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    ASKED.clear()


def brief(completions):
    return [max(0.0, 1 - len(text) / 10) for text in completions]


def marked(completions):
    return [float("#" in text) for text in completions]


def expensive(completions):
    ASKED.append(list(completions))
    return [0.5] * len(completions)


def left_out(completions):
    return [None] * len(completions)


def own(name: str) -> str:
    return f"{__name__}:{name}"


def tools(*parts: CompositePart) -> Tools:
    return Tools(VerificationConfig(composite=CompositeOptions(list(parts))))


def judged(response: str, *parts: CompositePart, gold: str = "5") -> Verdict:
    return grade([Submission(response, gold)], tools(*parts))[0]


ANSWER = CompositePart("final_answer", weight=3)
BRIEF = CompositePart(reward=own("brief"))
GATE = CompositePart(reward=own("marked"), gate=True)
EXPENSIVE = CompositePart(reward=own("expensive"))


def test_the_weighted_mean_by_hand():
    verdict = judged("2+3#5", ANSWER, BRIEF)
    assert verdict.reward == pytest.approx((3 * 1 + 1 * 0.5) / 4)
    assert verdict.parts == {"final_answer": 1.0, "brief": 0.5}
    assert verdict.extracted == "5"
    assert verdict.reason == "final_answer 1; brief 0.5"
    assert judged("2+3#4", ANSWER, BRIEF).reward == pytest.approx(0.5 / 4)


def test_a_gate_that_does_not_hold_makes_it_zero_and_nothing_else_is_asked():
    verdicts = grade([Submission(text, "5") for text in ("no mark", "#5", "#6")], tools(EXPENSIVE, GATE))
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.5, 0.5]
    assert verdicts[0].parts == {"marked": 0.0, "expensive": None}
    assert verdicts[0].reason.startswith("marked does not hold")
    assert ASKED == [["#5", "#6"]]


def test_gates_alone_and_several_of_them():
    both = (GATE, CompositePart("final_answer", gate=True))
    assert [judged(text, *both).reward for text in ("5", "#5", "#4")] == [0.0, 1.0, 0.0]
    assert judged("5", *both).parts == {"marked": 0.0, "final_answer": None}
    assert grade([], tools(GATE)) == []


@pytest.fixture
def fails(monkeypatch) -> None:
    """A verifier that fails on responses with a 9 in them."""

    def verdict(given: Submission) -> Verdict:
        return Verdict(None, error="timed out after 3 s") if "9" in given.response else Verdict(1.0)

    verifier = Verifier("fails", "", "7", lambda given, tools: [verdict(one) for one in given], lambda given: None)
    monkeypatch.setitem(VERIFIERS, "fails", verifier)


@pytest.mark.usefixtures("fails")
@pytest.mark.parametrize("gate", [True, False])
def test_an_error_of_a_part_is_an_error_of_the_whole_and_never_a_zero(gate):
    parts = [CompositePart("fails", gate=gate), ANSWER]
    wrong, right = grade([Submission("#9", "5"), Submission("#5", "5")], tools(*parts))
    assert wrong.reward is None
    assert wrong.error == "fails: timed out after 3 s"
    assert wrong.parts == {"fails": None, "final_answer": None}
    assert right.reward == 1.0
    # Behind a gate that is shut the part is not needed, and does not fail.
    shut = judged("9", GATE, CompositePart("fails"))
    assert shut.reward == 0.0
    assert shut.error is None


def in_detail(solution_str):
    return {"score": 0.25, "acc": True}


def test_what_a_part_is_made_of_stands_beside_it():
    verdict = judged("#5", ANSWER, CompositePart(reward=own("in_detail")))
    assert verdict.parts == {"final_answer": 1.0, "in_detail": 0.25, "in_detail/acc": 1.0}


def test_what_a_function_leaves_out_is_left_out():
    verdict = judged("#5", ANSWER, CompositePart(reward=own("left_out")))
    assert verdict.reward is None
    assert verdict.error is None
    assert verdict.reason == "left_out: left out by the reward function"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "parts is empty"),
        ([CompositePart()], r"parts.0 names neither of verifier and reward"),
        ([ANSWER, CompositePart("math", own("brief"))], r"parts.1 names both of verifier and reward"),
        ([CompositePart("composite")], "parts.0.verifier is composite, which cannot be a part of itself"),
        ([CompositePart("math", weight=-1)], r"weight is -1, but must be greater than 0, so that .* \[0, 1\]"),
        ([CompositePart("math", weight=float("inf"))], "weight is inf"),
        ([CompositePart("math", weight=2, gate=True)], "a gate holds or doesn't"),
        (
            [CompositePart("reward_model", gate=True)],
            "holds where the reward is 1, but a reward model's never quite is",
        ),
        ([BRIEF, CompositePart(reward="other.py:brief")], "two parts called brief"),
        ([CompositePart("mth")], "Did you mean 'math'"),
        ([CompositePart("length")], "verification.length.limit is not set"),
        (
            [CompositePart(reward="no.py:f")],
            r"verification.composite.parts.0.reward is 'no.py:f', but there is no file",
        ),
    ],
)
def test_parts_that_make_no_reward_are_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        get_verifier("composite").check(tools(*parts).options)


def test_functions_are_loaded_once():
    made = tools(BRIEF, GATE)
    assert parts_of(made, get_verifier) is parts_of(made, get_verifier)
    assert [part.label for part in parts_of(made, get_verifier)] == ["marked", "brief"]


def rollout(text: str, gold: str | None = "5") -> Rollout:
    prompt = Prompt("p", "2+3=", gold, verifier="composite")
    return Rollout(prompt, (1,), Completion((2,), (-0.1,), "stop"), text)


def test_the_gold_answer_is_asked_for_where_a_part_needs_it():
    with pytest.raises(ConfigError, match="'p' has no gold answer, which the verifier 'final_answer' needs"):
        Grader(tools=tools(BRIEF, ANSWER)).grade([rollout("#5", None)])
    assert Grader(tools=tools(BRIEF)).grade([rollout("#5", None)])[0].reward == 0.8


def test_gold_answers_are_checked_by_the_parts_that_read_them():
    given = [("composite", Submission("", gold)) for gold in ("7", "", "#")]
    assert set(check_golds(given, tools(BRIEF, ANSWER))) == {1, 2}
    assert check_golds(given, tools(BRIEF)) == {}
    rows = [{"prompt": "1", "answer": "7"}, {"prompt": "2", "answer": None}]
    config = load_recipe(None, {"model.path": "m", "data.verifier": "composite"}).data
    assert len(load_prompts(config, seed=0, rows=rows, tools=tools(ANSWER)).prompts) == 1
    assert len(load_prompts(config, seed=0, rows=rows, tools=tools(BRIEF)).prompts) == 2


def test_the_records_name_the_versions_of_all_parts():
    described = Grader(tools=tools(BRIEF, ANSWER)).describe(rollout("").prompt)
    versions = VERIFIERS["composite"].version, VERIFIERS["final_answer"].version
    assert described == {"verifier": "composite", "verifier_version": f"{versions[0]} (final_answer {versions[1]})"}


def test_each_part_is_a_metric_over_the_responses_that_it_was_asked_for():
    verdicts = grade([Submission(text, "5") for text in ("none", "#5", "#4")], tools(GATE, ANSWER, BRIEF))
    metrics = grading_metrics(verdicts)
    assert metrics["reward/part/marked"] == pytest.approx(2 / 3)
    assert metrics["reward/part/final_answer"] == 0.5
    assert metrics["reward/part/brief"] == pytest.approx(0.8)


def test_options_from_yaml_and_the_command_line(tmp_path):
    text = "[{verifier: final_answer, gate: true}, {reward: rewards.py:brief, weight: 2}]"
    config = load_recipe("demo", [f"--verification.composite.parts={text}", "--data.verifier=composite"])
    assert config.verification.composite.parts == [
        CompositePart("final_answer", gate=True), CompositePart(reward="rewards.py:brief", weight=2.0)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"parts.0.wieght is not an option"):
        load_recipe("demo", ["--verification.composite.parts=[{verifier: math, wieght: 2}]"])
    with pytest.raises(ConfigError, match=r"parts is empty.*parts '\[\{verifier: format, gate: true\}"):
        check(tiny_config(tmp_path, data__verifier="composite"), Given())


@pytest.mark.parametrize(
    ("verifier", "option", "value", "message"),
    [
        ("format", "format__pattern", "(a", r"verification.format.pattern is '\(a', which is no regular expression"),
        ("length", "length__soft", 5, "verification.length.limit is not set"),
        ("reward_model", "reward_model__shift", 1, "verification.reward_model.path is not set"),
        ("composite", "composite__parts", [{"verifier": "length"}], "verification.length.limit is not set"),
    ],
)
def test_options_of_every_verifier_are_refused_before_data_and_models(tmp_path, verifier, option, value, message):
    given = {f"verification__{option}": value}
    check(tiny_config(tmp_path, **given), Given())
    with pytest.raises(ConfigError, match=message):
        check(tiny_config(tmp_path, data__verifier=verifier, **given), Given())
    held_out = {"task": "rows", "path": "held_out.jsonl", "verifier": verifier}
    with pytest.raises(ConfigError, match=message):
        check(tiny_config(tmp_path, evaluation__data=held_out, **given), Given())


def test_a_run_with_a_gate_and_an_answer(tmp_path):
    parts = [
        {"reward": own("marked"), "gate": True},
        {"verifier": "final_answer", "weight": 3},
        {"reward": own("brief")},
    ]
    config = tiny_config(
        tmp_path / "run", data__verifier="composite", verification__composite__parts=parts,
        sampling__max_response_tokens=16,
    )  # fmt: skip
    train(config)
    for line in read_metrics(tmp_path / "run")[1:]:
        assert {"reward/part/marked", "reward/mean", "reward/error_share"} <= set(line)
    records = list(read_records(tmp_path / "run"))
    assert {record["parts"]["marked"] for record in records} == {0.0, 1.0}
    for record in records:
        answer, short = record["parts"]["final_answer"], record["parts"]["brief"]
        if record["parts"]["marked"] == 0:
            assert (record["reward"], answer, short) == (0.0, None, None)
        else:
            assert record["reward"] == pytest.approx((3 * answer + short) / 4)
