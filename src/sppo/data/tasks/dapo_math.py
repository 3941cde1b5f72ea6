"""DAPO-Math-17k (Yu et al. 2025, arXiv 2503.14476): competition problems with integer answers, in verl's layout.

Every prompt carries its own request for the form of the answer, so no instruction is added unless data.instruction
is set. The hub's file holds each row about a hundred times over: rows equal in id, prompt and answer are read once.
Near-copies that differ in spacing or punctuation stay in, and the loader's notes count them.
"""

from __future__ import annotations

from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import Task

TASK = Task(
    name="dapo_math",
    summary="DAPO-Math-17k: 17,398 competition problems with integer answers",
    load=load_math_row,
    verifier="math",
    hub_name="BytedTsinghua-SIA/DAPO-Math-17k",
    only_split="train",
    drop_copies=True,
)
