r"""The `math` verifier: does the final answer of a response equal the gold answer?

What counts: the last `\boxed{...}` after any thinking (else the last "Answer: X" line), compared exactly. Decisions
where graders differ, all on the strict side:

- A unit, degree, currency or percent sign may be left out, but two different ones never agree. The value is never
  rescaled: 5\% equals 5, and neither equals 0.05 or 500.
- Decimals are exact: 27.0 equals 27, 0.333 does not equal 1/3, 3.14 does not equal \pi.
- "A or B" counts only where the gold answer has as many alternatives; sets and bare lists have no order, tuples do.
- What stands before \approx counts. Of x = 2 + 3 = 5 every value has to be right.
- An answer longer than `MAX_ANSWER` characters is wrong, not an error.

`fast` decides on strings and fractions in the caller; `slow` asks sympy (through math-verify) and belongs in a process
that can be killed. math-verify's own timeouts are off: they use SIGALRM, which raises outside the main thread.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from sppo.types import Verdict
from sppo.verifiers.answers import ASSIGNMENT, compare, parse_number
from sppo.verifiers.latex import find_answer, normalise

MAX_ANSWER = 2000
"""Characters of an answer, or twice the gold answer's length if that is more."""

_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ \-'][A-Za-z]+)*")
_CHOICE = re.compile(r"\(?([A-Z])[).:]?")
_BASE_NUMBER = re.compile(r"\d+_(?:\d|\{\d+\})")
_PLAIN_INTEGER = re.compile(r"-?[0-9]{1,30}")
_SHOWN = 200


def fast(response: str, gold: str, finished: bool) -> Verdict | None:
    """Decides by strings and exact fractions; None where only sympy can tell.

    Args:
        response: the whole response as decoded.
        gold: the gold answer, LaTeX or plain, boxed or not.
        finished: not looked at; an answer counts wherever the text has one.
    """
    found = find_answer(response)
    if found.text is None:
        return Verdict(0.0, None, found.reason)
    if len(found.text) > max(MAX_ANSWER, 2 * len(gold)):
        return Verdict(0.0, found.text[:_SHOWN], f"answer longer than {MAX_ANSWER} characters")
    if _PLAIN_INTEGER.fullmatch(found.text) and _PLAIN_INTEGER.fullmatch(gold):
        equal_integers = int(found.text) == int(gold)
        return _verdict(equal_integers, found.text, "integers equal" if equal_integers else "integers differ")
    answer = normalise(found.text)
    equal = compare(_normalise_gold(gold), answer, _equal_without_sympy)
    if equal is None:
        return None
    return _verdict(equal, answer, "equal" if equal else "not equal")


def slow(response: str, gold: str) -> Verdict:
    """Decides with sympy what `fast` left open. May take forever or crash on hostile input: run it in the pool."""
    decided = fast(response, gold, True)
    if decided is not None:
        return decided
    answer = normalise(find_answer(response).text or "")
    reference = _normalise_gold(gold)
    equal = compare(reference, answer, equal_by_sympy)
    if equal is None:
        equal = equal_by_sympy(reference, answer)
    return _verdict(equal, answer, "symbolically equal" if equal else "not symbolically equal")


def _verdict(equal: bool, answer: str, reason: str) -> Verdict:
    return Verdict(1.0 if equal else 0.0, answer[:_SHOWN], reason)


def _normalise_gold(gold: str) -> str:
    found = find_answer(gold) if "boxed" in gold else None
    return normalise(found.text if found and found.text is not None else gold)


def _equal_without_sympy(gold: str, answer: str) -> bool | None:
    """Settles words, choices and numerals of another base, on which sympy has nothing to say."""
    if gold.casefold() == answer.casefold() and _WORDS.fullmatch(gold):
        return True
    gold_choice, answer_choice = _CHOICE.fullmatch(gold), _CHOICE.fullmatch(answer)
    if gold_choice and answer_choice:
        return gold_choice[1] == answer_choice[1]
    if _WORDS.fullmatch(gold) or _BASE_NUMBER.fullmatch(gold) or _BASE_NUMBER.fullmatch(answer):
        return False
    if parse_number(gold) is not None and not re.search(r"[\d\\]", answer):
        return False
    return None


