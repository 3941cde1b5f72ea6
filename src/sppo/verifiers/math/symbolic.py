r"""Equality by sympy, through math-verify's LaTeX parser: expressions, equations, inequalities, sets.

May take forever, eat memory or crash on hostile input: it belongs in a process that can be killed. math-verify's own
time limits are off: they use SIGALRM, which raises outside the main thread.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from sppo.verifiers.math.answers import ASSIGNMENT, Rules, compare
from sppo.verifiers.math.latex import normalise

_DIGITS = 50
"""Decimal digits to which values are computed before two expressions may count as equal."""


def equal_by_sympy(gold: str, answer: str, near: Callable[[Any, Any], bool] | None = None) -> bool:
    """Compares two normalised answers that are not alike as strings.

    Args:
        gold: the reference answer.
        answer: the answer given.
        near: (gold, answer) -> whether two real numbers are as good as equal; default: only equal ones are.
    """
    if "=" in gold and "=" in answer:
        return _equal_equations(gold, answer)
    if "=" in answer and not re.search(r"[<>]|\\[lg]e(?![a-zA-Z])", answer):
        # x = 2 + 3 = 5: every value in the chain has to be the gold answer, or it would be a way to hedge.
        values = answer.split("=")[1 if ASSIGNMENT.match(answer) else 0 :]
        rules = Rules(partial(equal_by_sympy, near=near), near or operator.eq)
        return all(compare(gold, normalise(value), rules) for value in values)
    if "=" in gold:
        return False
    if near is not None and _near_as_numbers(parse(gold), parse(answer), near):
        return True
    return _equal_expressions(parse(gold), parse(answer))


def _near_as_numbers(gold: Any, answer: Any, near: Callable[[Any, Any], bool]) -> bool:
    import sympy

    if any(not isinstance(side, sympy.Expr) or side.free_symbols for side in (gold, answer)):
        return False
    left, right = value_of(gold), value_of(answer)
    return left is not None and right is not None and left[1] == right[1] == 0 and near(left[0], right[0])


@lru_cache(maxsize=512)
def parse(text: str) -> Any:
    """Returns the sympy object that the LaTeX says, or None where it cannot be read."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    # Units are ours to strip: math-verify would read 3d as 3 and 5m as 5.
    spelling = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    conversion = ConversionConfig(lowercase_symbols=False)
    try:
        parsed = latex2sympy(
            normalize_latex(_exact(text), spelling),
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=conversion,
        )
        return _with_imaginary_unit(parsed)
    # The parser and sympy's constructors raise errors with no common base for LaTeX that says nothing.
    except Exception as failure:
        if isinstance(failure, MemoryError):
            raise
        return None


def _exact(text: str) -> str:
    r"""Writes decimals as fractions, 4.5e33 as a product, mixed numbers as sums and 30° as radians."""
    text = re.sub(r"(?<![a-zA-Z\\])(\d+(?:\.\d+)?)[eE]([+\-]?\d{1,6})(?![\da-zA-Z])", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"([\^_]?)(?<![\d.])(\d*)\.(\d+)", _as_fraction, text)
    # The real root, where sympy has the principal one.
    text = re.sub(r"\\sqrt\s*\[\s*([3579])\s*\]\s*\{\s*-\s*(\d+)\s*\}", r"(-\\sqrt[\1]{\2})", text)
    # The parser takes any number in front of a number for a mixed one: 2(5) is 10, and not 7.
    text = _TOUCHING.sub(lambda found: rf"{found[0].strip()}\cdot ", _MIXED.sub(_as_sum, text))
    return re.sub(r"(\d+|\})\s*°", r"\1\\cdot\\frac{\\pi}{180}", text)


_MIXED = re.compile(r"(?<![\d.^_])(\d{1,12})\s*\\frac\s*\{\s*(\d{1,12})\s*\}\s*\{\s*(\d{1,12})\s*\}")

_CALL = r"\\(?:frac|binom)\s*\{[^{}]*\}\s*\{[^{}]*\}"
_TOUCHING = re.compile(rf"(?:{_CALL}|\)|(?<![\d.^_])\d+)\s*(?=[(\[{{]|\\frac|\\binom)|(?:{_CALL}|\))\s*(?=\d)")


