"""AIME 2024 and 2025, I and II each: 30 problems with integer answers from 0 to 999.

Reads the hub's layout (problem, answer; the instruction is added) and verl's, whose prompts carry their own and in
which each problem may stand several times. A benchmark counts such copies once; training takes every row.
"""

from __future__ import annotations

from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import BOXED_INSTRUCTION, Task

AIME24 = Task(
    name="aime24",
    summary="AIME 2024 I and II: 30 problems with integer answers",
    load=load_math_row,
    verifier="math",
    hub_name="HuggingFaceH4/aime_2024",
    only_split="train",
    instruction=BOXED_INSTRUCTION,
)

AIME25 = Task(
    name="aime25",
    summary="AIME 2025 I and II: 30 problems with integer answers",
    load=load_math_row,
    verifier="math",
    hub_name="yentinglin/aime_2025",
    only_split="train",
    instruction=BOXED_INSTRUCTION,
)
