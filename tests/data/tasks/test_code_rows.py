"""Rows of programming problems: the forms in which tests stand in a column, and what is read beside them."""

import base64
import json
import pickle
import zlib

import pytest

from sppo.config import DataConfig
from sppo.config.verification import CompositeOptions, CompositePart, VerificationConfig
from sppo.data.tasks import load_prompts
from sppo.errors import DataError
from sppo.types import Submission
from sppo.verifiers import Tools, get_verifier

pytestmark = pytest.mark.usefixtures("code_sandbox")


def load(row, **fields):
    return load_prompts(DataConfig(verifier="code", **fields), seed=0, rows=[row])


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


ADD = "def add(a, b):\n    return a + b\n"
SUM = "print(sum(map(int, input().split())))\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(a=0, b=5) == 5\n"
CASES = [{"input": "1 2\n", "output": "3\n"}, {"input": "0 5\n", "output": "5\n"}]
CALLS = [{"input": "1\n2", "output": "3", "testtype": "functional"}]
MBPP = {
    "text": "Write a function to add.",
    "code": ADD,
    "test_list": ["assert math.isclose(add(1, 2), 3)", "assert add(0, 5) == 5"],
    "test_setup_code": "import math",
}

FORMS = {
    "mbpp's setup": (MBPP, {"prompt_column": "text"}, ADD),
    "mbpp's imports": (
        {"prompt": "Add.", "code": ADD, "test_imports": ["import math"], "test_list": MBPP["test_list"]}, {}, ADD,
    ),
    "public tests, standard input": (
        {"question_content": "Add.", "starter_code": "", "public_test_cases": json.dumps(CASES), "metadata": "{}"},
        {"prompt_column": "question_content", "answer_column": "public_test_cases"}, SUM,
    ),
    "packed tests, standard input": (
        {"question_content": "Add.", "private_test_cases": packed(CASES), "metadata": "{}"},
        {"prompt_column": "question_content", "answer_column": "private_test_cases"}, SUM,
    ),
    "assertions in verl's form": (
        {"prompt": "Add.", "reward_model": {"ground_truth": json.dumps(["assert add(1, 2) == 3"])}}, {}, ADD,
    ),
    "a struct as Python prints it": (
        {"prompt": "Add.",
         "verification_info": repr({"language": "python", "test_cases": [{**CASES[0], "type": "stdin_stdout"}]})},
        {}, SUM,
    ),
    "a column of tests": (
        {"prompt": "Add.", "tests": json.dumps([{**CALLS[0], "metadata": {"func_name": "add"}}])}, {}, ADD,
    ),
    "a check function": ({"question": "Add.", "entry_point": "add", "test": CHECK}, {"prompt_column": "question"}, ADD),
}  # fmt: skip


@pytest.mark.parametrize(("row", "options", "program"), FORMS.values(), ids=FORMS)
def test_rows_are_read_and_right_programs_pass(row, options, program):
    loaded = load(row, **options)
    assert loaded.notes == ()
    (prompt,) = loaded.prompts
    code = get_verifier("code")
    right, wrong = (
        Submission(f"```python\n{text}\n```", prompt.gold)
        for text in (program, program.replace("a + b", "4").replace("sum(", "len("))
    )
    verdict, refused = code.grade([right, wrong], Tools())
    assert (verdict.reward, verdict.error) == (1.0, None), verdict
    assert refused.reward == 0.0, refused


def test_a_reference_that_fails_leaves_its_row_out():
    with pytest.raises(DataError, match="does not verify against itself: 1 of 2 tests passed; test 2"):
        load({**MBPP, "code": "def add(a, b):\n    return 3\n"}, prompt_column="text")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "?", "tests": ""}, "the tests are missing"),
        ({"prompt": "?", "answer": "x = ("}, "cannot be compiled"),
        ({"prompt": "?"}, "no column 'answer', so the tests are missing"),
        ({"prompt": "?", "tests": packed(CASES)[:40]}, "the tests in column 'tests' cannot be read: they look packed"),
        ({"prompt": "?", "answer": [1]}, "`assertions` must be a list of lines of code"),
        (
            {"prompt": "?", "answer": CASES, "generated_checker": "import sys"},
            "the problem has several right outputs, which only its generated_checker knows",
        ),
    ],
)
def test_tests_that_cannot_be_read_are_told(row, said):
    with pytest.raises(DataError) as caught:
        load(row)
    assert said in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_packed_tests_run_no_code():
    text = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    with pytest.raises(DataError, match=r"they are pickled with builtins.exec, which is no plain data"):
        load({"prompt": "?", "tests": text})
    text = base64.b64encode(zlib.compress(pickle.dumps(5))).decode()
    with pytest.raises(DataError, match="unpacked, they are of type int, not text"):
        load({"prompt": "?", "tests": text})


def test_a_part_of_a_composite_reads_rows_as_it_does_alone():
    parts = [CompositePart(verifier="format", gate=True), CompositePart(verifier="code")]
    tools = Tools(VerificationConfig(composite=CompositeOptions(parts=parts)))
    config = DataConfig(verifier="composite", prompt_column="text")
    (prompt,) = load_prompts(config, seed=0, rows=[MBPP], tools=tools).prompts
    assert (prompt.verifier, prompt.other_golds) == ("composite", ())
    assert json.loads(prompt.gold)["assertions"] == MBPP["test_list"]
