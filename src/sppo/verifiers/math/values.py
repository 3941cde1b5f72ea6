"""Whether two of sympy's expressions have one value: exactly as far as digits can tell, and as many as it takes.

math-verify compares 15 digits and chops small differences to zero, so that 1/2004! would be 1/2006!. Here the digits
are those of the smallest and largest number that an expression is made of, and then some: pi + 10^{-45} is not pi.
"""

from __future__ import annotations

from itertools import product
from typing import Any

_DIGITS = 60
_MOST_DIGITS = 40_000
_LOG10_2 = 0.30103
_MOST_SYMBOLS = 3


def same_value(gold: Any, answer: Any) -> bool | None:
    """Compares two expressions, at a fixed point where there are variables.

    Returns:
        False where they differ; True where they are one number; None where they have variables and agree at the point,
        or have no value that can be computed.
    """
    import sympy

    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: sympy.Rational(7 + 3 * index, 11) for index, symbol in enumerate(symbols)}
    sides = [side.subs(point) if point else side for side in (gold, answer)]
    digits = _DIGITS + 4 * (_magnitude(gold) + _magnitude(answer))
    # Most differ at once; only what agrees is worth more digits.
    for precision in (_DIGITS, digits) if digits <= _MOST_DIGITS else (_DIGITS,):
        left, right = (value_of(side, precision) for side in sides)
        if left is None or right is None:
            return None
        size = max(abs(left[0]) + abs(left[1]), abs(right[0]) + abs(right[1]))
        gap = abs(left[0] - right[0]) + abs(left[1] - right[1])
        if gap > size * sympy.Rational(1, 10 ** (precision - 10)):
            return False
    if digits > _MOST_DIGITS:
        return gold == answer or bool(sympy.simplify(gold - answer) == 0)
    return None if symbols else True


def value_of(expression: Any, digits: int = _DIGITS) -> tuple[Any, Any] | None:
    """Returns (real, imaginary) to so many digits, at sympy's own range; None where there is no value."""
    import sympy

    try:
        number = sympy.N(expression.doit(), digits)
        real, imaginary = number.as_real_imag()
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, RecursionError):
        # Sympy has no value here (an undefined function or its derivative, say).
        return None
    return (real, imaginary) if real.is_number and real.is_finite and imaginary.is_finite else None


def _magnitude(expression: Any) -> int:
    """Decimal digits that the numbers of an expression are away from 1, all together."""
    import sympy

    total = 0.0
    for part in sympy.preorder_traversal(expression):
        if part.is_Rational:
            total += abs(part.p.bit_length() - part.q.bit_length()) * _LOG10_2
        elif part.is_number and (part.is_Pow or isinstance(part, (sympy.exp, sympy.factorial))):
            size = abs(sympy.N(part, 3))
            if size.is_Float and size:
                _, _, exponent, bits = size._mpf_
                total += abs(exponent + bits) * _LOG10_2
        elif part.is_number and isinstance(part, sympy.functions.elementary.hyperbolic.HyperbolicFunction):
            # They come as near to 1 as e^{-2x} to 0.
            total += min(float(abs(sympy.N(part.args[0], 3))), _MOST_DIGITS)
    return int(total) + 1


def equal_with_real_roots(gold: Any, answer: Any) -> bool:
    r"""Compares expressions with roots as functions of real numbers: x^{2/3} is \sqrt[3]{x^2}, below 0 as well.

    Each sign of each variable is tried; a power with an odd denominator is the real root. Where neither side is real,
    as with \sqrt{x^3} and x^{3/2} below 0, there is nothing to compare.
    """
    import sympy

    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not 0 < len(symbols) <= _MOST_SYMBOLS or not (_has_roots(gold) or _has_roots(answer)):
        return False
    compared = False
    for signs in product((1, -1), repeat=len(symbols)):
        above = [sympy.Symbol(f"above_{index}", positive=True) for index in range(len(symbols))]
        point = {symbol: sign * size for symbol, sign, size in zip(symbols, signs, above, strict=True)}
        left, right = (_with_real_roots(side.subs(point)) for side in (gold, answer))
        if left is None or right is None:
            if left is not right:
                return False
            continue
        if left != right and sympy.simplify(left - right) != 0:
            return False
        compared = True
    return compared


def _has_roots(expression: Any) -> bool:
    return any(power.exp.is_Rational and not power.exp.is_Integer for power in _powers(expression))


def _powers(expression: Any) -> list[Any]:
    import sympy

    return list(expression.atoms(sympy.Pow))


def _with_real_roots(expression: Any) -> Any:
    """Takes real roots of negative numbers; None where there is none, or the sign is not known."""
    import sympy

    if not expression.args:
        return None if expression is sympy.I else expression
    parts = [_with_real_roots(part) for part in expression.args]
    if any(part is None for part in parts):
        return None
    if not expression.is_Pow or not parts[1].is_Rational or parts[1].is_Integer:
        return expression.func(*parts)
    base, exponent = parts
    if base.is_nonnegative:
        return sympy.Pow(base, exponent)
    if base.is_negative and exponent.q % 2:
        return (-1) ** exponent.p * sympy.Pow(-base, exponent)
    return None