def _as_sum(mixed: re.Match[str]) -> str:
    r"""Writes 1\frac{1}{2} as a sum; 2\frac{3}{2} stays a product."""
    if int(mixed[2]) >= int(mixed[3]):
        return mixed[0]
    return rf"({mixed[1]}+\frac{{{mixed[2]}}}{{{mixed[3]}}})"


def _as_fraction(decimal: re.Match[str]) -> str:
    fraction = rf"\frac{{{int(decimal[2] + decimal[3])}}}{{{10 ** len(decimal[3])}}}"
    # Braces around all of an answer would make it a set.
    return f"{decimal[1]}{{{fraction}}}" if decimal[1] else fraction


def _with_imaginary_unit(parsed: Any) -> Any:
    import sympy

    units = [symbol for symbol in getattr(parsed, "free_symbols", ()) if symbol.name == "i"]
    return parsed.subs(dict.fromkeys(units, sympy.I)) if units else parsed


def _equal_expressions(gold: Any, answer: Any) -> bool:
    import sympy
    from math_verify import verify

    if gold is None or answer is None or _clearly_different(gold, answer):
        return False
    if sympy.Symbol in (type(gold), type(answer)):
        # math-verify compares names here, and takes the product abc for a variable of that name.
        return isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr) and sympy.simplify(gold - answer) == 0
    # The order matters: math-verify simplifies the answer towards the form of the gold.
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))


def _equal_equations(gold: str, answer: str) -> bool:
    """Two equations are equal if one's left minus right is a non-zero constant times the other's."""
    import sympy

    differences = []
    for text in (gold, answer):
        sides = [parse(side) for side in text.split("=")]
        if len(sides) != 2 or not all(isinstance(side, sympy.Expr) for side in sides):
            return False
        differences.append(sympy.simplify(sides[0] - sides[1]))
    # 0 = 0 says nothing, so it equals nothing.
    if any(difference.is_zero is not False and not difference.free_symbols for difference in differences):
        return False
    ratio = sympy.simplify(differences[0] / differences[1])
    return not ratio.free_symbols and bool(ratio.is_finite) and not ratio.is_zero


def _clearly_different(gold: Any, answer: Any) -> bool:
    """Compares values to a relative 1e-40, at a fixed point where there are variables.

    math-verify compares 15 digits and chops small differences to zero, so that 1/2004! would be 1/2006!.
    """
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: sympy.Rational(7 + 3 * index, 11) for index, symbol in enumerate(symbols)}
    left, right = (value_of(side.subs(point)) for side in (gold, answer))
    if left is None or right is None:
        return False
    size = max(abs(left[0]) + abs(left[1]), abs(right[0]) + abs(right[1]))
    gap = abs(left[0] - right[0]) + abs(left[1] - right[1])
    return bool(gap > size * sympy.Rational(1, 10**40))


def value_of(expression: Any) -> tuple[Any, Any] | None:
    """Returns (real, imaginary) to 50 digits, at sympy's own range; None where there is no value."""
    import sympy

    try:
        number = sympy.N(expression.doit(), _DIGITS)
        real, imaginary = number.as_real_imag()
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        # Sympy has no value here (an undefined function, say).
        return None
    return (real, imaginary) if real.is_number and real.is_finite and imaginary.is_finite else None


_COMMON = (
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{\sqrt{3}}{2}\pi", r"\frac{\pi\sqrt{3}}{2}"), ("x < 5", r"5 \ge x"),
    (r"\frac{x+1}{2x}", r"\frac{1}{2}(1+x^{-1})"), (r"(x-1)(x+2)", "x^2+x-2"), ("3+4i", "5e^{i t}"),
    ("-2^{-3}", "0.5"), (r"\log_2 x + \ln 3", r"\sin^2 x - \cos(2x)"), (r"\binom{5}{2}", r"\frac{5!}{2!3!}"),
    (r"|a_1-b_{12}|", r"|b_{12}-a_1|"),
)  # fmt: skip
"""Pairs of common shapes: the parser learns its decisions as it meets them, at ten times what using them costs."""


def preload() -> None:
    """Imports math-verify and runs it on common answers, so that no item's time limit pays for it."""
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for gold, answer in _COMMON:
        equal_by_sympy(gold, answer)
    equal_by_sympy("y = 2x + 1", "2x - y = -1")
