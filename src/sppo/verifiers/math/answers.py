r"""Compares two normalised answers by their structure: alternatives, sets, tuples, intervals, matrices, numbers.

Numbers are compared exactly, as fractions: 27.0 is 27, 0.333 is not 1/3, and nothing is ever a factor of 100 off.
What is neither a number nor the same string goes to the rules' `scalar_equal`, which may leave it undecided (None).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from sppo.verifiers.math import realsets, words
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.names import key, strip_names
from sppo.verifiers.math.numerals import parse_number
from sppo.verifiers.math.pieces import CLOSE, OPEN, TOKENS, split_top
from sppo.verifiers.math.structures import unified
from sppo.verifiers.math.units import split_unit

MAX_PARTS = 64


@dataclass(frozen=True)
class Rules:
    """What decides about the parts of an answer."""

    scalar_equal: Callable[[str, str], bool | None]
    """(gold, answer) -> whether they are equal, None where this cannot tell."""
    numbers_equal: Callable[[Fraction, Fraction], bool] = operator.eq
    """(gold, answer) -> whether two numbers are equal."""
    order: realsets.Order = parse_number
    """The end of an interval as text -> its value, None where this cannot tell."""
    last: bool = False
    """Nobody else is asked: what these cannot tell is not equal."""


@dataclass(frozen=True)
class Answer:
    """One answer taken apart."""

    kind: str
    """scalar, list (bare commas or "or"), set, built (a set with its condition), union, matrix, determinant, cases,
    vector, or the brackets of a tuple or interval."""
    parts: tuple[str, ...]
    """Elements, normalised; a matrix's row by row."""
    shape: tuple[int, ...] = ()
    """Entries in each row of a matrix."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the parts matters."""
        return self.kind not in ("list", "set", "union")


_ALTERNATIVES = re.compile(r",?\s*\\text\s*\{\s*(?:or|and)\s*\}\s*|,?\s*(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])\s*|;")
_MATRIX = re.compile(r"\\begin\{((?:[pbvBV]|small)?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_FACTOR = r"(?P<factor>-|-?\s*\d+|-?\s*\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}|-?\s*[a-zA-Z])"
_SCALED = re.compile(rf"{_FACTOR}\s*(?:\\cdot|\\times)?\s*(?P<matrix>[(\[]?\s*\\begin\{{.*)", re.DOTALL)
_TRANSPOSED = re.compile(r"(.*[)}\]])\s*\^\s*(?:T|\{\s*(?:T|\\top|\\text\{\s*T\s*\}|\\intercal)\s*\}|\\top)", re.DOTALL)
_ANGLED = re.compile(r"(?:\\langle|<)(.*,.*)(?:\\rangle|>)", re.DOTALL)
_CASES = re.compile(r"(?:\\\{\s*)?\\begin\{(cases|array)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\{\1\}", re.DOTALL)
_BRACKETED_ARRAY = re.compile(r"[(\[]\s*(\\begin\{(?:array|matrix|smallmatrix)\}.*)[)\]]", re.DOTALL)
_BRACKETS = re.compile(r"(\\\{|[(\[\]])(.*)(\\\}|[)\]\[])", re.DOTALL)
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_MINUS_PLUS = re.compile(r"\\mp(?![a-zA-Z])")
_INEQUALITY = re.compile(r"[<>]|\\(?:[lg]e|[lg]t)(?![a-zA-Z])")
_NO_VALUE = re.compile(r"[<>]|\\(?:[lg]e|[lg]t|ne|in|notin|infty|mathbb|text)(?![a-zA-Z])")
_BUILT = re.compile(
    r"\\\{(?P<head>[^|:]*?)(?:\\mid(?![a-zA-Z])|\\colon(?![a-zA-Z])|[|:])(?P<condition>.*)\\\}", re.DOTALL
)


