"""Intervals and points whose ends are text: cut, put in order and joined."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

TOKENS = re.compile(r"\\[{}]|\\[a-zA-Z]+|\\.|.", re.DOTALL)
OPEN, CLOSE = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")


class Unordered(Exception):
    """Two ends had to be put in order, and one has no known value."""


class Nested(Exception):
    """One piece lies within another."""


@dataclass(frozen=True)
class Piece:
    r"""An interval, or a point where both ends are the same text. Infinite ends are -\infty and \infty."""

    low: str
    low_closed: bool
    high: str
    high_closed: bool

    def __str__(self) -> str:
        if self.low == self.high and self.low_closed and self.high_closed:
            return rf"\{{{self.low}\}}"
        return f"{'(['[self.low_closed]}{self.low},{self.high}{')]'[self.high_closed]}"


def split_top(text: str, separator: str) -> list[str]:
    """Splits at a token outside of all brackets; without the spaces around."""
    parts, depth, start = [], 0, 0
    for token in TOKENS.finditer(text):
        symbol = token.group()
        if symbol in OPEN:
            depth += 1
        elif symbol in CLOSE:
            depth -= 1
        elif symbol == separator and depth == 0:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


def _before(left: str, right: str, order: Callable[[str], Any]) -> bool:
    """Whether one end is less than another."""
    if left == right or left == r"\infty" or right == r"-\infty":
        return False
    if left == r"-\infty" or right == r"\infty":
        return True
    first, second = order(left), order(right)
    if first is None or second is None:
        raise Unordered
    return bool(first < second)


def intersect(left: Sequence[Piece], right: Sequence[Piece], order: Callable[[str], Any]) -> tuple[Piece, ...]:
    """Returns what is in both.

    Raises:
        Unordered: that needs an end that has no value.
    """
    shared = [_overlap(first, second, order) for first in left for second in right]
    return tuple(piece for piece in shared if piece is not None)


def _overlap(first: Piece, second: Piece, order: Callable[[str], Any]) -> Piece | None:
    low, low_closed, high, high_closed = first.low, first.low_closed, first.high, first.high_closed
    if _before(low, second.low, order):
        low, low_closed = second.low, second.low_closed
    elif not _before(second.low, low, order):
        low_closed = low_closed and second.low_closed
    if _before(second.high, high, order):
        high, high_closed = second.high, second.high_closed
    elif not _before(high, second.high, order):
        high_closed = high_closed and second.high_closed
    if _before(low, high, order):
        return Piece(low, low_closed, high, high_closed)
    return Piece(low, True, low, True) if low_closed and high_closed and not _before(high, low, order) else None


def join(pieces: Sequence[Piece], order: Callable[[str], Any]) -> list[Piece]:
    """Returns the pieces from low to high, those that overlap or touch as one.

    Raises:
        Unordered: that needs an end that has no value.
        Nested: one piece lies within another, so that it says nothing.
    """
    joined: list[Piece] = []
    for piece in _from_low_to_high(pieces, order):
        last = joined[-1] if joined else None
        if last is None or not _meet(last, piece, order):
            joined.append(piece)
            continue
        same_start, longer = not _before(last.low, piece.low, order), _before(last.high, piece.high, order)
        closes = not last.high_closed and piece.high_closed and not _before(piece.high, last.high, order)
        opens = same_start and piece.low_closed and not last.low_closed
        within = not (longer or closes or opens)
        covers = same_start and longer and (piece.low_closed or not last.low_closed)
        if within or covers:
            raise Nested
        high, high_closed = (piece.high, piece.high_closed) if longer else (last.high, last.high_closed or closes)
        joined[-1] = Piece(last.low, last.low_closed or opens, high, high_closed)
    return joined


def _meet(low: Piece, high: Piece, order: Callable[[str], Any]) -> bool:
    """Whether two pieces overlap, or touch without a hole between them."""
    if _before(low.high, high.low, order):
        return False
    return _before(high.low, low.high, order) or low.high_closed or high.low_closed


def _from_low_to_high(pieces: Sequence[Piece], order: Callable[[str], Any]) -> list[Piece]:
    ordered: list[Piece] = []
    for piece in pieces:
        place = sum(1 for other in ordered if not _before(piece.low, other.low, order))
        ordered.insert(place, piece)
    return ordered
