"""Reads numerals exactly: integers, decimals, fractions, mixed numbers, a x 10^b, periods, ratios, other bases."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_EXPONENT = 400

_INTEGER = r"\d{1,3}(?:,\d{3})+|\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?:[+\-]\s*)*)(?:"
    rf"(?P<whole>\d{{1,12}})?\s*\\frac\s*\{{\s*(?P<top>[+\-]?\s*(?:{_INTEGER}))\s*\}}\s*\{{\s*(?P<bottom>-?\s*(?:{_INTEGER}))\s*\}}"
    rf"|(?:(?P<units>\d{{1,12}})\s+)?(?P<over>{_INTEGER})\s*/\s*(?P<under>{_INTEGER})"
    rf"|(?P<fixed>\d*\.\d*)\\(?:overline|bar|dot)\s*\{{?\s*(?P<period>\d{{1,60}})\s*\}}?"
    rf"|(?P<decimal>(?:{_INTEGER})(?:\.\d*)?|\.\d+)"
    rf"(?:\s*(?:[eE]\s*(?P<exponent>[+\-]?\d{{1,6}})"
    rf"|(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[+\-]?\d{{1,6}})\s*\}}?))?"
    rf")"
)  # fmt: skip
_RATIO = re.compile(r"\d[\d,.]*(?:\s*:\s*\d[\d,.]*){1,5}")
_BASE_NUMERAL = re.compile(
    r"\(?\s*(?:\\text\s*\{\s*(?P<worded>[0-9a-zA-Z]+)\s*\}|(?P<digits>[0-9a-zA-Z]+))\s*\)?"
    r"\s*_\s*(?:(?P<short>\d)|\{\s*(?P<base>\d{1,2})\s*\})"
)


def parse_number(text: str) -> Fraction | None:
    r"""Returns an integer, decimal, a/b, mixed number, 0.\overline{3} or a \times 10^{b} exactly; None otherwise.

    A whole number in front of a proper fraction is added to it, as in 1\frac{1}{2} and 1 1/2. Exponents beyond ±400
    give None, so that no short text makes a huge number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    if match["top"] is not None:
        value = _fraction(match["top"], match["bottom"], match["whole"])
    elif match["over"] is not None:
        value = _fraction(match["over"], match["under"], match["units"])
    elif match["period"] is not None:
        value = _repeating(match["fixed"], match["period"])
    else:
        exponent = int(match["exponent"] or match["power"] or 0)
        decimal = match["decimal"].replace(",", "").rstrip(".")
        value = Fraction(decimal) * Fraction(10) ** exponent if abs(exponent) <= _MAX_EXPONENT else None
    if value is None:
        return None
    return -value if match["sign"].count("-") % 2 else value


def _fraction(top: str, bottom: str, whole: str | None) -> Fraction | None:
    if not _integer(bottom):
        return None
    value = Fraction(_integer(top), _integer(bottom))
    if whole is None:
        return value
    # 2 3/2 is no mixed number, and may be a product or two numbers.
    return int(whole) + value if 0 <= value < 1 else None


def _integer(text: str) -> int:
    return int(re.sub(r"[,\s+]", "", text))


def _repeating(fixed: str, period: str) -> Fraction:
    whole, _, places = fixed.partition(".")
    value = Fraction(int(whole + places or "0"), 10 ** len(places))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(places))


def parse_ratio(text: str) -> tuple[Fraction, ...] | None:
    """Returns the terms of 3:4, which is also how the time 3:30 is written; None for anything else."""
    if not _RATIO.fullmatch(text):
        return None
    terms = [parse_number(term) for term in text.split(":")]
    return tuple(term for term in terms if term is not None) if None not in terms else None


def parse_base_numeral(text: str) -> tuple[str, int] | None:
    r"""Returns (digits, base) of 52_8, (52)_8 or \text{1A}_{16}; None where a digit does not exist in that base."""
    match = _BASE_NUMERAL.fullmatch(text)
    if match is None:
        return None
    digits, base = (match["worded"] or match["digits"]).upper(), int(match["short"] or match["base"])
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return digits.lstrip("0") or "0", base
