"""Runs a program against tests: two sandboxes that are started together and talk over two pipes of their own."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sppo.config.verification import CodeOptions
from sppo.verifiers.code.published import SITE_PRELUDE
from sppo.verifiers.code.suite import Suite, SuiteError
from sppo.verifiers.code.wire import NotPlain, from_line
from sppo.verifiers.sandbox import Backend, Job, Limits, Running, SandboxError, code_of
from sppo.verifiers.sandbox.process import TICK, memory_file

_REPLY_BYTES = 4 * 2**20
_REPLY_BYTES_A_BYTE = 6
"""Most that JSON needs to say one byte of output."""
_RESULT_BYTES = 2**20
_TESTER_MEMORY_MB = 1024
# What a program may use beside its options: more than the tests of any known data set ask for, and little to a machine.
_PROCESSES = 16
_DISK_MB = 16
_OUTPUT_BYTES = 2**20
_START_SECONDS = 20.0
"""Time to start both sandboxes on a busy machine; the clock of the tests begins when they stand."""
_OF_THE_SITE = re.compile(r"^class Solution\b", re.MULTILINE)
_HERE = "sppo.verifiers.code"


@dataclass(frozen=True)
class Report:
    """How a program did."""

    passed: tuple[bool, ...]
    """One for each test; those that were not run any more are missing. A counted check function's assertions."""
    reason: str
    """Why the first test failed; empty if none did."""
    seconds: float
    """Time that the program took to answer, without the start of either sandbox and without loading it."""


def run_suite(
    program: str,
    suite: Suite,
    tests: Sequence[Any] | str,
    options: CodeOptions,
    backend: Backend,
    *,
    every_test: bool = False,
) -> Report:
    """Runs tests of a suite against a program.

    Args:
        program: its source.
        suite: says how the tests are run.
        tests: those of its tests to run, in order.
        options: what the program may use, over all its tests.
        backend: the sandbox.
        every_test: don't stop at the first failure, and count each assertion of a check function.

    Raises:
        SandboxError: a sandbox failed.
        SuiteError: the tests themselves cannot be run.
    """
    wall = options.total_seconds + _START_SECONDS
    inputs = [given for given, _ in suite.tests] if suite.style == "input" else []  # type: ignore[str-unpack]
    packages = os.path.realpath(os.path.expanduser(options.packages)) if options.packages else ""
    printed = _REPLY_BYTES_A_BYTE * (_OUTPUT_BYTES + 2**16) if suite.style == "input" else 0
    # Standard input is a file, and a character is up to 4 bytes of it.
    disk_mb = max(_DISK_MB, max(map(len, inputs), default=0) * 4 // 2**20 + 1)
    limits = Limits(options.total_seconds, wall, options.memory_mb, _PROCESSES, disk_mb)
    trusted = Limits(wall, wall, max(_TESTER_MEMORY_MB, options.memory_mb), _PROCESSES, disk_mb)
    with _Pipes() as pipes, memory_file(b"") as scratch:
        (ask_read, ask_write), (reply_read, reply_write), (result_read, result_write) = (pipes.make() for _ in range(3))
        common = {"time_limit": options.test_seconds, "style": suite.style, "function": suite.function}
        program_settings = common | {
            "requests": ask_read, "replies": reply_write, "input": scratch.fileno(), "source": program,
            "prelude": _prelude(program, suite), "output_bytes": _OUTPUT_BYTES,
        }  # fmt: skip
        tester_settings = common | {
            "requests": ask_write, "replies": reply_read, "result": result_write,
            "reply_bytes": max(_REPLY_BYTES, printed), "defined": suite.defined,
            "tests": tests if isinstance(tests, str) else list(tests), "setup": suite.setup,
            "tolerance": suite.tolerance, "wrapped": suite.wrapped, "start_seconds": _START_SECONDS,
            "total_seconds": options.total_seconds, "stop_at_failure": not every_test,
            "count_assertions": every_test,
        }  # fmt: skip
        program_channels = (ask_read, reply_write, scratch.fileno())
        with (
            _start("program", program_settings, program_channels, limits, backend, packages) as running,
            _start(
                "tester", tester_settings, (ask_write, reply_read, result_write), trusted, backend, packages
            ) as tester,
        ):
            pipes.close(ask_read, ask_write, reply_read, reply_write, result_write)
            line, ending = _result(result_read, running, tester)
            if running.lost() or tester.lost():
                raise SandboxError("something outside killed it")
            return _report(line, ending, tester)


def _prelude(program: str, suite: Suite) -> str:
    """Code that runs before the program."""
    if suite.style != "input" and _OF_THE_SITE.search(program):
        return f"{SITE_PRELUDE}\n{suite.prelude}"
    return suite.prelude


class _Pipes:
    """Pipes whose ends are closed at the latest when the block is left."""

    def __init__(self) -> None:
        self.opened: set[int] = set()

    def make(self) -> tuple[int, int]:
        reading, writing = os.pipe()
        self.opened |= {reading, writing}
        return reading, writing

    def close(self, *numbers: int) -> None:
        for number in numbers:
            self.opened.remove(number)
            os.close(number)

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*self.opened)


def _start(
    name: str, settings: dict[str, Any], channels: tuple[int, ...], limits: Limits, backend: Backend, packages: str
) -> Running:
    modules = ["wire", *(("comparison", "counting") if name == "tester" else ())]
    job = Job(
        code_of(f"{_HERE}.{name}"),
        modules={f"{_HERE}.{module}": code_of(f"{_HERE}.{module}") for module in modules},
        variables={"SETTINGS": settings},
        packages=packages,
        channels=channels,
    )
    nothing = subprocess.DEVNULL
    return Running(job, backend, limits, nothing, nothing, nothing)


def _result(pipe: int, running: Running, tester: Running) -> tuple[bytes, str]:
    """Returns what the tester said, and why it was not waited for any longer, if it was not."""
    line = b""
    while True:
        left = tester.deadline - time.monotonic()
        if left <= 0:
            return line, "timed out"
        if select.select([pipe], [], [], min(left, TICK))[0]:
            chunk = os.read(pipe, _RESULT_BYTES)
            line += chunk
            if not chunk or b"\n" in chunk:
                return line, ""
        elif running.over_memory():
            return line, "too much memory"
        elif tester.over_memory():
            return line, "the program returned too much data"


def _report(line: bytes, ending: str, tester: Running) -> Report:
    result = None
    if not ending:
        try:
            result = from_line(line)
        except NotPlain:
            # Only what the program returned can have ended them, if they were there at all.
            ending = "the tests broke off on what the program returned"
    if result is None:
        tester.kill()
        if not tester.entered():
            raise SandboxError("the sandbox of the tests did not start")
        return Report((False,), ending, 0.0)
    if not result["started"]:
        raise SandboxError(f"the sandbox of the program did not start: {result['reason']}")
    if result["faulty"] is not None:
        raise SuiteError(f"the tests cannot be run: {result['faulty']}")
    # What a program raised may hold halves of characters, which no file of ours could be written with.
    reason = result["reason"].encode("utf-8", "replace").decode()
    return Report(tuple(result["passed"]), reason, result["seconds"])
