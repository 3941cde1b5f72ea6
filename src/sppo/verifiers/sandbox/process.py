"""Starts a Python program in a sandbox and ends it, with all its processes, their memory and their time limited."""

from __future__ import annotations

import functools
import importlib.util
import marshal
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import IO, Any

from sppo.verifiers.sandbox.backends import ENVIRONMENT, Backend, python_executable
from sppo.verifiers.sandbox.tree import Usage, kill, usage_of_tree

TICK = 0.05
"""Seconds between looks at a run's memory and clock."""
PATIENCE = 10
"""How many times as long on the clock of the wall a run may take as on its own."""

_MIB = 2**20
_END_SECONDS = 5.0
_OWN_MODULES = ("sppo.verifiers.sandbox.launcher", "sppo.verifiers.sandbox.supervisor")
_BOOT = """
import marshal, sys
sys.path[:] = [path for path in sys.path if path]
with open(int(sys.argv[1]), "rb") as file:
    specification = marshal.load(file)
for name, code in specification["own"].items():
    sys.modules[name] = module = type(sys)(name)
    exec(code, module.__dict__)
    del module, code
getattr(sys.modules[name], specification["begin"])(specification)
"""


class SandboxError(Exception):
    """The sandbox itself failed: nothing is known of the program."""


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    cpu_seconds: float = 10.0
    """CPU time of one process."""
    wall_seconds: float = 10.0
    """From the start to the end, after which everything is killed."""
    memory_mb: int = 512
    """MiB of address space of one process; and of memory of them all together, with their files and the pipes and
    sockets that the kernel holds for them."""
    processes: int = 16
    """Processes and threads at one time."""
    disk_mb: int = 16
    """MiB of one file, and of all that is written together."""
    output_bytes: int = 65536
    """Bytes on standard output, and on standard error."""

    def by_name(self) -> dict[str, int]:
        """Returns them as `resource` names them."""
        return {
            "RLIMIT_CPU": math.ceil(self.cpu_seconds),
            "RLIMIT_AS": self.memory_mb * _MIB,
            "RLIMIT_FSIZE": self.disk_mb * _MIB,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": 256,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_SIGPENDING": 1024,
        }


@dataclass(frozen=True)
class Job:
    """What is run."""

    main: str | CodeType
    """Source or code of `__main__`."""
    modules: Mapping[str, CodeType] = field(default_factory=dict)
    """Modules that are there to import, beside the standard library."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Names that `__main__` begins with; plain data."""
    arguments: Sequence[str] = ()
    """sys.argv behind the program's name."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files in the folder that the program begins in, by name."""
    packages: str = ""
    """Folder of packages that may be imported; it is real, and can be read alone."""
    channels: Sequence[int] = ()
    """Open file descriptors that it keeps, under the same numbers."""


