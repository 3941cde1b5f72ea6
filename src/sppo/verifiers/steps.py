"""Process rewards: a response cut into steps, and the steps scored by a function of the user's.

A step ends with the first separator after some text, so that its end can be told as soon as it is there, whatever
comes after: the guarantee of `sppo.algorithms.shaping` rests on it. More separators in a row belong to the step after.
The signature of a function is

    f(prompts, completions, steps, **columns) -> one list of numbers in [0, 1] a completion, one number a step

prompts, completions and columns as for reward functions; steps are lists of texts, whose concatenation is the
completion but for white space at its end. The score of a step must not depend on the steps after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Real
from typing import Any

from sppo.config.verification import ProcessOptions
from sppo.errors import ConfigError, RewardError
from sppo.types import Submission
from sppo.verifiers.functions import RewardFunction, batch_arguments, call_for_batch, function_name

_SEPARATORS = {"blank_lines": r"\n[ \t\r]*\n", "lines": r"\n"}


def check(options: ProcessOptions) -> None:
    """Refuses options that don't say who scores which steps.

    Raises:
        ConfigError: names the option and the way to mend it.
    """
    key = "verification.process"
    if options.function is not None and options.model is not None:
        raise ConfigError(f"{key} has a function and a model, but steps are scored by one of them: set the other null.")
    if options.split == "marker" and not (options.marker or "").strip():
        raise ConfigError(
            f"{key}.split is marker, but {key}.marker is {options.marker!r}: give the text that ends a step."
        )
    if options.split != "marker" and options.marker is not None:
        raise ConfigError(
            f"{key}.marker is {options.marker!r}, but {key}.split is {options.split}: set split to marker, or leave "
            "the marker out."
        )


def step_ends(text: str, options: ProcessOptions) -> list[int]:
    """Place of the character after each step, rising.

    Text behind the last separator is a step too, but one that only the end of the response ends, not its last word:
    its place is one beyond the text.
    """
    separator = _SEPARATORS.get(options.split) or re.escape(options.marker or "")
    ends = [match.end() for match in re.finditer(rf"\S.*?(?:{separator})", text, re.DOTALL)]
    if text[ends[-1] if ends else 0 :].strip():
        ends.append(len(text) + 1)
    return ends


def call_step_function(
    function: RewardFunction, submissions: Sequence[Submission], ends: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Calls the user's function once for the batch and checks what comes back.

    Args:
        function: in the signature of the module's header.
        submissions: prompts and responses.
        ends: `step_ends` of each response as sampled.

    Returns:
        One score a step for each response.

    Raises:
        RewardError: names the function, and the sample where one is at fault.
    """
    name = f"The step-reward function {function_name(function)}"
    steps = [
        [given.sampled[start:end] for start, end in zip([0, *places], places, strict=False)]
        for given, places in zip(submissions, ends, strict=True)
    ]
    said = call_for_batch(function, submissions, {**batch_arguments(submissions), "steps": steps}, name)
    if not _is_list(said) or len(said) != len(submissions):
        found = f"{len(said)} lists" if _is_list(said) else f"a {type(said).__name__}"
        raise RewardError(
            f"{name} returned {found}, but must return one list for each of {len(submissions)} completions."
        )
    return [_scores(name, index, given, said[index], len(ends[index])) for index, given in enumerate(submissions)]


def _scores(name: str, index: int, given: Submission, scores: Any, count: int) -> list[float]:
    sample = f"sample {index} (prompt {given.prompt_id!r})"
    if not _is_list(scores) or len(scores) != count:
        found = f"{len(scores)} scores" if _is_list(scores) else repr(scores)
        raise RewardError(
            f"{name} returned {found} for {sample}, which has {count} steps; it must return one for each."
        )
    known = [score.item() if hasattr(score, "item") else score for score in scores]
    for number, score in enumerate(known):
        if not isinstance(score, Real) or not 0 <= float(score) <= 1:
            raise RewardError(f"{name} returned {score!r} for step {number} of {sample}; a score lies in [0, 1].")
    return [float(score) for score in known]


def _is_list(value: Any) -> bool:
    return not isinstance(value, (str, bytes, dict)) and hasattr(value, "__len__") and hasattr(value, "__getitem__")
