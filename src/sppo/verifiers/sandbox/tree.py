"""The processes below a process, on Linux: who they are, what they hold, and their end."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence


def kill(processes: Sequence[int]) -> None:
    """Kills processes, or process groups by their negative numbers; those that are gone don't matter."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def children_of(process: int) -> list[int]:
    """Returns the processes that a process started and that still are, on Linux."""
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children", "rb") as file:
                children += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return children


def memory_of_tree(process: int) -> int:
    """Returns the bytes that a process and all below it hold, pages that they share counted for each; 0 if gone."""
    total, waiting = 0, [process]
    while waiting:
        process = waiting.pop()
        waiting += children_of(process)
        try:
            with open(f"/proc/{process}/status", "rb") as file:
                fields = dict(line.split(b":", 1) for line in file.read().splitlines() if line.startswith(b"Rss"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(fields[name].split()[0]) * 1024 for name in (b"RssAnon", b"RssShmem") if name in fields)
    return total