def equal_by_sympy(gold: str, answer: str) -> bool:
    """Compares two normalised answers that are not alike as strings: expressions, equations, inequalities."""
    if "=" in gold and "=" in answer:
        return _equal_equations(gold, answer)
    if "=" in answer and not re.search(r"[<>]|\\[lg]e(?![a-zA-Z])", answer):
        # x = 2 + 3 = 5: every value in the chain has to be the gold answer, or it would be a way to hedge.
        values = answer.split("=")[1 if ASSIGNMENT.match(answer) else 0 :]
        return all(compare(gold, normalise(value), equal_by_sympy) for value in values)
    if "=" in gold:
        return False
    return _equal_expressions(_parse(gold), _parse(answer))


def _parse(text: str) -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are ours to strip: math-verify would read 3d as 3 and 5m as 5.
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        )
    )
    return parse(f"${_latex_exponents(text)}$", [config], fallback_mode="no_fallback", parsing_timeout=None)


def _latex_exponents(text: str) -> str:
    """Writes 4.5e33 as a product, which sympy's LaTeX grammar would read as 4.5 times e times 33."""
    return re.sub(r"(?<![a-zA-Z\\])(\d+(?:\.\d+)?)[eE]([+\-]?\d{1,6})(?![\da-zA-Z])", r"\1 \\times 10^{\2}", text)


def _equal_expressions(gold: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    if not gold or not answer or _clearly_different(gold[0], answer[0]):
        return False
    # The order matters: math-verify simplifies the answer towards the form of the gold.
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))


def _equal_equations(gold: str, answer: str) -> bool:
    """Two equations are equal if one's left minus right is a non-zero constant times the other's."""
    import sympy

    differences = []
    for text in (gold, answer):
        sides = [_parse(side) for side in text.split("=")]
        if len(sides) != 2 or not all(sides):
            return False
        differences.append(sympy.simplify(sides[0][0] - sides[1][0]))
    # 0 = 0 says nothing, so it equals nothing.
    if any(difference.is_zero is not False and not difference.free_symbols for difference in differences):
        return False
    ratio = sympy.simplify(differences[0] / differences[1])
    return not ratio.free_symbols and bool(ratio.is_finite) and not ratio.is_zero


def _clearly_different(gold: Any, answer: Any) -> bool:
    """Compares values to a relative 1e-9, at fixed points where there are variables.

    math-verify rounds floats to 6 decimals and chops small differences to zero, so that 1/2004! would be 1/2006!.
    """
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: sympy.Rational(7 + 3 * index, 11) for index, symbol in enumerate(symbols)}
    try:
        left, right = (complex_value(sympy.N(side.subs(point).doit(), 30)) for side in (gold, answer))
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        # Sympy has no value here (an undefined function, say); math-verify decides alone.
        return False
    if left is None or right is None:
        return False
    size = max(abs(left[0]) + abs(left[1]), abs(right[0]) + abs(right[1]))
    gap = abs(left[0] - right[0]) + abs(left[1] - right[1])
    return bool(gap > size * sympy.Rational(1, 10**9))


def complex_value(number: Any) -> tuple[Any, Any] | None:
    """Returns (real, imaginary) at sympy's precision, so that values beyond a float's range compare too."""
    real, imaginary = number.as_real_imag()
    return (real, imaginary) if real.is_finite and imaginary.is_finite and real.is_number else None


def preload() -> None:
    """Imports math-verify and runs it once, so that no item's time limit pays for it."""
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _equal_expressions(_parse(r"\sqrt{2} + \frac{1}{x}"), _parse(r"\frac{1}{x} + \sqrt{2}"))
