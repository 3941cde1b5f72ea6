"""Several gold answers of which any is right, held against a response one after the other."""

from sppo.types import Submission, Verdict
from sppo.verifiers import VERIFIERS, Tools, Verifier
from sppo.verifiers.alternatives import any_of_golds


def test_right_beats_an_error_and_an_error_beats_wrong():
    asked = []

    def grade(submissions, tools):
        asked.append([given.gold for given in submissions])
        said = {"right": Verdict(1.0), "wrong": Verdict(0.0), "error": Verdict(None, error="timed out")}
        return [said[given.gold] for given in submissions]

    golds = [
        ("right", "error"),
        ("error", "right"),
        ("wrong", "error", "wrong"),
        ("error", "wrong"),
        ("wrong", "wrong"),
        ("wrong",),
    ]
    given = [Submission("", first, other_golds=tuple(others)) for first, *others in golds]
    verdicts = any_of_golds(Verifier("v", "", "1", grade)).grade(given, Tools())
    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, None, None, 0.0, 0.0]
    # What is right already is not asked again.
    assert asked == [
        ["right", "error", "wrong", "error", "wrong", "wrong"],
        ["right", "error", "wrong", "wrong"],
        ["wrong"],
    ]


def test_the_version_of_a_verifier_is_its_own():
    assert VERIFIERS["math"].version == any_of_golds(VERIFIERS["math"]).version
