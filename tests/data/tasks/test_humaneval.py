"""HumanEval's published columns become prompts that ask for a function, with tests as gold answers."""

from __future__ import annotations

import json

import pytest

from sppo.config import DataConfig
from sppo.config.verification import CodeOptions, VerificationConfig
from sppo.data.tasks import load_prompts
from sppo.errors import ConfigError
from sppo.types import Submission
from sppo.verifiers.code import verifier as code
from sppo.verifiers.sandbox import open_sandbox
from sppo.verifiers.tools import Tools
from tests.conftest import SHARED_DATA

TOOLS = Tools(VerificationConfig(code=CodeOptions(test_seconds=60.0)))
ROW = {
    "task_id": "HumanEval/900",
    "prompt": "import math\n\ndef area(r):\n    '''Area of a circle.'''\n",
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-4\n",
}


def load(*rows, **fields):
    loaded = load_prompts(DataConfig(task="humaneval", **fields), seed=0, rows=rows, require_gold=False)
    return list(loaded.prompts)


def test_a_row_becomes_a_chat_that_asks_for_one_block_of_code():
    (prompt,) = load(ROW)
    assert prompt.id == "HumanEval/900"
    assert prompt.verifier == "code"
    assert prompt.content == (
        {
            "role": "user",
            "content": "Complete the following Python function.\n\n```python\nimport math\n\ndef area(r):\n"
            "    '''Area of a circle.'''\n```\n"
            "Answer with the whole function, imports included, in one ```python block.",
        },
    )
    assert prompt.columns["canonical_solution"] == ROW["canonical_solution"]
    assert "prompt" not in prompt.columns


def test_the_gold_answer_holds_the_tests_and_the_reference_is_right():
    (prompt,) = load(ROW)
    gold = json.loads(prompt.gold)
    assert gold["test"] == ROW["test"]
    assert gold["reference"] == ROW["prompt"] + ROW["canonical_solution"]
    try:
        open_sandbox()
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    given = [
        Submission(response, prompt.gold)
        for response in (
            code.reference(Submission("", prompt.gold)),
            prompt.demonstration,
            # Imports of the prompt may be relied on, and left out.
            "```python\ndef area(r):\n    return math.pi * r**2\n```",
            "```python\ndef area(r):\n    return 3 * r**2\n```",
        )
    ]
    assert [verdict.reward for verdict in code.grade(given, TOOLS)] == [1.0, 1.0, 1.0, 0.0]


def test_rows_without_tests_or_with_tests_that_fail_are_named():
    try:
        open_sandbox()
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    wrong = {**ROW, "task_id": "HumanEval/901", "canonical_solution": "    return 0\n"}
    without = {**ROW, "task_id": "HumanEval/902", "test": None}
    loaded = load_prompts(DataConfig(task="humaneval"), seed=0, rows=[ROW, wrong, without], tools=TOOLS)
    assert [prompt.id for prompt in loaded.prompts] == ["HumanEval/900"]
    notes = " ".join(loaded.notes)
    assert "rows 2, 3" in notes
    assert "the tests are missing" in notes
    assert "does not verify against itself" in notes


def test_the_published_file():
    path = SHARED_DATA / "humaneval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name}, which is not part of the repository")
    prompts = list(load_prompts(DataConfig(task="humaneval", path=str(path)), seed=0, require_gold=False).prompts)
    assert len(prompts) == 164
    assert [prompts[0].id, prompts[-1].id] == ["HumanEval/0", "HumanEval/163"]
    assert all(prompt.demonstration and prompt.gold for prompt in prompts)
