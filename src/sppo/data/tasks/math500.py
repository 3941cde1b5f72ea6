"""MATH-500 (Lightman et al. 2023, arXiv 2305.20050): 500 test problems of MATH, answers in LaTeX.

Reads the hub's layout (problem, answer, subject, level; the level becomes the difficulty, and the instruction is
added) and verl's, whose prompts carry their own instruction and have no level.
"""

from __future__ import annotations

from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import BOXED_INSTRUCTION, Task

TASK = Task(
    name="math500",
    summary="MATH-500: 500 test problems of MATH with LaTeX answers",
    load=load_math_row,
    verifier="math",
    hub_name="HuggingFaceH4/MATH-500",
    only_split="test",
    instruction=BOXED_INSTRUCTION,
)
