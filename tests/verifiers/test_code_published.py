"""Tests of programs in published forms: each is read, right programs pass, wrong ones fail; packages in the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo.config.verification import CodeOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers import get_verifier
from sppo.verifiers.code import verifier as code
from sppo.verifiers.code.published import Unreadable, as_fields, names_of_tests
from sppo.verifiers.code.runner import run_suite
from sppo.verifiers.code.suite import SuiteError, read_suite
from sppo.verifiers.code.verifier import fenced
from sppo.verifiers.sandbox import Backend
from sppo.verifiers.tools import Tools

pytestmark = pytest.mark.usefixtures("code_sandbox")


def judge(program: str, gold: object, **options: object) -> Verdict:
    tools = Tools(VerificationConfig(code=CodeOptions(test_seconds=60.0, total_seconds=120.0, **options)))  # type: ignore[arg-type]
    return code.grade([Submission(fenced(program), json.dumps(gold))], tools)[0]


SUM = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]
CALLED = [
    {"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional", "metadata": '{"func_name": "join"}'},
    {"input": "[]\n0", "output": "[0]", "testtype": "functional", "metadata": {"func_name": "join"}},
]
PAIRS = {"inputs": ["1 2\n", "5 5"], "outputs": ["3\n", "10"]}


@pytest.mark.parametrize(
    ("published", "fields"),
    [
        (SUM, PAIRS),
        ([{**case, "testtype": "stdin"} for case in SUM], PAIRS),
        (json.dumps(SUM), PAIRS),
        ({"language": "python", "test_cases": [{**SUM[0], "type": "stdin_stdout", "fn_name": None}]},
         {"language": "python", "inputs": ["1 2\n"], "outputs": ["3\n"]}),
        ({"test_cases": [{"input": [1, 2], "output": 3, "type": "function_call", "fn_name": "add"}]},
         {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}),
        (CALLED, {"inputs": ["[1, 2]\n3", "[]\n0"], "outputs": ["[1, 2, 3]", "[0]"], "fn_name": "join"}),
        ({"input": PAIRS["inputs"], "output": PAIRS["outputs"]},
         {"input": PAIRS["inputs"], "output": PAIRS["outputs"], **PAIRS}),
        ({"inputs": ["1"], "outputs": ["2"], "fn_name": None}, {"inputs": ["1"], "outputs": ["2"]}),
        (["assert f(1) == 2"], {"assertions": ["assert f(1) == 2"]}),
        ("['assert f(1) == 2']", {"assertions": ["assert f(1) == 2"]}),
    ],
)  # fmt: skip
def test_published_forms_become_fields(published, fields):
    assert as_fields(published) == fields


def test_mbpps_imports_and_setup_come_first():
    fields = as_fields({"test_list": ["assert f(1)"], "test_imports": ["import math"], "test_setup_code": "x = 1"})
    assert (fields["assertions"], fields["setup"]) == (["assert f(1)"], "import math\nx = 1")


@pytest.mark.parametrize(
    ("published", "said"),
    [
        (5, "a JSON int, not an object with tests"),
        ([CALLED[0], SUM[0]], "some of its tests call a function and others don't"),
        ([{**CALLED[0], "metadata": {}}], "there is no fn_name"),
    ],
)
def test_forms_that_are_none_are_told(published, said):
    with pytest.raises(Unreadable, match=said):
        as_fields(published)
    with pytest.raises(SuiteError, match=said):
        read_suite(json.dumps(published))


def test_the_names_of_a_modules_tests():
    source = (
        "import unittest\nfrom solution import f\ndef helper(x): pass\ndef test_a(): pass\ndef test_b(x=1): pass\n"
        "class T(unittest.TestCase):\n    def setUp(self): pass\n    def test_c(self): pass\n"
        "if __name__ == '__main__':\n    unittest.main()\n"
    )
    assert names_of_tests(source) == ["test_a", "test_b", "T.test_c"]
    assert names_of_tests("assert f(1) == 2") == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def test_a(tmp_path): pass", "test_a takes arguments, which only pytest could give"),
        ("class T:\n    def test_b(self, x): pass", "test_b takes arguments"),
        ("def check(candidate):\n    assert candidate(1) == 2", "the tests test nothing.*entry_point"),
        ("'''Words.'''\nx = 1", "the tests test nothing"),
        ("def test_a(:", "the tests cannot be compiled"),
    ],
)
def test_code_that_tests_nothing_is_refused(source, said):
    with pytest.raises(Unreadable, match=said):
        names_of_tests(source)


ADD = "def add(a, b):\n    return a + b\n"
UNITTEST = """
import unittest
from solution import add