def take_apart(text: str) -> Answer:
    """Returns the structure of a normalised answer."""
    if _MINUS_PLUS.search(text) and _PLUS_MINUS.search(text):
        # The signs belong together: the upper ones are one answer, the lower ones the other.
        return Answer("list", (_signed(text, "+", "-"), _signed(text, "-", "+")))
    special = _matrix(text) or _cases(text) or _vector(text) or _built(text)
    if special:
        return special
    union = _split(text, r"\cup")
    if len(union) > 1:
        return Answer("union", tuple(union))
    alternatives = [part for piece in _ALTERNATIVES.split(text) for part in _split(piece, ",") if part]
    if len(alternatives) > 1 and not _thousands(text) and all(_balanced(part) for part in alternatives):
        return Answer("list", _expand_signs(alternatives))
    brackets = _BRACKETS.fullmatch(text)
    if brackets and _balanced(brackets[2]):
        left, inside, right = brackets.groups()
        parts = [part for part in _split(inside, ";" if ";" in inside else ",") if part]
        if left == r"\{" and right == r"\}":
            return Answer("set", _expand_signs(parts))
        if len(parts) > 1 and r"\{" not in left and r"\}" not in right and left + right != "][":
            return Answer(left + right, tuple(parts))
        if len(parts) == 2 and left + right == "][":
            return Answer("()", tuple(parts))
    signs = _expand_signs([text])
    return Answer("list", signs) if len(signs) > 1 else Answer("scalar", (text,))


def _matrix(text: str) -> Answer | None:
    if r"\begin" not in text:
        return None
    transposed = _TRANSPOSED.fullmatch(text)
    if transposed:
        matrix = _matrix(transposed[1])
        return _transpose(matrix) if matrix and matrix.kind == "matrix" else None
    scaled = _SCALED.fullmatch(text)
    if scaled:
        matrix = _matrix(scaled["matrix"])
        factor = scaled["factor"] if scaled["factor"] == "-" else rf"{scaled['factor']} \cdot "
        if matrix is None or matrix.kind != "matrix":
            return None
        return replace(matrix, parts=tuple(normalise(f"{factor}({cell})") for cell in matrix.parts))
    bracketed = _BRACKETED_ARRAY.fullmatch(text)
    matrix_text = _MATRIX.fullmatch(bracketed[1].strip() if bracketed else text)
    if matrix_text is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", matrix_text[2]) if row.strip()]
    cells = tuple(normalise(cell) for row in rows for cell in row)
    kind = "determinant" if matrix_text[1].lower() == "vmatrix" else "matrix"
    return Answer(kind, cells, tuple(len(row) for row in rows))


def _transpose(matrix: Answer) -> Answer | None:
    if len(set(matrix.shape)) != 1:
        return None
    width, height = matrix.shape[0], len(matrix.shape)
    cells = tuple(matrix.parts[row * width + column] for column in range(width) for row in range(height))
    return Answer("matrix", cells, (height,) * width)


def _cases(text: str) -> Answer | None:
    """A function by cases: values and conditions, row by row."""
    cases = _CASES.fullmatch(text) if r"\begin" in text else None
    if cases is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", cases[2]) if row.strip()]
    words = r"\\text\s*\{\s*(?:if|for|when)\s*\}|(?<![a-zA-Z])(?:if|for|when)(?![a-zA-Z])"
    cells = tuple(normalise(re.sub(words, "", cell)) for row in rows for cell in row)
    return Answer("cases", cells, tuple(len(row) for row in rows))


def _vector(text: str) -> Answer | None:
    r"""\langle 1,2 \rangle, and (1,2)^T as a column."""
    angled = _ANGLED.fullmatch(text)
    if angled:
        return Answer("vector", tuple(_split(angled[1], ",")))
    transposed = _TRANSPOSED.fullmatch(text) if "^" in text else None
    if transposed and transposed[1][0] in "([" and _balanced(transposed[1][1:-1]):
        entries = _split(transposed[1][1:-1], ",")
        return Answer("matrix", tuple(entries), (1,) * len(entries)) if len(entries) > 1 else None
    return None


