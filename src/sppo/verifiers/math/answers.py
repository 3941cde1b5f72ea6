r"""Compares two normalised answers by their structure: alternatives, sets, tuples, intervals, matrices, numbers.

Numbers are compared exactly, as fractions: 27.0 is 27, 0.333 is not 1/3, and nothing is ever a factor of 100 off.
What is neither a number nor the same string goes to the rules' `scalar_equal`, which may leave it undecided (None).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from sppo.verifiers.math import intervals
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.numerals import parse_number
from sppo.verifiers.math.units import split_unit

MAX_PARTS = 64


@dataclass(frozen=True)
class Rules:
    """What decides about the parts of an answer."""

    scalar_equal: Callable[[str, str], bool | None]
    """(gold, answer) -> whether they are equal, None where this cannot tell."""
    numbers_equal: Callable[[Fraction, Fraction], bool] = operator.eq
    """(gold, answer) -> whether two numbers are equal."""


@dataclass(frozen=True)
class Answer:
    """One answer taken apart."""

    kind: str
    """scalar, list (bare commas or "or"), set, union, matrix, determinant, or the brackets of a tuple or interval."""
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
_BRACKETED_ARRAY = re.compile(r"[(\[]\s*(\\begin\{(?:array|matrix|smallmatrix)\}.*)[)\]]", re.DOTALL)
_BRACKETS = re.compile(r"(\\\{|[(\[\]])(.*)(\\\}|[)\]\[])", re.DOTALL)
_TOKENS = re.compile(r"\\[{}]|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OPEN, _CLOSE = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")


def take_apart(text: str) -> Answer:
    """Returns the structure of a normalised answer."""
    matrix = _matrix(text)
    if matrix:
        return matrix
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
    bracketed = _BRACKETED_ARRAY.fullmatch(text)
    matrix = _MATRIX.fullmatch(bracketed[1].strip() if bracketed else text)
    if matrix is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", matrix[2]) if row.strip()]
    cells = tuple(normalise(cell) for row in rows for cell in row)
    kind = "determinant" if matrix[1].lower() == "vmatrix" else "matrix"
    return Answer(kind, cells, tuple(len(row) for row in rows))


def _thousands(text: str) -> bool:
    return re.fullmatch(r"[+\-]?\d{1,3}(,\d{3})+(\.\d+)?", text) is not None


def _split(text: str, separator: str) -> list[str]:
    """Splits at a token outside all brackets."""
    parts, depth, start = [], 0, 0
    for token in _TOKENS.finditer(text):
        symbol = token.group()
        if symbol in _OPEN:
            depth += 1
        elif symbol in _CLOSE:
            depth -= 1
        elif symbol == separator and depth == 0:
            parts.append(text[start : token.start()])
            start = token.end()
    return [normalise(part) for part in [*parts, text[start:]]]


def _balanced(text: str) -> bool:
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += (token.group() in _OPEN) - (token.group() in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _expand_signs(parts: list[str]) -> tuple[str, ...]:
    r"""Writes a \pm b as its two values; where \pm stands twice in one part, the part stays as it is."""
    expanded: list[str] = []
    for part in parts:
        if part.count(r"\pm") == 1:
            plus = re.sub(r"^\s*\+\s*", "", part.replace(r"\pm", "+"))
            expanded += [normalise(plus), normalise(part.replace(r"\pm", "-"))]
        else:
            expanded.append(part)
    return tuple(expanded)


ASSIGNMENT = re.compile(
    r"(?:\\?[a-zA-Z]+|\\text\s*\{[^{}]{1,60}\}|[a-zA-Z]{1,20}(?: [a-zA-Z]{1,20}){0,4}|\([a-zA-Z](?:, ?[a-zA-Z]){1,3}\))"
    r"(?:_\{?[a-zA-Z0-9]+\}?|')?(?:\s*\([a-zA-Z0-9,\s]{1,20}\))?\s*=\s*"
)
_MEMBERSHIP = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")
_NAMED_LAST = re.compile(r"\A([^=<>a-zA-Z]+)=\s*([a-zA-Z])\Z")
_POINT_NAME = re.compile(r"[A-Z](?=\([^()]*,[^()]*\)\Z)")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![a-zA-Z])")


def _strip_names(gold: str, answer: str) -> tuple[str, str]:
    r"""Drops `x =` where both sides name the same x, or one does and the other is a bare value; `x \in` always.

    A side with a second relation keeps its names, so that x=1, y=2 never equals x=2, y=1.
    """
    gold, answer = (
        _MEMBERSHIP.sub("", side, count=1) if len(_MEMBERSHIP.findall(side)) == 1 else side for side in (gold, answer)
    )
    gold, answer = (_NAMED_LAST.sub(r"\2 = \1", side) for side in (gold, answer))
    for name in (ASSIGNMENT, _POINT_NAME):
        gold_name, answer_name = name.match(gold), name.match(answer)
        gold_value = gold[gold_name.end() :] if gold_name else gold
        answer_value = answer[answer_name.end() :] if answer_name else answer
        if _RELATION.search(gold_value) or _RELATION.search(answer_value):
            return gold, answer
        if gold_name and answer_name and key(gold_name.group()) != key(answer_name.group()):
            return gold, answer
        if any(found and re.search(r"\(.*[yz], ?[xy]", found.group()) for found in (gold_name, answer_name)):
            # (y, x) = (1, 2) is no way to write the bare point (1, 2).
            return gold, answer
        gold, answer = gold_value, answer_value
    return gold, answer


def key(text: str) -> str:
    """Drops the spaces that mean nothing: all but those between two digits or two letters."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", re.sub(r"(?<=[a-zA-Z])\s+(?=[a-zA-Z])", "\0", text)).replace("\0", " ")


