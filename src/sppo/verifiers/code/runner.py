"""Runs a program against tests: two sandboxes that are started together and talk over two pipes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
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
from sppo.verifiers.sandbox.process import PATIENCE, TICK, Clock, memory_file

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
_GRACE = 1.0
"""Seconds in which a program, or tests, whose time is over must have ended."""
_END_SECONDS = 2.0
"""Time in which a sandbox ends whose program has closed its pipes."""
_HERE = "sppo.verifiers.code"


@dataclass(frozen=True)
class Report:
    """How a program did."""

    passed: tuple[bool, ...]
    """One for each test; those that were not run any more are missing. A counted check function's assertions."""
    reason: str
    """Why the first test failed; empty if none did."""
    seconds: float
    """Time that the program took to load and to answer, without the start of either sandbox."""
    share: float | None = None
    """Share of a counted check function's assertions that held, see tester.py; None: as many as passed."""
    killed: bool = False
    """Whether something killed the program with a signal that it may have sent itself, or may not."""


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
    wall = PATIENCE * options.total_seconds + _START_SECONDS
    inputs = [given for given, _ in suite.tests] if suite.style == "input" else []  # type: ignore[str-unpack]
    packages = os.path.realpath(os.path.expanduser(options.packages)) if options.packages else ""
    printed = _REPLY_BYTES_A_BYTE * (_OUTPUT_BYTES + 2**16) if suite.style == "input" else 0
    # Standard input is a file, and a character is up to 4 bytes of it.
    disk_mb = max(_DISK_MB, max(map(len, inputs), default=0) * 4 // 2**20 + 1)
    limits = Limits(options.total_seconds, wall, options.memory_mb, _PROCESSES, disk_mb)
    trusted = Limits(wall, wall, max(_TESTER_MEMORY_MB, options.memory_mb), _PROCESSES, disk_mb)
    with _Pipes() as pipes, memory_file(b"") as scratch:
        (ask_read, ask_write), (reply_read, reply_write), (result_read, result_write) = (pipes.make() for _ in range(3))
        clock_read, clock_write = pipes.make()
        common = {"style": suite.style, "function": suite.function}
        program_settings = common | {
            "requests": ask_read, "replies": reply_write, "input": scratch.fileno(), "source": program,
            "prelude": _prelude(program, suite), "output_bytes": _OUTPUT_BYTES,
        }  # fmt: skip
        tester_settings = common | {
            "requests": ask_write, "replies": reply_read, "result": result_write, "clock": clock_read,
            "reply_bytes": max(_REPLY_BYTES, printed), "defined": suite.defined,
            "prelude": suite.prelude,
            "tests": tests if isinstance(tests, str) else list(tests), "setup": suite.setup,
            "tolerance": suite.tolerance, "wrapped": suite.wrapped, "start_seconds": _START_SECONDS,
            "stop_at_failure": not every_test,
            "count_assertions": every_test,
        }  # fmt: skip
        program_channels = (ask_read, reply_write, scratch.fileno())
        tester_channels = (ask_write, reply_read, result_write, clock_read)
        with (
            _start("program", program_settings, program_channels, limits, backend, packages) as running,
            _start("tester", tester_settings, tester_channels, trusted, backend, packages) as tester,
        ):
            pipes.close(ask_read, ask_write, reply_read, reply_write, result_write, clock_read)
            line, ending = _result(result_read, running, tester, _TimeKeeper(options, clock_write))
            if running.lost() or tester.lost():
                raise SandboxError("something outside killed it")
            return _report(line, ending, running, tester)


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
    modules = ["wire", *(("channel", "comparison", "counting") if name == "tester" else ())]
    job = Job(
        code_of(f"{_HERE}.{name}"),
        modules={f"{_HERE}.{module}": code_of(f"{_HERE}.{module}") for module in modules},
        variables={"SETTINGS": settings},
        packages=packages,
        channels=channels,
    )
    nothing = subprocess.DEVNULL
    return Running(job, backend, limits, nothing, nothing, nothing)


class _TimeKeeper:
    """Tells the tester when the time of a test, or of all, is over.

    Args:
        options: how long they may take.
        pipe: on which the tester is told.
    """

    def __init__(self, options: CodeOptions, pipe: int):
        self.options = options
        self.pipe = pipe
        self.test = 0
        self.of_test = self.of_all = 0.0
        self.limit = options.test_seconds
        self.last = 0.0

    def begin_test(self, number: int) -> None:
        """Starts the clock of a test; the first one's, that of loading the program, is that of all, too."""
        if not self.test:
            self.of_all, self.last = 0.0, time.monotonic() + PATIENCE * self.options.total_seconds
        self.test = number
        self.of_test, self.limit = 0.0, self.options.test_seconds

    def over(self, used: float) -> str:
        """Charges the test with time; returns why the tester is not waited for any longer, or ""."""
        self.of_test += used
        self.of_all += used
        total = self.options.total_seconds
        if not self.test:
            return ""
        if self.of_all > total or time.monotonic() > self.last:
            reason = f"timed out after {total:g} s in all"
            self._tell(f"all {reason}")
            # It may still count what has passed, unless its own code doesn't come to an end.
            return reason if self.of_all > total + _GRACE or time.monotonic() > self.last + _GRACE else ""
        if self.of_test > self.limit:
            self._tell(f"{self.test} timed out after {self.options.test_seconds:g} s")
            self.limit += _GRACE
        return ""

    def _tell(self, message: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            os.write(self.pipe, message.encode() + b"\n")


def _result(pipe: int, running: Running, tester: Running, keeper: _TimeKeeper) -> tuple[bytes, str]:
    """Returns what the tester said, and why it was not waited for any longer, if it was not.

    Raises:
        SandboxError: the tests never began.
    """
    line, clock = b"", Clock(running, tester)
    while True:
        if time.monotonic() > tester.deadline:
            raise SandboxError("it did not start in time")
        if select.select([pipe], [], [], TICK)[0]:
            chunk = os.read(pipe, _RESULT_BYTES)
            *lines, line = (line + chunk).split(b"\n")
            for said in lines:
                if not said.isdigit():
                    return said, ""
                keeper.begin_test(int(said))
            if not chunk:
                return line, ""
        ending = _look(clock, keeper) if time.monotonic() - clock.last >= TICK else ""
        if ending:
            return line, ending


def _look(clock: Clock, keeper: _TimeKeeper) -> str:
    """Looks at what the runs use; returns why they are not waited for any longer, or ""."""
    ending = keeper.over(clock.look())
    (running, tester), (ours, theirs) = clock.runs, clock.usages
    if not ending and running.over_memory(ours):
        ending = "too much memory"
    if not ending and tester.over_memory(theirs):
        ending = "the program returned too much data"
    return ending


def _report(line: bytes, ending: str, running: Running, tester: Running) -> Report:
    if ending:
        return Report((False,), ending, 0.0)
    try:
        result = from_line(line)
    except NotPlain:
        return _broken_off(tester)
    if not result["started"]:
        raise SandboxError(f"the sandbox of the program did not start: {result['reason']}")
    if result["faulty"] is not None:
        raise SuiteError(f"the tests cannot be run: {result['faulty']}")
    killed = result["killed"] or (result["closed"] and _killed(running))
    # What a program raised may hold halves of characters, which no file of ours could be written with.
    reason = result["reason"].encode("utf-8", "replace").decode()
    return Report(tuple(result["passed"]), reason, result["seconds"], result["share"], killed)


def _broken_off(tester: Running) -> Report:
    """What became of tests that said nothing.

    Raises:
        SandboxError: their sandbox didn't start, or something killed them, which no program can do.
    """
    killed = _killed(tester)
    tester.kill()
    if not tester.entered():
        raise SandboxError("the sandbox of the tests did not start")
    if killed:
        raise SandboxError("something killed the tests")
    # Only what the program returned can have ended them.
    return Report((False,), "the tests broke off on what the program returned", 0.0)


def _killed(run: Running) -> bool:
    """Whether a run that is about to end was killed by a signal."""
    try:
        code = run.process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return code in (-signal.SIGKILL, 128 + signal.SIGKILL)
