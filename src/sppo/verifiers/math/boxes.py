r"""Finds the final answer in a response: the last box after any thinking, or else the last "Answer: X".

Strings only, and linear in the length of the text, so that a megabyte of garbage costs milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX_TOKENS = re.compile(r"\\{1,4}(?:boxed|fbox)(?![a-zA-Z])|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\s+(-?\d[\d.,/]{0,40})(?=\s*(?:\$|\\\)|\\\]|\n|\Z))")
_OPENING = re.compile(r"\s*\{")
_ANSWER_LINE = re.compile(
    r"^[ \t>#*_]{0,8}(?:(?:the|my)[ \t]+)?(?:final[ \t]+)?answer[ \t*_]{0,4}(?:[:：][*_]{0,2}|[ \t]is\b[ \t]*:?)"
    r"[ \t]*(?:\n[ \t]*){0,2}(\S[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_SENTENCE = re.compile(r"\bthe (?:final )?answer is:?[ \t]+(\S.*)$", re.IGNORECASE)
# How answers to Minerva's own prompt end (Lewkowycz et al. 2022).
_HOPE = re.compile(r"\bI hope (?:it|this) is correct\.?\Z", re.IGNORECASE)
# What may stand between two boxes that are one statement: "\boxed{1}$ or $\boxed{2}".
_JOINT = re.compile(
    r"(?=.*(?:\b(?:or|and)\b|[,;/|]))"
    r"(?:[\s$,;/|*()\[\]]|\\[()\[\]]|\\text\s*\{\s*(?:or|and)\s*\}|\\q?quad|\b(?:or|and|maybe|perhaps|possibly|also)\b)*",
    re.DOTALL | re.IGNORECASE,
)
_JOINT_LENGTH = 40
# An unboxed second number right behind the box: "\boxed{3}$, or maybe $4$."
_SECOND_THOUGHT = re.compile(
    r"(?:[\s$)\]*]|\\[)\]])*,?\s*\(?(?:or|maybe|perhaps|possibly|alternatively)\b,?\s*"
    r"(?:(?:maybe|perhaps|possibly|alternatively|rather|even|else|just|it is|it could be|it might be)\s+)*"
    r"[$*(\\]*\s*(?:[a-zA-Z]\s*=\s*)?(-?(?:\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[dt]?frac\s*\{\d+\}\s*\{\d+\}))"
    r"[$*)\\]*\s*(?:[.!?;)]|,?\s*or\b|\n|\Z)",
    re.IGNORECASE,
)
_SECOND_THOUGHT_LENGTH = 200


@dataclass(frozen=True)
class FoundAnswer:
    """The final answer of a response, or why there is none."""

    text: str | None
    """As written, without the box; None where there is no answer."""
    reason: str = ""
    """Why there is none."""
    boxed: bool = False
    """Whether it stood in a box."""
    also: str | None = None
    """Another final answer, given after the box: as written, perhaps the same."""


@dataclass(frozen=True)
class Box:
    r"""One `\boxed{...}`."""

    start: int
    """Where its command starts."""
    end: int
    """Behind its closing brace."""
    text: str | None
    """What it holds; None where it is never closed."""


def text_after_thinking(response: str) -> str | None:
    """Returns what follows the last `</think>`, all of it where nothing thinks; None while a block is still open."""
    opened, closed = response.rfind("<think>"), response.rfind("</think>")
    if opened > closed:
        return None
    return response[closed + len("</think>") :] if closed >= 0 else response


def find_answer(response: str) -> FoundAnswer:
    r"""Returns the last `\boxed{...}` of what follows the thinking; without any, the last "Answer: X" line.

    Boxes joined by a comma, "or" or "and" are one answer of several parts. A box that is never closed is an answer cut
    off, and hides the ones before it; `\boxed` without an argument, as in prose, is passed over. "The answer is X"
    counts on the last line alone.
    """
    final = text_after_thinking(response)
    if final is None:
        return FoundAnswer(None, "the thinking block is not closed")
    boxes = list_boxes(final)
    if boxes:
        if boxes[-1].text is None:
            return FoundAnswer(None, "the last box is not closed")
        return FoundAnswer(_last_statement(final, boxes), boxed=True, also=_after_the_box(final[boxes[-1].end :]))
    lines = list(_ANSWER_LINE.finditer(final))
    if lines:
        return FoundAnswer(_without_hope(lines[-1].group(1)))
    stripped = final.rstrip()
    # The slice bounds the search within a last line of a megabyte.
    sentence = _ANSWER_SENTENCE.search(stripped[stripped.rfind("\n") + 1 :][-2000:])
    if sentence:
        return FoundAnswer(_without_hope(sentence.group(1)))
    return FoundAnswer(None, "no boxed answer")


def _without_hope(line: str) -> str:
    return _HOPE.sub("", line.rstrip())


def _last_statement(text: str, boxes: list[Box]) -> str:
    """Returns the last box, with the ones that a comma, "or" or "and" joins to it."""
    parts: list[str] = []
    for box, following in zip(reversed(boxes), [None, *reversed(boxes)], strict=False):
        if following is not None:
            between = text[box.end : following.start]
            if len(between) > _JOINT_LENGTH or not _JOINT.fullmatch(between):
                break
        if box.text is not None and box.text not in parts:
            parts.append(box.text)
    return ", ".join(reversed(parts))


def _after_the_box(rest: str) -> str | None:
    second = _SECOND_THOUGHT.match(rest[:_SECOND_THOUGHT_LENGTH])
    if second:
        return second.group(1)
    lines = list(_ANSWER_LINE.finditer(rest))
    return lines[-1].group(1) if lines else None


def list_boxes(text: str) -> list[Box]:
    r"""Returns the outermost `\boxed{...}` and `\fbox{...}` that hold something; the last may be cut off."""
    if "boxed" not in text and "fbox" not in text:
        return []
    commands, closing = _match_braces(text)
    boxes: list[Box] = []
    end_of_last = 0
    for start, end in commands:
        if start < end_of_last:
            continue
        brace = _OPENING.match(text, end)
        if brace is None:
            bare = _BARE_BOX.match(text, end)
            if bare:
                boxes.append(Box(start, bare.end(), bare.group(1)))
        elif brace.end() - 1 in closing:
            end_of_last = closing[brace.end() - 1] + 1
            content = text[brace.end() : end_of_last - 1].strip()
            if content:
                boxes.append(Box(start, end_of_last, content))
        elif start == commands[-1][0]:
            boxes.append(Box(start, len(text), None))
    return boxes


def _match_braces(text: str) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Returns where each box command starts and ends, and for every closed brace where its partner stands."""
    commands: list[tuple[int, int]] = []
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
            commands.append(token.span())
    return commands, closing
