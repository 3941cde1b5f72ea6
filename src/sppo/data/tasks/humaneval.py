"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 Python functions to write from their docstrings.

The published columns are task_id, prompt (imports, helpers, signature and docstring), entry_point, canonical_solution
(the body) and test (code that defines check). The gold answer holds the tests as the verifier `code` reads them, with
the prompt's code, which the program may rely on, and the published solution as reference.
"""

from __future__ import annotations

import json

from sppo.config import DataConfig
from sppo.data.tasks.cells import user_message
from sppo.data.tasks.problem import Problem, Row, RowError, Task, optional, required, without

_REQUEST = "Complete the following Python function."


def load(row: Row, config: DataConfig) -> Problem:
    """Reads a row; without its tests there is no gold answer."""
    prompt, entry_point = _text(row, "prompt"), _text(row, "entry_point")
    test, solution = optional(row, "test"), optional(row, "canonical_solution")
    reference = prompt + solution if isinstance(solution, str) else None
    fields = {"test": test, "entry_point": entry_point, "prompt": prompt, "reference": reference}
    identifier = optional(row, "task_id")
    return Problem(
        content=user_message(f"{_REQUEST}\n\n```python\n{prompt.strip()}\n```"),
        gold=json.dumps(fields) if isinstance(test, str) and test.strip() else None,
        why_no_gold="the tests are missing",
        id=identifier if isinstance(identifier, str) else None,
        demonstration=f"```python\n{reference.strip()}\n```" if reference else None,
        columns=without(row, "prompt"),
    )


def _text(row: Row, name: str) -> str:
    value = required(row, name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name} is no text")
    return value


TASK = Task(
    name="humaneval",
    summary="HumanEval: 164 Python functions, verified by running their tests",
    load=load,
    verifier="code",
    hub_name="openai/openai_humaneval",
    only_split="test",
    instruction="Answer with the whole function, imports included, in one ```python block.",
    demonstrations=("full",),
)
