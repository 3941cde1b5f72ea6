r"""Brings the LaTeX of one answer to one spelling; strings only, nothing is evaluated and no value is changed."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from sppo.verifiers.math.plain import to_latex

_UNICODE = str.maketrans(
    {
        # Full-width forms of the ASCII characters.
        **{0xFF01 + offset: chr(0x21 + offset) for offset in range(94)},
        **{
            code: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", chr(code)).split("⁄"))
            for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F))
        },
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-",
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/",
        "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "√": r"\sqrt ",
        "≡": r"\equiv ", "∠": r"\angle ", "∩": r"\cap ", "′": "'", "″": "''",
        "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
        "≠": r"\ne ", "∈": r"\in ", "∪": r"\cup ", "≈": r"\approx ", "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}", "…": "...", "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,", "\u200b": "", "\ufeff": "",
        "。": ".",
    }
)  # fmt: skip
_RAISED, _LOWERED, _PLAIN = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉", "0123456789+-n"
_TO_PLAIN = str.maketrans(_RAISED + _LOWERED, _PLAIN + _PLAIN[:10])

# Matrix rows end in \\; every other doubled backslash is one escaped twice.
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\\\(?=(?:d|t|c)?frac|sqrt|boxed|text|pi\b|left|right|begin|end|cup|infty|pm)")
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lr]?)(?![a-zA-Z])\s?")
# Bold letters are vectors where they have a cross product, which is no product of numbers.
_BOLD_TIMES = re.compile(r"\\(?:mathbf|textbf|bold|bm|boldsymbol)\s*\{\s*([a-zA-Z])\s*\}")
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:displaystyle|textstyle|limits|mathstrut|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\\((?P<inner>.*?)\\\)", r"\g<inner>"),
        (r"\\text\s*\{\s*([,;])\s*\}", r"\1"),
        (r"\{\s*,\s*\}", ","),
        (r",\\[!,;: ]\s*(?=\d{3})|(?<=\d)\\[!,;: ]\s*(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[!,;: ]|\\q?quad(?![a-zA-Z])|(?<!\\)~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\{([^{}]{1,50})\\choose(?![a-zA-Z])([^{}]{1,50})\}", r"\\binom{\1}{\2}"),
        (r"\A([^{}]{1,50})\\choose(?![a-zA-Z])([^{}]{1,50})\Z", r"\\binom{\1}{\2}"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])|<\s?=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])|>\s?=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])", r"\\ne "),
        (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:lbrace|lbrack)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace|rbrack)(?![a-zA-Z])", r"\\}"),
        (r"\\(?:text)?color\s*\{[a-zA-Z]{1,20}\}", ""),
        (r"\\(?:boxed|fbox|underline|bold|bm|boldsymbol|(?:math|text)bf)\s*\{", "{"),
        (r"\\(?:mbox|hbox|rm|(?:math|text)(?:rm|it|sf|tt|normal))\s*\{|\{\s*\\rm(?![a-zA-Z])", r"\\text{"),
        (r"\(\s*\\text\s*\{\s*mod\s*\}\s*([^(){}]{1,40})\)", r"\\pmod{\1}"),
        (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"),
        (r"\^\s*(?:\\prime(?![a-zA-Z])|\{\s*\\prime\s*\})", "'"),
        (r"\\[lr]?vert(?![a-zA-Z])", "|"),
        (r"\\mathop\s*\{", "{"),
        (r"(?<=\d)\s*\^?\s*\{?\s*\\text\s*\{\s*(st|nd|rd|th)\s*\}\s*\}?\Z", r"\1"),
        (r"\\text\s*\{\s*\^\\circ\s*\}|\\text\s*\{\s*(?:degrees?|deg)\.?\s*\}", "°"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", "°"),
        (r"\\(frac|binom)\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\\1{\2}{\3}"),
        (r"\\(frac|binom)\s*([0-9a-zA-Z])\s*\{", r"\\\1{\2}{"),
        (r"(\\(?:frac|binom)\s*\{[^{}]{1,200}\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"(?<=[\w)}])\*\*(?=[\w({\-])", "^"),
        (r"([_^])\{([0-9a-zA-Z])\}(?![0-9a-zA-Z])", r"\1\2"),
        (r"\.{3,}|\\c?dots[bcimo]?(?![a-zA-Z])", r"\\ldots "),
        (r"\s+", " "),
    )
)  # fmt: skip

_PAIRS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\$\$?([^$]*)\$\$?",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\*\*([^*]*)\*\*",
        r"\*([^*]*)\*",
        r"__([^_]*)__",
        r"`([^`]*)`",
    )
)
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_BRACED = re.compile(r"(?:\\(?:text|boxed|fbox|underline|(?:math|text)(?:bf|rm|it)))?\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_LABEL = (
    r"(?:(?:the |my )?(?:final )?answer\s*(?:is\b\s*:?|[:=]|(?=\}))"
    r"|(?:approximately|approx\.?|about|roughly)(?=[\s}\\]))\s*"
)
_LEADING = re.compile(
    rf"(?:\\text\s*\{{\s*{_LABEL}\}}\s*[:=]?|{_LABEL}|\\approx(?![a-zA-Z])|=)\s*(?=[^\s}}])", re.IGNORECASE
)
_TRAILING_SPACE = re.compile(r"(?:\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\s)+\Z")


@lru_cache(maxsize=2048)
def normalise(answer: str) -> str:
    r"""Returns one spelling of an answer: plain characters, no wrapping, `\frac{a}{b}`, single spaces.

    Units stay (see units.py); the value is never changed.
    """
    text = re.sub(f"[{_RAISED}]+", lambda run: f"^{{{run[0].translate(_TO_PLAIN)}}}", answer)
    text = re.sub(f"[{_LOWERED}]+", lambda run: f"_{{{run[0].translate(_TO_PLAIN)}}}", text)
    text = _SIZES.sub("", _ESCAPED_TWICE.sub(r"\\", _unwrap(text.translate(_UNICODE).strip())))
    text = to_latex(_BOLD_TIMES.sub(r"\\vec{\1}", text) if r"\times" in text else text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<!\\)\$", "", text)
    if not _PLUS_MINUS.search(text):
        # Alone it has nothing to be opposite to.
        text = re.sub(r"\\mp(?![a-zA-Z])", r"\\pm", text)
    return _unwrap(text).strip()


def _unwrap(text: str) -> str:
    for _ in range(8):
        before = text
        text = _without_trailing_marks(_without_label(_without_braces(text.strip())))
        if text.startswith("**") and text.count("**") == 1:
            text = text[2:]
        elif text.endswith("**") and text.count("**") == 1:
            text = text[:-2]
        for pair in _PAIRS:
            inside = pair.fullmatch(text)
            if inside:
                text = inside.group(1).strip()
        if text == before:
            break
    return text


def _without_label(text: str) -> str:
    label = _LEADING.match(text)
    return text[label.end() :] if label else text


def _without_trailing_marks(text: str) -> str:
    # The slice bounds a search that is quadratic in a long run of spaces.
    text = text[:-200] + _TRAILING_SPACE.sub("", text[-200:])
    if text.endswith("\\."):
        return text[:-2]
    return text if text.endswith("...") else text.strip().rstrip(".,;:").strip()


def _without_braces(text: str) -> str:
    r"""Takes off {...} and \text{...} that hold the whole answer."""
    opening = _BRACED.match(text)
    if opening is None or not text.endswith("}"):
        return text
    depth = 0
    for token in _BRACES.finditer(text):
        depth += (token.group() == "{") - (token.group() == "}")
        if depth == 0 and token.group() == "}":
            return text[opening.end() : -1].strip() if token.end() == len(text) else text
    return text
