"""The table of published sets in docs/data.md: its options load a row made by hand in each set's columns."""

from __future__ import annotations

import base64
import json
import pickle
import re
import shlex
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from sppo.config import Config, DataConfig
from sppo.config.parsing import build, set_text, split_arguments
from sppo.data.tasks import load_prompts
from sppo.errors import ConfigError
from sppo.types import Submission
from sppo.verifiers import Tools, get_verifier
from sppo.verifiers.sandbox import open_sandbox

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
ADD, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return 4\n"
SUM, LENGTH = "print(sum(map(int, input().split())))\n", "print(4)\n"
METHOD = "class Solution:\n    def add(self, a: int, b: int) -> Optional[int]:\n        return a + b\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(a=0, b=5) == 5\n"
CASES = [{"input": "1 2\n", "output": "3\n"}]
CALLS = [{"input": "1\n2", "output": "3", "testtype": "functional"}]


def code(text):
    return f"```python\n{text}```"


def boxed(text):
    return f"\\boxed{{{text}}}"


ROWS = {
    "OlympiadBench": (
        {"id": 1606, "question": "Solve $x^2=3$.", "solution": ["..."], "final_answer": ["$\\sqrt{3}, -\\sqrt{3}$"],
         "is_multiple_answer": True, "unit": None, "answer_type": "Numerical"},
        boxed("-\\sqrt3, \\sqrt3"), boxed("\\sqrt3"),
    ),
    "Minerva Math in rllm's form": (
        {"problem": "How far?", "answer": ["6.02e23", "6.02 \\times 10^{23}"], "type": "chemistry"},
        boxed("6.022 \\times 10^{23}"), boxed("6.5e23"),
    ),
    "Search-R1 (NQ, HotpotQA)": (
        {"id": "train_0", "prompt": [{"role": "user", "content": "Capital?"}], "data_source": "nq",
         "reward_model": {"ground_truth": {"target": ["Paris", "City of Paris"]}, "style": "rule"}},
        "City of Paris", "Rome",
    ),
    "verl, any math set": (
        {"data_source": "mine", "prompt": [{"role": "user", "content": "1/2?"}], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": ["0.5", "50\\%"]}, "extra_info": {"index": 0}},
        boxed("\\frac12"), boxed("2"),
    ),
    "SYNTHETIC-1, math": (
        {"problem_id": "vfm_1", "task_type": "verifiable_math", "prompt": "1+1?", "gold_standard_solution": "2",
         "verification_info": '{"ground_truth": "2"}'},
        boxed("2"), boxed("3"),
    ),
    "ShareGPT's form": (
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "It is 2."}], "answer": 2},
        boxed("2"), boxed("3"),
    ),
    "AQuA": (
        {"question": "How much?", "options": ["A)125", "B)150", "C)225", "D)250", "E)275"], "rationale": "...",
         "correct": "A"},
        "The answer is A.", "The answer is B.",
    ),
    "AGIEval, SAT math": (
        {"passage": None, "question": "x?", "options": ["(A)1", "(B)2", "(C)3", "(D)4"], "label": "C", "answer": None},
        boxed("C"), boxed("D"),
    ),
    "AGIEval, Gaokao": (
        {"passage": None, "question": "哪些?", "options": ["(A)1", "(B)2", "(C)3", "(D)4"], "label": ["A", "D"],
         "answer": None},
        boxed("AD"), boxed("A"),
    ),
    "MMLU": (
        {"question": "Which?", "subject": "anatomy", "choices": ["a vein", "a bone", "a nerve", "a cell"], "answer": 1},
        "The answer is B.", "The answer is A.",
    ),
    "ARC": (
        {"id": "M_1", "question": "Which?", "choices": {"text": ["ice", "steam"], "label": ["1", "2"]},
         "answerKey": "2"},
        boxed("steam"), boxed("A"),
    ),
    "MBPP": (
        {"task_id": 2, "text": "Add.", "code": ADD, "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "",
         "challenge_test_list": []},
        code(ADD), code(WRONG),
    ),
    "HumanEval+": (
        {"task_id": "HumanEval/0", "prompt": 'def add(a, b):\n    """Adds."""\n', "entry_point": "add", "test": CHECK,
         "canonical_solution": "    return a + b\n"},
        code(ADD), code(WRONG),
    ),
    "LiveCodeBench": (
        {"question_content": "Add.", "starter_code": "class Solution: ...", "public_test_cases": json.dumps(CALLS),
         "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(CALLS)))).decode(),
         "metadata": '{"func_name": "add"}'},
        code(METHOD), code(METHOD.replace("a + b", "4")),
    ),
    "APPS": (
        {"problem_id": 0, "question": "Add.", "solutions": '["..."]', "starter_code": "", "url": "",
         "input_output": '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}', "difficulty": "interview"},
        code(SUM), code(LENGTH),
    ),
    "TACO": (
        {"question": "Add.", "solutions": '["..."]', "starter_code": "def add(a, b):",
         "input_output": '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}'},
        code(ADD), code(WRONG),
    ),
    "CodeContests": (
        {"name": "1_A", "description": "Add.", "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
         "private_tests": {"input": ["1 2\n", "5 5"], "output": ["3\n", "10"]}},
        code(SUM), code(LENGTH),
    ),
    "Codeforces": (
        {"id": "1/A", "description": "Add.", "input_format": "Two numbers.", "output_format": "One.",
         "official_tests": CASES, "generated_checker": None, "examples": CASES},
        code(SUM), code(LENGTH),
    ),
    "LeetCode": (
        {"task_id": "add", "question_id": 1, "prompt": "import math\nfrom typing import *\n", "query": "Add.",
         "completion": METHOD, "entry_point": "Solution().add", "test": CHECK, "starter_code": "class Solution: ..."},
        code(METHOD), code(METHOD.replace("a + b", "4")),
    ),
    "code-r1 (LeetCode and TACO in verl's form)": (
        {"data_source": "code", "prompt": [{"role": "user", "content": "Add."}],
         "reward_model": {"ground_truth": json.dumps({"functional": f"{CHECK}\ncheck(Solution().add)"})}},
        code(METHOD), code(METHOD.replace("a + b", "4")),
    ),
    "PrimeIntellect's coding problems": (
        {"problem_id": "vcp_1", "problem": "Add.", "verification_info":
         {"language": "python", "test_cases": [{**CASES[0], "fn_name": None, "type": "stdin_stdout"}]}},
        code(SUM), code(LENGTH),
    ),
    "KodCode": (
        {"question": "Add.", "solution": ADD, "test_info": [{"function_name": "add"}],
         "test": "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"},
        code(ADD), code(WRONG),
    ),
    "BigCodeBench": (
        {"task_id": "BigCodeBench/0", "instruct_prompt": "Add.", "entry_point": "task_func",
         "canonical_solution": "    return a + b\n", "libs": "['itertools']",
         "test": "import unittest\nclass TestCases(unittest.TestCase):\n    def test_case_1(self):\n"
         "        self.assertEqual(task_func(1, 2), 3)\n"},
        code(ADD.replace("add", "task_func")), code(WRONG.replace("add", "task_func")),
    ),
}  # fmt: skip


