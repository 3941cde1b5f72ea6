"""The `code` verifier: tests of every kind, rewards, reasons and errors; every run in a real sandbox."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from dataclasses import replace

import pytest

from sppo.cli.options import parse
from sppo.config.recipes import load_recipe
from sppo.config.verification import CodeOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers.code import runner
from sppo.verifiers.code import verifier as code
from sppo.verifiers.code.runner import Report, run_suite
from sppo.verifiers.code.suite import SuiteError, read_suite
from sppo.verifiers.code.verifier import fenced, shown_tests
from sppo.verifiers.sandbox import BACKENDS, Backend, open_sandbox
from sppo.verifiers.sandbox.backends import Confinement
from sppo.verifiers.sandbox.tree import children_of
from sppo.verifiers.tools import Tools
from sppo.verifiers.verify import verify

pytestmark = pytest.mark.usefixtures("code_sandbox")


def judge(response: str, gold: object, **options: object) -> Verdict:
    # Time enough on however slow a machine, where nothing else is asked for.
    options = {"test_seconds": 60.0, "total_seconds": 120.0, **options}
    tools = Tools(VerificationConfig(code=CodeOptions(**options)))  # type: ignore[arg-type]
    return code.grade([Submission(response, gold if isinstance(gold, str) else json.dumps(gold))], tools)[0]


ADD = {"fn_name": "add", "inputs": [[1, 2], [3, 4], [10, -3], [0, 0]], "outputs": [3, 7, 7, 0]}
RIGHT = fenced("def add(a, b):\n    return a + b")
HALF_RIGHT = fenced("def add(a, b):\n    return a + b if a < 5 else 99\n")


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("", "no JSON"),
        ("5", "not an object"),
        ("[]", "list of lines"),
        ('{"answer": 1}', "it has answer, but not"),
        ('{"inputs": ["1"], "outputs": []}', "same length"),
        ('{"inputs": [1], "outputs": ["1"]}', "are text, not int"),
        ('{"inputs": [1], "outputs": [1], "fn_name": "f"}', "list of arguments, not int"),
        ('{"test": "def check(c): pass"}', "entry_point"),
        ('{"inputs": ["1"], "outputs": ["1"], "shown": -1}', "must be a number"),
        ('{"inputs": ["1"], "outputs": ["1"], "tolerance": "x"}', "must be a number"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_gold_answers_that_hold_no_tests_are_errors_and_say_why(gold, reason):
    with pytest.raises(SuiteError, match=reason):
        read_suite(gold)
    verdict = judge(RIGHT, gold)
    assert verdict.reward is None
    assert reason in verdict.error
    assert code.reference(Submission("", gold)) is not None, "the check of gold answers must come upon it"


@pytest.mark.parametrize(
    ("gold", "program"),
    [
        ({"inputs": ["1 2", "3 4"], "outputs": ["3\n", "7"]}, "print(sum(map(int, input().split())))"),
        ({"inputs": [["2", "5"]], "outputs": [["5", "2"]]}, "a, b = input(), input()\nprint(b)\nprint(a)"),
        (ADD, "def add(a, b):\n    return a + b"),
        (ADD, "class Solution:\n    def add(self, a, b):\n        return a + b"),
        ({**ADD, "outputs": [[3], [7], [7], [0]]}, "def add(a, b):\n    return a + b"),
        ({**ADD, "outputs": [[3], [7], [7], [0]]}, "def add(a, b):\n    return [a + b]"),
        ({"fn_name": "f", "inputs": ["[1, 2]\n3"], "outputs": ["[1, 2, 3]"]}, "def f(a, b):\n    return (*a, b)"),
        (["assert add(1, 2) == 3", "assert add(*[2], b=3) == 5"], "def add(a, b):\n    return a + b"),
        (
            {"assertions": ["assert math.isclose(third(1), 1 / 3)"], "setup": "import math"},
            "def third(x):\n    return x / 3",
        ),
        (["assert set(f([1])) == {1}\nassert f(()) == []"], "def f(x):\n    return list(x)"),
        (["try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass"], "def f(x):\n    return 1 / x"),
        (
            {"test": "def check(f):\n    assert f(2) == helper(2)", "entry_point": "double",
             "prompt": "def helper(x):\n    return 2 * x\n\ndef double(x):\n    '''Twice x.'''\n"},
            "def double(x):\n    return helper(x)",
        ),
    ],
)  # fmt: skip
def test_right_programs_pass_every_kind_of_test(gold, program):
    verdict = judge(fenced(program), gold)
    assert (verdict.reward, verdict.error) == (1.0, None), verdict
    fraction = judge(fenced(program), gold, reward="fraction")
    assert fraction.reward == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        "def add(a, b):\n",
        "def add(a, b):",
        "def add(a, b):  # a number\n\n    # TODO: your code here\n",
        "import math\n\ndef add(\n    a: int,\n        b: int) -> int:\n\t# c",
        "def add(a, b):\n    if a:\n",
        "class Solution:\n\tdef add(self, a, b):\n",
    ],
)
def test_a_prompt_that_ends_before_the_body_of_its_stub_makes_no_program_wrong(prompt):
    gold = {"test": "def check(f):\n    assert f(1, 2) == 3", "entry_point": "add", "prompt": prompt}
    assert judge(RIGHT, gold).reward == 1.0
    assert judge(fenced("def add(a, b): pass"), gold).reward == 0.0


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("Write a function that adds.", "`prompt` cannot be compiled"),
        ('def add(a, b):\n    """Adds', "`prompt` cannot be compiled"),
        ("def add(a, b):\ndef sub(a, b):\n", "`prompt` cannot be compiled"),
        ("import no_such_module\n\ndef add(a, b): ...", "No module named 'no_such_module'"),
    ],
)
@pytest.mark.parametrize("program", ["def add(a, b): return a + b", "1 / 0", "import os\nos._exit(0)"])
def test_a_prompt_that_cannot_be_run_is_an_error_whatever_the_program_does(prompt, reason, program):
    gold = {"test": "def check(f):\n    assert f(1, 2) == 3", "entry_point": "add", "prompt": prompt}
    verdict = judge(fenced(program), gold)
    assert verdict.reward is None
    assert reason in verdict.error


