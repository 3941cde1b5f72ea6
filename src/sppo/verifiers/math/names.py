r"""What stands left of `=` and only names the value behind it: x, f^{-1}(x), |S|, P(X=1), \angle ABC, m+n.

A sum or product of several letters names a number (m+n = 37), unless it reads as an equation that is left to be solved:
x+1=5, 2x=10, 2x+3y=5.
"""

from __future__ import annotations

import re

from sppo.verifiers.math.pieces import split_top

_PLAIN = re.compile(
    r"(?:\\?[a-zA-Z]+|\\text\s*\{[^{}]{1,60}\}|[a-zA-Z]{1,20}(?: [a-zA-Z]{1,20}){0,4}|\([a-zA-Z](?:, ?[a-zA-Z]){1,3}\))"
    r"(?:_\{?[a-zA-Z0-9]+\}?|')?(?:\s*\([a-zA-Z0-9,\s]{1,20}\))?\s*"
)
_INDEX = r"(?:_(?:[a-zA-Z0-9]|\\[a-z]+|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}))"
_POWER = r"(?:\s*\^\s*(?:[a-zA-Z0-9*+\-]|\\[a-z]+|\{[^{}]*\}))"
_HEAD = (
    r"(?:\\(?:mathbb|text|operatorname|mathcal|mathrm)\s*\{\s*[a-zA-Z]+\s*\}|\\[a-zA-Z]+|[a-zA-Z]"
    r"|\([a-zA-Z\s\\]*\\circ[a-zA-Z\s\\]*\))"
)
_QUANTITY = re.compile(
    rf"\|.*[a-zA-Z].*\||\\[lr]?[vV]ert.*|\\\|.*\\\|"  # sizes
    rf"|(?:m\s*)?\\(?:angle|measuredangle|triangle|overline|overrightarrow|overleftrightarrow|widehat|hat|bar|vec)(?![a-zA-Z]).*"
    rf"|\[[A-Z]{{3,6}}\]|[A-Z]{{2,6}}{_POWER}?|\\?#\s*\S.*"  # lengths, areas, counts
    rf"|(?P<head>{_HEAD}){_INDEX}?'*{_POWER}?{_INDEX}?\s*(?P<inside>\(.+\)|\[.+\])"  # functions
    rf"|[A-Z]{_POWER}|[a-zA-Z]{_INDEX}{_POWER}?|[a-zA-Z]'+"
    rf"|[A-Z](?:\s*\\(?:cap|cup|setminus)\s*[A-Z])+",
    re.DOTALL,
)
_OPERATOR = re.compile(
    r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|ln|log|det|arg|deg|dim|Pr|vec)(?![a-zA-Z])(?=.*[a-zA-Z])"
    r"|\\(?:max|min|sup|inf|lim|limsup|liminf|gcd|lcm|i{0,3}nt|oint|sum|prod)(?![a-zA-Z])"
    r"|\\(?:text|operatorname)\s*\{\s*(?:max|min|gcd|lcm|lim|rank|tr|Var|Re|Im)\s*\}"
    r"|\\frac\s*\{\s*(?:d|\\partial)(?![a-z]{2})[^{}]*\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]"
)
_SUM = re.compile(r"[)\]|]\s*[+\-]|[+\-]\s*[|\\a-zA-Z]+[({]")
_TEXT = re.compile(r"\\text\s*\{[^{}]{1,60}\}\s*")
_FUNCTION = re.compile(r"\\(?:frac|cdot|times)(?![a-zA-Z])")
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|varphi|omega|angle [A-Z]{1,3})"
_LETTER = re.compile(rf"(?:\\[a-zA-Z]+|[a-zA-Z]){_INDEX}?")
_COMBINATION = re.compile(
    rf"(?:[a-zA-Z0-9+\-\s{{}}()/*]|\^\s*\d|{_GREEK}(?![a-zA-Z])|\\(?:frac|cdot|times)(?![a-zA-Z]))+"
)
_NO_LETTERS = re.compile(r"\\text\s*\{[^{}]*\}|\\[a-zA-Z]+|(?<![a-zA-Z])[ei](?![a-zA-Z])")
_LONGEST = 120
_MEMBERSHIP = re.compile(r"\A[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")
_POINT_NAME = re.compile(r"[A-Z](?=\([^()]*,[^()]*\)\Z)")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![a-zA-Z])")


def sides(text: str) -> list[str]:
    """Splits at every `=` outside of all brackets."""
    return split_top(text, "=") if "=" in text else [text]


