r"""Writes sets of real numbers as unions of intervals in one form: inequalities, set builders, \mathbb{R}.

1 < x \le 2, \{x \mid 1 < x \le 2\}, x > 1 \text{ and } x \le 2 and ]1, 2] are (1,2]; what overlaps or touches is
joined, so that [1,2]\cup[2,3] is [1,3]. A comma between inequalities means "and", unless no number fulfils both. Where
one of several alternatives lies within another, nothing is joined: x > 3 or x > 4 are two answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sppo.verifiers.math.pieces import Nested, Piece, Unordered, intersect, join, split_top

Order = Callable[[str], Any]
"""Text of an endpoint -> something that compares with <, or None where it has no value."""

_RELATION = re.compile(r"(<|>|\\(?:le|ge|lt|gt|ne)(?![a-zA-Z]))")
_VARIABLE = re.compile(r"[a-zA-Z]|\\(?:theta|alpha|lambda|phi)")
_OR = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*or\s*\}|\\(?:lor|vee|cup)(?![a-zA-Z])|(?<![a-zA-Z\\])or(?![a-zA-Z]))\s*")
_AND = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*(?:and|but)\s*\}|\\(?:land|wedge)(?![a-zA-Z])|(?<![a-zA-Z\\])and(?![a-zA-Z]))\s*"
)
_SEPARATOR = re.compile(r"\\(?:lor|vee|cup|land|wedge)(?![a-zA-Z])|(?<![a-zA-Z\\])(?:and|or|but)(?![a-zA-Z])|,")
_MOST_PARTS = 40
_REALS = r"(?:\\mathbb\s*\{?\s*R\s*\}?|\\Reals)"
_HALF = re.compile(rf"{_REALS}\s*(?:\^\s*\{{?\s*([+\-])\s*\}}?|_\s*\{{\s*(>|<|\\ge|\\le)\s*0\s*\}}|_\s*([+\-]))")
_WITHOUT = re.compile(
    r"(.+?)\s*(?:\\setminus|\\backslash|(?<=\})\s*-|\\text\s*\{\s*(?:except|without)\s*\})\s*\\\{(.+)\\\}"
)
_BUILDER = re.compile(
    rf"\\\{{\s*(?P<name>{_VARIABLE.pattern})\s*(?:\\in\s*{_REALS}\s*)?"
    r"(?:\\mid(?![a-zA-Z])|[|:]|\\colon)(?P<condition>.+)\\\}",
    re.DOTALL,
)
_IS_REAL = re.compile(rf"\s*,?\s*(?P<name>{_VARIABLE.pattern})\s*\\in\s*{_REALS}\s*,?\s*")
_OPPOSITE = {"<": "<", r"\lt": "<", ">": ">", r"\gt": ">", r"\le": r"\le", r"\ge": r"\ge"}
_CLOSED = (r"\le", r"\ge")
_EVERYTHING = (Piece(r"-\infty", False, r"\infty", False),)
_HINT = re.compile(r"[<>\[\]({]|\\(?:le|ge|lt|gt|ne|mathbb|cup|cap|Reals|emptyset)(?![a-zA-Z])")
_SPEAKS_OF_SETS = re.compile(
    r"[<>|:]|\\(?:le|ge|lt|gt|ne|mathbb|Reals|cup|cap|setminus|mid|emptyset)(?![a-zA-Z])|\]$|\[$|^\]"
)


@dataclass(frozen=True)
class RealSet:
    """A set of real numbers."""

    name: str
    """The variable that the inequalities are about; empty where there is none, or one that is bound."""
    pieces: tuple[Piece, ...]
    """Intervals and points, as they stood."""


def unify(gold: str, answer: str, order: Order) -> tuple[str, str] | None:
    """Returns both in one form where both are sets of real numbers and one is more than a pair in brackets.

    Args:
        gold: the reference answer.
        answer: the answer given.
        order: the value of an endpoint.

    Returns:
        Both as they are where they are no such sets; None where that needs an endpoint that has no known value.
    """
    if not (_HINT.search(gold) and _HINT.search(answer)):
        return gold, answer
    if not (_SPEAKS_OF_SETS.search(gold) or _SPEAKS_OF_SETS.search(answer)):
        return gold, answer
    try:
        read = [_read(side, order) for side in (gold, answer)]
    except Nested:
        return gold, answer
    except Unordered:
        return None
    if read[0] is None or read[1] is None or (read[0].name and read[1].name and read[0].name != read[1].name):
        return gold, answer
    try:
        return _written(read[0].pieces, order), _written(read[1].pieces, order)
    except Nested:
        # x > 3 or x > 4: two answers, of which one may be right.
        return gold, answer
    except Unordered:
        if len(read[0].pieces) == len(read[1].pieces) == 1:
            return str(read[0].pieces[0]), str(read[1].pieces[0])
        return None


def as_written(gold: str, answer: str) -> tuple[str, str]:
    """As `unify`, without putting pieces in order or together: for endpoints that have no known value."""
    try:
        read = [_read(side, lambda _: None) for side in (gold, answer)]
    except (Nested, Unordered):
        return gold, answer
    if read[0] is None or read[1] is None or (read[0].name and read[1].name and read[0].name != read[1].name):
        return gold, answer
    return r"\cup".join(map(str, read[0].pieces)), r"\cup".join(map(str, read[1].pieces))


def _written(pieces: tuple[Piece, ...], order: Order) -> str:
    return r"\cup".join(map(str, join(pieces, order))) or r"\emptyset"


def _read(text: str, order: Order) -> RealSet | None:
    builder = _BUILDER.fullmatch(text)
    if builder:
        condition = _IS_REAL.sub("", builder["condition"], count=1).strip()
        inside = _read(condition, order) if condition and _RELATION.search(condition) else None
        return RealSet("", inside.pieces) if inside and inside.name == builder["name"] else None
    if len(_SEPARATOR.findall(text)) > _MOST_PARTS:
        return None
    alternatives = _OR.split(text)
    if len(alternatives) > 1:
        read = [_read(part, order) for part in alternatives]
        return _together(read, lambda pieces: tuple(piece for part in pieces for piece in part))
    demands = _AND.split(text)
    if len(demands) > 1:
        read = [_read(part, order) for part in demands]
        return _together(read, lambda pieces: _all_of(pieces, order))
    return _read_listed(text, order) if "," in text and _RELATION.search(text) else _read_one(text, order)


def _read_listed(text: str, order: Order) -> RealSet | None:
    r"""Reads x > 2, x < 5 and x \ne 0, 1."""
    parts = split_top(text, ",")
    if len(parts) == 1:
        return _read_one(text, order)
    if r"\ne" in parts[0]:
        # The name and the sign are said once: x \ne 0, 1.
        said = re.match(rf"\s*(?:{_VARIABLE.pattern})\s*\\ne", parts[0])
        parts = [part if _RELATION.search(part) or not said else f"{said[0]} {part}" for part in parts]
    read = [_read_one(part, order) for part in parts]
    both = _together(read, lambda pieces: _all_of(pieces, order))
    if both is None or both.pieces:
        return both
    return _together(read, lambda pieces: tuple(piece for part in pieces for piece in part))


def _together(
    read: list[RealSet | None], combine: Callable[[list[tuple[Piece, ...]]], tuple[Piece, ...]]
) -> RealSet | None:
    known = [part for part in read if part is not None]
    names = {part.name for part in known if part.name}
    if len(known) != len(read) or len(names) > 1 or (names and not all(part.name for part in known)):
        return None
    return RealSet(names.pop() if names else "", combine([part.pieces for part in known]))


def _all_of(sets: list[tuple[Piece, ...]], order: Order) -> tuple[Piece, ...]:
    """What is in all of them; x > 2 and x > 3 are two answers as well.

    Raises:
        Nested: one half line or interval lies within another.
    """
    shared = sets[0]
    for other in sets[1:]:
        both = intersect(shared, other, order)
        if len(shared) == len(other) == 1 and both in (shared, other):
            raise Nested
        shared = both
    return shared


def _read_one(text: str, order: Order) -> RealSet | None:
    text = text.strip()
    if text == r"\emptyset":
        return RealSet("", ())
    if re.fullmatch(_REALS, text):
        return RealSet("", _EVERYTHING)
    half = _HALF.fullmatch(text)
    if half:
        return RealSet("", (_half_of_reals(half[1] or half[3] or half[2]),))
    without = _WITHOUT.fullmatch(text)
    if without:
        whole = _read(without[1], order)
        holes = split_top(without[2], ",")
        return whole and RealSet(whole.name, _all_of([whole.pieces, *map(_all_but, holes)], order))
    if _RELATION.search(text):
        return _inequality(text)
    equation = re.fullmatch(rf"({_VARIABLE.pattern})\s*=\s*([^=]+)", text)
    if equation:
        return RealSet(equation[1], (Piece(equation[2].strip(), True, equation[2].strip(), True),))
    return _bracketed(text)


def _half_of_reals(sign: str) -> Piece:
    closed = sign in _CLOSED
    if sign in ("+", ">", r"\ge"):
        return Piece("0", closed, r"\infty", False)
    return Piece(r"-\infty", False, "0", closed)


def _bracketed(text: str) -> RealSet | None:
    r"""Reads (1,2], ]1,2] and, for points in a union, \{1,2\}."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        points = split_top(text[2:-2], ",")
        plain = all(point and not re.search(r"[|:{]|\\mid|\\in(?![a-z])", point) for point in points)
        return RealSet("", tuple(Piece(point, True, point, True) for point in points)) if plain else None
    if len(text) < 5 or text[0] not in "([]" or text[-1] not in ")[]":
        return None
    ends = split_top(text[1:-1], ";" if ";" in text else ",")
    if len(ends) != 2 or not all(ends):
        return None
    low, high = (re.sub(r"^\+\s*(?=\\infty)", "", end) for end in ends)
    return RealSet("", (Piece(low, text[0] == "[", high, text[-1] == "]"),))


