"""What a verifier is: one line of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sppo.config.verification import VerificationConfig
from sppo.types import Submission, Verdict
from sppo.verifiers.tools import Tools


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
    needs_gold: bool = True
    """Whether a prompt without a gold answer is a mistake."""
    check: Callable[[VerificationConfig], None] = lambda options: None
    """Refuses options that it can't work with, before any data, model or process; raises a ConfigError."""
    prepare: Callable[[Tools], None] = lambda tools: None
    """Loads what it needs before the first response; raises an SppoError where it can't work."""