@pytest.mark.parametrize(
    ("gold", "program", "reason"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, "print(input())", "the output is another"),
        ({"inputs": ["1"], "outputs": ["1"]}, "print(input())\n1 / 0", "exit code 1: ZeroDivisionError"),
        ({"inputs": ["1"], "outputs": ["1"]}, "print(input())\nraise SystemExit(3)", "exit code 3"),
        ({"inputs": ["1"], "outputs": ["1"]}, "print(", "SyntaxError"),
        ({"inputs": ["1"], "outputs": ["1"]}, "import time\ntime.sleep(9)", "timed out after 0.8 s"),
        ({"inputs": ["1"], "outputs": ["1"]}, "while True: print(1)", "printed more than"),
        ({"inputs": ["1"], "outputs": ["1"]}, "import os\nprint(1)\nos.kill(os.getpid(), 9)", "exit code"),
        (ADD, "def plus(a, b):\n    return a + b", "the program defines no 'add'"),
        (ADD, "def add(a, b):\n    return None", "test 1: the value is another"),
        (ADD, "def add(a, b):\n    while True: pass", "timed out after 0.8 s"),
        (ADD, "def add(a, b):\n    return [0] * 2_000_000", "too much data"),
        (ADD, "1 / 0", "ZeroDivisionError"),
        (ADD, "def add(a, b):\n    return add(a, b)", "RecursionError"),
        (["assert add(1, 2) == 4"], "def add(a, b):\n    return a + b", "AssertionError"),
        (["assert len(f()) == 2"], "def f(): return None", "TypeError"),
        (["assert f(0) > 1"], "def f(x):\n    class E(Exception): pass\n    raise E('mine')", "ProgramError: E: mine"),
        (
            {"test": "def check(f):\n    assert f(2) is None", "entry_point": "f", "prompt": "def f(x): pass"},
            "def g(x):\n    return None",
            "NameError",
        ),
    ],
)  # fmt: skip
def test_wrong_programs_get_nothing_and_a_reason(gold, program, reason):
    for reward in ("all", "fraction"):
        limit = 0.8 if "timed out" in reason else 60.0
        verdict = judge(fenced(program), gold, reward=reward, test_seconds=limit)
        assert (verdict.reward, verdict.error) == (0.0, None), verdict
        assert reason in verdict.reason


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        (["assert add(1, 2) == 3", "assert ("], "cannot be compiled"),
        ({"assertions": ["assert add(1, 2) == 3"], "setup": "import no_such_module"}, "before the first test"),
        (["assert add(object(), 2) == 3"], "object"),
        ({"test": "def test(f): pass", "entry_point": "add"}, "no function check"),
    ],
)
def test_tests_that_cannot_be_run_are_errors_whatever_the_program_does(gold, reason):
    verdict = judge(RIGHT, gold)
    assert verdict.reward is None
    assert "the tests cannot be run" in verdict.error
    assert reason in verdict.error


