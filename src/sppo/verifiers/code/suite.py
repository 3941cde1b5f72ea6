"""The tests of one problem, as its gold answer holds them in JSON, in the schemas in which data sets publish them.

    {"inputs": ["3 4"], "outputs": ["7"]}                                   a whole program: standard input and output
    {"fn_name": "add", "inputs": [[3, 4]], "outputs": [7]}                  one function: arguments and value
    {"assertions": ["assert add(3, 4) == 7"], "setup": "import math"}       lines of test code (a bare list will do)
    {"test": "def check(candidate): ...", "entry_point": "add", "prompt": "def add(a, b): ..."}          HumanEval's
    {"test": "from solution import add\ndef test_add(): ..."}                   functions test..., or unittest's classes

published.py brings other forms into these. Each may have `reference`, a solution that passes; `shown`, how many of the
first tests the prompt shows; and `tolerance` for numbers (absolute, or relative where the expected number is larger
than 1; none if absent).
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sppo.verifiers.code.published import Unreadable, as_fields, names_of_tests

Style = Literal["input", "call", "assertions", "check", "functions"]


class SuiteError(Exception):
    """A gold answer that holds no tests that can be run."""


@dataclass(frozen=True)
class Suite:
    """The tests of one problem."""

    style: Style
    tests: list[Any] | str
    """Pairs of given and expected, lines of test code, names of tests that the setup defines, or the code that defines
    `check`."""
    function: str = ""
    """What is called, where it is one function."""
    setup: str = ""
    """Code that runs before the tests."""
    prelude: str = ""
    """Code that runs before the program: imports and helpers that the prompt gives."""
    reference: str | None = None
    """A solution that passes."""
    shown: int | None = None
    """How many of the first tests the prompt shows; None: the data doesn't say."""
    tolerance: float = 0.0
    """How far numbers may be off."""
    wrapped: bool = False
    """Every expected value is a list of one, as some published sets wrap it: the value in it will do, too."""

    @property
    def defined(self) -> list[str]:
        """Names of the functions that the reference solution defines."""
        return re.findall(r"^(?:async )?def (\w+)", self.reference or "", re.MULTILINE)

    @property
    def count(self) -> int:
        """How many tests there are; a check function is one."""
        return 1 if isinstance(self.tests, str) else len(self.tests)


def read_suite(gold: str | None) -> Suite:
    """Reads a gold answer.

    Raises:
        SuiteError: says what is missing or wrong.
    """
    try:
        value = json.loads(gold or "")
    except (ValueError, RecursionError) as failure:
        raise SuiteError(f"the gold answer is no JSON ({failure})") from None
    try:
        return _suite(as_fields(value))
    except Unreadable as failure:
        raise SuiteError(str(failure)) from None


def _suite(fields: Mapping[str, Any]) -> Suite:
    common = {
        "reference": _text(fields, "reference") or None,
        "shown": _number(fields, "shown", int),
        "tolerance": _number(fields, "tolerance", float) or 0.0,
    }
    if "inputs" in fields or "outputs" in fields:
        return _pairs(fields, common)
    if "assertions" in fields:
        lines = fields["assertions"]
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise SuiteError("`assertions` must be a list of lines of code")
        return Suite("assertions", lines, setup=_text(fields, "setup"), **common)
    if "test" in fields:
        return _code(fields, common)
    known = "inputs and outputs, assertions, or test"
    raise SuiteError(f"the gold answer has no tests: it has {', '.join(fields) or 'nothing'}, but not {known}")


def _code(fields: Mapping[str, Any], common: dict[str, Any]) -> Suite:
    """Code of tests: a function `check` for the entry point, functions that are tests, or lines that are one test."""
    test, prompt = _text(fields, "test"), _completed(_text(fields, "prompt"))
    if not test:
        raise SuiteError("`test` must be code that defines check(candidate), functions test... or unittest's classes")
    if _text(fields, "entry_point"):
        # LeetCode's entry points are "Solution().name".
        function = fields["entry_point"].removeprefix("Solution().")
        return Suite("check", test, function, setup=prompt, prelude=prompt, **common)
    setup = "\n".join(filter(None, (prompt, _text(fields, "setup"))))
    names = names_of_tests(test)
    if names:
        return Suite("functions", names, setup=f"{setup}\n{test}", prelude=prompt, **common)
    return Suite("assertions", [test], setup=setup, prelude=prompt, **common)


def _completed(prompt: str) -> str:
    """Returns the code of a prompt, with `pass` where it ends before the body of its stub; comments are none.

    Raises:
        SuiteError: it is not Python all the same.
    """
    last = ([""] + [line for line in prompt.splitlines() if not re.fullmatch(r"\s*(#.*)?", line)])[-1]
    indentation = last[: len(last) - len(last.lstrip())]
    for source in (prompt, f"{prompt.rstrip()}\n{indentation}    pass\n"):
        try:
            ast.parse(source)
            return source
        except IndentationError as failure:
            said = failure
        except (SyntaxError, ValueError, RecursionError, MemoryError) as failure:
            raise SuiteError(f"`prompt` cannot be compiled: {failure}") from None
    raise SuiteError(f"`prompt` cannot be compiled: {said}")


def _pairs(fields: Mapping[str, Any], common: dict[str, Any]) -> Suite:
    inputs, outputs = fields.get("inputs"), fields.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise SuiteError("`inputs` and `outputs` must be lists of the same length, of at least one")
    name = _text(fields, "fn_name")
    if not name:
        pairs = [(_whole(given), _whole(expected)) for given, expected in zip(inputs, outputs, strict=True)]
        return Suite("input", pairs, **common)
    arguments = [_arguments(given) for given in inputs]
    if isinstance(inputs[0], str):
        values, wrapped = [_from_text(str(expected)) for expected in outputs], False
    else:
        values, wrapped = outputs, all(isinstance(value, list) and len(value) == 1 for value in outputs)
    return Suite("call", list(zip(arguments, values, strict=True)), name, wrapped=wrapped, **common)


def _whole(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise SuiteError(f"without `fn_name`, inputs and outputs are text, not {type(value).__name__}")
    return value


def _arguments(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [_from_text(line) for line in given.splitlines() if line.strip()]
    if not isinstance(given, list):
        raise SuiteError(f"with `fn_name`, each input is a list of arguments, not {type(given).__name__}")
    return given


def _from_text(text: str) -> Any:
    """Reads JSON within JSON, as some published sets have it; what is none is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise SuiteError(f"`{name}` must be text, not {type(value).__name__}")
    return value


def _number(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value: Any = fields.get(name)
    if value is None:
        return None
    known = isinstance(value, int) or (kind is float and isinstance(value, float))
    if isinstance(value, bool) or not known or not math.isfinite(value) or value < 0:
        raise SuiteError(f"`{name}` must be a number that is not negative; it is {value!r}")
    return value
