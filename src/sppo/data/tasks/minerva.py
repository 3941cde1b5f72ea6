r"""Minerva Math, the OCW courses (Lewkowycz et al. 2022, arXiv 2206.14858): 272 undergraduate science problems.

Reads the hub's layout (question, answer; the instruction is added) and verl's. Of the 272 answers as published, 68
were cut at the first closing brace when they were taken out of their box, as `\frac{1` or `I(0) e^{-\frac{t`. No
response could be marked right against those: they count as missing, so that the rows are left out and named.
"""

from __future__ import annotations

from dataclasses import replace

from sppo.config import DataConfig
from sppo.data.tasks.cells import Answers
from sppo.data.tasks.math_rows import load_math_row
from sppo.data.tasks.problem import BOXED_INSTRUCTION, Problem, Row, Task


def load(row: Row, config: DataConfig) -> Problem:
    """Reads a row; an answer with unbalanced braces is none."""
    problem = load_math_row(row, config)
    if problem.gold is None:
        return problem
    whole = tuple(filter(_balanced, (problem.gold, *problem.other_golds)))
    why_none = "the gold answer is cut off as published: its braces do not balance"
    return replace(problem, **Answers(whole, why_none).fields)


def _balanced(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        if character in "{}" and text[place - 1 : place] != "\\":
            depth += 1 if character == "{" else -1
        if depth < 0:
            return False
    return depth == 0


TASK = Task(
    name="minerva",
    summary="Minerva Math: 272 undergraduate science problems, numeric answers within 1%",
    load=load,
    verifier="minerva",
    hub_name="math-ai/minervamath",
    only_split="test",
    instruction=BOXED_INSTRUCTION,
)
