r"""Compares two normalised answers by their structure: alternatives, sets, tuples, intervals, matrices, numbers.

Numbers are compared exactly, as fractions: 27.0 is 27, 0.333 is not 1/3, and nothing is ever a factor of 100 off.
What is neither a number nor the same string goes to a `ScalarEqual`, which may leave it undecided (None).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from sppo.verifiers.latex import normalise, split_unit

ScalarEqual = Callable[[str, str], "bool | None"]
"""(gold, answer) -> whether they are equal, None where this cannot tell."""

MAX_PARTS = 64
_MAX_EXPONENT = 400

_INTEGER = r"\d{1,3}(?:,\d{3})+|\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[+\-]*)(?:"
    rf"(?P<whole>\d{{1,12}})?\s*\\frac\s*\{{\s*(?P<top>[+\-]?\s*(?:{_INTEGER}))\s*\}}\s*\{{\s*(?P<bottom>-?\s*(?:{_INTEGER}))\s*\}}"
    rf"|(?P<over>{_INTEGER})\s*/\s*(?P<under>{_INTEGER})"
    rf"|(?P<decimal>(?:{_INTEGER})(?:\.\d*)?|\.\d+)"
    rf"(?:\s*(?:[eE]\s*(?P<exponent>[+\-]?\d{{1,6}})"
    rf"|(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[+\-]?\d{{1,6}})\s*\}}?))?"
    rf")"
)  # fmt: skip


def parse_number(text: str) -> Fraction | None:
    r"""Returns an integer, decimal, a/b, mixed number or a \times 10^{b} exactly; None for anything else.

    Exponents beyond ±400 give None, so that no short text makes a huge number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    if match["top"] is not None:
        bottom = _integer(match["bottom"])
        value = Fraction(_integer(match["top"]), bottom) if bottom else None
        if match["whole"] and value is not None:
            value = value + int(match["whole"]) if value >= 0 else None
    elif match["over"] is not None:
        under = _integer(match["under"])
        value = Fraction(_integer(match["over"]), under) if under else None
    else:
        exponent = int(match["exponent"] or match["power"] or 0)
        decimal = match["decimal"].replace(",", "").rstrip(".")
        value = Fraction(decimal) * Fraction(10) ** exponent if abs(exponent) <= _MAX_EXPONENT else None
    if value is None:
        return None
    return -value if match["sign"].count("-") % 2 else value


def _integer(text: str) -> int:
    return int(re.sub(r"[,\s+]", "", text))


@dataclass(frozen=True)
class Answer:
    """One answer taken apart."""

    kind: str
    """scalar, list (bare commas or "or"), set, union, matrix, or the two brackets of a tuple or interval."""
    parts: tuple[str, ...]
    """Elements, normalised; a matrix's row by row."""
    shape: tuple[int, ...] = ()
    """Entries in each row of a matrix."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the parts matters."""
        return self.kind not in ("list", "set", "union")


_ALTERNATIVES = re.compile(r",?\s*\\text\s*\{\s*(?:or|and)\s*\}\s*|,?\s*(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])\s*|;")
_MATRIX = re.compile(r"\\begin\{([pbvB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_TOKENS = re.compile(r"\\[{}]|\\[a-zA-Z]+|\\.|.", re.DOTALL)


def take_apart(text: str) -> Answer:
    """Returns the structure of a normalised answer."""
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row.split("&") for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        cells = tuple(normalise(cell) for row in rows for cell in row)
        return Answer("matrix", cells, tuple(len(row) for row in rows))
    union = _split(text, r"\cup")
    if len(union) > 1:
        return Answer("union", tuple(union))
    alternatives = [part for piece in _ALTERNATIVES.split(text) for part in _split(piece, ",") if part]
    if len(alternatives) > 1 and not _thousands(text) and all(_balanced(part) for part in alternatives):
        return Answer("list", _expand_signs(alternatives))
    inside = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL)
    if inside and _balanced(inside[2]):
        parts = [part for part in _split(inside[2], ",") if part]
        if inside[1] == r"\{" and inside[3] == r"\}":
            return Answer("set", _expand_signs(parts))
        if len(parts) > 1 and r"\{" not in inside[1] and r"\}" not in inside[3]:
            return Answer(inside[1] + inside[3], tuple(parts))
    signs = _expand_signs([text])
    return Answer("list", signs) if len(signs) > 1 else Answer("scalar", (text,))


def _thousands(text: str) -> bool:
    return re.fullmatch(r"[+\-]?\d{1,3}(,\d{3})+(\.\d+)?", text) is not None


