"""Held-out accuracy of hand-made verdicts."""

from __future__ import annotations

from sppo.evaluation.held_out import Evaluation
from sppo.types import Completion, EvaluationRecord, Prompt, Rollout, Verdict


def test_errors_of_the_verifier_are_left_out_and_those_of_the_response_are_wrong():
    prompt = Prompt("p", "1+1=", gold="2")
    rollout = Rollout(prompt, (1,), Completion((2,), (-0.1,), "stop"), "2")
    verdicts = [
        Verdict(1.0),
        Verdict(1.0),
        Verdict(0.0, error="timed out after 3 s", caused_by="response"),
        Verdict(None, error="no sandbox", caused_by="verifier"),
    ]
    measured = Evaluation((EvaluationRecord(prompt, [rollout] * 4, verdicts),)).metrics()
    assert measured["eval/accuracy"] == 2 / 3
    assert measured["eval/error_share"] == measured["eval/response_error_share"] == 1 / 4
