"""What a task is, what it makes of one row, and the small tools that every task's file uses to read its rows."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sppo.config import DataConfig
from sppo.config.ranges import Section
from sppo.types import Message

Row = Mapping[str, Any]

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Default instruction of the math tasks whose problems come without one."""


class RowError(Exception):
    """One row that no prompt can be made of; the loader turns these into a report or a DataError by row number."""


@dataclass(frozen=True)
class Problem:
    """What a task's file reads from one row, before instruction and system prompt are added."""

    content: str | tuple[Message, ...]
    """Plain text, or chat messages."""
    gold: str | None
    """The answer as text; None where the row has none."""
    other_golds: tuple[str, ...] = ()
    """Answers that are right as well."""
    why_no_gold: str = "the gold answer is missing"
    """What is said of the row where gold is None and a verifier needs it."""
    id: str | None = None
    """The data's own identifier, where it has one."""
    has_instruction: bool = False
    """Whether the text already says how to answer, so that the task's own instruction is not added."""
    difficulty: str | None = None
    """Label that evaluations group by."""
    demonstration: str | None = None
    """A worked response."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row without its prompt; the answer stays in, under its own name, for reward functions that ask for it."""

    @property
    def golds(self) -> tuple[str | None, ...]:
        """All gold answers, of which any is right."""
        return (self.gold, *self.other_golds)


@dataclass(frozen=True)
class Task:
    """One line of the task table: where rows come from, how a row is read, and how an answer is held against it."""

    name: str
    """Value of data.task."""
    summary: str
    """One line for people."""
    load: Callable[[Row, DataConfig], Problem]
    """Reads one row; raises RowError where the row cannot be used."""
    verifier: str
    """Default verifier."""
    hub_name: str | None = None
    """Data set on the Hugging Face hub that is read where data.path is not set."""
    hub_config: str | None = None
    """Configuration of that hub data set."""
    only_split: str | None = None
    """The one split of that hub data set, taken where data.split is left at its default."""
    instruction: str | None = None
    """Text added after each problem that does not carry one of its own."""
    make_rows: Callable[[DataConfig, int, str], Iterator[Row]] | None = None
    """Built-in tasks: makes the rows from the options, a seed, and the section's key for error messages."""
    options: type[Section] | None = None
    """Built-in tasks: the section that data.options is."""
    demonstrations: tuple[str, ...] = ()
    """Kinds of demonstrations that the task gives."""
    drop_copies: bool = False
    """Leave out rows whose id, prompt and answer all equal an earlier row's."""

    def read(self, row: Row, config: DataConfig) -> Problem:
        """Reads one row, with the answer taken out of what holds it, as data.answer_form says.

        Raises:
            RowError: as `load`.
        """
        problem = self.load(row, config)
        if problem.gold is None or config.answer_form == "answer":
            return problem
        from sppo.verifiers.golds import taken_before_remark, taken_from_solution

        take = taken_from_solution if config.answer_form == "solution" else taken_before_remark
        why = "the gold answer is missing: the solution has no ####, no box and no final statement"
        taken = [answer for answer in map(take, (problem.gold, *problem.other_golds)) if answer is not None]
        return replace(problem, gold=taken[0] if taken else None, other_golds=tuple(taken[1:]), why_no_gold=why)

    @property
    def built_in(self) -> bool:
        """Whether the task makes its own prompts, so that it needs no file and no network."""
        return self.make_rows is not None


def plain(value: Any) -> Any:
    """An array of numpy's as lists and numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def required(row: Row, path: str) -> Any:
    """Returns the column `path` of a row; dots reach into structs, unless a column has the dotted name itself.

    A struct may be stored as text, in JSON or as Python prints it.

    Raises:
        RowError: there is no such column.
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, str):
            from sppo.verifiers.columns import as_struct  # heavy

            value = as_struct(value)
        if not isinstance(value, Mapping) or part not in value:
            raise RowError(f"no column {path!r}")
        value = value[part]
    return value


def optional(row: Row, path: str) -> Any:
    """Returns the column `path` of a row as `required` does, or None where there is no such column."""
    try:
        return required(row, path)
    except RowError:
        return None


def without(row: Row, path: str) -> dict[str, Any]:
    """Returns the row without the column that `path` begins with."""
    top = path if path in row else path.split(".")[0]
    return {name: value for name, value in row.items() if name != top}


def row_id(row: Row, task_name: str) -> str | None:
    """Returns the data's own identifier of a row (unique_id, id or extra_info.index), or None."""
    for path in ("unique_id", "id", "extra_info.index"):
        value = optional(row, path)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return f"{task_name}/{value}"
    return None


def difficulty_label(row: Row) -> str | None:
    """Returns the column `difficulty`, or MATH's `level` as "Level 5", where a row has one."""
    difficulty, level = optional(row, "difficulty"), optional(row, "level")
    if isinstance(difficulty, (str, int, float)) and str(difficulty).strip():
        return str(difficulty)
    if isinstance(level, int):
        return f"Level {level}"
    return level if isinstance(level, str) and level.strip() else None


_NOT_COMPARED = re.compile(r"(?<!\d)\.|\.(?!\d)|[^\w+\-*/^=<>!%.]")


def prompt_key(text: str) -> str:
    """Returns what two prompts must share to count as the same problem: letters, digits and operators, case folded.

    Spaces, dollar signs, braces and punctuation differ between copies of one problem. Operators stay, since dropping
    them would make one of `2n - 1` and `2n + 1`.
    """
    return _NOT_COMPARED.sub("", text.casefold()) or text
