r"""Brings mathematics typed without LaTeX to LaTeX (pi/2, sqrt(2), x^(2/3)), and functions to one spelling.

Strings only. The words are those that mean nothing else in an answer; "sec" and "min" are units, and left alone.
"""

from __future__ import annotations

import re

_FUNCTIONS = "sinh|cosh|tanh|coth|arcsin|arccos|arctan|sin|cos|tan|cot|csc|ln|log|exp"
_GREEK = "pi|theta|alpha|beta|gamma|lambda"
_SPELLED = {"tg": "tan", "ctg": "cot", "arctg": "arctan", "cosec": "csc", "asin": "arcsin", "acos": "arccos"}
_SPELLED |= {"atan": "arctan", "infinity": "infty", "oo": "infty"}
_HINT = re.compile(
    rf"{_FUNCTIONS}|{_GREEK}|{'|'.join(_SPELLED)}|sqrt|\\sec|sec\(|inf|gcd|lcm|\\lg|\\mathrm|\\rm|operatorname|mathop|\^\s*[(\-]"
)
# \mathrm{e}, \operatorname{ln}, \text{ln}: the same letter or function set upright.
_UPRIGHT_LETTER = re.compile(
    r"(\\[a-zA-Z]+)?(?:\\(?:mathrm|operatorname\*?|rm)\s*\{\s*([dei])\s*\}|\\mathrm\s+([dei])(?![a-zA-Z])|\{\s*\\rm\s+([dei])\s*\})"
)
_UPRIGHT = re.compile(
    rf"\\(?:(?:mathrm|text|textrm|operatorname\*?|mathop|rm)\s*\{{\s*({_FUNCTIONS}|tg|ctg|arctg|cosec|gcd|lcm)\s*\}}"
    r"|operatorname\*?\s*\{\s*(sec|lg|lim|max|min|gcd|det|sup|inf)\s*\})"
)
_COMMAND = re.compile(r"\\(tg|ctg|arctg|cosec)(?![a-zA-Z])")
_WORD = re.compile(rf"(?<![a-zA-Z\\])({_FUNCTIONS}|{_GREEK}|{'|'.join(_SPELLED)}|sqrt|sec(?=\s?\())(?![a-zA-Z])")
_MINUS_INFINITY = re.compile(r"(?<=[-+(,])\s*inf(?![a-zA-Z_])")
_LONG_BASE = re.compile(r"(?<![a-zA-Z\\])log_(\d{2,})")
_NATURAL = re.compile(r"\\log\s*_\s*(?:e(?![a-zA-Z])|\{\s*e\s*\})\s?")
_DECIMAL = re.compile(r"\\lg(?![a-zA-Z])")
_ROOT = re.compile(r"\\sqrt\s*(?:\[\s*\w+\s*\])?\s*\(")
_RAISED = re.compile(r"\^\s*\(")
_NEGATIVE = re.compile(r"\^\s*-\s*(\d+|[a-zA-Z])(?![a-zA-Z])")


def to_latex(text: str) -> str:
    r"""Writes words of mathematics as commands: pi as \pi, sqrt(2) as \sqrt{2}, \operatorname{ln} as \ln."""
    if not _HINT.search(text):
        return text
    text = _UPRIGHT_LETTER.sub(_letter, text)
    text = _UPRIGHT.sub(lambda found: f"\\{_SPELLED.get(found[1] or '', found[1] or found[2])} ", text)
    text = _COMMAND.sub(lambda found: f"\\{_SPELLED[found[1]]}", text)
    text = _LONG_BASE.sub(r"\\log_{\1}", text)
    text = _WORD.sub(lambda found: f"\\{_SPELLED.get(found[1], found[1])}", text)
    text = _MINUS_INFINITY.sub(r"\\infty", text)
    text = _DECIMAL.sub(r"\\log_{10}", _NATURAL.sub(r"\\ln ", text))
    return _NEGATIVE.sub(r"^{-\1}", _braced(_RAISED, _braced(_ROOT, text)))


def _letter(found: re.Match[str]) -> str:
    letter = found[2] or found[3] or found[4]
    return f"{found[1]} {letter}" if found[1] else letter


def _braced(opening: re.Pattern[str], text: str) -> str:
    """Turns the brackets (...) that `opening` ends in into braces; those that are never closed stay."""
    found = [match.end() - 1 for match in opening.finditer(text)]
    if not found:
        return text
    closing, written = partners(text), list(text)
    for place in found:
        if place in closing:
            written[place], written[closing[place]] = "{", "}"
    return "".join(written)


def partners(text: str) -> dict[int, int]:
    """Returns where the bracket stands that closes each ( of a text."""
    closing, stack = {}, []
    for place, symbol in enumerate(text):
        if symbol == "(":
            stack.append(place)
        elif symbol == ")" and stack:
            closing[stack.pop()] = place
    return closing
