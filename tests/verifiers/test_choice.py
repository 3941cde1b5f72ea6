"""The choice verifier beside its rows in labelled_answers.jsonl: columns of every shape, and hostile text."""

from __future__ import annotations

import pytest

from sppo.types import Submission
from sppo.verifiers import VERIFIERS, check_golds
from sppo.verifiers.choice import judge
from sppo.verifiers.columns import choices_of
from sppo.verifiers.tools import Tools


@pytest.mark.parametrize(
    ("columns", "choices"),
    [
        ({}, {}),
        ({"choices": ["x", 5]}, {"A": "x", "B": "5"}),
        ({"options": {"A": "x", "C": "y", "D": None}}, {"A": "x", "C": "y"}),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}}, {"A": "x", "B": "y"}),
        ({"choices": {"text": ["x", "y"]}}, {"A": "x", "B": "y"}),
        ({"choices": "x, y"}, {}),
        ({"options": ["x"], "choices": None}, {"A": "x"}),
    ],
)
def test_columns_that_hold_choices(columns, choices):
    assert choices_of(columns) == choices


def test_the_reason_says_what_was_found():
    assert judge("The answer is (B).", "B", {}).extracted == "B"
    assert judge(r"\boxed{A} or \boxed{B}", "B", {}).reason == "not one letter, nor the text of one choice"
    assert judge("B) or C)", "B", {}).reason == "more than one choice"
    assert judge("<think>B", "B", {}).reason == "the thinking block is not closed"
    assert judge("", "B", {}).reason == "no answer"


def test_golds_that_are_no_letter_are_listed():
    rows = [("choice", Submission("", gold)) for gold in ("B", "(C)", "12 km", "", None)]
    unusable = check_golds(rows, Tools())
    assert sorted(unusable) == [2, 3, 4]
    assert "is no letter" in unusable[2]


@pytest.mark.parametrize("unit", ["B ", "(", "answer is B ", "Option ", "A or ", "\\text{", "**", "$", "B)", " ", "\n"])
def test_a_megabyte_of_garbage_ends(unit):
    text = unit * (1_000_000 // len(unit))
    choices = {"choices": ["one", "1", "\\frac12"]}
    verdicts = VERIFIERS["choice"].grade(
        [Submission(given, "C", columns=choices) for given in (text, f"\\boxed{{{text}}}", f"Answer: {text}")], Tools()
    )
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.0, 0.0]
