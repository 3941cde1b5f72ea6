"""The `composite` verifier: gates that must hold, then the weighted mean of parts, each one a verifier or a function.

    reward = 0                                 where a gate's reward is not 1
    reward = sum of w_i r_i / sum of w_i       over the parts; 1 where there are gates alone

Gates come first, in their order, and what a gate has shut out is not asked of anything after it: an expensive part is
paid for only where it counts. A part that fails makes the whole an error, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sppo.config.verification import CompositeOptions, CompositePart, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers import reward_model
from sppo.verifiers.functions import call_reward_function, load_function
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Verifier

NAME = "composite"
_KEY = "verification.composite.parts"
Find = Callable[[str], Verifier]
"""Looks a part's verifier up by its name; handed in by the table, of which this verifier is a line itself."""


@dataclass(frozen=True)
class Part:
    """One part, ready to judge."""

    label: str
    """Its name in `Verdict.parts`: the verifier's, or the function's."""
    weight: float
    gate: bool
    judge: Callable[[Sequence[Submission], Tools], list[Verdict]]


def check(options: VerificationConfig, find: Find) -> None:
    """Refuses parts that make no reward, and what the verifiers among them refuse; loads functions to see them.

    Raises:
        ConfigError: names the part, or the option of its verifier.
    """
    parts_of(Tools(options), find)
    for name in verifiers_of(options.composite):
        find(name).check(options)


def verifier(find: Find) -> Verifier:
    """Returns the verifier, whose parts are looked up by `find`."""
    return Verifier(
        NAME,
        "gates that must hold, and the weighted mean of parts",
        "1",
        grade=lambda submissions, tools: grade(submissions, tools, find),
        needs_gold=False,
        check=lambda options: check(options, find),
        prepare=lambda tools: prepare(tools, find),
    )


def _check_parts(options: CompositeOptions) -> None:
    """Refuses parts that make no reward in [0, 1], or none at all.

    Raises:
        ConfigError: names the part and the way to mend it.
    """
    if not options.parts:
        raise ConfigError(
            f"{_KEY} is empty, but the verifier composite is made of parts, as in "
            f"--{_KEY} '[{{verifier: format, gate: true}}, {{verifier: math}}]'."
        )
    labels = [_label(part) for part in options.parts]
    for number, (part, label) in enumerate(zip(options.parts, labels, strict=True)):
        key = f"{_KEY}.{number}"
        if (part.verifier is None) == (part.reward is None):
            found = "neither" if part.verifier is None else "both"
            raise ConfigError(f"{key} names {found} of verifier and reward, but is one or the other.")
        if part.verifier == NAME:
            raise ConfigError(f"{key}.verifier is {NAME}, which cannot be a part of itself: list its parts here.")
        if not 0 < part.weight < math.inf:
            raise ConfigError(
                f"{key}.weight is {part.weight:g}, but must be greater than 0, so that the reward stays in [0, 1]. To "
                "take something from the reward, let a part give 1 - it."
            )
        if part.gate and part.weight != 1:
            raise ConfigError(f"{key}.weight is {part.weight:g}, but a gate holds or doesn't: leave its weight out.")
        if part.gate and part.verifier == reward_model.NAME:
            raise ConfigError(
                f"{key} is a gate, which holds where the reward is 1, but a reward model's never quite is."
            )
        if labels.index(label) != number:
            raise ConfigError(f"{_KEY} has two parts called {label}, whose rewards could not be told apart.")


def verifiers_of(options: CompositeOptions) -> list[str]:
    """Names of the verifiers among the parts."""
    return [part.verifier for part in options.parts if part.verifier is not None]


def prepare(tools: Tools, find: Find) -> None:
    """Loads functions, and prepares the verifiers among the parts.

    Raises:
        SppoError: whatever is wrong with one of them.
    """
    for part in parts_of(tools, find):
        if part.label in verifiers_of(tools.options.composite):
            find(part.label).prepare(tools)


def parts_of(tools: Tools, find: Find) -> list[Part]:
    """The parts in the order in which they are asked; made once and kept.

    Raises:
        ConfigError: the options don't make a reward, or a function can't be loaded.
    """
    if NAME not in tools.loaded:
        _check_parts(tools.options.composite)
        made = [_part(part, f"{_KEY}.{number}", find) for number, part in enumerate(tools.options.composite.parts)]
        tools.loaded[NAME] = sorted(made, key=lambda part: not part.gate)
    parts: list[Part] = tools.loaded[NAME]
    return parts


def grade(submissions: Sequence[Submission], tools: Tools, find: Find) -> list[Verdict]:
    """One verdict a submission, with each part's reward in `parts`: None where a part was not asked for or failed.

    What a part is made of itself stands beside it, as PART/NAME.
    """
    parts = parts_of(tools, find)
    said: list[dict[str, Verdict]] = [{} for _ in submissions]
    asked = list(range(len(submissions)))
    for part in parts:
        verdicts = part.judge([submissions[index] for index in asked], tools) if asked else []
        for index, verdict in zip(asked, verdicts, strict=True):
            said[index][part.label] = verdict
        asked = [
            index
            for index, verdict in zip(asked, verdicts, strict=True)
            if verdict.reward is not None and (verdict.reward == 1 or not part.gate)
        ]
    return [_whole(parts, verdicts) for verdicts in said]


def _whole(parts: Sequence[Part], said: dict[str, Verdict]) -> Verdict:
    rewards = {part.label: said[part.label].reward if part.label in said else None for part in parts}
    for label, verdict in said.items():
        rewards |= {f"{label}/{inner}": reward for inner, reward in verdict.parts.items()}
    answer = next((verdict.extracted for verdict in said.values() if verdict.extracted is not None), None)
    # What ended the asking, if anything did, is the last that was said.
    label, last = list(said.items())[-1]
    if last.reward is None:
        reason = f"{label}: {last.reason}" if last.reason else ""
        error = None if last.error is None else f"{label}: {last.error}"
        return Verdict(None, answer, reason, error, rewards, caused_by=last.caused_by)
    if any(part.gate and said[part.label].reward != 1 for part in parts if part.label in said):
        return Verdict(0.0, answer, f"{label} does not hold: {last.reason}", parts=rewards)
    weighed = [(part.weight, said[part.label].reward or 0.0) for part in parts if not part.gate]
    total = sum(weight for weight, _ in weighed)
    reward = sum(weight * reward for weight, reward in weighed) / total if weighed else 1.0
    reasons = "; ".join(f"{name} {verdict.reward:g}" for name, verdict in said.items())
    return Verdict(reward, answer, reasons, parts=rewards)


def _label(part: CompositePart) -> str:
    return part.verifier or (part.reward or "").rpartition(":")[2]


def _part(part: CompositePart, key: str, find: Find) -> Part:
    if part.verifier is not None:
        return Part(part.verifier, part.weight, part.gate, find(part.verifier).judge)
    assert part.reward is not None, "_check_parts() asks for a verifier or a reward function"
    function = load_function(part.reward, f"{key}.reward")
    return Part(
        _label(part), part.weight, part.gate, lambda submissions, tools: call_reward_function(function, submissions)
    )
