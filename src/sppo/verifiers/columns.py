"""What published rows hold beside the prompt: structs stored as text, verl's ground truth, lettered choices."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

_CHOICES = ("choices", "options")
"""Columns that hold the choices of a question where nobody says which does."""
_LETTERED = re.compile(r"\s*[(\[]?([A-Z])\s*(?:[)\]][.:]?|[.:：、])\s*(.*)", re.DOTALL)


def as_struct(cell: Any) -> Any:
    """Returns the list or dict that a cell holds as text, in JSON or as Python prints it; any other cell as it is."""
    if not isinstance(cell, str) or cell.lstrip()[:1] not in ("{", "["):
        return cell
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, (dict, list)) else cell
    return cell


def ground_truth(columns: Mapping[str, Any]) -> Any:
    """Returns reward_model.ground_truth as the row has it, where verl's data keeps the answer; None without."""
    rewarded = as_struct(columns.get("reward_model"))
    return rewarded.get("ground_truth") if isinstance(rewarded, Mapping) else None


def choices_of(columns: Mapping[str, Any], column: str | None = None) -> dict[str, str]:
    """Returns {letter: text} of a question's choices.

    The column holds a list of texts, which may bring their letters ("A) 21"), a dict by label, or a dict of the lists
    text and label. Where labels are no letters, such as 1 to 4, the choices are lettered in order.

    Args:
        columns: the row.
        column: the one that holds them; default: choices or options.
    """
    labels, texts = _choices(columns, column)
    return dict(zip(labels if _are_letters(labels) else ascii_uppercase, texts, strict=False))


def letters_of_labels(columns: Mapping[str, Any], column: str | None = None) -> dict[str, str]:
    """Returns {label as published: letter} of choices that have labels of their own; else {}."""
    labels, _ = _choices(columns, column)
    return {
        label: label if _are_letters(labels) else letter for label, letter in zip(labels, ascii_uppercase, strict=False)
    }


def _choices(columns: Mapping[str, Any], column: str | None) -> tuple[list[str], list[str]]:
    """Labels, none where the data has none, and texts, of the first column that holds choices."""
    for name in _CHOICES if column is None else (column,):
        given: Any = columns.get(name)
        if not isinstance(given, (list, dict)):
            given = as_struct(given.tolist() if hasattr(given, "tolist") else given)
        if isinstance(given, list):  # first, as it is by far the most common, and asked for each response
            return [], _without_letters(list(map(str, given)))
        if isinstance(given, Mapping) and _is_list(given.get("text")):
            return list(map(str, given.get("label") or ())), list(map(str, given["text"]))
        if isinstance(given, Mapping):
            labelled = {str(label): str(text) for label, text in given.items() if text is not None}
            return list(labelled), list(labelled.values())
        if _is_list(given):
            return [], _without_letters(list(map(str, given)))
    return [], []


def _are_letters(labels: Sequence[str]) -> bool:
    return bool(labels) and all(len(label) == 1 and label in ascii_uppercase for label in labels)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _without_letters(texts: list[str]) -> list[str]:
    """The texts without the letters that they bring, if all do, in order."""
    bare = []
    for text, letter in zip(texts, ascii_uppercase, strict=False):
        found = _LETTERED.fullmatch(text)
        if found is None or found[1] != letter:
            return texts
        bare.append(found[2])
    return bare