@pytest.mark.parametrize(
    ("gold", "program"),
    [
        ({"assertions": ["assert x == 4"], "setup": "x = f(2)"}, "def f(x): raise ValueError"),
        (["assert f(f(1)) == 4"], "def f(x): return (y for y in [1])"),
        (["assert f(f(1)) == 4"], "def f(x):\n    x = []\n    for _ in range(300): x = [x]\n    return x"),
        (["assert sum(f(1)) == 4"], "def f(x): return ['a']"),
    ],
)
def test_a_program_cannot_make_the_tests_look_faulty(gold, program):
    verdict = judge(fenced(program), gold)
    assert (verdict.reward, verdict.error) == (0.0, None), verdict


def test_reasons_can_be_written_to_a_file():
    verdict = judge(fenced("def add(a, b): raise ValueError('\\ud800é')"), ADD)
    assert verdict.reason == "0 of 4 tests passed; test 1: ValueError: ?é"


def test_the_share_of_tests_that_pass():
    assert judge(HALF_RIGHT, ADD, reward="fraction").reward == 0.75
    assert judge(HALF_RIGHT, ADD).reward == 0.0
    assert judge(HALF_RIGHT, ADD, reward="fraction").reason == "3 of 4 tests passed; test 3: the value is another"
    check = "def check(f):\n    for a in range(4, 8):\n        assert f(a, 5 * a) == 6 * a\n    assert f(3, 0) == 3"
    # Of the loop's four assertions one holds, and it weighs as much as the other.
    assert judge(HALF_RIGHT, {"test": check, "entry_point": "add"}, reward="fraction").reward == (1 / 4 + 1) / 2
    broken_off = "def check(f):\n    assert f(0, 0) == 0\n    x = f(1, '')\n    assert f(1, 1) == 2"
    assert judge(HALF_RIGHT, {"test": broken_off, "entry_point": "add"}, reward="fraction").reward == 0.0
    lines = ["assert add(1, 1) == 2", "assert add(6, 1) == 7", "assert add(2, 2) == 4"]
    assert judge(HALF_RIGHT, lines, reward="fraction").reward == pytest.approx(2 / 3)


CATCH_ALL = "try:\n    f(1)\nexcept:\n    pass"
SWALLOWING = {
    "lines": [CATCH_ALL],
    "lines that clean up": ["def g():\n    try:\n        f(1)\n    finally:\n        return\ng()"],
    "the lines' setup": {"assertions": ["assert True"], "setup": CATCH_ALL},
    "a check function": {
        "test": "def check(f):\n    try:\n        f(1)\n    except:\n        pass\n    assert True",
        "entry_point": "f",
    },
    "every line of a loop": [
        "for n in range(9):\n    try:\n        assert f(n) == n\n    except BaseException:\n        pass"
    ],
}


@pytest.mark.parametrize("gold", SWALLOWING.values(), ids=SWALLOWING)
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\ndef f(x): os._exit(0)", "the program ended by itself"),
        ("def f(x):\n    while True: pass", "timed out after 0.8 s"),
        ("def f(x): return [0] * 2_000_000", "too much data"),
        ("import os\ndef f(x):\n  for n in range(3, 99):\n    try: os.write(n, b'x\\n')\n    except: 0", "no message"),
    ],
    ids=["exit", "loop", "flood", "nonsense"],
)  # fmt: skip
def test_no_test_can_catch_that_the_program_is_gone(gold, program, reason):
    for reward in ("all", "fraction") if isinstance(gold, dict) else ("all",):
        verdict = judge(fenced(program), gold, reward=reward, test_seconds=0.8 if "timed out" in reason else 60.0)
        assert (verdict.reward, verdict.error) == (0.0, None), verdict
        assert reason in verdict.reason


def test_what_the_program_raises_may_be_caught_by_a_test():
    program = "def f(x): raise SystemExit(0)"
    for gold in (SWALLOWING["lines"], SWALLOWING["a check function"], SWALLOWING["every line of a loop"]):
        assert judge(fenced(program), gold).reward == 1.0


