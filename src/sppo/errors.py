"""Errors that a user can mend: each says what was found and what to do about it.

Anything else that is raised is a defect of ours (an `AssertionError`) or of a library.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

_NOT_SHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that do something to a screen instead of being shown, other than tabs and ends of lines: control
characters (with one of them the escape sequences of terminals begin), what turns the direction of text round, Unicode's
own ends of lines, halves of surrogate pairs, and the invisible letters of tags."""


def visible(text: str) -> str:
    """Returns a text that a model or a file wrote as it may be shown: what would act on a terminal is spelled out.

    An escape character becomes the six characters \\u001b, as JSON writes it; so text that is JSON stays the same JSON.
    """
    return _NOT_SHOWN.sub(lambda found: json.dumps(found[0])[1:-1], text)


class SppoError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback.

    It may quote what a model or a file wrote, which is made visible, wherever it is shown.
    """

    def __init__(self, *said: object) -> None:
        super().__init__(*(visible(part) if isinstance(part, str) else part for part in said))


class ConfigError(SppoError):
    """An option, recipe or combination of options that cannot work."""


class DataError(SppoError):
    """Rows, columns or gold answers that are missing or unusable; names the rows."""


class ModelError(SppoError):
    """A model, critic or tokenizer that cannot be loaded or lacks something that training needs."""


class RewardError(SppoError):
    """A reward function that raised, or returned the wrong length or a value that is no reward; names the sample."""


class VerifierError(SppoError):
    """A verifier that fails on too many responses: errors and timeouts, not wrong answers."""


class RunFolderError(SppoError):
    """A run folder that exists, is missing, is not writable, or was made with another config."""


class TrainingError(SppoError):
    """Training cannot go on: non-finite losses in a row, every sample left out, the disk full."""


class RankError(SppoError):
    """Another rank of the same run failed or died; says which and why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'? Known: a, b, c." for a name that is not in `known`."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(names)}."
