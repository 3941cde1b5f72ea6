r"""Gives a name of its own to what the LaTeX parser would drop, evaluate or reorder: f'(x), \gcd(m,n), \angle ABC, r^T.

The parser reads letters side by side as a product in any order, forgets primes, takes the greatest common divisor of
two letters for 1, and drops an exponent T. Each of these becomes one symbol here, the same for the same thing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

from sppo.verifiers.math.names import key
from sppo.verifiers.math.pieces import split_top
from sppo.verifiers.math.plain import partners

_HINT = re.compile(
    r"'|\\frac\s*\{\s*(?:d|\\partial)|angle|gcd|lcm|\^\s*\{?\s*(?:T|-\s*1|\()|[A-Z]{2}|(?<!\\)\\(?:min|max)"
)
_ANGLE = re.compile(r"\\(?:measured)?angle\s*\{?\s*([A-Z])\s*([A-Z])\s*([A-Z])\s*\}?(?![a-zA-Z])")
_TRIANGLE = re.compile(r"\\triangle\s*\{?\s*([A-Z])\s*([A-Z])\s*([A-Z])\s*\}?(?![a-zA-Z])")
_DIVISOR = re.compile(r"(?:\\(?:text|operatorname)\s*\{\s*(gcd|lcm)\s*\}|\\?(?<![a-zA-Z])(gcd|lcm))\s*(?=\(|\\\{)")
_PRIMED = re.compile(r"(?<![a-zA-Z\\])([a-zA-Z]|\\[a-z]+)\s*('+)")
_QUOTIENT = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*[a-zA-Z]\s*\}"
    r"\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*\}"
)
_DERIVED = re.compile(r"(?<![a-zA-Z\\])([f-hF-H])\s*\^\s*\{\s*(-\s*1|\(\s*\w+\s*\))\s*\}")
_TO_THE_T = re.compile(r"\^\s*(?:T|\{\s*T\s*\})")
_PAIRS = re.compile(r"[A-Z]+")


def symbol(what: str) -> str:
    """A symbol that stands for a text and for no other."""
    return f"z_{{{zlib.crc32(key(what).encode())}}}"


def named(text: str) -> str:
    """Writes every such thing in a text as its symbol."""
    if not _HINT.search(text):
        return text
    text = _ANGLE.sub(lambda found: symbol("angle" + "".join(_ends_sorted(found.groups()))), text)
    text = _TRIANGLE.sub(lambda found: symbol("triangle" + "".join(sorted(found.groups()))), text)
    # The parser takes the derivative of a letter by another for 0.
    text = _QUOTIENT.sub(lambda found: symbol(found[0]), text)
    text = _with_arguments(text, _DIVISOR, _divisor)
    text = _with_arguments(text, _DERIVED, lambda found, inside: symbol(f"{found[1]}^{found[2]}({inside})"))
    text = _with_arguments(text, _PRIMED, _primed)
    return _TO_THE_T.sub("^{(T)}", text)


def _ends_sorted(letters: tuple[str, ...]) -> tuple[str, ...]:
    """ABC and CBA are one angle: the middle letter is where it is."""
    return min(letters, letters[::-1])


def _divisor(found: re.Match[str], inside: str | None) -> str | None:
    if inside is None or not re.search(r"[a-zA-Z]", inside):
        return rf"\{found[1] or found[2]}" + (f"({inside})" if inside is not None else "")
    return symbol((found[1] or found[2]) + ",".join(sorted(key(part) for part in split_top(inside, ","))))


def _primed(found: re.Match[str], inside: str | None) -> str:
    # y'(x+1) may be a product, f'(x) is not.
    if inside is not None and found[1] not in "fghFGHuvpqPQ" and not re.fullmatch(r"\s*\w\s*", inside):
        return symbol(found[1] + found[2]) + f"({inside})"
    return symbol(found[1] + found[2] + (f"({inside})" if inside is not None else ""))


def _with_arguments(
    text: str, pattern: re.Pattern[str], write: Callable[[re.Match[str], str | None], str | None]
) -> str:
    """Replaces each match, together with the (...) or \\{...\\} right behind it."""
    written, done, closing = [], 0, partners(text)
    for found in pattern.finditer(text):
        if found.start() < done:
            continue
        start, end, inside = found.end(), found.end(), None
        while start < len(text) and text[start] == " ":
            start += 1
        if start in closing:
            inside, end = text[start + 1 : closing[start]], closing[start] + 1
        elif text.startswith(r"\{", start) and r"\}" in text[start:]:
            stop = text.index(r"\}", start)
            inside, end = text[start + 2 : stop], stop + 2
        replacement = write(found, inside)
        if replacement is not None:
            written += [text[done : found.start()], replacement]
            done = end
    return "".join([*written, text[done:]])


def with_segments(gold: str, answer: str) -> tuple[str, str]:
    r"""Takes AB for one length where capitals come in pairs only: AB \cdot CD is not AC \cdot BD, but BA is AB."""
    runs = [run for side in (gold, answer) for run in _PAIRS.findall(re.sub(r"\\[a-zA-Z]+", " ", side))]
    if len(runs) < 2 or any(len(run) != 2 for run in runs):
        return gold, answer
    gold, answer = (
        re.sub(r"(?<![A-Za-z\\])[A-Z]{2}(?![A-Za-z])", lambda run: symbol("length" + "".join(sorted(run[0]))), side)
        for side in (gold, answer)
    )
    return gold, answer
