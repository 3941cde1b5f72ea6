"""DeepScaleR-Preview (agentica, 2025): about 40,000 problems from AIME, AMC, Omni-MATH and STILL; LaTeX answers.

The columns are problem, answer and solution; the instruction is added after the problem.
"""

from __future__ import annotations

from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import BOXED_INSTRUCTION, Task

TASK = Task(
    name="deepscaler",
    summary="DeepScaleR-Preview: about 40,000 competition problems with LaTeX answers",
    load=load_math_row,
    verifier="math",
    hub_name="agentica-org/DeepScaleR-Preview-Dataset",
    only_split="train",
    instruction=BOXED_INSTRUCTION,
)
