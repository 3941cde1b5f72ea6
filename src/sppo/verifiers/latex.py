r"""Finds the final answer in a response and brings LaTeX to one spelling; strings only, nothing is evaluated.

Every step is linear in the length of the text, so a megabyte of garbage costs milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\s+(-?\d[\d.,/]{0,40})(?=\s*(?:\$|\\\)|\\\]|\n|\Z))")
_ANSWER_LINE = re.compile(
    r"^[ \t>#*_]{0,8}(?:(?:the|my)[ \t]+)?(?:final[ \t]+)?answer[ \t*_]{0,4}(?::|[ \t]is\b[ \t]*:?)[ \t]*(\S[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_SENTENCE = re.compile(r"\bthe (?:final )?answer is:?[ \t]+(\S.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class FoundAnswer:
    """The final answer of a response, or why there is none."""

    text: str | None
    """As written, without the box; None where there is no answer."""
    reason: str = ""
    """Why there is none."""


def text_after_thinking(response: str) -> str | None:
    """Returns what follows the last `</think>`, all of it where nothing thinks; None while a block is still open."""
    opened, closed = response.rfind("<think>"), response.rfind("</think>")
    if opened > closed:
        return None
    return response[closed + len("</think>") :] if closed >= 0 else response


def find_answer(response: str) -> FoundAnswer:
    r"""Returns the last `\boxed{...}` of what follows the thinking; without any, the last "Answer: X" line.

    A box that is never closed is an answer cut off, and hides the ones before it; `\boxed` without an argument, as in
    prose, is passed over. "The answer is X" counts on the last line alone.
    """
    final = text_after_thinking(response)
    if final is None:
        return FoundAnswer(None, "the thinking block is not closed")
    boxes = list_boxes(final)
    if boxes:
        return FoundAnswer(boxes[-1], "" if boxes[-1] is not None else "the last box is not closed")
    lines = list(_ANSWER_LINE.finditer(final))
    if lines:
        return FoundAnswer(lines[-1].group(1))
    stripped = final.rstrip()
    # The slice bounds the search within a last line of a megabyte.
    sentence = _ANSWER_SENTENCE.search(stripped[stripped.rfind("\n") + 1 :][-2000:])
    if sentence:
        return FoundAnswer(sentence.group(1))
    return FoundAnswer(None, "no boxed answer")


def list_boxes(text: str) -> list[str | None]:
    r"""Returns the contents of the outermost `\boxed{...}` and `\fbox{...}` in order; a last None if one is cut off."""
    if "boxed" not in text and "fbox" not in text:
        return []
    box_starts, closing = _match_braces(text)
    boxes: list[str | None] = []
    end_of_last = 0
    for start in box_starts:
        if start < end_of_last:
            continue
        brace = re.compile(r"\s*\{").match(text, start)
        if brace is None:
            bare = _BARE_BOX.match(text, start)
            if bare:
                boxes.append(bare.group(1))
        elif brace.end() - 1 in closing:
            end_of_last = closing[brace.end() - 1]
            content = text[brace.end() : end_of_last].strip()
            if content:
                boxes.append(content)
        elif start == box_starts[-1]:
            boxes.append(None)
    return boxes


def _match_braces(text: str) -> tuple[list[int], dict[int, int]]:
    """Returns where each box command ends, and for every closed brace where its partner stands."""
    box_starts: list[int] = []
    closing: dict[int, int] = {}
    stack: list[int] = []
    for token in _BOX_TOKENS.finditer(text):
        symbol = token.group()
        if symbol == "{":
            stack.append(token.start())
        elif symbol == "}":
            if stack:
                closing[stack.pop()] = token.start()
        elif len(symbol) > 2:
            box_starts.append(token.end())
    return box_starts, closing


_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-",
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/",
        "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "±": r"\pm ", "°": r"^\circ ", "√": r"\sqrt ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "∪": r"\cup ", "≈": r"\approx ",
        "²": "^{2}", "³": "^{3}", "¹": "^{1}", "⁴": "^{4}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "",
        "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "％": "%", "。": ".",
        "０": "0", "１": "1", "２": "2", "３": "3", "４": "4", "５": "5", "６": "6", "７": "7", "８": "8", "９": "9",
    }
)  # fmt: skip

_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Matrix rows end in \\; every other doubled backslash is one escaped twice.
        (r"\\\\(?=(?:d|t|c)?frac|sqrt|boxed|text|pi\b|left|right|begin|end|cup|infty|pm)", r"\\"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s?", ""),
        (r"\\(?:displaystyle|textstyle|limits|mathstrut)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\\((?P<inner>.*?)\\\)", r"\g<inner>"),
        (r"\{\s*,\s*\}", ","),
        (r",\\[!,;: ]\s*(?=\d{3})", ","),
        (r"(?<!\\)\\[!,;: ]|\\q?quad(?![a-zA-Z])|(?<!\\)~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge "),
        (r"\\neq(?![a-zA-Z])", r"\\ne "),
        (r"\\mp(?![a-zA-Z])", r"\\pm "),
        (r"\\(?:lbrace|lbrack)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace|rbrack)(?![a-zA-Z])", r"\\}"),
        (r"\\(?:bold|bm|boldsymbol|mbox|hbox|(?:math|text)(?:bf|rm|it|sf|tt|normal))\s*\{", r"\\text{"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])|\\text\s*\{\s*(?:degrees?|deg)\.?\s*\}", "°"),
        (r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9a-zA-Z])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]{1,200}\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"_\{([0-9a-zA-Z])\}", r"_\1"),
        (r"\^\{([0-9a-zA-Z])\}", r"^\1"),
        (r"\s+", " "),
    )
)  # fmt: skip

_WRAPPERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\$\$?([^$]*)\$\$?",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\*\*([^*]*)\*\*",
        r"\*([^*]*)\*",
        r"__([^_]*)__",
        r"`([^`]*)`",
        r"\\(?:text|boxed|fbox)\s*\{([^{}]*)\}",
        r"\{([^{}]*)\}",
    )
)


def normalise(answer: str) -> str:
    r"""Returns one spelling of an answer: plain characters, no wrapping, `\frac{a}{b}`, single spaces.

    Units stay (see `split_unit`); the value is never changed.
    """
    text = answer.translate(_UNICODE).strip()
    text = _unwrap(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<!\\)\$", "", text)
    return _unwrap(text).strip()


def _unwrap(text: str) -> str:
    for _ in range(8):
        before = text
        text = text.strip().rstrip(".,;:").strip() if not text.endswith("\\.") else text[:-2]
        if text.startswith("**") and text.count("**") == 1:
            text = text[2:]
        elif text.endswith("**") and text.count("**") == 1:
            text = text[:-2]
        for wrapper in _WRAPPERS:
            inside = wrapper.fullmatch(text)
            if inside:
                text = inside.group(1).strip()
        if text == before:
            break
    return text


_UNIT_WORDS = {
    "degrees": "°", "degree": "°", "deg": "°", "percent": "%", "pct": "%", "dollars": "$", "dollar": "$", "usd": "$",
    "cents": "cent", "feet": "ft", "foot": "ft", "inches": "in", "inch": "in", "miles": "mi", "mile": "mi",
    "hours": "h", "hour": "h", "hrs": "h", "hr": "h", "minutes": "min", "minute": "min", "mins": "min",
    "seconds": "s", "second": "s", "secs": "s", "sec": "s", "meters": "m", "meter": "m", "metres": "m", "metre": "m",
    "centimeters": "cm", "centimeter": "cm", "centimetres": "cm", "kilometers": "km", "kilometer": "km",
    "kilometres": "km", "millimeters": "mm", "grams": "g", "gram": "g", "kilograms": "kg", "kilogram": "kg",
    "pounds": "lb", "pound": "lb", "lbs": "lb", "liters": "l", "litres": "l", "units": "", "unit": "",
}  # fmt: skip
_PLAIN_UNITS = (
    "cm|mm|km|kg|ft|lb|lbs|mph|min|mins|hr|hrs|sec|secs|degrees?|deg|percent|pct|dollars?|usd|cents?|feet|foot|inch|inches|"
    "miles?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|meters?|metres?|centimeters?|centimetres?|kilometers?|"
    "kilometres?|millimeters?|grams?|kilograms?|pounds?|liters?|litres?|gallons?|units?|people|students|apples|ways|points"
)
_TRAILING_UNIT = re.compile(
    r"(?P<value>.*[^\s\\{(\[,=+\-*/^_])\s*(?:"
    r"(?P<sign>\\?%|°)"
    r"|\\text\s*\{(?P<text>[^{}]{1,60})\}(?P<power>\s*\^\s*\{?\s*[23]\s*\}?)?"
    rf"|(?:(?<=[\d}})])\s*|\s)(?P<square>(?:square|cubic|sq\.?)\s+)?(?P<plain>{_PLAIN_UNITS})(?P<plain_power>\s*\^\s*[23])?"
    r")\s*\.?",
    re.DOTALL,
)  # fmt: skip
_NOT_A_UNIT = re.compile(r"\b(?:or|and|if|for|when|where|not|with|in|base|to|maybe|but)\b|\d", re.IGNORECASE)


def split_unit(text: str) -> tuple[str, str]:
    r"""Returns (value, unit) of a normalised answer; degrees, percent and currency are units like any other.

    The value is never rescaled: 5\% is 5 with unit "%", so it equals 5 and never 0.05. `\text{...}` is a unit only
    behind a value and where it holds no word such as "or".
    """
    currency = re.match(r"\\?\$\s*(?=[\d.\-])|[£€]\s*(?=[\d.\-])", text)
    if currency:
        return text[currency.end() :].strip(), currency.group().strip().lstrip("\\")
    match = _TRAILING_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    if match["sign"]:
        return match["value"], match["sign"].lstrip("\\")
    words = (match["text"] or match["plain"]).strip().lower().rstrip(".")
    if match["text"] and (_NOT_A_UNIT.search(words) or not re.search(r"[\d}a-zA-Z)°]$", match["value"])):
        return text, ""
    power = re.sub(r"\D", "", match["power"] or match["plain_power"] or "")
    square = re.match(r"(square|sq\.?|cubic)\s+", (match["square"] or "") + words)
    if square:
        power = "3" if square.group(1) == "cubic" else "2"
        words = words[square.end() :] if not match["square"] else words
    unit = _UNIT_WORDS.get(words, words)
    return match["value"].strip(), unit + power if unit else ""