def published() -> dict[str, str]:
    """Set -> options, of the table whose last column is a source of the schema."""
    _, _, table = DOCS.read_text(encoding="utf-8").partition(
        "| set | options | source of the schema |\n|---|---|---|\n"
    )
    return dict(re.findall(r"^\| (.*?) \| `(.*)` \| .* \|$", table.partition("\n\n")[0], re.MULTILINE))


def config_of(options: str) -> DataConfig:
    values: dict[str, object] = {}
    for key, text in split_arguments(shlex.split(options.replace("$'", "'")))[1]:
        set_text(values, key, text.replace("\\n", "\n"))
    return build(Config, values).data


def test_every_set_of_the_table_has_a_row_here():
    assert list(published()) == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_published_set_loads_with_the_tables_options(name):
    row, right, wrong = ROWS[name]
    config = config_of(published()[name])
    if config.verifier == "code" or config.task == "humaneval":
        try:
            open_sandbox()
        except ConfigError as refusal:
            pytest.skip(str(refusal))
    assert config.path is not None
    loaded = load_prompts(replace(config, path=None), seed=0, rows=[row])
    assert loaded.notes == ()
    (prompt,) = loaded.prompts
    given = [
        Submission(text, prompt.gold, columns=prompt.columns, other_golds=prompt.other_golds) for text in (right, wrong)
    ]
    verdicts = get_verifier(prompt.verifier).grade(given, Tools())
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0], verdicts