def _inequality(text: str) -> RealSet | None:
    parts = _RELATION.split(text)
    around, relations = [side.strip() for side in parts[::2]], parts[1::2]
    if not all(around) or any(re.search(r"[=,|]|\\(?:in|mid|to|text)(?![a-zA-Z])", side) for side in around):
        return None
    if len(around) == 2:
        return _half_line(around[0], relations[0], around[1])
    if len(around) != 3 or not _VARIABLE.fullmatch(around[1]) or _mentions(around[0] + around[2], around[1]):
        return None
    low, high = _OPPOSITE.get(relations[0]), _OPPOSITE.get(relations[1])
    if low in ("<", r"\le") and high in ("<", r"\le"):
        left, right = around[0], around[2]
    elif low in (">", r"\ge") and high in (">", r"\ge"):
        left, right, low, high = around[2], around[0], high, low
    else:
        return None
    return RealSet(around[1], (Piece(left, low in _CLOSED, right, high in _CLOSED),))


def _all_but(point: str) -> tuple[Piece, ...]:
    return Piece(r"-\infty", False, point, False), Piece(point, False, r"\infty", False)


def _half_line(left: str, relation: str, right: str) -> RealSet | None:
    if bool(_VARIABLE.fullmatch(left)) == bool(_VARIABLE.fullmatch(right)):
        return None
    named_first = bool(_VARIABLE.fullmatch(left))
    variable, bound = (left, right) if named_first else (right, left)
    if _mentions(bound, variable):
        return None
    if relation == r"\ne":
        return RealSet(variable, _all_but(bound))
    relation = _OPPOSITE[relation]
    if (relation in (">", r"\ge")) == named_first:
        return RealSet(variable, (Piece(bound, relation in _CLOSED, r"\infty", False),))
    return RealSet(variable, (Piece(r"-\infty", False, bound, relation in _CLOSED),))


def _mentions(bound: str, variable: str) -> bool:
    return re.search(rf"(?<![a-zA-Z\\]){re.escape(variable)}(?![a-zA-Z])", bound) is not None
