"""Your own rows: any file, hub data set or Python iterable with a prompt column and, for verifiers, an answer column.

data.prompt_column holds text or chat messages, or data.prompt_template makes the prompt of several columns;
data.answer_column holds the gold answer, dots reach into structs. Where the columns prompt and answer are not there and
the options name no others, the prompt is read in messages or conversations, the answer in reward_model.ground_truth
(verl) or verification_info.ground_truth, and the tests of programs in these, test_list (MBPP), test, tests or
input_output (APPS). A chat that ends with the assistant's turn gives that turn as demonstration.
Columns `id` (or unique_id, extra_info.index), `difficulty` (or level) and `demonstration` (or completion) are used
where they are there. Plain text stays plain text unless data.system_prompt is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppo.config import DataConfig
from sppo.config.data import SourceConfig
from sppo.data.tasks.asking import choices_in, filled, letters_of, with_choices
from sppo.data.tasks.cells import Asked, answers_of, asked_of, demonstration_of
from sppo.data.tasks.code_rows import tests_of
from sppo.data.tasks.problem import Problem, Row, Task, difficulty_label, optional, required, row_id, without

_PROMPTS = ("messages", "conversations")
_ANSWERS = ("reward_model.ground_truth", "verification_info.ground_truth")
_TESTS = ("reward_model.ground_truth", "verification_info", "test_list", "test", "tests", "input_output")


def load(row: Row, config: DataConfig) -> Problem:
    """Reads a row by the configured columns."""
    if config.prompt_template is None:
        column = _column(row, config.prompt_column, SourceConfig.prompt_column, _PROMPTS)
        asked, columns = asked_of(required(row, column)), without(row, column)
    else:
        asked, columns = Asked(filled(config.prompt_template, row, config)), dict(row)
    path = _column(
        row, config.answer_column, SourceConfig.answer_column, _TESTS if config.verifier == "code" else _ANSWERS
    )
    if config.verifier == "choice":
        choices = choices_in(row, config)
        asked = with_choices(asked, choices) if config.prompt_template is None else asked
        answers = letters_of(row, path, choices, config)
        columns |= {"choices": choices} if config.options_column else {}
    else:
        answers = tests_of(row, path) if config.verifier == "code" else answers_of(row, path, config)
    return Problem(
        content=asked.content,
        **answers.fields,
        id=row_id(row, config.task),
        difficulty=difficulty_label(row),
        demonstration=demonstration_of(row) or asked.demonstration,
        columns=columns,
    )


def _column(row: Row, named: str, default: str, others: Sequence[str]) -> str:
    """The column that the options name, or where they name none and the usual one is absent, one of others."""
    if named != default or named in row:
        return named
    return next((path for path in others if optional(row, path) is not None), named)


TASK = Task(
    name="rows",
    summary="your own rows: a file, a hub data set or a Python iterable with a prompt and an answer column",
    load=load,
    verifier="math",
    demonstrations=("full",),
)
