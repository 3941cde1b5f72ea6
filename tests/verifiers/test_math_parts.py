"""The parts of the math verifier, one by one: names, numerals, sets of numbers, products in order, values, boxes."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import permutations

import pytest

from sppo.verifiers.extraction import find_answer
from sppo.verifiers.math.boxes import Box
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.names import names_its_value, sides, strip_names
from sppo.verifiers.math.numerals import parse_base_numeral, parse_congruence, parse_number, parse_ratio
from sppo.verifiers.math.opaque import named, with_segments
from sppo.verifiers.math.pieces import Nested, Piece, Unordered, intersect, join
from sppo.verifiers.math.plain import to_latex
from sppo.verifiers.math.products import equal_in_order, has_order
from sppo.verifiers.math.realsets import unify
from sppo.verifiers.math.units import split_unit
from sppo.verifiers.math.verifier import fast
from sppo.verifiers.math.words import meaning

# ---- names


@pytest.mark.parametrize(
    "left",
    [
        "x", "m+n", "100m+n", "a^2+b^2", "ab", r"\frac{m}{n}", "x+y", "x_1+x_2", "f(1)+f(2)", r"\alpha+\beta", "|S|",
        r"\angle ABC", "P(X=1)", "P(A|B)", "f^{-1}(x)", "f'(2)", r"(f\circ g)(x)", r"\mathbb{E}[X]", "[ABC]", "AB^2",
        r"S_{\triangle ABC}", r"\overline{AB}", r"\sin A", r"\det A", r"\max f", r"\int_0^1 2x dx", r"\frac{dy}{dx}",
        "a_{n+1}", r"A\cap B", r"\text{the sum } m+n",
    ],
)  # fmt: skip
def test_what_names_a_number(left):
    assert names_its_value(left, "5")


@pytest.mark.parametrize(
    "left", ["x+1", "2x", "3-x", "x/2", "2x+3y", "x^2", "x(x+1)", r"\sqrt{x}", "2", "2^{10}", "x+y+1", "n!"]
)
def test_an_equation_left_to_be_solved_names_nothing(left):
    assert not names_its_value(left, "5")


def test_a_sum_names_numbers_only():
    assert not names_its_value("a+b", "c")
    assert names_its_value("f(x)", "2x+1")


def test_equals_signs_within_brackets_do_not_split():
    assert sides(r"P(X=1) = \frac{1}{2} = 0.5") == ["P(X=1)", r"\frac{1}{2}", "0.5"]


def test_two_different_names_stay():
    assert strip_names("f(2)=5", "f(3)=5") == ("f(2)=5", "f(3)=5")
    assert strip_names("f(2)=5", "f(2) = 5") == ("5", "5")
    assert strip_names("x+y=5", "5") == ("x+y=5", "5")


# ---- numerals


def test_a_gold_of_thousands_of_digits_is_compared_and_raises_nothing():
    gold = "7" * 5001
    grouped = ",".join(gold[place : place + 3] for place in range(0, len(gold), 3))
    assert fast(rf"\boxed{{{grouped}}}", gold, True).reward == 1.0
    assert fast(rf"\boxed{{{gold[:-1]}8}}", gold, True).reward == 0.0
    assert fast(r"\boxed{5}", gold, True).reward == 0.0
    assert fast(rf"\boxed{{\frac{{{gold}}}{{{gold}}}}}", gold, True).reward == 0.0
    assert parse_number("1" + "0" * 9000) == Fraction(10) ** 9000
    assert parse_number("-1." + "0" * 8999 + "1") == -1 - Fraction(1, 10**9000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.333...", Fraction(1, 3)), ("0.1666...", Fraction(1, 6)), ("0.121212...", Fraction(4, 33)),
        ("0.142857142857...", Fraction(1, 7)), ("0.33...", None), ("3.14159...", None), ("1 000 000", Fraction(10**6)),
        ("1 00", None), ("0 123", None),
    ],
)  # fmt: skip
def test_dots_and_spaces_in_numerals(text, value):
    assert parse_number(normalise(text)) == value


def test_ratios_are_in_lowest_terms_and_times_of_day_are_not():
    assert parse_ratio("6:8") == parse_ratio("3:4") == parse_ratio(r"3 \text{ to } 4") == (3, 4)
    assert parse_ratio("0.5:1") == (1, 2)
    assert parse_ratio("1:20") != parse_ratio("2:40")
    assert parse_ratio("0:5") != parse_ratio("0:7")


@pytest.mark.parametrize(
    "text", ["52_8", "(52)_8", r"52_{\text 8}", r"52_{\text{eight}}", "52_{(8)}", r"52\text{ (base 8)}", "52 base 8"]
)
def test_bases(text):
    assert parse_base_numeral(normalise(text)) == ("52", 8)


def test_residues():
    assert parse_congruence(r"x \equiv 12 \pmod{7}") == ("x", 12, 7)
    assert parse_congruence(normalise("x ≡ 5 (mod 7)")) == ("x", 5, 7)
    assert parse_congruence(r"x \equiv 5 \pmod{0}") is None


# ---- sets of real numbers


def holds(piece: Piece, number: Fraction) -> bool:
    low, high = (float(end.replace(r"\infty", "inf")) for end in (piece.low, piece.high))
    return (low < number or (low == number and piece.low_closed)) and (
        number < high or (number == high and piece.high_closed)
    )


def random_piece(dice: random.Random) -> Piece:
    low = dice.randint(0, 6)
    high = dice.randint(low, 7)
    point = low == high
    ends = (str(low), str(high)) if dice.random() < 0.8 or point else (r"-\infty", str(high))
    return Piece(
        ends[0], point or (dice.random() < 0.5 and ends[0] != r"-\infty"), ends[1], point or dice.random() < 0.5
    )


@pytest.mark.parametrize("seed", range(5))
def test_unions_and_intersections_hold_the_numbers_that_they_should(seed):
    dice = random.Random(seed)
    numbers = [Fraction(half, 2) for half in range(-2, 18)]
    for _ in range(100):
        left, right = ([random_piece(dice) for _ in range(dice.randint(1, 3))] for _ in range(2))
        both = intersect(left, right, parse_number)
        for number in numbers:
            inside = any(holds(piece, number) for piece in left) and any(holds(piece, number) for piece in right)
            assert any(holds(piece, number) for piece in both) == inside
        try:
            joined = join(left, parse_number)
        except Nested:
            continue
        for number in numbers:
            assert sum(holds(piece, number) for piece in joined) == any(holds(piece, number) for piece in left)


def test_what_lies_within_another_piece_is_a_second_answer():
    with pytest.raises(Nested):
        join([Piece("1", True, "4", True), Piece("2", True, "3", True)], parse_number)
    assert unify("x>3", "x>3 or x>4", parse_number) == ("x>3", "x>3 or x>4")


def test_ends_without_a_value_are_left_to_those_who_know_them():
    with pytest.raises(Unordered):
        join([Piece("1", True, "a", True), Piece("2", True, "3", True)], parse_number)
    assert unify("[1,3]", r"[1,\sqrt{2}]\cup[\sqrt{2},3]", parse_number) is None
    assert unify("(a,b)", "a<x<b", parse_number) == ("(a,b)", "(a,b)")


def test_one_form_for_all_sets_of_numbers():
    wanted = "(2,5)"
    for text in ("2<x<5", r"\{x \mid 2<x<5\}", r"\{x : 2<x<5\}", r"x>2 \text{ and } x<5", "x>2, x<5", "]2,5["):
        assert unify("(2,5)", normalise(text), parse_number) == (wanted, wanted), text


# ---- words, units, plain text


def test_words_with_one_meaning():
    assert meaning(r"\text{No real solutions}") == r"\emptyset"
    assert meaning("all real numbers") == r"\mathbb{R}"
    assert meaning("DNE") == meaning("does not exist")
    assert meaning("no integer solutions") == "no integer solutions"
    assert meaning("5 apples") == "5 apples"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (r"n \text{ odd}", (r"n \text{ odd}", "")), (r"x \text{ cm}", ("x", "cm")),
        (r"2n \text{ apples}", ("2n", "apples")),
        (r"n \ge 3 \text{ prime}", (r"n \ge 3 \text{ prime}", "")), ("5'", ("5", "ft")), ("¥500", ("500", "¥")),
        ("9 (apples)", ("9", "apples")), ("9 (mod 10)", ("9 (mod 10)", "")), (r"5\text{ years old}", ("5", "year")),
    ],
)  # fmt: skip
def test_units(text, parts):
    assert split_unit(text) == parts


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("-2*pi", r"-2*\pi"), ("sqrt(2 + sqrt(3))", r"\sqrt{2 + \sqrt{3}}"), ("x^(2/(3+1))", "x^{2/(3+1)}"),
        ("log_10(100)", r"\log_{10}(100)"), (r"\log_{e} 2", r"\ln 2"), (r"x\cdot\mathrm{e}", r"x\cdot e"),
        ("sine", "sine"), ("3 sec", "3 sec"), ("sqrt(2", r"\sqrt(2"), ("(-inf, 2)", r"(-\infty, 2)"),
    ],
)  # fmt: skip
def test_mathematics_without_latex(text, latex):
    assert to_latex(text) == latex


# ---- what the parser would drop or reorder


def test_one_symbol_for_one_thing():
    assert named(r"\gcd(m,n)") == named(r"\gcd(n, m)") != named(r"\gcd(m,k)")
    assert named(r"\angle ABC") == named(r"\angle CBA") != named(r"\angle ACB")
    assert named("f'(x)") not in (named("f''(x)"), named("f(x)"), named("f'(y)"))
    assert named(r"\gcd(10,15)") == r"\gcd(10,15)"
    assert named("2x+1") == "2x+1"


def test_lengths_are_pairs_of_capitals():
    gold, answer = with_segments(r"AB \cdot CD", r"DC \cdot BA")
    assert sorted(gold.split(r" \cdot ")) == sorted(answer.split(r" \cdot "))
    assert with_segments(r"\frac{PV}{RT}", r"\frac{P}{R}") == (r"\frac{PV}{RT}", r"\frac{P}{R}")


def test_only_one_order_of_matrices_is_right():
    letters = ("A", "B", "C", "D")
    for mark in ("T", "{-1}"):
        gold = rf"(ABCD)^{mark}"
        right = ["".join(f"{letter}^{mark}" for letter in order) for order in permutations(letters)]
        assert all(has_order(gold, answer) for answer in right)
        assert [answer for answer in right if equal_in_order(gold, answer)] == [
            "".join(f"{letter}^{mark}" for letter in "DCBA")
        ]


def test_algebra_of_matrices_and_vectors():
    assert equal_in_order("(A+B)^TC", "A^TC+B^TC")
    assert equal_in_order("P^{-1}PA", "A")
    assert not equal_in_order("P^{-1}AP", "A")
    assert equal_in_order("X = A^{-1}B", "A^{-1}B - X = 0")
    assert not equal_in_order("X = A^{-1}B", "X = BA^{-1}")
    assert equal_in_order(r"\vec{a}\times(\vec{b}+\vec{a})", r"-\vec{b}\times\vec{a}")
    assert not equal_in_order(r"(\vec{a}\times\vec{b})\times\vec{c}", r"\vec{a}\times(\vec{b}\times\vec{c})")
    assert not has_order(r"\frac{PV}{RT}", "2AB", "P(1+r)^T")


@pytest.mark.parametrize("text", ["(AB)^{", "A^T)", r"A^T \oplus B", "A^T = B = C", r"\frac{A^T}", "A^{T", ""])
def test_what_cannot_be_read_equals_nothing(text):
    assert not equal_in_order("A^T", text)


@pytest.mark.parametrize(
    "text", ["(A+B)^{99}A^T", "(A+B)^nA^T", "(A+B)^{-1}(" * 40 + "A" + ")" * 40, "A^{" * 300 + "}" * 300]
)
def test_what_would_take_for_ever_is_left(text):
    assert not equal_in_order("A^T", text)


# ---- values


@pytest.mark.parametrize("places", [10, 45, 300, 3000])
def test_no_difference_is_too_small(places):
    import sympy

    from sppo.verifiers.math.symbolic import equal_by_sympy
    from sppo.verifiers.math.values import same_value

    tiny = sympy.Rational(1, 10**places)
    assert same_value(sympy.pi + tiny, sympy.pi) is False
    assert same_value(sympy.pi + tiny, tiny + sympy.pi) is True
    assert not equal_by_sympy(rf"\pi+10^{{-{places}}}", r"\pi")
    assert not equal_by_sympy(rf"x<\pi+2^{{-{places}}}", r"x<\pi")


def test_functions_that_come_near_a_number_are_not_that_number():
    import sympy

    from sppo.verifiers.math.values import same_value

    for near in (
        sympy.tanh(500),
        1 - sympy.exp(-500),
        sympy.cos(sympy.Rational(1, 10**50)),
        2 ** (2 ** sympy.Integer(-300)),
    ):
        assert same_value(near, sympy.Integer(1)) is False


def test_roots_are_those_of_real_numbers():
    import sympy

    from sppo.verifiers.math.values import equal_with_real_roots

    x = sympy.Symbol("x", real=True)
    third = sympy.Rational(1, 3)
    assert equal_with_real_roots((x**2) ** third, x ** (2 * third))
    assert equal_with_real_roots((x**3) ** third, x)
    assert equal_with_real_roots(sympy.sqrt(x**3), x ** sympy.Rational(3, 2))
    assert not equal_with_real_roots(sympy.sqrt(x**2), x)
    assert not equal_with_real_roots(-((x**2) ** third), x ** (2 * third))


# ---- boxes


class Counted(str):
    """Text that counts how often it is held against another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_joined_boxes_are_not_each_held_against_all():
    from sppo.verifiers.extraction import _joined

    many = 2000
    boxes = [Box(2 * place, 2 * place + 1, Counted(place)) for place in range(many)]
    Counted.compared = 0
    assert _joined("x," * many, boxes).count(",") == many - 1
    assert Counted.compared <= many


def test_joined_boxes_are_one_answer_each_value_once():
    assert find_answer(r"\boxed{1}, \boxed{2}, \boxed{1}").text == "2, 1"