RAISING = """
import unittest

class TestF(unittest.TestCase):
    def test_f(self):
        with self.assertRaises({kind}):
            f(1)
"""


def must_raise(kind: str) -> list[object]:
    """Tests of each kind that pass where f(1) raises what `except kind` catches, and nothing else."""
    lines = ["try:", "    f(1)", f"except {kind}:", "    pass", "else:", "    assert False"]
    check = "def check(f):\n" + "".join(f"    {line}\n" for line in lines)
    return [
        ["\n".join(lines)],
        {"test": check, "entry_point": "f"},
        {"test": RAISING.format(kind=kind)},
    ]


@pytest.mark.parametrize(
    ("kind", "program"),
    [
        ("ValueError", "class E(ValueError): pass\ndef f(x): raise E('x')"),
        ("ArithmeticError", "class E(ZeroDivisionError): pass\nclass F(E): pass\ndef f(x): raise F('x')"),
        ("OSError", "def f(x): open('/no/such/file')"),
        ("FileNotFoundError", "def f(x): open('/no/such/file')"),
        ("ValueError", "def f(x): b'\\xff'.decode()"),
        ("ValueError", "import json\ndef f(x): json.loads('{')"),
        ("SystemExit", "import sys\ndef f(x): sys.exit(0)"),
        ("Exception", "class E(Exception): pass\ndef f(x): raise E('x')"),
        ("Exception", "class E(StopIteration): pass\ndef f(x): raise E('x')"),
        ("BaseException", "class E(BaseException): pass\ndef f(x): raise E('x')"),
    ],
)
def test_a_test_sees_what_python_would_catch(kind, program):
    for gold in must_raise(kind):
        assert judge(fenced(program), gold).reward == 1.0


def test_a_test_sees_the_message_of_an_exception():
    gold = ["try:\n    f(1)\nexcept Exception as failure:\n    assert str(failure) == 'x', str(failure)"]
    for kind in ("Exception", "ValueError", "type('E', (RuntimeError,), {})"):
        assert judge(fenced(f"def f(x): raise {kind}('x')"), gold).reward == 1.0


@pytest.mark.parametrize(
    ("kind", "program", "reason"),
    [
        # Not of the class that it is named like, or that it puts in the place of Python's.
        ("ValueError", "def f(x): raise type('ValueError', (Exception,), {})('x')", "ProgramError: ValueError: x"),
        (
            "ValueError",
            "import builtins\nclass E(Exception): pass\nE.__name__ = 'ValueError'\nbuiltins.ValueError = E\n"
            "def f(x): raise E('x')",
            "ProgramError: ValueError: x",
        ),
        ("ValueError", "class E(KeyError): pass\ndef f(x): raise E('x')", "KeyError"),
        # What `except Exception` doesn't catch.
        ("Exception", "import sys\ndef f(x): sys.exit(0)", "SystemExit: 0"),
        ("Exception", "def f(x): raise KeyboardInterrupt('x')", "KeyboardInterrupt: x"),
        ("Exception", "class E(SystemExit): pass\ndef f(x): raise E('x')", "SystemExit: x"),
        ("Exception", "class E(BaseException): pass\ndef f(x): raise E('x')", "BaseException: x"),
        # What raises nothing, however it is caught.
        *(
            (kind, program, reason)
            for kind in ("Exception", "BaseException")
            for program, reason in (
                ("def f(x): return object()", "type object, which is no plain data"),
                ("def f(x): return f", "type function, which is no plain data"),
                ("def f(x):\n    x = []\n    x.append(x)\n    return x", "cannot be sent"),
                ("def g(x): return 1", "the program defines no 'f'"),
            )
        ),
    ],
)  # fmt: skip
def test_a_test_that_something_is_raised_fails_where_python_would_raise_nothing_of_it(kind, program, reason):
    for gold in must_raise(kind):
        for reward in ("all", "fraction"):
            verdict = judge(fenced(program), gold, reward=reward)
            assert (verdict.reward, verdict.error) == (0.0, None), verdict
            assert reason in verdict.reason


