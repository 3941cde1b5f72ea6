"""Reads numerals exactly: integers, decimals, fractions, mixed numbers, a x 10^b, periods, ratios, bases, residues."""

from __future__ import annotations

import re
from fractions import Fraction
from math import gcd, lcm

_MAX_EXPONENT = 400
_MAX_DIGITS = 100_000
_CHUNK = 4000
"""Digits that Python turns into an integer at once; its limit for strangers' text is 4300."""

_INTEGER = r"\d{1,3}(?:,\d{3})+|\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?:[+\-]\s*)*)(?:"
    rf"(?P<whole>\d{{1,12}})?\s*\\frac\s*\{{\s*(?P<top>[+\-]?\s*(?:{_INTEGER}))\s*\}}\s*\{{\s*(?P<bottom>-?\s*(?:{_INTEGER}))\s*\}}"
    rf"|(?:(?P<units>\d{{1,12}})\s+)?(?P<over>{_INTEGER})\s*/\s*(?P<under>{_INTEGER})"
    rf"|(?P<fixed>\d*\.\d*)\\(?:overline|bar|dot)\s*\{{?\s*(?P<period>\d{{1,60}})\s*\}}?"
    rf"|(?P<spaced>[1-9]\d{{0,2}}(?: \d{{3}})+(?:\.\d+)?)"
    rf"|(?P<repeating>\d*\.\d{{3,60}})\s*\\ldots"
    rf"|(?P<decimal>(?:{_INTEGER})(?:\.\d*)?|\.\d+)"
    rf"(?:\s*(?:[eE]\s*(?P<exponent>[+\-]?\d{{1,6}})"
    rf"|(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[+\-]?\d{{1,6}})\s*\}}?))?"
    rf")"
)  # fmt: skip
# The shortest period that a decimal with dots repeats to its end: three times, or twice if it has three digits.
_PERIOD = re.compile(r"(?P<fixed>\d*\.\d*?)(?P<period>\d{1,20}?)(?P<again>(?P=period)+)")
_RATIO = re.compile(r"\d[\d,.]*(?:\s*:\s*\d[\d,.]*){1,5}")
_TO = re.compile(r"(\d+)\s*(?:\\text\s*\{\s*to\s*\}|to|:)\s*(?=\d)")
_TIME = re.compile(r"\d{1,2}\s*:\s*[0-5]\d")
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "sixteen")
_BASE_WORDS = dict(zip(_BASES, (*range(2, 13), 16), strict=True))
_NAME = rf"\d{{1,2}}|{'|'.join(_BASES)}"
_BASE = rf"\(?\s*(?P<base>{_NAME})\s*\)?"
_BASE_NUMERAL = re.compile(
    r"\(?\s*(?:\\text\s*\{\s*(?P<worded>[0-9a-zA-Z]+)\s*\}|(?P<digits>[0-9a-zA-Z]+))\s*\)?\s*(?:"
    rf"_\s*(?:(?P<short>\d)|\{{\s*(?:\\text\s*)?\{{?\s*{_BASE}\s*\}}?\s*\}}"
    rf"|\\text\s*\{{\s*(?P<outside>{_NAME})\s*\}})"
    rf"|\(?\s*(?:\\text\s*\{{\s*)?\(?\s*base\s*\}}?\s*(?P<said>{_NAME})\s*\)?\s*\}}?)"
)
_CONGRUENCE = re.compile(
    r"(?:(?P<name>[a-zA-Z]+)\s*\\equiv\s*)?(?P<residue>-?\d{1,40})\s*\(?\s*"
    r"(?:\\[bp]?mod(?![a-zA-Z])|(?:\\text\s*\{\s*)?mod\s*\}?)\s*\{?\s*(?P<modulus>\d{1,40})\s*\}?\s*\)?"
)