def _built(text: str) -> Answer | None:
    r"""A set given by a condition: \{x \in \mathbb{Z} \mid x > 2\}."""
    built = _BUILT.fullmatch(text) if text.startswith(r"\{") else None
    if built is None or not _balanced(built["head"]) or not _balanced(built["condition"]):
        return None
    return Answer("built", (normalise(built["head"]), normalise(built["condition"])))


def _alike(gold: Answer, answer: Answer) -> tuple[Answer, Answer]:
    """Brings two notations of one kind together: a column and a vector, a list of three or more in square brackets."""
    kinds = {gold.kind, answer.kind}
    if kinds in ({"vector", "matrix"}, {"vector", "()"}):
        columns = [side for side in (gold, answer) if side.kind != "matrix" or set(side.shape) == {1}]
        if len(columns) == 2:
            return replace(gold, kind="vector", shape=()), replace(answer, kind="vector", shape=())
    if gold.kind == "list" and answer.kind == "[]" and len(answer.parts) > 2:
        return gold, replace(answer, kind="list")
    return gold, answer


def _thousands(text: str) -> bool:
    return re.fullmatch(r"[+\-]?\d{1,3}(,\d{3})+(\.\d+)?", text) is not None


def _split(text: str, separator: str) -> list[str]:
    """Splits at a token outside all brackets, into normalised parts."""
    return [normalise(part) for part in split_top(text, separator)]