def test_what_cannot_be_sent_fails_one_test_or_assertion_alone():
    program = fenced("def f(x):\n    if x == 3: raise SystemExit\n    return object() if x == 2 else x")
    caught = "try:\n    f(2)\nexcept:\n    pass"
    assert judge(program, [caught, "assert f(1) == 1"], reward="fraction").reward == 1 / 2
    check = "def check(f):\n    assert f(2)\n    assert f(3)\n    assert f(1)\n    assert f(4)"
    assert judge(program, {"test": check, "entry_point": "f"}, reward="fraction").reward == 2 / 4
    # An assertion by a helper that catches it has not held.
    helped = "def raises(f):\n    try: f(2)\n    except BaseException: return True\ndef check(f):\n    assert raises(f)"
    assert judge(program, {"test": helped, "entry_point": "f"}, reward="fraction").reward == 0.0


@pytest.mark.parametrize(
    ("gold", "faulty"),
    [
        ({"test": "def check(candidate): pass", "entry_point": "f"}, True),
        ({"test": "def check(candidate):\n    candidate(1) == 1", "entry_point": "f", "prompt": "def f(x):\n"}, True),
        (["f(1)==1"], True),
        ({"test": "import unittest\nclass TestF(unittest.TestCase):\n    def test_f(self):\n        f(1)"}, True),
        ({"test": "print(f(1))"}, True),
        (["f(1)==1", "assert f(2) == 2"], False),
        ({"assertions": ["same(f(1), 1)"], "setup": "def same(a, b):\n    assert a == b"}, False),
        ({"test": "def test_f():\n    if f(1) != 1: raise ValueError"}, False),
        ({"test": "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertTrue(f(1))"}, False),
        (["import math; math.isclose(f(1), 1) or exit(1)"], False),
        ({"test": "def check(f):\n    assert f(1) == 1", "entry_point": "f"}, False),
        ({"inputs": ["1"], "outputs": ["1"]}, False),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [1]}, False),
    ],
)
def test_tests_that_assert_nothing_are_a_fault_of_the_gold_answer(gold, faulty):
    fault = code.read_gold(Submission("", json.dumps(gold))).fault
    assert fault == ("has no test that asserts anything, so that any program passes" if faulty else "")


def test_no_test_can_catch_that_it_is_faulty_itself():
    verdict = judge(fenced("def f(x): return x"), ["try:\n    f(object())\nexcept:\n    pass"])
    assert verdict.reward is None
    assert "the tests cannot be run" in verdict.error


@pytest.mark.parametrize(
    ("body", "share"),
    [
        # However long the list is that the program returns, it is one answer.
        ("for x in f(3):\n    assert x > 0\nassert f(4) == 4\nassert f(5) == 5", 1 / 3),
        ("r = f(3)\nfor x in r:\n    assert x > 0\n    assert x < 0\nassert f(4) == 4", 1 / 3),
        ("for i in range(len(f(3))):\n    assert f(3)[i] == 1\nassert f(4) == 4", 1 / 2),
        # Even one that fails at its end has not passed two hundred times before.
        ("for x in f(-3):\n    assert x > 0\nassert f(4) == 4", 0),
        # What it makes the tests ask is worth no more than one assertion that stands alone.
        ("for i, _ in enumerate(f(3)):\n    assert f(i)\nassert f(4) == 4", 1 / 2),
        # The tests' own cases count one by one.
        ("for n in range(4):\n    assert f(n) == ([1] * 199 if n < 3 else 3)", 3 / 4),
    ],
)  # fmt: skip
def test_a_program_cannot_make_its_share_larger_by_what_it_returns(body, share):
    program = (
        "def f(n):\n    return [1] * 199 + [-1] * (n < 0)" if "enumerate" not in body else "def f(n): return [1] * 99"
    )
    test = "def check(f):\n" + "\n".join(f"    {line}" for line in body.splitlines())
    assert judge(fenced(program), {"test": test, "entry_point": "f"}, reward="fraction").reward == share


def test_after_a_time_out_of_one_input_the_other_inputs_still_count():
    gold = {"inputs": ["1", "2", "3"], "outputs": ["1", "2", "3"]}
    program = "x = input()\nwhile x == '2': pass\nprint(x)"
    verdict = judge(fenced(program), gold, reward="fraction", test_seconds=3.0)
    assert verdict.reward == pytest.approx(2 / 3)
    assert verdict.reason == "2 of 3 tests passed; test 2: timed out after 3 s"