def compare(gold: str, answer: str, rules: Rules) -> bool | None:
    """Compares two normalised answers.

    Args:
        gold: the reference answer; its form decides what the answer may look like.
        answer: the answer given.
        rules: asked about elements that are not the same string.

    Returns:
        Whether they are equal; None where the rules left it open.
    """
    if key(gold) == key(answer):
        return bool(gold)
    if _joined_otherwise(gold, answer):
        return False
    gold, answer = _strip_names(gold, answer)
    gold, gold_unit = split_unit(gold)
    answer, answer_unit = split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    gold, answer = intervals.unify(normalise(gold), normalise(answer))
    left, right = (_single(take_apart(side)) for side in (gold, answer))
    if left.kind == right.kind == "scalar":
        return _compare_scalars(left.parts[0], right.parts[0], rules)
    return _compare_structures(left, right, rules)


def _joined_otherwise(gold: str, answer: str) -> bool:
    """Whether one has inequalities that hold at once, and the other as alternatives."""
    if not all(re.search(r"[<>]|\\(?:le|ge|lt|gt)(?![a-zA-Z])", side) for side in (gold, answer)):
        return False
    words = [set(re.findall(r"(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", side)) for side in (gold, answer)]
    return words[0] != words[1] and all(words)


def _single(answer: Answer) -> Answer:
    if answer.kind == "set" and len(answer.parts) == 1 and r"\emptyset" not in answer.parts[0]:
        return Answer("scalar", answer.parts)
    return answer


def _compare_structures(gold: Answer, answer: Answer, rules: Rules) -> bool | None:
    kinds = {gold.kind, answer.kind}
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
    if gold.ordered:
        return _all(compare(left, right, rules) for left, right in zip(gold.parts, answer.parts, strict=True))
    return _match_unordered(list(gold.parts), list(answer.parts), rules)


def _may_be_interval(gold: Answer, answer: Answer) -> bool:
    scalar = gold if gold.kind == "scalar" else answer
    return re.search(r"[<>]|\\[lg]e(?![a-zA-Z])", scalar.parts[0]) is not None


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
        results = [compare(element, other, rules) for other in answer]
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
