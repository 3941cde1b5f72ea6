"""Tests of programs in published rows: the column that holds them, and those beside it that say how to run them."""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from sppo.data.tasks.cells import Answers
from sppo.data.tasks.problem import Row, RowError, optional, plain, required

_REFERENCES = ("reference", "completion", "code")
"""Columns that hold a whole solution: of LeetCodeDataset and MBPP, beside our own."""
_LARGEST_TESTS = 2**30
"""Bytes of unpacked tests."""


def tests_of(row: Row, path: str) -> Answers:
    """Reads the tests in the column `path`, in any form that the verifier code knows, as one gold answer in JSON.

    Beside it are read, where they are there: entry_point, prompt (if it is code), fn_name or metadata.func_name,
    test_imports and test_setup_code, and a solution.
    """
    try:
        value = plain(required(row, path))
    except RowError as error:
        return Answers((), f"{error}, so the tests are missing")
    from sppo.verifiers.code.published import Unreadable, as_fields
    from sppo.verifiers.columns import as_struct  # heavy

    if not value:
        return Answers((), "the tests are missing")
    if optional(row, "generated_checker"):
        return Answers((), "the problem has several right outputs, which only its generated_checker knows")
    value = as_struct(value)
    try:
        if isinstance(value, str):
            value = as_struct(_unpacked(value)) if _is_packed(value) else {"test": value}
        fields = as_fields({"test_cases": value, **_function(row)} if isinstance(value, list) else value)
    except (Unreadable, RowError) as error:
        return Answers((), f"the tests in column {path!r} cannot be read: {error}")
    fields = {**_beside(row, fields), **fields}
    try:
        return Answers((json.dumps(fields),))
    except (TypeError, ValueError) as error:
        return Answers((), f"the tests in column {path!r} are no plain data: {error}")


def _function(row: Row) -> dict[str, Any]:
    """The name of the function that the tests call, where the row says it."""
    for name in ("fn_name", "metadata.func_name", "func_name"):
        found = optional(row, name)
        if isinstance(found, str) and found.strip():
            return {"fn_name": found.strip()}
    return {}


def _beside(row: Row, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the row's other columns say of its tests."""
    found: dict[str, Any] = {}
    if "test" in fields:
        entry_point, prompt = optional(row, "entry_point"), optional(row, "prompt")
        # Code that runs its own check, or defines functions that are tests, needs none.
        if isinstance(entry_point, str) and entry_point.strip() and "def check(" in fields["test"]:
            found["entry_point"] = entry_point.strip()
        if isinstance(prompt, str) and _is_code(prompt):
            found["prompt"] = prompt
    if "assertions" in fields:
        imports = plain(optional(row, "test_imports")) or []
        setup = "\n".join([*map(str, imports), str(optional(row, "test_setup_code") or "")]).strip()
        found |= {"setup": setup} if setup else {}
    reference = next((optional(row, name) for name in _REFERENCES if optional(row, name)), None)
    body, prompt = optional(row, "canonical_solution"), optional(row, "prompt")
    if reference is None and isinstance(body, str) and isinstance(prompt, str):
        reference = prompt + body
    if isinstance(reference, str) and _is_code(reference):
        found["reference"] = reference
    return found


def _is_code(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _is_packed(text: str) -> bool:
    """Whether this is LiveCodeBench's packing of private tests: base64 of zlib, which begins with its own two bytes."""
    return text.startswith("eJ") and " " not in text[:200]


class _TextAlone(pickle.Unpickler):
    """Unpickles what is made of plain data; whatever would look up a name, and so might run code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise RowError(f"they are pickled with {module}.{name}, which is no plain data")


def _unpacked(text: str) -> str:
    """LiveCodeBench's private tests, which are JSON within a pickle within zlib within base64."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text, validate=True), _LARGEST_TESTS)
        if unpacker.unconsumed_tail:
            raise RowError(f"unpacked, they are more than {_LARGEST_TESTS} bytes")
        value = _TextAlone(io.BytesIO(content)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise RowError(f"they look packed, but cannot be unpacked ({type(error).__name__}: {error})") from error
    if not isinstance(value, str):
        raise RowError(f"unpacked, they are of type {type(value).__name__}, not text")
    return value
