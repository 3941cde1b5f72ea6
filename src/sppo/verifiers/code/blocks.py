"""Finds the program in a response: its last block of code between fences."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sppo.verifiers.math.boxes import text_after_thinking

_FENCE = re.compile(r"([ \t]{0,3})(`{3,}|~{3,})([^`]*)")
_LINE_BREAK = re.compile(r"\r\n|\n|\r")
"""Those of Python; str.splitlines knows more, which may stand within a string of the program."""
_PYTHON = {"python", "py", "python3", "py3"}


@dataclass(frozen=True)
class FoundCode:
    """The program of a response, or why there is none."""

    text: str | None
    reason: str = ""


def find_code(response: str) -> FoundCode:
    """Returns the last block that is marked as Python; without any, the last that is not marked at all.

    What comes before `</think>` doesn't count, nor does a response whose thinking is not closed. A block that is never
    closed is code cut off, and hides those before it; blocks of other languages, as for output, are passed over. What
    the opening fence is indented by, as in a list, is taken off the lines behind it.
    """
    final = text_after_thinking(response)
    if final is None:
        return FoundCode(None, "the thinking block is not closed")
    marked: list[str | None] = []
    plain: list[str | None] = []
    lines: list[str] = []
    fence = language = None
    indent = ""
    for line in _LINE_BREAK.split(final):
        found = _FENCE.fullmatch(line)
        if fence is None:
            if found:
                indent, fence, words, lines = found[1], found[2], found[3].lower().split(), []
                language = words[0].strip("{}.,:") if words else ""
        elif found and found[2].startswith(fence) and not found[3].strip():
            _blocks_of(language, marked, plain).append("\n".join(lines) + "\n")
            fence = None
        else:
            lines.append(line.removeprefix(indent))
    if fence is not None:
        _blocks_of(language, marked, plain).append(None)
    blocks = marked or plain
    if not blocks:
        return FoundCode(None, "no block of Python code")
    if blocks[-1] is None:
        return FoundCode(None, "the last block of code is not closed")
    return FoundCode(blocks[-1])


def _blocks_of(language: str | None, marked: list[str | None], plain: list[str | None]) -> list[str | None]:
    if language in _PYTHON:
        return marked
    return [] if language else plain