def test_all_tests_share_a_time_limit_too():
    gold = {"inputs": [str(n) for n in range(20)], "outputs": ["x"] * 20}
    program = "import time\ntime.sleep(0.4)\nprint('x')"
    verdict = judge(fenced(program), gold, reward="fraction", total_seconds=3.0)
    assert 0 < verdict.reward < 0.5
    assert "timed out after 3 s in all" in verdict.reason


def test_shown_tests_may_be_left_out_of_the_reward_and_both_kinds_are_logged():
    memorised = fenced("def add(a, b):\n    return {(1, 2): 3, (3, 4): 7}.get((a, b))")
    for gold, options in ((ADD, {"shown_share": 0.5}), ({**ADD, "shown": 2}, {})):
        verdict = judge(memorised, gold, reward="fraction", graded="held_out", **options)
        assert verdict.reward == 0.0
        assert verdict.parts == {"shown": 1.0, "held_out": 0.0}
        assert judge(memorised, gold, reward="fraction", **options).reward == 0.5
        assert judge(RIGHT, gold, graded="held_out", **options).parts == {"shown": 1.0, "held_out": 1.0}
    assert judge(RIGHT, ADD).parts == {}


def test_one_test_at_least_is_held_out():
    assert shown_tests(read_suite(json.dumps({**ADD, "shown": 9})), CodeOptions()) == 3
    assert shown_tests(read_suite(json.dumps(ADD)), CodeOptions(shown_share=0.6)) == 2


def test_reward_runtime_is_the_clipped_speed_up_of_right_programs(monkeypatch):
    slow = "import time\ndef add(a, b):\n    time.sleep(0.1)\n    return a + b"
    fast = "def add(a, b):\n    return a + b"
    timed = {"reward": "runtime"}
    monkeypatch.setattr(code, "_LEAST", 0.25)
    assert judge(fenced(slow), {**ADD, "reference": fast}, **timed).reward == 0.25
    verdict = judge(fenced(fast), {**ADD, "reference": slow}, **timed)
    assert verdict.reward == 1.0
    assert "times as fast as the reference" in verdict.reason
    assert judge(HALF_RIGHT, {**ADD, "reference": fast}, **timed).reward == 0.0
    assert judge(fenced(fast), {**ADD, "reference": fast}, **timed).reward == 1.0
    assert "no reference solution" in judge(RIGHT, ADD, **timed).error
    assert "the reference solution fails" in judge(RIGHT, {**ADD, "reference": "1 / 0"}, **timed).error


def test_the_speed_up_is_that_of_the_medians_of_runs_that_take_turns(monkeypatch):
    seconds = {"ours": iter([2.0, 9.0, 1.0]), "theirs": iter([1.0, 1.0, 5.0])}

    def reported(program, suite, *args, **kwargs) -> Report:
        return Report((True,) * 4, "", next(seconds["theirs" if program == suite.reference else "ours"]))

    monkeypatch.setattr(code, "run_suite", reported)
    verdict = judge(RIGHT, {**ADD, "reference": "the same"}, reward="runtime", runtime_target=2.0)
    assert verdict.reward == 1.0 / 2.0 / 2.0
    assert "0.50 times as fast as the reference" in verdict.reason


@pytest.mark.parametrize(
    ("gold", "answer"),
    [(ADD, "def add(a, b):\n    return a + b"), ({"inputs": ["1"], "outputs": ["1"]}, "print(input())")],
)
def test_what_happens_while_a_program_is_loaded_is_timed_too(gold, answer):
    suite = read_suite(json.dumps(gold))
    options = CodeOptions(test_seconds=60.0, total_seconds=120.0)
    report = run_suite(f"import time\ntime.sleep(1.5)\n{answer}", suite, suite.tests, options, open_sandbox())
    assert all(report.passed)
    assert report.seconds >= 1.5


# Processes that something kills


VICTIMS = [(role, depth) for role in ("program", "tester") for depth in range(3)]


def killing(monkeypatch, backend: Backend, role: str, depth: int, times: int) -> list[int]:
    """Kills a process of a sandbox when its tests begin, in so many runs; returns whom, as it goes on."""
    monkeypatch.setattr(code, "open_sandbox", lambda unsafe_code: backend)
    killed: list[int] = []
    real = runner._TimeKeeper.begin_test

    def begin_test(keeper, number: int) -> None:
        if not keeper.test and len(killed) < times:
            process = keeper.processes[role == "tester"]
            for _ in range(depth):
                (process, *_) = children_of(process) or [0]
            if process:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
        real(keeper, number)

    starts = runner._start

    def start(name, *arguments):
        running = starts(name, *arguments)
        if name == "program":
            runner._TimeKeeper.processes = []
        runner._TimeKeeper.processes.append(running.process.pid)
        return running

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(runner._TimeKeeper, "processes", [], raising=False)
    monkeypatch.setattr(runner._TimeKeeper, "begin_test", begin_test)
    return killed