def names_its_value(left: str, value: str) -> bool:
    """Whether `left = value` is a way to give the value."""
    if not left or len(left) > _LONGEST:
        return False
    if _PLAIN.fullmatch(left) or is_quantity(left) or _is_combination(left, value):
        return True
    # \text{the sum } m+n
    described = _TEXT.match(left)
    return described is not None and names_its_value(left[described.end() :], value)


def is_quantity(left: str) -> bool:
    r"""Whether this names one thing, whatever it may be: |S|, f(2), \angle ABC, \int f(x) dx, but no m+n."""
    if len(left) > _LONGEST:
        return False
    if _OPERATOR.match(left):
        return True
    quantity = _QUANTITY.fullmatch(left)
    if quantity is None or _SUM.search(left):
        return False
    # x(x+1) is a product of x.
    return quantity["head"] is None or quantity["head"] not in quantity["inside"]


def _is_combination(left: str, value: str) -> bool:
    """Whether this is a sum or product of several names, and the value a number."""
    if re.search(r"[a-zA-Z]", _NO_LETTERS.sub("", value)):
        return False
    terms = [term.strip() for term in re.split(r"[+\-]", left) if term.strip()]
    if len(terms) > 1 and all(is_quantity(term) for term in terms):
        return True
    if not _COMBINATION.fullmatch(re.sub(_INDEX, "", left)):
        return False
    letters = set(_LETTER.findall(_FUNCTION.sub(" ", left)))
    if len(letters) < 2 or not all(_LETTER.search(_FUNCTION.sub(" ", term)) for term in terms):
        return False
    return not (letters & {"x", "y", "z"} and re.search(r"(?<![\^_])(?<!\^ )\d", left))


def strip_names(gold: str, answer: str) -> tuple[str, str]:
    r"""Drops `x =` where both sides name the same x, or one does and the other is a bare value; `x \in` always.

    A side with a second relation keeps its names, so that x=1, y=2 never equals x=2, y=1.
    """
    if not any(_RELATION.search(side) or _POINT_NAME.match(side) for side in (gold, answer)):
        return gold, answer
    gold, answer = (_named_first(_MEMBERSHIP.sub("", side, count=1)) for side in (gold, answer))
    for split in (_at_equals, _at_point):
        gold_name, gold_value = split(gold)
        answer_name, answer_value = split(answer)
        if split is _at_point and not (gold_value.startswith("(") and answer_value.startswith("(")):
            return gold, answer
        if _RELATION.search(gold_value) or _RELATION.search(answer_value):
            return gold, answer
        if gold_name and answer_name and not _same_name(gold_name, answer_name):
            return gold, answer
        if gold_name and not answer_name and not (_PLAIN.fullmatch(gold_name) or is_quantity(gold_name)):
            # The gold x + y = 5 is an equation, which 5 alone is not.
            return gold, answer
        if any(re.search(r"\(.*[yz], ?[xy]", name) for name in (gold_name, answer_name)):
            # (y, x) = (1, 2) is no way to write the bare point (1, 2).
            return gold, answer
        gold, answer = gold_value, answer_value
    return gold, answer


def _named_first(text: str) -> str:
    """Writes 5 = x as x = 5."""
    if "=" not in text:
        return text
    parts = sides(text)
    if len(parts) == 2 and not re.search(r"[<>a-zA-Z]", parts[0]) and names_its_value(parts[1], parts[0]):
        return f"{parts[1]} = {parts[0]}"
    return text


def _at_equals(text: str) -> tuple[str, str]:
    left, *rest = sides(text)
    value = " = ".join(rest)
    return (left, value) if rest and names_its_value(left, value) else ("", text)


def _at_point(text: str) -> tuple[str, str]:
    name = _POINT_NAME.match(text)
    return (name.group(), text[name.end() :]) if name else ("", text)


def _same_name(left: str, right: str) -> bool:
    """Whether these are the same name; x_1 is a name for one of the values of x."""
    first, second = key(left), key(right)
    shorter, longer = sorted((first, second), key=len)
    return first == second or bool(re.fullmatch(re.escape(shorter) + r"_\{?\d\}?", longer) and shorter.isalpha())


def key(text: str) -> str:
    """Drops the spaces that mean nothing: all but those between two digits or two letters."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", re.sub(r"(?<=[a-zA-Z])\s+(?=[a-zA-Z])", "\0", text)).replace("\0", " ")