def _split(text: str, separator: str) -> list[str]:
    """Splits at a token outside all brackets."""
    parts, depth, start = [], 0, 0
    for token in _TOKENS.finditer(text):
        symbol = token.group()
        if symbol in ("(", "[", "{", r"\{"):
            depth += 1
        elif symbol in (")", "]", "}", r"\}"):
            depth -= 1
        elif symbol == separator and depth == 0:
            parts.append(text[start : token.start()])
            start = token.end()
    return [normalise(part) for part in [*parts, text[start:]]]


def _balanced(text: str) -> bool:
    depth = 0
    for token in _TOKENS.finditer(text):
        symbol = token.group()
        depth += (symbol in ("(", "[", "{", r"\{")) - (symbol in (")", "]", "}", r"\}"))
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
    r"(?:\\?[a-zA-Z]+|\\text\s*\{[^{}]{1,60}\}|[a-zA-Z]{1,20}(?: [a-zA-Z]{1,20}){0,4})"
    r"(?:_\{?[a-zA-Z0-9]+\}?|')?(?:\s*\([a-zA-Z0-9,\s]{1,20}\))?\s*=\s*"
)
_MEMBERSHIP = re.compile(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![a-zA-Z])")


def _strip_names(gold: str, answer: str) -> tuple[str, str]:
    r"""Drops `x =` where both sides name the same x, or one does and the other is a bare value; `x \in` always.

    A side with a second relation keeps its names, so that x=1, y=2 never equals x=2, y=1.
    """
    gold, answer = (_MEMBERSHIP.sub("", side, count=1) if side.count(r"\in ") == 1 else side for side in (gold, answer))
    gold_name, answer_name = ASSIGNMENT.match(gold), ASSIGNMENT.match(answer)
    gold_value = gold[gold_name.end() :] if gold_name else gold
    answer_value = answer[answer_name.end() :] if answer_name else answer
    if _RELATION.search(gold_value) or _RELATION.search(answer_value):
        return gold, answer
    if gold_name and answer_name and _key(gold_name.group()) != _key(answer_name.group()):
        return gold, answer
    return gold_value, answer_value


def _key(text: str) -> str:
    return re.sub(r"\s+", "", text)


def compare(gold: str, answer: str, scalar_equal: ScalarEqual) -> bool | None:
    """Compares two normalised answers.

    Args:
        gold: the reference answer; its form decides what the answer may look like.
        answer: the answer given.
        scalar_equal: asked about elements that are neither the same string nor both numbers.

    Returns:
        Whether they are equal; None where `scalar_equal` left it open.
    """
    if _key(gold) == _key(answer):
        return bool(gold)
    gold, answer = _strip_names(gold, answer)
    gold, gold_unit = split_unit(gold)
    answer, answer_unit = split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    gold, answer = normalise(gold), normalise(answer)
    left, right = (_single(take_apart(side)) for side in (gold, answer))
    if left.kind == right.kind == "scalar":
        return _compare_scalars(left.parts[0], right.parts[0], scalar_equal)
    return _compare_structures(left, right, scalar_equal)


def _single(answer: Answer) -> Answer:
    return Answer("scalar", answer.parts) if answer.kind == "set" and len(answer.parts) == 1 else answer


def _compare_structures(gold: Answer, answer: Answer, scalar_equal: ScalarEqual) -> bool | None:
    kinds = {gold.kind, answer.kind}
    if gold.kind == "scalar" and answer.kind == "list" and not parse_number(gold.parts[0]):
        # A gold such as "\text{a, b}" or a relation may only look like a scalar to us.
        return None if re.search(r"[<>]|\\[lg]e|\\in", gold.parts[0]) else False
    if len(kinds) > 1 and kinds != {"list", "set"}:
        return None if "scalar" in kinds and _may_be_interval(gold, answer) else False
    if len(gold.parts) != len(answer.parts) or gold.shape != answer.shape or len(gold.parts) > MAX_PARTS:
        return False
    if gold.ordered:
        return _all(compare(left, right, scalar_equal) for left, right in zip(gold.parts, answer.parts, strict=True))
    return _match_unordered(list(gold.parts), list(answer.parts), scalar_equal)


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


def _match_unordered(gold: list[str], answer: list[str], scalar_equal: ScalarEqual) -> bool | None:
    """Pairs each gold element with one equal answer element; equality is transitive, so greedy pairing is enough."""
    undecided = False
    for element in gold:
        results = [compare(element, other, scalar_equal) for other in answer]
        if True in results:
            answer.pop(results.index(True))
        elif None in results:
            undecided = True
        else:
            return False
    return None if undecided else True


def _compare_scalars(gold: str, answer: str, scalar_equal: ScalarEqual) -> bool | None:
    if _key(gold) == _key(answer):
        return bool(gold)
    if not answer or not gold:
        return False
    gold_number, answer_number = parse_number(gold), parse_number(answer)
    if gold_number is not None and answer_number is not None:
        return gold_number == answer_number
    return scalar_equal(gold, answer)
