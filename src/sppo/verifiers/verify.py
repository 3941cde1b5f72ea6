"""`sppo.verify`: one response against one gold answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sppo.config.parsing import check_ranges
from sppo.config.verification import VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers.table import get_verifier
from sppo.verifiers.tools import Tools


def verify(
    response: str,
    gold: str | float | None,
    verifier: str = "math",
    *,
    finished: bool = True,
    columns: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    options: VerificationConfig | None = None,
) -> Verdict:
    r"""Holds one response against its gold answer.

    Args:
        response: the whole response as text, thinking included.
        gold: the gold answer, such as "73", 73, r"\frac{1}{2}" or "(1, 2)".
        verifier: name in `sppo.verifiers.VERIFIERS`.
        finished: whether the response ended by itself rather than at a length limit.
        columns: the other columns of the prompt's row, for verifiers that read some.
        time_limit: seconds after which a process of the verifier is killed; plain numbers and strings never get
            that far. Default: that of the options.
        options: as under `verification` in a recipe.

    Returns:
        The verdict; its `reward` is None, and `error` says why, where the verification failed, twice.

    Raises:
        ConfigError: for an unknown verifier, options that it can't work with, or what is no text.
    """
    if not isinstance(response, str):
        raise ConfigError(f"response is a {type(response).__name__}, but must be text.")
    if isinstance(gold, (int, float)) and not isinstance(gold, bool):
        gold = str(gold)
    if gold is not None and not isinstance(gold, str):
        raise ConfigError(f"gold is a {type(gold).__name__}, but must be text, a number or None.")
    options = options or VerificationConfig()
    if time_limit is not None:
        options = replace(options, time_limit=time_limit)
    if options != VerificationConfig():
        check_ranges(options, "verification.")
    submission = Submission(response, gold, finished, columns=columns or {})
    judge = get_verifier(verifier)
    judge.check(options)
    return judge.judge([submission], Tools(options))[0]