class TestAdd(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.one = 1
    def setUp(self):
        self.two = self.one + 1
    def test_small(self):
        self.assertEqual(add(self.one, self.two), 3)
    def test_words(self):
        with self.assertRaises(TypeError):
            add(1, "a")
        for x in range(3):
            with self.subTest(x=x):
                self.assertEqual(add(x, x), 2 * x)

if __name__ == "__main__":
    unittest.main()
"""
FUNCTIONS = """
from solution import *
import solution

def test_a():
    assert add(1, 2) == 3

def test_b():
    assert solution.add(0, 5) == 5
"""
METHODS = """
class TestAdd:
    def test_a(self):
        assert add(1, 2) == 3

    def test_b(self):
        assert add(0, 5) == 5
"""


@pytest.mark.parametrize("source", [UNITTEST, FUNCTIONS, METHODS], ids=["unittest", "functions", "classes"])
def test_each_test_of_a_module_counts(source):
    gold = {"test": source}
    assert judge(ADD, gold).reason == "2 of 2 tests passed"
    half = judge("def add(a, b):\n    return 3 if isinstance(b, int) else a + b", gold, reward="fraction")
    assert half.reward == 0.5
    assert judge("def add(a, b):\n    return 4", gold).reward == 0.0
    assert judge("import os\ndef add(a, b):\n    os._exit(0)", gold).reward == 0.0
    assert judge("def sub(a, b):\n    return 3", gold).reward == 0.0


SOLUTION = """
class Solution:
    def pair(self, nums: List[int], k: Optional[int] = None) -> List[int]:
        return nums[:k] if nums else [inf]
"""


@pytest.mark.parametrize(
    "gold",
    [
        {
            "test": "def check(candidate):\n    assert candidate(nums=[1, 2], k=1) == [1]",
            "entry_point": "Solution().pair",
        },
        {"functional": "def check(pair):\n    assert pair(nums=[1, 2], k=1) == [1]\n\ncheck(Solution().pair)"},
        {"test": "def test_pair():\n    solver = Solution()\n    assert solver.pair([1, 2], 1) == [1]"},
        {"fn_name": "pair", "inputs": [[[1, 2], 1]], "outputs": [[1]]},
        [{"input": "[1, 2]\n1", "output": "[1]", "testtype": "functional", "metadata": '{"func_name": "pair"}'}],
    ],
)
def test_programs_of_a_class_solution_find_the_sites_imports(gold):
    right = judge(SOLUTION, gold)
    assert (right.reward, right.error) == (1.0, None), right
    assert judge(SOLUTION.replace("nums[:k]", "nums"), gold).reward == 0.0


def test_other_programs_bring_their_own_imports():
    gold = {"fn_name": "pair", "inputs": [[[1, 2]]], "outputs": [[1, 2]]}
    assert "NameError" in judge("def pair(nums: List[int]):\n    return nums", gold).reason


def test_whole_programs_in_published_forms_run():
    program = "print(sum(map(int, input().split())))"
    for gold in (SUM, {"input": ["1 2"], "output": ["3"]}, {"test_cases": SUM}):
        assert judge(program, gold).reward == 1.0
        assert judge("print(3)", {"test_cases": [*SUM]}).reward == 0.0


# ---- packages


@pytest.fixture
def packages() -> Iterator[Path]:
    # Where everyone may look: the fallback sandbox runs programs as another user.
    folder = Path(tempfile.mkdtemp(prefix="packages_"))
    folder.chmod(0o755)
    (folder / "twice.py").write_text("def twice(x):\n    return 2 * x\n")
    (folder / "json.py").write_text("raise ValueError('not this one')\n")
    yield folder
    shutil.rmtree(folder)


def test_programs_and_tests_import_packages_from_a_folder_that_they_cannot_change(packages, backend: Backend):
    suite = read_suite(json.dumps({"test": "from twice import twice\ndef test_f():\n    assert f(4) == twice(4)"}))
    program = "import json, twice\ndef f(x):\n    return twice.twice(x)\n"
    given = CodeOptions(packages=str(packages), total_seconds=60.0)
    assert run_suite(program, suite, suite.tests, given, backend).passed == (True,)
    without = run_suite(program, suite, suite.tests, CodeOptions(total_seconds=60.0), backend)
    assert "No module named 'twice'" in without.reason
    writing = f"open({str(packages / 'twice.py')!r}, 'w').write('')\n{program}"
    assert run_suite(writing, suite, suite.tests, given, backend).passed == (False,)
    assert os.path.getsize(packages / "twice.py") > 0


def test_a_folder_of_packages_that_is_not_there_is_refused():
    options = VerificationConfig(code=CodeOptions(packages="nowhere"))
    with pytest.raises(ConfigError, match=r"verification.code.packages is 'nowhere', which is no folder.*pip install"):
        get_verifier("code").check(options)


def test_a_name_of_pythons_own_is_the_programs_where_the_tests_know_of_nothing_else():
    tests = ["assert sum(1, 2) == 3", "assert sum(4, 4) == 8"]
    assert judge("def sum(a, b):\n    return a + b", tests).reward == 1
    assert judge("def sum(a, b):\n    return a - b", tests).reward == 0
    # Else a program could answer for what the tests measure with.
    hack = "def near(a):\n    return 0.0\ndef abs(x):\n    return 0.0"
    assert judge(hack, ["assert abs(near(1) - 1) < 1e-6"]).reward == 0
    both = "def abs(x):\n    return 0.0\ndef sum(a, b):\n    return 9"
    assert judge(both, ["assert abs(sum([1, 2]) - 3) < 1e-6"]).reward == 1


def test_what_a_program_writes_to_its_standard_error_is_no_output():
    noisy = 'import sys\nfor _ in range(40000):\n    print("debug" * 20, file=sys.stderr)\nprint(1)'
    assert judge(noisy, {"inputs": [""], "outputs": ["1"]}).reward == 1
    ended = judge(f"{noisy}\nraise KeyError('at last')", {"inputs": [""], "outputs": ["1"]})
    assert ended.reward == 0
    assert "KeyError: 'at last'" in ended.reason
