"""Tests as data sets publish them, brought into the schemas that suite.py reads.

    [{"input": "3 4", "output": "7"}]                  LiveCodeBench, Codeforces; with "testtype" or "type" functional
    {"test_cases": [{"input": ..., "output": ...}]}    verification_info, with "fn_name" where a function is called
    {"input": ["3 4"], "output": ["7"]}                CodeContests
    {"test_list": ["assert ..."], "test_setup_code": ..., "test_imports": [...]}                                   MBPP
    {"functional": "def check(candidate): ...\ncheck(Solution().add)"}                                     code of tests

APPS' and TACO's {"inputs": ..., "outputs": ..., "fn_name": ...} is one of suite.py's own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sppo.verifiers.columns import as_struct

_CALLED = ("functional", "function_call", "call_based")
"""Values of testtype or type that say that a function is called."""

SITE_PRELUDE = """
import bisect, collections, datetime, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from string import *
from typing import *
inf = float("inf")

class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
"""
"""What a program of a class Solution finds there, as on the site where such problems come from."""


_QUIET = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
"""Statements that cannot fail a program."""


_ASSERTS = re.compile("assert|fail|raise|warn|expect|verify|equal|exit", re.IGNORECASE)
"""In names of functions that find a value wrong."""


class Unreadable(ValueError):
    """Tests in no form that is known; says why."""


def as_fields(value: Any) -> dict[str, Any]:
    """Returns tests in any published form as the fields of one of suite.py's schemas.

    Raises:
        Unreadable: says what was found.
    """
    value = as_struct(value)
    if isinstance(value, list):
        if value and all(isinstance(case, Mapping) and {"input", "output"} <= case.keys() for case in value):
            return _pairs(value, None)
        return {"assertions": value}
    if not isinstance(value, Mapping):
        raise Unreadable(f"the gold answer is a JSON {type(value).__name__}, not an object with tests")
    fields = {name: cell for name, cell in value.items() if cell is not None}
    for name in ("test_cases", "tests"):
        if name in fields:
            cases = as_struct(fields.pop(name))
            listed = isinstance(cases, list) and cases and isinstance(cases[0], Mapping)
            return {**fields, **(_pairs(cases, fields.get("fn_name")) if listed else as_fields(cases))}
    if "test_list" in fields:
        imports = fields.get("test_imports") or []
        setup = "\n".join([*imports, fields.get("test_setup_code") or ""]).strip()
        return {**fields, "assertions": fields["test_list"], "setup": setup}
    if "functional" in fields:
        return {**fields, "test": fields["functional"]}
    if "input" in fields and "output" in fields and "inputs" not in fields:
        given, expected = fields["input"], fields["output"]
        both = isinstance(given, list) and isinstance(expected, list)
        return {**fields, "inputs": given if both else [given], "outputs": expected if both else [expected]}
    return fields


def _pairs(cases: Sequence[Mapping[str, Any]], function: Any) -> dict[str, Any]:
    """Inputs and outputs of a list of cases, which all call one function or none."""
    kinds = {case.get("testtype", case.get("type")) for case in cases}
    names = {_called(case) or function for case in cases}
    called = [kind in _CALLED for kind in kinds]
    if len(names) > 1 or (any(called) and not all(called)):
        raise Unreadable("some of its tests call a function and others don't, or another one")
    (name,) = names
    if any(called) and not name:
        raise Unreadable("its tests call a function, but nothing says which: there is no fn_name")
    fields = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    return {**fields, "fn_name": name} if name and (any(called) or kinds == {None}) else fields


def _called(case: Mapping[str, Any]) -> Any:
    metadata = as_struct(case.get("metadata"))
    return case.get("fn_name") or (metadata.get("func_name") if isinstance(metadata, Mapping) else None)


def names_of_tests(source: str) -> list[str]:
    """Returns the names of a module's tests: functions test..., and Class.test... of classes that have such methods.

    Without any, running the module is the one test.

    Raises:
        Unreadable: it is not Python, has a test that only pytest could call, or tests nothing.
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as failure:
        raise Unreadable(f"the tests cannot be compiled: {failure}") from None
    names = []
    for node in module.body:
        names += _tests_of([node], arguments=0)
        if isinstance(node, ast.ClassDef):
            names += [f"{node.name}.{name}" for name in _tests_of(node.body, arguments=1)]
    if not names and all(isinstance(node, _QUIET) or _is_text(node) for node in module.body):
        raise Unreadable(
            "the tests test nothing: they have no function test..., no class with such methods, and no line that is "
            "run; if they define check(candidate), entry_point must say of which function"
        )
    return names


def asserts_nothing(source: str) -> bool:
    """Whether test code has nothing that looks as if it could find a value wrong; code that is no Python does not."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names = [getattr(node.func, "attr", getattr(node.func, "id", "")) for node in nodes if isinstance(node, ast.Call)]
    return not any(isinstance(node, ast.Assert | ast.Raise) for node in nodes) and not any(map(_ASSERTS.search, names))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _tests_of(body: Sequence[ast.stmt], arguments: int) -> list[str]:
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    for node in functions:
        needed = len(node.args.posonlyargs + node.args.args) - len(node.args.defaults)
        if needed > arguments:
            raise Unreadable(f"the test {node.name} takes arguments, which only pytest could give")
    return [node.name for node in functions]