class Running:
    """A program in a sandbox. Use as a context manager: at the end nothing of it is left."""

    def __init__(self, job: Job, backend: Backend, limits: Limits, stdin: Any, stdout: Any, stderr: Any):
        self.backend = backend
        self.limits = limits
        self.began = time.monotonic()
        self.deadline = self.began + limits.wall_seconds
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        ours: list[int] = []
        theirs: list[int] = []
        try:
            self._status, status = os.pipe()
            ours, theirs = [self._status], [status]
            lifeline, self._lifeline = os.pipe()
            ours, theirs = [*ours, self._lifeline], [*theirs, lifeline]
            confinement = backend.confine(limits.disk_mb * _MIB, job.packages)
            prefix = list(confinement.prefix)
            if confinement.filter is not None:
                theirs.append(_filled_pipe(confinement.filter))
                prefix = [str(theirs[-1]) if part == "{filter}" else part for part in prefix]
            self._user: int | None = confinement.specification.get("user")
            specification = self._specify(job) | confinement.specification | {"status": status, "lifeline": lifeline}
            with memory_file(marshal.dumps(specification)) as file:
                self.process = subprocess.Popen(
                    [*prefix, python_executable(), "-s", "-S", "-B", "-c", _BOOT, str(file.fileno())],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=ENVIRONMENT,
                    pass_fds=[file.fileno(), *theirs, *job.channels],
                    start_new_session=True,
                )
        except OSError as failure:
            _close(ours)
            self._clean()
            raise SandboxError(f"it could not be started: {failure}") from failure
        finally:
            _close(theirs)

    def _specify(self, job: Job) -> dict[str, Any]:
        module, begin = self.backend.launcher.split(":")
        limits = self.limits.by_name()
        if not self.backend.counts_processes:
            del limits["RLIMIT_NPROC"]
        folder, files = "/", {name: bytes(content) for name, content in job.files.items()}
        if not self.backend.temporary_folder and files:
            self._folder = tempfile.TemporaryDirectory(prefix="sppo_sandbox_")
            folder = self._folder.name
            os.chmod(folder, 0o755)
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
        return {
            "own": {name: code_of(name) for name in _OWN_MODULES[: _OWN_MODULES.index(module) + 1]},
            "begin": begin,
            "limits": limits,
            "folder": folder,
            "files": files if self.backend.temporary_folder else {},
            "arguments": list(job.arguments),
            "modules": dict(job.modules),
            "packages": job.packages,
            "variables": dict(job.variables),
            "main": job.main,
            "channels": list(job.channels),
        }

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def entered(self) -> bool:
        """Whether the sandbox stood and the program began; known when it has been killed."""
        assert self._status < 0, "the run is over"
        return self._entered

    def lost(self) -> bool:
        """Whether something outside killed the sandbox itself, so that nothing is known of the program."""
        # A signal that ends the program is told by an exit code above 128. To be asked before `kill`.
        return (self.process.poll() or 0) < 0

    def usage(self) -> Usage | None:
        """What all its processes together hold and use now; None on a system that doesn't say."""
        folder_bytes = self.limits.disk_mb * _MIB if self.backend.temporary_folder else 0
        return usage_of_tree(self.process.pid, folder_bytes)

    def over_memory(self, usage: Usage | None) -> bool:
        """Whether that is more memory than allowed."""
        return usage is not None and usage.memory > self.limits.memory_mb * _MIB

    def kill(self) -> None:
        """Kills whatever of it still runs, and waits until it is gone; harmless afterwards."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        patience = time.monotonic() + _END_SECONDS
        while self.process.poll() is None:
            self.backend.strike(self.process.pid)
            if time.monotonic() > patience:
                kill([-self.process.pid])
            try:
                self.process.wait(timeout=TICK)
            except subprocess.TimeoutExpired:
                continue
        self.backend.strike(self.process.pid)
        if self.lost() and self._user is not None:
            # Whoever was to kill the program's processes may have been killed before it could.
            from sppo.verifiers.sandbox.supervisor import kill_user  # needs Linux

            kill_user(self._user)
        if self._status >= 0:
            self._entered = os.read(self._status, 1) == b"1"
            os.close(self._status)
            self._status = -1
        self._clean()

    def _clean(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class Clock:
    """Time that runs use together, whatever else the machine does.

    It is the CPU time of all their processes, and the time that passes while none of these wants a processor, as when
    they sleep. Only waiting for a processor, or for a disk, that others have is not counted.
    """

    def __init__(self, *runs: Running):
        self.runs = runs
        self.last = time.monotonic()
        self.usages: list[Usage | None] = []

    def look(self) -> float:
        """Returns the seconds used since the last look; the first begins."""
        now, usages = time.monotonic(), [run.usage() for run in self.runs]
        elapsed, before = now - self.last, self.usages
        self.last, self.usages = now, usages
        used, busy = 0.0, not before
        for usage, earlier in zip(usages, before, strict=bool(before)):
            if usage is None or earlier is None:
                return elapsed
            used += usage.since(earlier)
            busy = busy or usage.busy
        # Who looks late, for want of a processor of its own, knows nothing of the time between.
        return used if busy else max(used, min(elapsed, 2 * TICK))


@functools.cache
def code_of(module: str) -> CodeType:
    """Returns a module's compiled code without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is a module of ours"
    code: CodeType = spec.loader.get_code(module)  # type: ignore[union-attr]
    return code


def memory_file(content: bytes) -> IO[bytes]:
    """Returns a file without a name, at its beginning."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("sppo"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller's `with` closes it)
    file.write(content)
    file.seek(0)
    return file


def _filled_pipe(content: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading


def _close(numbers: Sequence[int]) -> None:
    for number in numbers:
        os.close(number)
