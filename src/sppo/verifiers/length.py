"""The `length` verifier: 1 up to a number of tokens, then a linear fall to 0.

    reward = 1                                   where T <= limit
    reward = (limit + soft - T) / soft           up to limit + soft
    reward = 0                                   beyond

A reward of its own, in [0, 1], for a composite or for training on brevity alone. `algorithm.overlong_penalty_tokens`
is another thing: DAPO's penalty, in [-1, 0], tied to sampling.max_response_tokens, and added to whatever the reward is.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppo.config.verification import LengthOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers.tools import Tools

NAME = "length"
_KEY = "verification.length"


def check(options: VerificationConfig) -> None:
    """Refuses a limit that is missing.

    Raises:
        ConfigError: names the option.
    """
    if options.length.limit is None:
        raise ConfigError(
            f"{_KEY}.limit is not set, but the verifier length needs the number of tokens up to which it pays in full, "
            f"as in --{_KEY}.limit 512."
        )


def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
    """One verdict a response, by its length alone; an error where nobody counted its tokens."""
    check(tools.options)
    return [judge(given.tokens, tools.options.length) for given in submissions]


def judge(tokens: int | None, options: LengthOptions) -> Verdict:
    """Returns the reward of a length in tokens."""
    assert options.limit is not None, "checked before"
    if tokens is None:
        return Verdict(None, error="the response's length in tokens is not known", caused_by="verifier")
    over = tokens - options.limit
    reward = 1.0 if over <= 0 else max(0.0, 1 - over / options.soft) if options.soft else 0.0
    return Verdict(reward, str(tokens), "within the limit" if over <= 0 else f"{over} tokens over the limit")
