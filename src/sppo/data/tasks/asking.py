"""Prompts made of several columns: a template, and the lettered choices of a multiple choice with its gold letters."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sppo.config.data import SourceConfig
from sppo.data.tasks.cells import Answers, Asked, answer_texts
from sppo.data.tasks.problem import Row, RowError, plain, required

_FIELD = re.compile(r"(?P<latex>\\[A-Za-z]+\{[^{}]*\})|(?P<brace>\{\{|\}\})|\{(?P<column>[^{}\\]+)\}")
_LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?:(?:\s*(?:,|;|and|&)\s*|\s*)[(\[]?[A-Z][)\]]?)*")


def filled(template: str, row: Row, config: SourceConfig) -> str:
    r"""Returns the template with each {column} replaced by what the row has there; dots reach into structs.

    The choices of a multiple choice become lettered lines, other lists lines. What stands in braces right behind a
    command of LaTeX, as in \boxed{answer}, is no column; {{ and }} are braces.

    What a row leaves empty, such as a passage, is empty; white space at both ends is dropped.

    Raises:
        RowError: no such column, something that is no text, or nothing in any of them.
    """
    put_in = []

    def put(found: re.Match[str]) -> str:
        if found["latex"] or found["brace"]:
            return found[0] if found["latex"] else found[0][0]
        name = found["column"]
        choices = {}
        if name in (config.options_column, "choices", "options") and required(row, name) is not None:
            choices = choices_in(row, replace(config, options_column=name))
        put_in.append(lettered(choices) if choices else _text(required(row, name), name))
        return put_in[-1]

    text = _FIELD.sub(put, template).strip()
    if not any(part.strip() for part in put_in):
        raise RowError("prompt is empty: the columns of the prompt's template hold nothing")
    return text


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return "\n".join(answer_texts(value))
    except RowError as error:
        raise RowError(f"column {name!r} of the prompt's template is {error}") from error


def choices_in(row: Row, config: SourceConfig) -> dict[str, str]:
    """Returns {letter: text} of the row's choices; none where there are none.

    Raises:
        RowError: the column that data.options_column names holds none.
    """
    from sppo.verifiers.columns import choices_of  # heavy

    name = config.options_column
    choices = choices_of(row if name is None else {name: required(row, name)}, name)
    if name is not None and not choices:
        raise RowError(f"column {name!r} holds no choices: neither a list nor a dict, but {row.get(name)!r:.60}")
    return choices


def lettered(choices: Mapping[str, str]) -> str:
    """Returns the choices as people read them, a line each."""
    return "\n".join(f"{letter}. {text}" for letter, text in choices.items())


def with_choices(asked: Asked, choices: Mapping[str, str]) -> Asked:
    """Returns the question with its choices behind it, unless it names them all itself."""
    last = asked.content if isinstance(asked.content, str) else asked.content[-1]["content"]
    if not choices or all(text.strip() in last for text in choices.values()):
        return asked
    text = f"{last}\n{lettered(choices)}"
    if isinstance(asked.content, str):
        return replace(asked, content=text)
    return replace(asked, content=(*asked.content[:-1], {**asked.content[-1], "content": text}))


def letters_of(row: Row, path: str, choices: Mapping[str, str], config: SourceConfig) -> Answers:
    """Reads the gold letters of a multiple choice: "B", "AD", ["A", "D"], the text of a choice, or an index from 0.

    Several letters are right together, unless data.answers is any.
    """
    from sppo.verifiers.columns import letters_of_labels  # heavy

    try:
        value = required(row, path)
        listed = plain(value)
        cells = listed if isinstance(listed, (list, tuple)) else [listed]
        labels = letters_of_labels(row, config.options_column)
        letters = [letter for cell in cells for letter in _letters(cell, choices, labels)]
    except RowError as error:
        return Answers((), f"{error}, so the gold answer is missing")
    unique = sorted(set(letters))
    return Answers(tuple(unique) if config.answers == "any" else ("".join(unique),) if unique else ())


def _letters(cell: Any, choices: Mapping[str, str], labels: Mapping[str, str]) -> list[str]:
    if isinstance(cell, numbers.Real) and not isinstance(cell, bool) and float(cell).is_integer():
        index = int(float(cell))
        if str(index) in labels:
            return [labels[str(index)]]
        if 0 <= index < len(choices):
            return [list(choices)[index]]
        raise RowError(f"the gold answer {cell} is no index of its {len(choices)} choices, counted from 0")
    texts = answer_texts(cell)
    return [letter for text in texts for letter in _letters_of_text(text, choices, labels)]


def _letters_of_text(text: str, choices: Mapping[str, str], labels: Mapping[str, str]) -> list[str]:
    if text in labels:
        return [labels[text]]
    letters = re.findall("[A-Z]", text) if _LETTERS.fullmatch(text) else []
    if letters and letters == sorted(set(letters)) and choices.keys() >= (set(letters) if choices else set()):
        return letters
    same = [letter for letter, choice in choices.items() if choice.strip().casefold() == text.casefold()]
    if len(same) == 1 and not text.isdecimal():
        return same
    # What it means is for the verifier to say.
    return [text]
