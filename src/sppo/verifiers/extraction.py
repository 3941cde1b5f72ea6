r"""Finds the final answer in a response, for the verifiers math, minerva and choice.

Only what follows the thinking is looked at. In it the first of these forms that is there counts, and of that form the
last one (verification.extraction wide):

1. tags: `<answer>...</answer>`; in it the last box, else the last statement, else all of it
2. box: `\boxed{...}`; boxes joined by a comma, "or", "and" or the like are one answer of several parts, unless a comma
   or "and" joins values of two names (`x=\boxed{1}, y=\boxed{2}`): then the last one counts
3. statement: a line such as "Answer: 42", "The answer is 42" or "答案：42", a heading "**Final Answer**" with the value
   below it; or, on the last line alone, "... so the answer is 42", "故选：B" or GSM8K's "#### 42"

Of a statement the value counts, without the clause that gives a reason ("5 because ...") and the sentences after it.
A response that lists candidates gains nothing: it has one last statement, "5 or 6" in it is an answer of two parts, and
another number right behind the answer that counts ("or 6", "No, it is six.", one alone on the next line) is told as
`also`; so is a letter, for choice. What was cut off hides what stood before it. Strings
only, and linear in the length of the text, so that a megabyte of garbage costs milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sppo.config.verification import Extraction
from sppo.verifiers.math.boxes import Box, list_boxes, text_after_thinking

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_ENGLISH = r"(?:(?:the|my|our)[ \t]+)?(?:(?:final|correct)[ \t]+)?answer"
_CHINESE = r"(?:最终|最后|正确|本题)?的?答案"
_GIVEN = r"(?:[:：][*_]{0,2}+|[ \t](?:is|are|must be|should be|would be)\b[ \t]*:?+|[是为][:：]?+[*_]{0,2}+)"
_BELOW = r"(?:\n[ \t]*){1,2}(?P<%s>\S[^\n]*(?:\n[ \t]*\S[^\n]*){0,9})"
"""The paragraph below a heading."""
_LINE = re.compile(
    r"^[ \t>#*_]{0,8}(?:\d{1,2}[.)][ \t*_]{1,4})?"
    rf"(?:{_ENGLISH}|(?:(?:因此|所以|故|综上)[，,]?)?{_CHINESE})[ \t*_]{{0,4}}"
    rf"(?:{_GIVEN}[ \t]*(?P<here>\S[^\n]*)$"
    rf"|{_GIVEN}?[ \t#*_]{{0,8}}{_BELOW % 'below'})"
    rf"|\bthe[ \t]+(?:(?:final|correct)[ \t]+)?answer[ \t*_]{{0,4}}{_GIVEN}[ \t*_]{{0,4}}{_BELOW % 'under'}",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(
    rf"\b(?:the|our|my)[ \t]+(?:(?:final|correct)[ \t]+)?answer[ \t*_]{{0,4}}{_GIVEN}[ \t]*(?=(\S.*))"
    rf"|{_CHINESE}[*_]{{0,2}}{_GIVEN}[ \t]*(?=(\S.*))|(?:故|应|因此|所以)选择?[:：]?[ \t]*(?=(\S.*))",
    re.IGNORECASE | re.DOTALL,
)
_MARKED = re.compile(r"#{4}[ \t]*([-+$\\(.\d].*)")
_REASON = re.compile(
    r"[,;]?\s+(?i:because|since|as|which|where|due to)\b|[,;]\s*(?i:so|hence|thus|therefore)\b"
    r"|[，,；;]?\s*(?:因为|由于|所以|其中)|[。！]"
    # The next sentence; St. Louis is one name.
    r"|(?<!\b[A-Z][a-z])[.!?][*_$]{0,3}\s+(?=[A-Z(*])|\n(?=[A-Z][a-z])"
)
# Words in a formula, which are read as prose.
_TEXT = re.compile(r"\\(?:text\w{0,6}|mathrm|mbox|hbox)\s*\{([^{}]*)\}")
# What names a box: "x = \boxed{1}", "the value is \boxed{1}".
_NAME = (
    r"(?P<name>\\?[a-z]+)(?:_\{?\w{1,4}\}?)?(?:\([a-z]\))?[\s$*]*"
    r"(?:=|:|\\approx|\b(?:is|are|equals|(?:could|may|might)(?:\s+also)?\s+be)\b)[\s$*:(]*"
)
_NAMED = re.compile(rf"{_NAME}\Z", re.IGNORECASE)
_NAME_LENGTH = 30
# What may stand between two boxes that are one statement: "\boxed{1}$ or $x = \boxed{2}".
_JOINT = re.compile(
    r"(?:[\s$,;./|&*()\[\]{}~，、；。]|\\[()\[\]\s,;:!&\\]|\\(?:q?quad|vee|lor|wedge|land|cup)\b|或者|或|以及|和|与|及"
    r"|\b(?:or|and|but|if not|vs|versus|else|either|both|maybe|perhaps|possibly|also|even|rather"
    r"|alternatively|alternative)\b)*"
    rf"(?:(?:(?:the|another|other|one|first|second)\s+)*{_NAME})?",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    r"\b(?:or|alternatively|alternative|versus|vs|maybe|perhaps|possibly)\b|\\(?:vee|lor)\b|或", re.IGNORECASE
)
_JOINS = re.compile(r"(?<!\\)[,;/|]|&|[，、；]|\band\b|\\(?:wedge|land|cup)\b|以及|和|与|及", re.IGNORECASE)
_JOINT_LENGTH = 80
_MOST_PARTS = 100
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# A number, or the letter of a choice.
_OTHER = (
    r"(-?(?:\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[dt]?frac\s*\{\d+\}\s*\{\d+\})"
    rf"|(?:{'|'.join(_WORDS)})\b|(?-i:[A-HJ])(?![\w'’]))"
)
_COULD_BE = r"(?:could|may|might|can|should|must|would)(?:\s+(?:also|well|just|even|as well))*\s+be\b"
_IT = r"(?:it|this|that|(?:the|another|my)\s+(?:(?:final|correct|other)\s+)?(?:answer|one|value|solution))"
_OPTION = r"(?:(?:option|choice)\s+)?[$*(\\\s]*"
# An unboxed second answer right behind the first: "\boxed{3}$, or maybe $4$", "5. No, it is 6."
_SECOND_THOUGHT = re.compile(
    r"(?:(?:[\s$)\]*}]|\\[)\]])*+[,，、;；/|&][\s$*(\\]*"
    r"|(?:[\s$)\]*}.!?…,，;；。！~(\-—–]|\\[)\]\s,;!]|\\[lc]?dots\b)*+"
    r"(?:(?:\b(?:or|maybe|perhaps|possibly|alternatively|actually|unless|otherwise|rather|wait|no|hmm|sorry|correction"
    r"|but|if\s+not|i\s+mean|i\s+meant|(?:another|my\s+other|(?:the\s+)?other)\s+answer(?:\s+is)?"
    r"|alternative(?:\s+(?:final\s+)?(?:answer|solution))?|on\s+second\s+thoughts?)\b"
    rf"|{_IT}\s+{_COULD_BE}|\\(?:vee|lor)\b|或者|或|也可能是?|也可以是|可能是|不对|不是?|应该是|等等|其实)"
    rf"(?:[\s,，:：.…*_~]|(?:{_IT}\s+(?:{_COULD_BE}|is\b|was\b)|it['’]s\b)|是|应该|也许|可能"
    r"|\b(?:or|maybe|perhaps|possibly|alternatively|actually|rather|even|else|just|wait|no|also|the\s+answer\s+is)\b)*+"
    rf"{_OPTION}(?:[a-zA-Z]\s*=\s*)?|\band\s*{_OPTION}|[&和与]\s*))"
    rf"{_OTHER}[$*)\\]*\s*(?:[.!?;)。！…](?!\d)|,?\s*or\b|或|\n|\Z)",
    re.IGNORECASE,
)
# Behind tags or a statement, also one alone on its line.
_ALONE = re.compile(rf"[\s$*(\\\[]*+{_OTHER}[$*)\\\].]*[ \t]*(?:\n|\Z)", re.IGNORECASE)
# A sentence behind a statement that takes it back: "5. It could also be 6."
_HEDGE = re.compile(
    r"[.!?][*_$]{0,3}\s+[^.\d]{0,60}?\b(?:maybe|perhaps|possibly|may|might|could|hope|unless)\b[^.\d]{0,40}?(-?\d[\d,/.]*)",
    re.IGNORECASE,
)
_SECOND_THOUGHT_LENGTH = 200
_STATEMENT_LENGTH = 4000
"""Characters of a statement that are looked at, from its end on the last line, else from its start."""


@dataclass(frozen=True)
class FoundAnswer:
    """The final answer of a response, or why there is none."""

    text: str | None
    """As written, without the box; None where there is no answer."""
    reason: str = ""
    """Why there is none."""
    form: str = ""
    """Where it stood: "tags", "box" or "statement"."""
    whole: str | None = None
    """What the text is the value of, where that is more: the statement with reasons and what follows."""
    also: str | None = None
    """Another final answer, given behind this one: as written, perhaps the same."""


def find_answer(response: str, extraction: Extraction = "wide") -> FoundAnswer:
    r"""Returns the final answer of what follows the thinking, by the rules above.

    Args:
        response: the whole response as decoded.
        extraction: the forms that count; box and tags are that form alone.
    """
    final = text_after_thinking(response)
    if final is None:
        return FoundAnswer(None, "the thinking block is not closed")
    if extraction != "box":
        tagged = _in_tags(final)
        if tagged is not None:
            return tagged
    if extraction == "tags":
        return FoundAnswer(None, "no <answer>")
    boxed = _in_box(final)
    if boxed is not None:
        return boxed
    stated = None if extraction == "box" else _stated(final)
    return stated or FoundAnswer(None, "no boxed answer" if extraction == "box" else "no final answer")


def _in_tags(text: str) -> FoundAnswer | None:
    """What the last <answer>...</answer> holds; empty ones, as in prose, are passed over."""
    if "nswer>" not in text and "NSWER>" not in text:
        return None
    end: re.Match[str] | None = None
    for tag in reversed(list(_TAG.finditer(text))):
        if tag[1]:
            end = tag
            continue
        inside = text[tag.end() : end.start() if end else len(text)].strip()
        if not inside:
            end = None
            continue
        found = _in_box(inside)
        if found is None and end is None:
            return FoundAnswer(None, "the last <answer> is not closed")
        found = found or _stated(inside) or FoundAnswer(_value(inside), whole=inside)
        behind = text[end.end() :] if end else ""
        also = found.also or _behind(behind) or _second_thought(behind, alone=True)
        return replace(found, form="tags", also=also)
    return None


def _in_box(text: str) -> FoundAnswer | None:
    boxes = list_boxes(text)
    if not boxes:
        return None
    if boxes[-1].text is None:
        return FoundAnswer(None, "the last box is not closed", "box")
    return FoundAnswer(_joined(text, boxes), form="box", also=_behind(text[boxes[-1].end :]))


def _joined(text: str, boxes: list[Box]) -> str:
    """Returns the last box, with the ones that a comma, "or" or "and" joins to it."""
    parts: dict[str, None] = {}
    for joined, (box, following) in enumerate(zip(reversed(boxes), [None, *reversed(boxes)], strict=False)):
        # No answer has that many parts: in garbage all that stand before count too, unread.
        if following is not None and joined <= _MOST_PARTS and not _are_joined(text, box, following):
            break
        if box.text is not None:
            parts.setdefault(box.text)
    return ", ".join(reversed(parts))


def _are_joined(text: str, box: Box, following: Box) -> bool:
    """Whether two boxes are one statement; values of two names are, where one or the other is said to hold."""
    if following.start - box.end > _JOINT_LENGTH:
        return False
    between = _TEXT.sub(r" \1 ", text[box.end : following.start])
    joint = _JOINT.fullmatch(between)
    if joint is None:
        return False
    if _ALTERNATIVE.search(between):
        return True
    before = _NAMED.search(text[max(0, box.start - _NAME_LENGTH) : box.start])
    same = joint["name"] is None or (before is not None and before["name"] == joint["name"])
    return same and _JOINS.search(between) is not None


def _behind(rest: str) -> str | None:
    """Another answer behind the one that counts."""
    if not rest.strip("$.)] *\n"):
        return None
    boxes = list_boxes(rest)
    if boxes:
        return boxes[-1].text
    second = _second_thought(rest)
    if second:
        return second
    stated = _stated(rest)
    return stated.text if stated else None


def _second_thought(rest: str, alone: bool = False) -> str | None:
    """Another number, or letter, right behind an answer; alone, also where nothing introduces it."""
    start = _TEXT.sub(r" \1 ", rest[:_SECOND_THOUGHT_LENGTH])
    found = _SECOND_THOUGHT.match(start) or (_ALONE.match(start) if alone else None)
    if found is None:
        return None
    word = found[1].lower()
    return str(_WORDS.index(word)) if word in _WORDS else found[1]


def _stated(text: str) -> FoundAnswer | None:
    """The last statement: on the last line, else a line or heading before it."""
    stripped = text.rstrip()
    last_line = stripped[stripped.rfind("\n") + 1 :][-_STATEMENT_LENGTH:].strip()
    marked = _MARKED.fullmatch(last_line)
    if marked:
        return _as_found(marked[1])
    lines = list(_LINE.finditer(text))
    if not lines or lines[-1].end() < len(stripped):
        sentence = _last_sentence(last_line)
        if sentence:
            return _as_found(sentence)
    if not lines:
        return None
    found = _as_found(next(filter(None, lines[-1].groups()))[:_STATEMENT_LENGTH])
    return replace(found, also=found.also or _second_thought(text[lines[-1].end() :], alone=True))


def _last_sentence(line: str) -> str | None:
    found = list(_SENTENCE.finditer(line))
    return next(filter(None, found[-1].groups())) if found else None


def _as_found(statement: str) -> FoundAnswer:
    """A statement's value; where it holds another statement, that one's."""
    statement = _last_sentence(statement) or statement
    value = _value(statement)
    rest = statement[len(value) :][:_SECOND_THOUGHT_LENGTH]
    hedge = _HEDGE.match(rest)
    also = _second_thought(rest) or (hedge[1] if hedge else None)
    return FoundAnswer(value, form="statement", whole=statement, also=also)


def _value(statement: str) -> str:
    """The statement without reasons, and without the sentences behind it."""
    end = _REASON.search(statement)
    # What begins with a reason is none.
    return (statement[: end.start()] if end and end.start() else statement).rstrip()
