"""Your own rows: any file, hub data set or Python iterable with a prompt column and, for verifiers, an answer column.

data.prompt_column holds text or chat messages, data.answer_column the gold answer; dots reach into structs. Columns
`id` (or unique_id, extra_info.index), `difficulty` (or level) and `demonstration` (or completion) are used where
they are there. Plain text stays plain text unless data.system_prompt is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppo.config import DataConfig
from sppo.data.tasks.problem import (
    Problem,
    Row,
    Task,
    answer_text,
    difficulty_label,
    optional,
    prompt_content,
    required,
    row_id,
    why_no_gold,
    without,
)


def load(row: Row, config: DataConfig) -> Problem:
    """Reads a row by the configured columns."""
    return Problem(
        content=prompt_content(required(row, config.prompt_column)),
        gold=answer_text(optional(row, config.answer_column)),
        why_no_gold=why_no_gold(row, config.answer_column),
        id=row_id(row, config.task),
        difficulty=difficulty_label(row),
        demonstration=_demonstration(row),
        columns=without(row, config.prompt_column),
    )


def _demonstration(row: Row) -> str | None:
    for name in ("demonstration", "completion"):
        value: Any = row.get(name)
        # Prompt-completion data sets often hold the completion as a chat of one assistant message.
        if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], Mapping):
            value = value[0].get("content")
        if isinstance(value, str) and value.strip():
            return value
    return None


TASK = Task(
    name="rows",
    summary="your own rows: a file, a hub data set or a Python iterable with a prompt and an answer column",
    load=load,
    verifier="math",
    demonstrations=("full",),
)
