"""The two layouts that published math data sets come in, read by one function.

- verl's: `prompt` (chat messages that already ask for the answer in a box), `reward_model.ground_truth`,
  `extra_info.index`, `data_source`, `ability`;
- the hub's plain one: `problem` (or `question`) and `answer`, with `solution` and others beside them.
"""

from __future__ import annotations

from sppo.config import DataConfig
from sppo.data.tasks.cells import answers_of, asked_of, user_message
from sppo.data.tasks.problem import Problem, Row, RowError, difficulty_label, row_id, without


def load_math_row(row: Row, config: DataConfig) -> Problem:
    """Reads a row of either layout.

    Raises:
        RowError: the row is of neither layout, or its prompt cannot be used.
    """
    prompt_column = next((name for name in ("problem", "question") if name in row), None)
    if "reward_model" in row and "prompt" in row:
        content, answer, prompt_column = asked_of(row["prompt"]).content, "reward_model.ground_truth", "prompt"
    elif prompt_column is not None:
        content, answer = user_message(row[prompt_column]), "answer"
    else:
        raise RowError("no column 'problem' or 'question', nor 'prompt' and 'reward_model'")
    return Problem(
        content=content,
        **answers_of(row, answer, config).fields,
        id=row_id(row, config.task),
        has_instruction=prompt_column == "prompt",
        difficulty=difficulty_label(row),
        columns=without(row, prompt_column),
    )
