r"""The `format` verifier: does a response look as asked, whatever it says?

Three demands (`verification.format`), each of which can be off: one `<think>...</think>` at the start, not empty, and
closed before an answer that is not empty; exactly one closed `\boxed{...}` behind it; a regular expression that is
found. The reward is 1 where all hold, else 0, and the reason names the first that doesn't. The expression runs in a
process that can be killed, as one like (a+)+$ may never come back: that is an error, not a 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sppo.config.verification import FormatOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers.math.boxes import list_boxes, text_after_thinking
from sppo.verifiers.tools import Tools

NAME = "format"
_KEY = "verification.format"


def check(options: VerificationConfig) -> None:
    """Refuses a regular expression that isn't one, and demands that are all off.

    Raises:
        ConfigError: gives the expression and where it breaks.
    """
    pattern = options.format.pattern
    if pattern is None:
        if not (options.format.thinking or options.format.one_box):
            raise ConfigError(
                f"{_KEY} asks for nothing, so that every response would be paid: set {_KEY}.thinking, "
                f"{_KEY}.one_box or {_KEY}.pattern."
            )
        return
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as failure:
        raise ConfigError(
            f"{_KEY}.pattern is {pattern!r}, which is no regular expression of Python: {failure}."
        ) from failure


def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
    """One verdict a response, 1 where it has the form; the gold answer is not looked at."""
    options = tools.options.format
    broken = [why_not(given.response, options) for given in submissions]
    verdicts = [Verdict(0.0, reason=why) if why else Verdict(1.0, reason="formed as asked") for why in broken]
    if options.pattern is not None:
        formed = [index for index, why in enumerate(broken) if not why]
        items = [(search, submissions[index].response, options.pattern) for index in formed]
        for index, verdict in zip(formed, tools.pool.run(items), strict=True):
            verdicts[index] = verdict
    return verdicts


def why_not(response: str, options: FormatOptions) -> str:
    """Returns which demand on tags and boxes is not met, or ""; in time linear in the length."""
    if options.thinking:
        if response.count("<think>") != 1 or response.count("</think>") != 1:
            return "not exactly one <think> and one </think>"
        if not response.lstrip().startswith("<think>"):
            return "text before <think>"
        if is_blank(response.partition("<think>")[2].partition("</think>")[0]):
            return "nothing between <think> and </think>"
    answer = text_after_thinking(response)
    if answer is None:
        return "the thinking block is not closed"
    if options.thinking and is_blank(answer):
        return "nothing behind </think>"
    if options.one_box:
        boxes = list_boxes(answer)
        if len(boxes) != 1:
            return f"{len(boxes) or 'no'} boxes"
        if boxes[0].text is None:
            return "the box is not closed"
    return ""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, and letters of no width."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def search(response: str, pattern: str) -> Verdict:
    """Looks for the expression. May take forever: run it in the pool."""
    found = re.search(pattern, response) is not None
    return Verdict(float(found), reason="formed as asked" if found else "the pattern is not found")
