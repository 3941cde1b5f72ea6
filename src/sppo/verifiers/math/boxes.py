r"""Finds the boxes in a text, and where its thinking ends.

Strings only, and linear in the length of the text, so that a megabyte of garbage costs milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX_TOKENS = re.compile(r"\\{1,4}(?:boxed|fbox)(?![a-zA-Z])|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\s+(-?\d[\d.,/]{0,40})(?=\s*(?:\$|\\\)|\\\]|\n|\Z))")
_OPENING = re.compile(r"\s*\{")


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
