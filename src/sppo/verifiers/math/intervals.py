r"""Writes inequalities in one variable as intervals, so that 1 < x \le 2 compares with (1, 2] by its structure."""

from __future__ import annotations

import re

_RELATION = re.compile(r"(<|>|\\(?:le|ge|lt|gt|ne)(?![a-zA-Z]))")
_VARIABLE = re.compile(r"\s*(?:[a-zA-Z]|\\(?:theta|alpha|lambda|phi))\s*")
_OR = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*or\s*\}|\\(?:lor|vee|cup)(?![a-zA-Z])|(?<![a-zA-Z\\])or(?![a-zA-Z]))\s*")
_REALS = r"(?:\\mathbb\s*\{?\s*R\s*\}?|\\Reals)"
_PUNCTURED = re.compile(rf"{_REALS}\s*(?:\\setminus|\\backslash|-)\s*\\\{{([^{{}}]+)\\\}}")
_LOOKS_LIKE_ONE = re.compile(r"[(\[\]].*,.*[)\]\[]", re.DOTALL)
_OPPOSITE = {"<": "<", r"\lt": "<", ">": ">", r"\gt": ">", r"\le": r"\le", r"\ge": r"\ge"}


def unify(gold: str, answer: str) -> tuple[str, str]:
    """Returns both as intervals where both are intervals or inequalities in the same variable; else as they are."""
    gold_name, gold_interval = as_intervals(gold)
    answer_name, answer_interval = as_intervals(answer)
    if gold_name and answer_name and gold_name != answer_name:
        return gold, answer
    if gold_interval and (answer_interval or _is_interval(answer)):
        return gold_interval, answer_interval or answer
    if answer_interval and _is_interval(gold):
        return gold, answer_interval
    return gold, answer


def _is_interval(text: str) -> bool:
    return _LOOKS_LIKE_ONE.fullmatch(text) is not None


def as_intervals(text: str) -> tuple[str, str | None]:
    r"""Returns (variable, "(1,2]\cup(3,\infty)"); the variable is empty for the real line, None for anything else."""
    if re.fullmatch(_REALS, text):
        return "", r"(-\infty,\infty)"
    punctured = _PUNCTURED.fullmatch(text)
    if punctured and "," not in punctured[1]:
        return "", _all_but(punctured[1].strip())
    if not _RELATION.search(text):
        return "", None
    found = [_as_interval(piece) for piece in _OR.split(text)]
    names = {pair[0] for pair in found if pair}
    if None in found or len(names) != 1:
        return "", None
    return names.pop(), r"\cup".join(pair[1] for pair in found if pair)


def _all_but(point: str) -> str:
    return rf"(-\infty,{point})\cup({point},\infty)"


def _as_interval(text: str) -> tuple[str, str] | None:
    parts = _RELATION.split(text)
    sides, relations = [side.strip() for side in parts[::2]], parts[1::2]
    if len(sides) == 2:
        return _half_line(sides[0], relations[0], sides[1])
    if len(sides) != 3 or not _VARIABLE.fullmatch(sides[1]) or not (sides[0] and sides[2]):
        return None
    low, high = _OPPOSITE.get(relations[0]), _OPPOSITE.get(relations[1])
    if low in ("<", r"\le") and high in ("<", r"\le"):
        left, right = sides[0], sides[2]
    elif low in (">", r"\ge") and high in (">", r"\ge"):
        left, right, low, high = sides[2], sides[0], high, low
    else:
        return None
    return sides[1], f"{'(['[low in _CLOSED]}{left},{right}{')]'[high in _CLOSED]}"


_CLOSED = (r"\le", r"\ge")


def _half_line(left: str, relation: str, right: str) -> tuple[str, str] | None:
    if bool(_VARIABLE.fullmatch(left)) == bool(_VARIABLE.fullmatch(right)) or not (left and right):
        return None
    variable, bound, named_first = (left, right, True) if _VARIABLE.fullmatch(left) else (right, left, False)
    if relation == r"\ne":
        return variable, _all_but(bound)
    relation = _OPPOSITE[relation]
    if (relation in (">", r"\ge")) == named_first:
        return variable, rf"{'(['[relation in _CLOSED]}{bound},\infty)"
    return variable, rf"(-\infty,{bound}{')]'[relation in _CLOSED]}"
