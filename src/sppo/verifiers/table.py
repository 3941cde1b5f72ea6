"""The table of verifiers, and the check that gold answers verify against themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sppo.errors import ConfigError, did_you_mean
from sppo.types import Verdict
from sppo.verifiers import exact, math


@dataclass(frozen=True)
class Verifier:
    """One way to hold a response against a gold answer."""

    name: str
    """Key in `VERIFIERS`, and the value of a prompt's `verifier` field."""
    summary: str
    """One line for people."""
    version: str
    """Changes whenever a verdict could; written to the audit record."""
    fast: Callable[[str, str, bool], Verdict | None]
    """(response, gold, finished) -> verdict, at once and in the caller; None leaves it to `slow`."""
    slow: Callable[[str, str], Verdict | None] | None
    """(response, gold) -> verdict, in a process that can be killed; a module-level function, or None if not needed."""
    wrap: Callable[[str], str]
    """gold -> a response that gives the gold as its answer, for `check_golds`."""


def _boxed(gold: str) -> str:
    return gold if "\\boxed" in gold else f"\\boxed{{{gold}}}"


def _marked(gold: str) -> str:
    return gold if "#" in gold else f"#{gold}"


VERIFIERS: dict[str, Verifier] = {
    "math": Verifier(
        "math", "last boxed answer, equal as mathematics to the gold answer", "1", math.fast, math.slow, _boxed
    ),
    "exact": Verifier("exact", "the whole response is the gold answer", "1", exact.exact, None, str),
    "final_answer": Verifier(
        "final_answer", "the text behind the last # is the gold answer", "1", exact.final_answer, None, _marked
    ),
}


def get_verifier(name: str) -> Verifier:
    """Returns the verifier of that name.

    Raises:
        ConfigError: for a name that is not in `VERIFIERS`.
    """
    if name not in VERIFIERS:
        raise ConfigError(f"There is no verifier {name!r}.{did_you_mean(name, VERIFIERS)}")
    return VERIFIERS[name]


class RunsItems(Protocol):
    """The part of `VerifierPool` that is needed here."""

    def run(self, items: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """Runs (verifier name, response, gold) items."""


def check_golds(golds: Sequence[tuple[str | None, str]], pool: RunsItems | None = None) -> dict[int, str]:
    """Finds gold answers that are missing or would not be marked right if a response gave them.

    Args:
        golds: (gold, verifier name) of each row.
        pool: runs what needs sympy; without one, such golds count as fine.

    Returns:
        {index: reason} of the unusable ones, in order.

    Raises:
        ConfigError: for an unknown verifier's name.
    """
    unusable: dict[int, str] = {}
    open_items: dict[int, tuple[str, str, str]] = {}
    for index, (gold, name) in enumerate(golds):
        verifier = get_verifier(name)
        if gold is None or not str(gold).strip():
            unusable[index] = "the gold answer is missing"
            continue
        if not isinstance(gold, str):
            unusable[index] = f"the gold answer is a {type(gold).__name__}, not text: {gold!r}"
            continue
        verdict = verifier.fast(verifier.wrap(gold), gold, True)
        if verdict is None:
            open_items[index] = (name, verifier.wrap(gold), gold)
        elif verdict.reward != 1.0:
            unusable[index] = f"the gold answer {gold!r} does not verify against itself: {verdict.reason}"
    if open_items and pool is not None:
        for (index, item), verdict in zip(open_items.items(), pool.run(list(open_items.values())), strict=True):
            if verdict.reward != 1.0:
                why = verdict.error or verdict.reason
                unusable[index] = f"the gold answer {item[2]!r} does not verify against itself: {why}"
    return dict(sorted(unusable.items()))
