"""One program, run to its end in the best sandbox of this machine."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sppo.verifiers.sandbox.backends import Backend, choose
from sppo.verifiers.sandbox.process import TICK, Job, Limits, Running, SandboxError, memory_file

Ending = Literal["exited", "timed out", "too much output", "too much memory"]

_CPU_LIMIT_SIGNAL = 24
_SIGNALLED = 128


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    ending: Ending
    """"exited" where it ended by itself, be it by an error; else the limit at which it was killed."""
    exit_code: int
    """As a shell gives it: 128 + the signal's number where a signal ended it."""
    stdout: bytes
    stderr: bytes
    seconds: float
    """Wall time, the start of the sandbox included."""


def run(
    program: str,
    arguments: Sequence[str] = (),
    *,
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    limits: Limits | None = None,
    backend: Backend | None = None,
) -> Outcome:
    """Runs a Python program in a sandbox. From any thread; at the end, none of its processes is left.

    Args:
        program: its source.
        arguments: sys.argv behind the program's name.
        files: name -> content, in the folder that it begins in.
        stdin: what it reads on standard input.
        limits: what it may use.
        backend: which sandbox; default: the best that works here.

    Raises:
        ConfigError: there is no sandbox on this machine.
        SandboxError: the sandbox failed, so that nothing is known of the program.
    """
    limits = limits or Limits()
    backend = backend or open_sandbox()
    out_reading, out_writing = os.pipe()
    err_reading, err_writing = os.pipe()
    try:
        try:
            with memory_file(stdin) as given:
                job = Job(program, arguments=arguments, files=files or {})
                running = Running(job, backend, limits, given, out_writing, err_writing)
        finally:
            os.close(out_writing)
            os.close(err_writing)
        with running:
            ending, (stdout, stderr) = _collect(running, [out_reading, err_reading])
            if ending == "exited" and not _ended(running):
                ending = "timed out"
            lost = running.lost()
        seconds = time.monotonic() - running.began
    finally:
        os.close(out_reading)
        os.close(err_reading)
    if lost:
        raise SandboxError(f"{backend.name}: something outside killed it")
    code = running.process.returncode
    code = code if code >= 0 else _SIGNALLED - code
    if ending == "exited" and not running.entered():
        raise SandboxError(f"{backend.name}: {_last_line(stderr)}")
    if ending == "exited" and code == _SIGNALLED + _CPU_LIMIT_SIGNAL:
        ending = "timed out"
    return Outcome(ending, code, stdout, stderr, seconds)


def _collect(running: Running, pipes: list[int]) -> tuple[Ending, tuple[bytes, bytes]]:
    """Reads both pipes to their ends, or to the limit that is reached first."""
    kept: dict[int, bytearray] = {pipe: bytearray() for pipe in pipes}
    open_pipes = list(pipes)
    ending: Ending = "exited"
    while open_pipes:
        left = running.deadline - time.monotonic()
        if left <= 0:
            ending = "timed out"
            break
        for pipe in select.select(open_pipes, [], [], min(left, TICK))[0]:
            chunk = os.read(pipe, 65536)
            if not chunk:
                open_pipes.remove(pipe)
            kept[pipe] += chunk
        if any(len(content) > running.limits.output_bytes for content in kept.values()):
            ending = "too much output"
            break
        if running.over_memory(running.usage()):
            ending = "too much memory"
            break
    stdout, stderr = (bytes(kept[pipe][: running.limits.output_bytes]) for pipe in pipes)
    return ending, (stdout, stderr)


def _ended(running: Running) -> bool:
    """Waits for a program that has closed its outputs and may run on; returns whether it ended in time."""
    try:
        running.process.wait(max(running.deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it ended before the program began, and said nothing"


def probe(backend: Backend) -> str | None:
    """Runs a small program in a backend; returns what went wrong, or None."""
    try:
        outcome = run("import os, json; print(json.dumps(os.getuid()))", backend=backend)
    except SandboxError as failure:
        return f"it does not work here: {failure}"
    if outcome.exit_code != 0 or outcome.stdout.strip() in (b"", b"0"):
        return f"it does not work here: {_last_line(outcome.stderr)}"
    return None


def open_sandbox(unsafe_code: bool = False) -> Backend:
    """Returns the best way to confine programs that works on this machine, found out once a process.

    Args:
        unsafe_code: where there is none, take no sandbox at all rather than refuse.

    Raises:
        ConfigError: there is none, and unsafe code was not allowed; names the way to mend it.
    """
    return choose(unsafe_code, probe)
