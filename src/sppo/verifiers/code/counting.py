"""Makes each assertion of test code count on its own, for the fraction of a check function that passes."""

from __future__ import annotations

import ast
from types import CodeType


class _Count(ast.NodeTransformer):
    """Writes `assert x` as: try: assert x; except BaseException as failure: note(n, failure); else: note(n, None)."""

    def __init__(self) -> None:
        self.places = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        self.places += 1
        place = ast.Constant(self.places)

        def note(what: ast.expr) -> ast.stmt:
            return ast.Expr(ast.Call(ast.Name("__note__", ast.Load()), [place, what], []))

        failed = note(ast.Name("__failure__", ast.Load()))
        handler = ast.ExceptHandler(type=ast.Name("BaseException", ast.Load()), name="__failure__", body=[failed])
        counted = ast.Try(body=[node], handlers=[handler], orelse=[note(ast.Constant(None))], finalbody=[])
        return ast.copy_location(counted, node)


def count_assertions(source: str) -> CodeType:
    """Compiles test code that calls `__note__` for each assertion it comes to, with its number and what it raised.

    Raises:
        SyntaxError: it is not Python.
    """
    return compile(ast.fix_missing_locations(_Count().visit(ast.parse(source))), "tests.py", "exec", dont_inherit=True)
