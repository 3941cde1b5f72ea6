"""HumanEval in the sandbox: all 164 reference solutions pass, and a mutation of each fails.

A mutation changes one place of the reference solution: a comparison, an operator, a constant, a condition. The first
one of each problem that its published tests catch is kept; which problems need more than one try says where those tests
are weak (or the mutation changes nothing that matters).
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator

import pytest

from sppo.config import DataConfig
from sppo.config.verification import CodeOptions, VerificationConfig
from sppo.data.tasks import load_prompts
from sppo.errors import ConfigError
from sppo.types import Prompt, Submission, Verdict
from sppo.verifiers.code import verifier as code
from sppo.verifiers.code.verifier import fenced
from sppo.verifiers.sandbox import open_sandbox
from sppo.verifiers.tools import Tools
from tests.conftest import SHARED_DATA

HUMANEVAL = SHARED_DATA / "humaneval.jsonl.gz"
TOOLS = Tools(VerificationConfig(code=CodeOptions(test_seconds=10.0)))

COMPARISONS = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    if not HUMANEVAL.exists():
        pytest.skip(f"needs {HUMANEVAL.name}, which is not part of the repository")
    try:
        open_sandbox()
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    loaded = load_prompts(DataConfig(task="humaneval", path=str(HUMANEVAL)), seed=0, require_gold=False)
    return list(loaded.prompts)


def grade(items: list[tuple[Prompt, str]]) -> list[Verdict]:
    return code.grade([Submission(response, prompt.gold) for prompt, response in items], TOOLS)


def test_all_reference_solutions_pass(prompts):
    responses = [code.reference(Submission("", prompt.gold)) for prompt in prompts]
    verdicts = grade([(prompt, response) for prompt, response in zip(prompts, responses, strict=True) if response])
    assert len(verdicts) == 164
    failed = {p.id: v for p, v in zip(prompts, verdicts, strict=True) if (v.reward, v.error) != (1.0, None)}
    assert not failed


def mutations(source: str, name: str) -> Iterator[str]:
    """Programs with one place of the function changed, those first that change the most."""
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    count = sum(1 for _ in ast.walk(function))
    for change in (_compare, _operate, _negate, _constant, _nothing):
        for place in range(count):
            mutant = copy.deepcopy(tree)
            changed = next(node for node in mutant.body if isinstance(node, ast.FunctionDef) and node.name == name)
            if change(list(ast.walk(changed))[place]):
                yield ast.unparse(ast.fix_missing_locations(mutant))


def _compare(node: ast.AST) -> bool:
    if not isinstance(node, ast.Compare):
        return False
    node.ops[0] = COMPARISONS[type(node.ops[0])]()
    return True


def _operate(node: ast.AST) -> bool:
    if not isinstance(node, (ast.BinOp, ast.AugAssign)) or type(node.op) not in OPERATORS:
        return False
    node.op = OPERATORS[type(node.op)]()
    return True


def _negate(node: ast.AST) -> bool:
    if not isinstance(node, (ast.If, ast.IfExp, ast.While)):
        return False
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return True


def _constant(node: ast.AST) -> bool:
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, bool):
        return False
    node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    return True


def _nothing(node: ast.AST) -> bool:
    if not isinstance(node, ast.Return) or node.value is None:
        return False
    node.value = ast.Constant(None)
    return True


def test_a_mutation_of_every_reference_solution_fails(prompts):
    left = {}
    for prompt in prompts:
        fields = json.loads(prompt.gold)
        left[prompt.id] = (prompt, mutations(fields["reference"], fields["entry_point"]))
    tries: dict[str, int] = {}
    for attempt in range(1, 6):
        tried = {id: (prompt, next(others, None)) for id, (prompt, others) in left.items()}
        assert None not in [program for _, program in tried.values()], "every solution has a place to change"
        verdicts = grade([(prompt, fenced(program or "")) for prompt, program in tried.values()])
        assert not [verdict for verdict in verdicts if verdict.error]
        caught = [id for id, verdict in zip(tried, verdicts, strict=True) if verdict.reward == 0.0]
        for id in caught:
            tries[id] = attempt
            del left[id]
        if not left:
            break
    assert not left, f"no test catches five mutations of {sorted(left)}"
    assert len(tries) == 164
    survived = sorted(id for id, attempts in tries.items() if attempts > 1)
    assert survived == SURVIVED, "the published tests are the same, and so is what they miss"


SURVIVED = ["HumanEval/10", "HumanEval/116", "HumanEval/127"]
"""Problems whose tests pass a wrong program, their first mutation: 127 has no prime interval but those of length 2."""
