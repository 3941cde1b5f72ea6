"""What sympy is asked: random expressions keep the value that we work out ourselves, and nothing becomes a float."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from sppo.verifiers.math.symbolic import equal_by_sympy, parse
from sppo.verifiers.math.verifier import fast, slow


def expression(dice: random.Random, depth: int) -> tuple[str, Fraction]:
    """A random expression in LaTeX, and its value."""
    kind = dice.choice(("integer", "decimal") if depth == 0 else KINDS)
    number, other = dice.randint(2, 9), dice.randint(2, 9)
    if kind == "integer":
        return str(number), Fraction(number)
    if kind == "decimal":
        return f"{number}.{other}", Fraction(10 * number + other, 10)
    if kind == "mixed":
        return rf"{number}\frac{{1}}{{{other}}}", number + Fraction(1, other)
    if kind == "binomial":
        return rf"\binom{{{number + 2}}}{{2}}", Fraction(math.comb(number + 2, 2))
    if kind == "fraction times":
        return rf"\frac{{{number}}}{{{other}}}({number})", Fraction(number * number, other)
    (left, x), (right, y) = expression(dice, depth - 1), expression(dice, depth - 1)
    if kind == "sum":
        return f"{left}+({right})", x + y
    if kind == "difference":
        return f"{left}-({right})", x - y
    if kind == "side by side":
        return f"({left})({right})", x * y
    if kind == "fraction" and y:
        return rf"\frac{{{left}}}{{{right}}}", x / y
    return rf"\left({left}\right)^{{2}} \cdot \left({right}\right)", x * x * y


KINDS = (
    "integer", "decimal", "mixed", "binomial", "fraction times", "sum", "difference", "side by side", "fraction",
    "power",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_expressions_have_their_value_and_no_other(seed):
    dice = random.Random(seed)
    for _ in range(25):
        text, value = expression(dice, 2)
        for gold, right in ((value, 1.0), (value + 1, 0.0)):
            verdict = fast(rf"\boxed{{{text}}}", str(gold), True) or slow(rf"\boxed{{{text}}}", str(gold))
            assert verdict.reward == right, (text, gold, verdict)


@pytest.mark.parametrize("text", ["0.1", "2^{0.5}", r"3.5x", r"4.5e3", r"1\frac{1}{2}\pi", r"\sin 30°"])
def test_nothing_becomes_a_float(text):
    import sympy

    assert not parse(text).atoms(sympy.Float)


def test_what_cannot_be_read_equals_nothing():
    assert parse(r"\frac{1}{") is None
    assert not equal_by_sympy(r"\frac{1}{", r"\frac{1}{")
    assert not equal_by_sympy("0 = 0", "x = x")