# Long enough for what is killed to be gone before it has passed.
SLOW_TO_LOAD = fenced("import time\ntime.sleep(1)\ndef add(a, b):\n    return a + b")


@pytest.mark.parametrize(("role", "depth"), VICTIMS)
def test_who_kills_a_sandbox_from_outside_makes_no_program_wrong(monkeypatch, backend, role, depth):
    if depth == 2 and backend.name == "landlock":
        pytest.skip("it has two processes")
    killed = killing(monkeypatch, backend, role, depth, times=1)
    assert judge(SLOW_TO_LOAD, ADD).reward == 1.0
    assert len(killed) == 1


def test_tests_that_are_killed_again_are_an_error_of_the_verifier(monkeypatch, backend):
    depth = {"bubblewrap": 2, "landlock": 1}[backend.name]
    killed = killing(monkeypatch, backend, "tester", depth, times=2)
    verdict = judge(SLOW_TO_LOAD, ADD)
    assert (verdict.reward, verdict.caused_by) == (None, "verifier")
    assert verdict.error == "the sandbox failed: something killed the tests"
    assert len(killed) == 2


def test_a_program_that_is_killed_again_did_it_itself(monkeypatch, backend):
    depth = {"bubblewrap": 2, "landlock": 1}[backend.name]
    killing(monkeypatch, backend, "program", depth, times=2)
    assert judge(SLOW_TO_LOAD, ADD).reward == 0.0
    itself = "import os\nprint(1)\nos.kill(os.getpid(), 9)"
    assert judge(fenced(itself), {"inputs": ["1"], "outputs": ["1"]}).reward == 0.0


def test_standard_input_is_real_and_so_is_the_end_of_the_program():
    fast_io = (
        "import atexit, io, os, sys, threading\n"
        "data = os.read(0, os.fstat(0).st_size)\n"
        "out = io.StringIO()\n"
        "atexit.register(lambda: os.write(1, out.getvalue().encode()))\n"
        "threading.Thread(target=lambda: out.write(str(len(data)))).start()\n"
        "if __name__ == '__main__': sys.exit(0)"
    )
    big = "x" * 300_000
    assert judge(fenced(fast_io), {"inputs": [big, "ab"], "outputs": ["300000", "2"]}).reward == 1.0
    echo = "import sys\nsys.stdout.write(sys.stdin.read())"
    assert judge(fenced(echo), {"inputs": [big], "outputs": [big]}).reward == 1.0
    assert judge(fenced("print(1)"), {"inputs": [big], "outputs": ["1"]}).reward == 1.0, "it need not read its input"


def test_runs_do_not_see_what_earlier_ones_left_in_memory():
    program = "import sys\nsys.count = getattr(sys, 'count', 0) + 1\nprint(sys.count)"
    assert judge(fenced(program), {"inputs": [""] * 3, "outputs": ["1"] * 3}).reward == 1.0


def test_sets_have_the_same_order_every_time():
    gold = {"inputs": ["", ""], "outputs": ["x", "x"]}
    reasons = {judge(fenced("import sys; sys.exit(str(list(set('abcdefgh'))))"), gold).reason for _ in range(3)}
    assert len(reasons) == 1


def test_a_batch_keeps_its_order_and_errors_stay_with_their_items():
    given = [Submission(fenced(f"def add(a, b):\n    return a + b + {n % 3}"), json.dumps(ADD)) for n in range(6)]
    given[4] = Submission(RIGHT, "no tests")
    verdicts = code.grade(given, Tools(VerificationConfig(workers=3, code=CodeOptions(test_seconds=60.0))))
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0, 1.0, None, 0.0]
    assert code.grade([], Tools()) == []


