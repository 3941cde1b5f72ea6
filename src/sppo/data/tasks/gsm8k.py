"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems with worked solutions.

The column `answer` holds the steps, with calculator marks such as <<16-3=13>>, and ends with `#### number`. The gold
answer is that number without thousands separators; the demonstration is the steps without the marks, ending with the
number in a box, which is the form that the instruction asks for. verl's layout is read too; it has no steps.
"""

from __future__ import annotations

import re

from sppo.config import DataConfig
from sppo.data.tasks.cells import answers_of, user_message
from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import BOXED_INSTRUCTION, Problem, Row, Task, optional, required, row_id, without

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


def load(row: Row, config: DataConfig) -> Problem:
    """Reads a row of question and answer; without `####` in the answer there is no gold and no demonstration."""
    if "reward_model" in row:
        return load_math_row(row, config)
    solution = optional(row, "answer")
    steps, mark, number = solution.rpartition("####") if isinstance(solution, str) else ("", "", "")
    gold = number.strip().replace(",", "") if mark else ""
    demonstration = f"{_CALCULATOR_MARK.sub('', steps).rstrip()}\nThe answer is \\boxed{{{gold}}}"
    return Problem(
        content=user_message(required(row, "question")),
        gold=gold or None,
        why_no_gold=answers_of(row, "answer", config).why_none
        if solution is None
        else "the gold answer is missing behind ####",
        id=row_id(row, config.task),
        demonstration=demonstration.lstrip() if gold else None,
        columns=without(row, "question"),
    )


TASK = Task(
    name="gsm8k",
    summary="GSM8K: 7,473 training and 1,319 test word problems with worked solutions",
    load=load,
    verifier="math",
    hub_name="openai/gsm8k",
    hub_config="main",
    instruction=BOXED_INSTRUCTION,
    demonstrations=("full",),
)
