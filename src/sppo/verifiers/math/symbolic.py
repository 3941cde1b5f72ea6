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

from sppo.verifiers.math.answers import Rules, compare
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.names import names_its_value, sides
from sppo.verifiers.math.numerals import parse_number
from sppo.verifiers.math.opaque import named, with_segments
from sppo.verifiers.math.products import equal_in_order, has_order
from sppo.verifiers.math.values import equal_with_real_roots, same_value, value_of


def equal_by_sympy(gold: str, answer: str, near: Callable[[Any, Any], bool] | None = None) -> bool:
    """Compares two normalised answers that are not alike as strings.

    Args:
        gold: the reference answer.
        answer: the answer given.
        near: (gold, answer) -> whether two real numbers are as good as equal; default: only equal ones are.
    """
    if has_order(gold, answer):
        return equal_in_order(gold, answer)
    gold, answer = with_segments(gold, answer)
    if "=" in gold and "=" in answer:
        return _equal_equations(gold, answer)
    if "=" in answer and not re.search(r"[<>]|\\[lg]e(?![a-zA-Z])", answer):
        # x = 2 + 3 = 5: every value in the chain has to be the gold answer, or it would be a way to hedge.
        first, *rest = sides(answer)
        # (x, y) = (1, 2) is a point, and no way to name an interval.
        named_value = bool(rest) and names_its_value(first, rest[-1]) and not re.fullmatch(r"\(.*,.*\)", first)
        values = rest if named_value else [first, *rest]
        rules = Rules(partial(equal_by_sympy, near=near), near or operator.eq, order=real_number, last=True)
        return len(values) <= _LONGEST_CHAIN and all(compare(gold, normalise(value), rules) for value in values)
    if "=" in gold:
        return False
    if near is not None and _near_as_numbers(parse(gold), parse(answer), near):
        return True
    return _equal_expressions(parse(gold), parse(answer))


_LONGEST_CHAIN = 64


def real_number(text: str) -> Any:
    r"""Returns the value of a real constant such as \sqrt{2}, to put the ends of intervals in order; else None."""
    number = parse_number(text)
    if number is not None:
        return number
    import sympy

    parsed = parse(normalise(text))
    if not isinstance(parsed, sympy.Expr) or parsed.free_symbols:
        return None
    value = value_of(parsed)
    return value[0] if value is not None and value[1] == 0 else None


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
            normalize_latex(_exact(named(text)), spelling),
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

    if gold is None or answer is None:
        return False
    relations = [isinstance(side, sympy.core.relational.Relational) for side in (gold, answer)]
    if all(relations):
        return _equal_relations(gold, answer)
    if any(relations) and sympy.S.EmptySet in (gold, answer):
        return False
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        same = same_value(gold, answer)
        if same is not None:
            return same
        if sympy.Symbol in (type(gold), type(answer)):
            # math-verify compares names here, and takes the product abc for a variable of that name.
            return sympy.simplify(gold - answer) == 0 or equal_with_real_roots(gold, answer)
        return bool(verify(gold, answer, timeout_seconds=None)) or equal_with_real_roots(gold, answer)
    # The order matters: math-verify simplifies the answer towards the form of the gold.
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))


def _equal_relations(gold: Any, answer: Any) -> bool:
    """Two inequalities are one if left minus right is that of the other times a constant, or they have one solution."""
    import sympy

    opposite = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le, sympy.Lt: sympy.Gt, sympy.Le: sympy.Ge}
    kinds = (type(gold), type(answer))
    if kinds[0] in opposite and kinds[1] in opposite:
        ratio = sympy.simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
        if ratio.is_positive and not ratio.free_symbols:
            return kinds[0] is kinds[1]
        if ratio.is_negative and not ratio.free_symbols:
            return kinds[0] is opposite[kinds[1]]
    if len(gold.free_symbols) != 1 or gold.free_symbols != answer.free_symbols:
        return False
    try:
        return bool(gold.as_set() == answer.as_set())
    except (NotImplementedError, TypeError, ValueError):
        # Sympy cannot solve it.
        return False


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
