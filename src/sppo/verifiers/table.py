"""The table of verifiers, and the check that gold answers verify against themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sppo.errors import ConfigError, did_you_mean
from sppo.types import Submission
from sppo.verifiers import choice, composite, exact, format, length, reward_model
from sppo.verifiers.alternatives import any_of_golds
from sppo.verifiers.code import verifier as code
from sppo.verifiers.golds import read_math
from sppo.verifiers.math import minerva
from sppo.verifiers.math import verifier as math
from sppo.verifiers.text import text_verifier
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Verifier


def _answered(gold: str) -> str:
    """A response with the gold as its answer, wherever verification.extraction looks for it."""
    boxed = gold if "\\boxed" in gold else f"\\boxed{{{gold}}}"
    return f"<answer>{boxed}</answer>"


def _marked(gold: str) -> str:
    return gold if "#" in gold else f"#{gold}"


VERIFIERS: dict[str, Verifier] = {
    verifier.name: any_of_golds(verifier) if verifier.needs_gold and verifier.name != code.NAME else verifier
    for verifier in (
        text_verifier(
            "math", "final answer, equal as mathematics to the gold answer", "4", math.fast, math.slow, _answered,
            read_gold=read_math, extracts=True,
        ),
        text_verifier(
            "minerva", "as math, and a number may be off by 1%", "3", minerva.fast, minerva.slow, _answered,
            read_gold=read_math, extracts=True,
        ),
        Verifier(
            "choice", "the letter of the choice, or its text", "3", choice.grade, choice.reference, choice.read_gold
        ),
        text_verifier("exact", "the whole response is the gold answer", "1", exact.exact, None, str),
        text_verifier(
            "final_answer", "the text behind the last # is the gold answer", "1", exact.final_answer, None, _marked,
            read_gold=exact.read_behind_mark,
        ),
        Verifier(
            format.NAME, "the response has the form that was asked for", "2", format.grade, needs_gold=False,
            check=format.check,
        ),
        Verifier(
            length.NAME, "short enough, in tokens", "1", length.grade, needs_gold=False,
            check=length.check,
        ),
        Verifier(
            code.NAME, "the last block of code passes the tests", "3", code.grade, code.reference,
            code.read_gold, check=code.check, prepare=code.prepare,
        ),
        Verifier(
            reward_model.NAME, "the score of a reward model", "2", reward_model.grade, needs_gold=False,
            check=reward_model.check, prepare=reward_model.prepare,
        ),
        composite.verifier(lambda name: get_verifier(name)),
    )
}  # fmt: skip


def get_verifier(name: str) -> Verifier:
    """Returns the verifier of that name.

    Raises:
        ConfigError: for a name that is not in `VERIFIERS`.
    """
    if name not in VERIFIERS:
        raise ConfigError(f"There is no verifier {name!r}.{did_you_mean(name, VERIFIERS)}")
    return VERIFIERS[name]


def verifiers_behind(name: str, tools: Tools) -> list[str]:
    """Names of the verifiers that judge under this name: itself, and where it is composite, those among its parts.

    Raises:
        ConfigError: for an unknown verifier.
    """
    parts = composite.verifiers_of(tools.options.composite) if name == composite.NAME else []
    return [get_verifier(name).name, *(get_verifier(part).name for part in parts)]


def _shown(gold: str | None) -> str:
    """A gold answer as messages give it: one that is the tests of a program would hide what is said of it."""
    text = repr(gold)
    return text if len(text) <= 100 else f"{text[:60]}..."


def _why_none(verifier: Verifier, given: Submission) -> str:
    """Why a gold answer is none of the verifier's kind; empty where it is one."""
    if given.gold is None or not str(given.gold).strip():
        return "the gold answer is missing"
    if not isinstance(given.gold, str):
        return f"the gold answer is a {type(given.gold).__name__}, not text: {given.gold!r}"
    fault = verifier.read_gold(given).fault
    return f"the gold answer {_shown(given.gold)} {fault}" if fault else ""


def _check_options(names: Iterable[str], tools: Tools) -> None:
    for name in sorted(names):
        get_verifier(name).check(tools.options)


def check_golds(submissions: Sequence[tuple[str, Submission]], tools: Tools) -> dict[int, str]:
    """Finds gold answers that are missing, no answers of the verifier's kind, or not right if a response gave them.

    Args:
        submissions: (verifier name, gold answer and columns) of each row; the response is not looked at.
        tools: what verifiers run with.

    Returns:
        {index: reason} of the unusable ones, in order.

    Raises:
        ConfigError: for an unknown verifier's name, or options that its verifier can't work with.
    """
    _check_options({name for name, _ in submissions}, tools)
    unusable: dict[int, str] = {}
    known: dict[tuple[str, str | int], str] = {}
    asked: dict[str, dict[tuple[str, str | None], list[int]]] = {}
    wanted = [
        (index, get_verifier(behind), given)
        for index, (name, given) in enumerate(submissions)
        for behind in verifiers_behind(name, tools)
    ]
    for index, verifier, given in wanted:
        if not verifier.needs_gold:
            continue
        # Equal golds are checked once: many data sets hold each number hundreds of times.
        key = verifier.name, given.gold if isinstance(given.gold, str) else id(given)
        if key not in known:
            known[key] = _why_none(verifier, given)
        if known[key]:
            unusable[index] = known[key]
            continue
        response = verifier.reference(given)
        if response is not None:
            asked.setdefault(verifier.name, {}).setdefault((response, given.gold), []).append(index)
    for name, groups in asked.items():
        first = [replace(submissions[rows[0]][1], response=key[0]) for key, rows in groups.items()]
        verdicts = get_verifier(name).judge(first, tools)
        for (_, gold), rows, verdict in zip(groups, groups.values(), verdicts, strict=True):
            if verdict.reward != 1.0:
                why = verdict.error or verdict.reason
                for index in rows:
                    unusable[index] = f"the gold answer {_shown(gold)} does not verify against itself: {why}"
    return dict(sorted(unusable.items()))
