r"""The `minerva` verifier: as `math`, and a number may be off by 1% of the gold answer (Lewkowycz et al. 2022).

For answers of physics and chemistry, which are rounded: |answer - gold| <= |gold| / 100, for numerals and for the
values of constant expressions (4.19 for \frac{4\pi}{3}), also inside a tuple or a list. So a wrong sign, a factor of
100 or another power of ten is never right, and a gold answer of 0 is matched by 0 alone. Symbols are compared exactly.
Behind a number, symbols of physical units may stand without \text{}: 1.5 m/s, 2.0 eV.
"""

from __future__ import annotations

import re
from typing import Any

from sppo.config.verification import Extraction
from sppo.types import Verdict
from sppo.verifiers.extraction import find_answer
from sppo.verifiers.math.answers import Rules
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.numerals import parse_number
from sppo.verifiers.math.verifier import cheap_first, conclude, decide, equal_without_sympy

_SYMBOL = (
    r"(?:\\mu |[TGMkhdcmunpμ])?(?:mol|cd|Hz|Pa|eV|erg|dyne?|cal|bar|atm|pc|yrs?|AU|ly|rad|sr|min|hr|days?|Ω|\\Omega|Å|"
    r"\\AA|[msgAKNJWCVFHTLGhM])(?![a-zA-Z])(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
)
_WITH_SYMBOLS = re.compile(
    rf"(?P<value>.*[\d}}])\s+(?P<unit>{_SYMBOL}(?:\s*(?:/|\\cdot|\*)?\s*{_SYMBOL}){{0,5}})", re.DOTALL
)

_LONGEST = 120
"""Characters of an answer that may have bare units."""


def within_one_percent(gold: Any, answer: Any) -> bool:
    """Whether a number is at most 1% of the gold number away from it."""
    return bool(100 * abs(answer - gold) <= abs(gold))


def fast(response: str, gold: str, finished: bool, extraction: Extraction = "wide") -> Verdict | None:
    """As `math.fast`, with the tolerance."""
    return decide(find_answer(response, extraction), gold, Rules(equal_without_sympy, within_one_percent), _read)


def slow(response: str, gold: str, extraction: Extraction = "wide") -> Verdict:
    """As `math.slow`, with the tolerance. Run it in the pool."""
    from sppo.verifiers.math.symbolic import equal_by_sympy, real_number

    def equal(gold: str, answer: str) -> bool:
        return equal_by_sympy(gold, answer, within_one_percent)

    rules = Rules(cheap_first(equal), within_one_percent, order=real_number, last=True)
    return conclude(find_answer(response, extraction), gold, rules, equal, _read)


def _read(answer: str) -> str:
    r"""Normalises, and writes symbols of units behind a number as \text{...}."""
    text = normalise(answer)
    match = _WITH_SYMBOLS.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None or parse_number(match["value"]) is None:
        return text
    return rf"{match['value']} \text{{{match['unit'].replace('{', '').replace('}', '')}}}"
