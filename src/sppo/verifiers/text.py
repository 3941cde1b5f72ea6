"""Verifiers that hold the text of a response against the text of a gold answer, item by item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sppo.types import Submission, Verdict
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Gold, Verifier, read_as_text

Fast = Callable[..., "Verdict | None"]
"""(response, gold, finished) -> verdict, at once and in the caller; None leaves it to the slow half."""
Slow = Callable[..., Verdict]
"""(response, gold) -> verdict; a module-level function, run in a process that can be killed."""


def text_verifier(
    name: str,
    summary: str,
    version: str,
    fast: Fast,
    slow: Slow | None,
    wrap: Callable[[str], str],
    *,
    read_gold: Callable[[Submission], Gold] = read_as_text,
    extracts: bool = False,
) -> Verifier:
    """Makes a verifier of functions of text.

    Args:
        name: its key in the table.
        summary: one line for people.
        version: changes whenever a verdict could.
        fast: decides in the caller, in time bounded by the text's length.
        slow: decides what `fast` left open; None where it leaves nothing.
        wrap: gold -> a response that gives the gold as its answer.
        read_gold: what the verifier holds responses against.
        extracts: whether both halves also take verification.extraction, as `extraction`.
    """

    def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
        more = {"extraction": tools.options.extraction} if extracts else {}
        verdicts = [fast(given.response, given.gold or "", given.finished, **more) for given in submissions]
        undecided = [index for index, verdict in enumerate(verdicts) if verdict is None]
        if undecided:
            assert slow is not None, f"verifier {name!r} left an item undecided"
            judge = partial(slow, **more)
            items = [(judge, submissions[index].response, submissions[index].gold or "") for index in undecided]
            for index, verdict in zip(undecided, tools.pool.run(items), strict=True):
                verdicts[index] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    def reference(submission: Submission) -> str | None:
        return None if submission.gold is None else wrap(submission.gold)

    return Verifier(name, summary, version, grade, reference, read_gold)