def parse_number(text: str) -> Fraction | None:
    r"""Returns an integer, decimal, a/b, mixed number, 0.\overline{3} or a \times 10^{b} exactly; None otherwise.

    A whole number in front of a proper fraction is added to it, as in 1\frac{1}{2} and 1 1/2. Exponents beyond ±400
    give None, so that no short text makes a huge number.
    """
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _MAX_DIGITS else None
    if match is None:
        return None
    if match["top"] is not None:
        value = _fraction(match["top"], match["bottom"], match["whole"])
    elif match["over"] is not None:
        value = _fraction(match["over"], match["under"], match["units"])
    elif match["period"] is not None:
        value = _repeating(match["fixed"], match["period"])
    elif match["repeating"] is not None:
        value = _with_dots(match["repeating"])
    else:
        exponent = int(match["exponent"] or match["power"] or 0)
        decimal = _decimal(match["spaced"] or match["decimal"])
        value = decimal * Fraction(10) ** exponent if abs(exponent) <= _MAX_EXPONENT else None
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


def _decimal(text: str) -> Fraction:
    whole, _, places = re.sub(r"[, ]", "", text).partition(".")
    return Fraction(_integer(whole + places or "0"), 10 ** len(places))


def _integer(text: str) -> int:
    """Reads an integer of any length, in pieces that Python takes."""
    text = re.sub(r"[,\s+]", "", text)
    if len(text) <= _CHUNK:
        return int(text)
    digits, value = text.lstrip("-"), 0
    for start in range(0, len(digits), _CHUNK):
        piece = digits[start : start + _CHUNK]
        value = value * 10 ** len(piece) + int(piece)
    return -value if text.startswith("-") else value


def _repeating(fixed: str, period: str) -> Fraction:
    value = _decimal(fixed)
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed.partition(".")[2]))


def _with_dots(decimal: str) -> Fraction | None:
    """0.333... is 1/3; 0.33... and 3.14159... don't say how they go on."""
    found = _PERIOD.fullmatch(decimal)
    if found is None:
        return None
    period, times = found["period"], len(found["again"]) // len(found["period"]) + 1
    return _repeating(found["fixed"], period) if times >= (2 if len(period) > 2 else 3) else None


def parse_ratio(text: str) -> tuple[Fraction, ...] | None:
    r"""Returns the terms of 3:4 or 3 \text{ to } 4 in lowest terms; None for anything else.

    A time of day is written alike: terms such as 3:30 stay as they are, so that 1:20 is never 2:40.
    """
    text = _TO.sub(r"\1:", text)
    if not _RATIO.fullmatch(text):
        return None
    terms = [parse_number(term) for term in text.split(":")]
    if None in terms:
        return None
    ratio = tuple(term for term in terms if term is not None)
    if _TIME.fullmatch(text) or not all(ratio):
        return ratio
    # The greatest number of which each term is a multiple; it may be a fraction itself.
    shared = Fraction(gcd(*(term.numerator for term in ratio)), lcm(*(term.denominator for term in ratio)))
    return tuple(term / shared for term in ratio)


def parse_base_numeral(text: str) -> tuple[str, int] | None:
    r"""Returns (digits, base) of 52_8, (52)_8, 52_{\text{eight}}, \text{1A}_{16} or 52 \text{ (base 8)}.

    None for anything else, and where a digit does not exist in that base.
    """
    match = _BASE_NUMERAL.fullmatch(text)
    if match is None:
        return None
    written = next(match[name] for name in ("short", "base", "outside", "said") if match[name])
    digits, base = (match["worded"] or match["digits"]).upper(), _BASE_WORDS.get(written, 0) or int(written)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return digits.lstrip("0") or "0", base


def parse_congruence(text: str) -> tuple[str, int, int] | None:
    r"""Returns (name, residue, modulus) of x \equiv 5 \pmod{7} or 5 \pmod{7}; None for anything else."""
    match = _CONGRUENCE.fullmatch(text)
    if match is None or not int(match["modulus"]):
        return None
    return match["name"] or "", int(match["residue"]), int(match["modulus"])
