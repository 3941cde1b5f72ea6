"""The format verifier: tags, one box, and regular expressions that may never come back."""

from __future__ import annotations

import pytest

from sppo.config.verification import FormatOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers import VERIFIERS
from sppo.verifiers.tools import Tools
from sppo.verifiers.verify import verify

GOOD = "<think>2 + 2 = 4</think>\nIt is \\boxed{4}."


def grade(response: str, time_limit: float = 20.0, **options: object) -> Verdict:
    tools = Tools(VerificationConfig(format=FormatOptions(**options), time_limit=time_limit))  # type: ignore[arg-type]
    return VERIFIERS["format"].grade([Submission(response, None)], tools)[0]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (GOOD, "formed as asked"),
        ("\n" + GOOD, "formed as asked"),
        ("<think>a \\boxed{3}</think>\\boxed{4}", "formed as asked"),
        ("It is \\boxed{4}.", "not exactly one <think> and one </think>"),
        ("<think>a</think><think>b</think>\\boxed{4}", "not exactly one <think> and one </think>"),
        ("<think>a</think></think>\\boxed{4}", "not exactly one <think> and one </think>"),
        ("<think>a \\boxed{4}", "not exactly one <think> and one </think>"),
        ("</think>a<think>\\boxed{4}", "text before <think>"),
        ("Well. " + GOOD, "text before <think>"),
        ("<think>a \\boxed{4}</think>\n", "nothing behind </think>"),
        ("<think></think>\\boxed{4}", "nothing between <think> and </think>"),
        ("<think> \n\u200b</think>\\boxed{4}", "nothing between <think> and </think>"),
        ("<think>a</think>\u200b", "nothing behind </think>"),
        ("<think>a</think>It is 4.", "no boxes"),
        ("<think>a</think>\\boxed{4} \\boxed{4}", "2 boxes"),
        ("<think>a</think>\\boxed{4", "the box is not closed"),
        ("<think>a</think>\\boxed{}", "no boxes"),
    ],
)
def test_tags_and_one_box(response, reason):
    verdict = grade(response)
    assert verdict.reason == reason
    assert verdict.reward == float(reason == "formed as asked")


def test_demands_can_be_off():
    assert grade("It is \\boxed{4}.", thinking=False).reward == 1.0
    assert grade("<think>a</think>It is 4.", one_box=False).reward == 1.0
    assert grade("<think>a", thinking=False).reason == "the thinking block is not closed"


def test_a_pattern_beside_the_other_demands():
    assert grade(GOOD, pattern=r"It is \\boxed").reward == 1.0
    assert grade(GOOD, pattern=r"It was").reason == "the pattern is not found"
    assert grade("It is 4.", pattern=r"^It is \d\.$").reason == "not exactly one <think> and one </think>"
    assert grade("It is 4.", pattern=r"^It is \d\.$", thinking=False, one_box=False).reward == 1.0


def test_a_pattern_that_never_comes_back_is_an_error_and_not_a_zero():
    verdict = grade("a" * 60 + "b", time_limit=0.5, pattern=r"(a+)+$", thinking=False, one_box=False)
    assert verdict.reward is None
    assert verdict.error == "timed out after 0.5 s"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pattern": "(a"}, r"verification.format.pattern is '\(a', which is no regular expression of Python: missing"),
        ({"pattern": "a{2,1}"}, "min repeat greater than max repeat"),
        ({"thinking": False, "one_box": False}, "asks for nothing"),
    ],
)
def test_options_that_cannot_work_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        VERIFIERS["format"].check(VerificationConfig(format=FormatOptions(**options)))


def test_one_response_is_not_judged_by_such_options_either():
    with pytest.raises(ConfigError, match="no regular expression"):
        verify("a", None, "format", options=VerificationConfig(format=FormatOptions(pattern="(a")))


def test_it_needs_no_gold():
    assert not VERIFIERS["format"].needs_gold
    assert VERIFIERS["format"].reference(Submission("", None)) is None
