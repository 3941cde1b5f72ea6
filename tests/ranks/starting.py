"""Starts programs as so many ranks, as a launcher would.

Ranks are forked from a process that has imported what they need: fifty of them would take minutes to import it again.

    python -m tests.ranks.starting            reads lines [[arguments, environment, output file], ...] and answers
                                              [[exit code, seconds], ...]
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 600
"""Seconds after which a rank that still runs is ended."""
COMMON = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    code: int
    """Exit code; less than 0: by this signal."""
    at: float
    """Seconds since all were started."""
    said: str
    """What it wrote, errors included."""


class Starter:
    """A process that ranks are forked from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks.starting"], cwd=ROOT, env={**os.environ, **COMMON},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, count: int, module: str, arguments: Sequence[str]) -> list[Ended]:
        """Runs `python -m MODULE ARGUMENTS` as `count` ranks; one is a process by itself."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        asked, files = [], [self.folder / f"{time.monotonic_ns()}-{rank}" for rank in range(count)]
        for rank, file in enumerate(files):
            own = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": count,
                "MASTER_PORT": port,
            }
            environment = {key: str(value) for key, value in own.items()} if count > 1 else {}
            asked.append([[module, *arguments], environment, str(file)])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return [Ended(code, at, file.read_text()) for (code, at), file in zip(answer, files, strict=True)]

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    made = Starter(folder)
    try:
        yield made
    finally:
        made.close()


def _fork(arguments: list[str], environment: dict[str, str], output: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        signal.alarm(LIMIT)
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = importlib.import_module(arguments[0]).main(arguments[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    for module in (
        "sppo.commands.train",
        "sppo.cli.train",
        "sppo.cli.story",
        "tests.ranks.worker",
        "tests.ranks.faults",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        began = time.monotonic()
        running = {_fork(*asked): place for place, asked in enumerate(json.loads(line))}
        ended = [[0, 0.0]] * len(running)
        for _ in range(len(running)):
            child, status = os.wait()
            ended[running[child]] = [os.waitstatus_to_exitcode(status), time.monotonic() - began]
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    _serve()