def test_a_sandbox_that_fails_is_an_error_and_no_wrong_answer(monkeypatch):
    broken = replace(BACKENDS["none"], confine=lambda *_: Confinement(("/nonexistent",), {"user": None}))
    monkeypatch.setattr(code, "open_sandbox", lambda unsafe_code: broken)
    verdict = judge(RIGHT, ADD)
    assert verdict.reward is None
    assert verdict.error.startswith("the sandbox failed: it could not be started")
    assert verdict.caused_by == "verifier"
    program_only = itertools.cycle([BACKENDS["none"].confine, broken.confine])
    half = replace(broken, confine=lambda *given: next(program_only)(*given))
    monkeypatch.setattr(code, "open_sandbox", lambda unsafe_code: half)
    assert judge(RIGHT, ADD).reward is None


def test_without_a_sandbox_the_run_does_not_begin(monkeypatch):
    def refused(unsafe_code: bool) -> None:
        raise ConfigError(f"unsafe_code is {unsafe_code}")

    monkeypatch.setattr(code, "open_sandbox", refused)
    with pytest.raises(ConfigError, match="unsafe_code is False"):
        code.prepare(Tools())
    with pytest.raises(ConfigError, match="unsafe_code is True"):
        judge(RIGHT, ADD, unsafe_code=True)


def test_verdicts_from_several_threads():
    results: list[float | None] = []

    def work() -> None:
        results.extend(judge(response, ADD).reward for response in (RIGHT, HALF_RIGHT))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0.0] * 3 + [1.0] * 3


def test_the_reference_solution_is_a_response():
    gold = json.dumps({**ADD, "reference": "def add(a, b):\n    return a + b"})
    response = code.reference(Submission("", gold))
    assert judge(response, gold).reward == 1.0
    assert code.reference(Submission("", json.dumps(ADD))) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_seconds": 0}, "verification.code.test_seconds is 0"),
        ({"total_seconds": float("nan")}, "verification.code.total_seconds is nan"),
        ({"shown_share": 1.0}, r"must be in \[0, 1\)"),
        ({"memory_mb": 10}, "verification.code.memory_mb is 10, but must be at least 64"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_run(options, message):
    with pytest.raises(ConfigError, match=message):
        verify("", json.dumps(ADD), "code", options=VerificationConfig(code=CodeOptions(**options)))


def test_a_function_named_like_one_of_pythons_is_the_programs_where_the_reference_says_so():
    tests = {"assertions": ["assert sum(10, 15) == 6", "assert len([sum(3, 5)]) == 1"]}
    solution = "def sum(a, b):\n    return {(10, 15): 6}.get((a, b), 1)"
    assert judge(fenced(solution), {**tests, "reference": solution}).reward == 1.0
    # What the reference doesn't define stays Python's: a program can't bring an abs of its own to the tests.
    tests = {"assertions": ["assert abs(f(1) - 5) < 1e-6"], "reference": "def f(x):\n    return 5"}
    assert judge(fenced("def abs(x):\n    return 0\ndef f(x):\n    return 7"), tests).reward == 0.0


@pytest.mark.parametrize("ending", ["exit()", "quit(0)", "import sys\nsys.exit()", "def g(): exit(0)\ng()"])
def test_a_whole_program_may_end_itself(ending):
    gold = {"inputs": ["3 4"], "outputs": ["7"]}
    assert judge(fenced(f"print(sum(map(int, input().split())))\n{ending}"), gold).reward == 1.0
    assert judge(fenced(f"{ending}\nprint(sum(map(int, input().split())))"), gold).reward == 0.0


def test_programs_have_pythons_own_rules_and_not_those_of_our_files():
    verdict = judge(fenced("def f(x: Missing):\n    return x"), {"fn_name": "f", "inputs": [[3]], "outputs": [3]})
    assert "'Missing' is not defined" in verdict.reason
    gold = {"inputs": [""], "outputs": ["<class 'int'>"]}
    assert judge(fenced("def f(x: int): pass\nprint(f.__annotations__['x'])"), gold).reward == 1.0


def test_output_up_to_the_limit_is_read_whatever_its_characters():
    gold = {"inputs": [""], "outputs": ["\x01" * 1_000_000]}
    assert judge(fenced("print('\\x01' * 1_000_000)"), gold).reward == 1.0


def test_unsafe_code_is_a_switch_of_every_command():
    given = parse(["demo", "--unsafe-code", "--steps", "3"], "usage", positional="RECIPE")
    assert given.positionals == ("demo",)
    assert given.overrides == ["--verification.code.unsafe_code=true", "--steps=3"]
    assert load_recipe("demo", given.overrides).verification.code.unsafe_code is True
