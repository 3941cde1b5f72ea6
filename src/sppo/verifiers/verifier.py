"""What a verifier is: one line of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sppo.config.verification import VerificationConfig
from sppo.types import Submission, Verdict
from sppo.verifiers.tools import Tools

_MANY, _SHARE = 16, 0.25
"""Failures of a batch above which, and above which share of it, the verifier is broken."""


@dataclass(frozen=True)
class Gold:
    """A gold answer as a verifier understands it."""

    text: str
    """What responses are held against, in words for people."""
    fault: str = ""
    """Why it is no answer of the verifier's kind, as in "is a worked solution"; empty where it is one."""


def read_as_text(given: Submission) -> Gold:
    """A gold answer that is compared as the text that it is."""
    return Gold(repr(given.gold))


@dataclass(frozen=True)
class Verifier:
    """One way to judge responses."""

    name: str
    """Key in `VERIFIERS`, and the value of a prompt's `verifier` field."""
    summary: str
    """One line for people."""
    version: str
    """Changes whenever a verdict could; written to the response records."""
    grade: Callable[[Sequence[Submission], Tools], list[Verdict]]
    """One verdict a submission, in order. Never raises for what a model wrote: an error is a verdict too."""
    reference: Callable[[Submission], str | None] = lambda given: None
    """From gold answer and columns, a response that should be marked right; None where there is nothing to check."""
    read_gold: Callable[[Submission], Gold] = read_as_text
    """From gold answer and columns, what it holds responses against."""
    needs_gold: bool = True
    """Whether a prompt without a gold answer is a mistake."""
    check: Callable[[VerificationConfig], None] = lambda options: None
    """Refuses options that it can't work with, before any data, model or process; raises a ConfigError."""
    prepare: Callable[[Tools], None] = lambda tools: None
    """Loads what it needs before the first response; raises an SppoError where it can't work."""

    def judge(self, submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
        """`grade`, and what failed once more, alone in a fresh process.

        Where it fails again in the same way, the response caused it; where it fails otherwise, the verifier. So it is
        where a good part of a batch fails: that is not tried again, one by one.
        """
        verdicts = self.grade(submissions, tools)
        failed = [index for index, v in enumerate(verdicts) if v.error is not None and not v.caused_by]
        broken = len(failed) > max(_MANY, _SHARE * len(verdicts))
        for index in failed:
            verdict = verdicts[index]
            if broken:
                verdicts[index] = replace(verdict, caused_by="verifier")
            else:
                verdicts[index] = self._again(submissions[index], str(verdict.error), tools)
        return verdicts

    def _again(self, given: Submission, error: str, tools: Tools) -> Verdict:
        with tools.alone() as fresh:
            (verdict,) = self.grade([given], fresh)
        if verdict.error is None:
            return verdict
        return replace(verdict, caused_by="response" if verdict.error == error else "verifier")
