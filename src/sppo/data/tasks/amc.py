"""AMC 12 of 2023, A and B: 40 problems whose answers are numbers, without the choices.

Reads the hub's layout (question, answer; the instruction is added) and verl's. The hub writes answers as "27.0"; the
verifier compares decimals exactly, so 27 is right.
"""

from __future__ import annotations

from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import BOXED_INSTRUCTION, Task

TASK = Task(
    name="amc23",
    summary="AMC 12 of 2023: 40 problems with numeric answers",
    load=load_math_row,
    verifier="math",
    hub_name="math-ai/amc23",
    only_split="test",
    instruction=BOXED_INSTRUCTION,
)
