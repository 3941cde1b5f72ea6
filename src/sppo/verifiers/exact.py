"""The `exact` and `final_answer` verifiers: plain text equality, nothing that could fail."""

from __future__ import annotations

import re

from sppo.types import Submission, Verdict
from sppo.verifiers.verifier import Gold

_SHOWN = 200


def exact(response: str, gold: str, finished: bool) -> Verdict:
    """The whole response, stripped and with runs of white space as one space, is the gold answer."""
    answer, reference = " ".join(response.split()), " ".join(gold.split())
    if not finished:
        return Verdict(0.0, answer[:_SHOWN], "cut off at the length limit")
    equal = bool(reference) and answer == reference
    return Verdict(float(equal), answer[:_SHOWN], "equal" if equal else "not equal")


def final_answer(response: str, gold: str, finished: bool) -> Verdict:
    """The text behind the last run of `#` is the gold answer, and the response ended by itself.

    Commas inside integers are dropped on both sides, and a gold answer may itself be a worked solution that ends in
    `#### 7`, as in GSM8K.
    """
    if not finished:
        return Verdict(0.0, None, "cut off at the length limit")
    if "#" not in response:
        return Verdict(0.0, None, "no # mark")
    answer, reference = _behind_mark(response), _behind_mark(gold)
    equal = bool(reference) and answer == reference
    return Verdict(float(equal), answer[:_SHOWN], "equal" if equal else "not equal")


def read_behind_mark(given: Submission) -> Gold:
    """The text that responses have to end with."""
    return Gold(f"the text {_behind_mark(given.gold or '')[:_SHOWN]!r}")


def _behind_mark(text: str) -> str:
    answer = text[text.rfind("#") + 1 :].strip()
    return answer.replace(",", "") if re.fullmatch(r"[+\-]?\d{1,3}(,\d{3})+", answer) else answer
