"""When what a program printed or returned equals what was expected; runs in the tests' sandbox."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
"""Without leading zeros, which mean something: 00101 is no way to write 101."""
_MAX_NUMBER = 400


def same_output(printed: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two texts agree line by line, and each line word by word.

    White space around lines and words, and empty lines at the beginning and the end, don't count. Words agree if they
    are the same, or are decimal numbers of the same value: 0.50 and 0.5, 1e3 and 1000.

    Args:
        printed: what the program printed.
        expected: what it should have printed.
        tolerance: numbers may differ by this much, or by this share of the expected number, whichever is more.
    """
    lines, wanted = printed.strip().splitlines(), expected.strip().splitlines()
    if len(lines) != len(wanted):
        return False
    return all(_same_line(line.split(), other.split(), tolerance) for line, other in zip(lines, wanted, strict=True))


def _same_line(words: list[str], wanted: list[str], tolerance: float) -> bool:
    if words == wanted:
        return True
    return len(words) == len(wanted) and all(
        word == other or _same_number(word, other, tolerance) for word, other in zip(words, wanted, strict=True)
    )


def _same_number(word: str, other: str, tolerance: float) -> bool:
    if max(len(word), len(other)) > _MAX_NUMBER or not (_NUMBER.fullmatch(word) and _NUMBER.fullmatch(other)):
        return False
    from decimal import Decimal

    if Decimal(word) == Decimal(other):
        return True
    return tolerance > 0 and _near(float(word), float(other), tolerance)


def same_value(value: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether a returned value equals one read from JSON, which has neither tuples nor keys that are numbers.

    Args:
        value: what the function returned.
        expected: what JSON said.
        tolerance: as for `same_output`; without it numbers must be equal.
    """
    if type(value) in (list, tuple) and type(expected) is list:
        return len(value) == len(expected) and all(
            same_value(element, other, tolerance) for element, other in zip(value, expected, strict=True)
        )
    if type(value) is dict and type(expected) is dict:
        keyed = {str(key) if type(key) is int else key: element for key, element in value.items()}
        # 1 and "1" are two keys, which no JSON can say.
        return (
            len(keyed) == len(value)
            and keyed.keys() == expected.keys()
            and all(same_value(element, expected[key], tolerance) for key, element in keyed.items())
        )
    if type(value) is not bool and type(expected) is not bool and tolerance > 0:
        numbers = type(value) in (int, float) and type(expected) in (int, float)
        return bool(value == expected or (numbers and _near(value, expected, tolerance)))
    return bool(value == expected)


def _near(value: float, expected: float, tolerance: float) -> bool:
    try:
        return abs(value - expected) <= tolerance * max(1.0, abs(expected))
    except OverflowError:
        return False