def _balanced(text: str) -> bool:
    depth = 0
    for token in TOKENS.finditer(text):
        depth += (token.group() in OPEN) - (token.group() in CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _expand_signs(parts: list[str]) -> tuple[str, ...]:
    r"""Writes a \pm b as its two values; where \pm stands twice in one part, the part stays as it is."""
    expanded: list[str] = []
    for part in parts:
        if len(_PLUS_MINUS.findall(part)) == 1:
            expanded += [_signed(part, "+", "-"), _signed(part, "-", "+")]
        else:
            expanded.append(part)
    return tuple(expanded)


def _signed(text: str, upper: str, lower: str) -> str:
    r"""Writes \pm as the one sign and \mp as the other; a plus in front of a value is left out."""
    text = _MINUS_PLUS.sub(lower, _PLUS_MINUS.sub(upper, text))
    return normalise(re.sub(r"(\A|[(\[{,=])\s*\+\s*", r"\1", text))


def compare(gold: str, answer: str, rules: Rules, within: bool = False) -> bool | None:
    """Compares two normalised answers.

    Args:
        gold: the reference answer; its form decides what the answer may look like.
        answer: the answer given.
        rules: asked about elements that are not the same string.
        within: whether these are elements of something, where \\{5\\} is not 5.

    Returns:
        Whether they are equal; None where the rules left it open.
    """
    if key(gold) == key(answer):
        return bool(gold)
    numbers = parse_number(gold), parse_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return rules.numbers_equal(numbers[0], numbers[1])
    chosen = words.letters(gold, answer)
    if chosen is not None:
        return chosen[0] == chosen[1]
    if _joined_otherwise(gold, answer):
        return False
    gold, answer = strip_names(words.meaning(gold), words.meaning(answer))
    gold, gold_unit = split_unit(gold)
    answer, answer_unit = split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    gold, answer = unified(normalise(gold), normalise(answer))
    as_sets = realsets.unify(gold, answer, rules.order)
    if as_sets is None:
        if not rules.last:
            return None
        as_sets = realsets.as_written(gold, answer)
    gold, answer = as_sets
    if r"\emptyset" in (gold, answer):
        return gold == answer
    left, right = _both_apart(gold, answer, within)
    if left.kind == right.kind == "scalar":
        return _compare_scalars(left.parts[0], right.parts[0], rules)
    return _compare_structures(*_alike(left, right), rules)


def _joined_otherwise(gold: str, answer: str) -> bool:
    """Whether one has inequalities that hold at once, and the other as alternatives."""
    if not all(re.search(r"[<>]|\\(?:le|ge|lt|gt)(?![a-zA-Z])", side) for side in (gold, answer)):
        return False
    words = [set(re.findall(r"(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", side)) for side in (gold, answer)]
    return words[0] != words[1] and all(words)


def _both_apart(gold: str, answer: str, within: bool) -> tuple[Answer, Answer]:
    left, right = take_apart(gold), take_apart(answer)
    return (left, right) if within else (_single(left, right), _single(right, left))


def _single(answer: Answer, other: Answer) -> Answer:
    r"""Takes \{5\} for 5 where the other side is no set; \{\{5\}\} stays what it is."""
    if answer.kind != "set" or other.kind == "set" or len(answer.parts) != 1:
        return answer
    return answer if re.search(r"\\\{|\\emptyset", answer.parts[0]) else Answer("scalar", answer.parts)


def _compare_structures(gold: Answer, answer: Answer, rules: Rules) -> bool | None:
    kinds = {gold.kind, answer.kind}
    if any(_are_values(listed) and _may_be_interval(gold, answer) for listed in (gold, answer)):
        # The numbers 1 and 2 are not what lies between them.
        return False
    if gold.kind == "scalar" and answer.kind == "list":
        # One value written several times is no hedge: \frac{1}{2} \text{ or } 0.5.
        same = _all(compare(gold.parts[0], part, rules) for part in answer.parts[:MAX_PARTS])
        if same is not False and len(answer.parts) <= MAX_PARTS:
            return same
        # A gold such as "\text{a, b}" or a relation may only look like a scalar to us.
        return None if re.search(r"[<>]|\\[lg]e|\\in", gold.parts[0]) else False
    if len(kinds) > 1 and kinds != {"list", "set"}:
        return None if "scalar" in kinds and _may_be_interval(gold, answer) else False
    if len(gold.parts) != len(answer.parts) or gold.shape != answer.shape or len(gold.parts) > MAX_PARTS:
        return False
    if gold.ordered or (_named_apart(gold) and not _named_apart(answer)):
        return _all(
            compare(left, right, rules, within=True) for left, right in zip(gold.parts, answer.parts, strict=True)
        )
    return _match_unordered(list(gold.parts), list(answer.parts), rules)


def _named_apart(answer: Answer) -> bool:
    """Whether each value has another name, as in x=1, y=2: values without names are then in that order."""
    names = [key(part.partition("=")[0]) for part in answer.parts if "=" in part]
    return len(names) == len(answer.parts) > 1 and len({name[0] for name in names if name}) == len(names)


def _may_be_interval(gold: Answer, answer: Answer) -> bool:
    scalar = gold if gold.kind == "scalar" else answer
    return scalar.kind == "scalar" and _INEQUALITY.search(scalar.parts[0]) is not None


def _are_values(answer: Answer) -> bool:
    """Whether this lists values, none of them an inequality, an interval or in words."""
    return answer.kind in ("list", "set") and not any(
        _NO_VALUE.search(part) or take_apart(part).kind != "scalar" for part in answer.parts[:MAX_PARTS]
    )


def _all(results: Iterable[bool | None]) -> bool | None:
    undecided = False
    for result in results:
        if result is False:
            return False
        undecided = undecided or result is None
    return None if undecided else True


def _match_unordered(gold: list[str], answer: list[str], rules: Rules) -> bool | None:
    """Pairs each gold element with one equal answer element; equality is transitive, so greedy pairing is enough."""
    undecided = False
    for element in gold:
        results = [compare(element, other, rules, within=True) for other in answer]
        if True in results:
            answer.pop(results.index(True))
        elif None in results:
            undecided = True
        else:
            return False
    return None if undecided else True


def _compare_scalars(gold: str, answer: str, rules: Rules) -> bool | None:
    if key(gold) == key(answer):
        return bool(gold)
    if not answer or not gold:
        return False
    gold_number, answer_number = parse_number(gold), parse_number(answer)
    if gold_number is not None and answer_number is not None:
        return rules.numbers_equal(gold_number, answer_number)
    return rules.scalar_equal(gold, answer)
