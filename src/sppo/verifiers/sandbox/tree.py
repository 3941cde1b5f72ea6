"""The processes below a process, on Linux: who they are, what they hold and use, and their end."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

_PIPE_BYTES = 2**16
_SOCKET_BYTES = 2**18
_INODE_BYTES = 2048
"""The most of the kernel's memory that each of these holds, its name included, where none may be enlarged."""
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_CLOCK_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_WANTS_TO_RUN = (b"R", b"D")


@dataclass
class Usage:
    """What a process and all below it hold and use at one moment."""

    memory: int = 0
    """Bytes, pages that processes share counted for each; what the kernel holds for them counted at its most."""
    busy: bool = False
    """Whether one of them is running, or waits for a processor or a disk."""
    seconds: dict[int, float] = field(default_factory=dict)
    """CPU time of each process, by its number."""
    waited_for: float = 0.0
    """CPU time of processes that have ended and were waited for."""

    def since(self, before: Usage) -> float:
        """CPU time used since an earlier look, as far as it can be seen."""
        living = sum(max(now - before.seconds.get(process, 0.0), 0.0) for process, now in self.seconds.items())
        ended = self.waited_for - before.waited_for
        # What ended was seen in part while it lived; what nobody waited for is seen only then.
        seen = sum(used for process, used in before.seconds.items() if process not in self.seconds)
        return living + max(ended - seen, 0.0)


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


def usage_of_tree(process: int, folder_bytes: int = 0) -> Usage | None:
    """Returns what a process and all below it hold and use; None on a system that doesn't say.

    Args:
        process: its number.
        folder_bytes: size of the /tmp that the processes below it have of their own; 0: they have none.
    """
    if not os.path.exists("/proc/self/stat"):
        return None
    usage, tree, kernel = Usage(), [process], set()
    for process in tree:
        tree += children_of(process)
        try:
            _add_process(usage, process)
            kernel |= _pipes_and_sockets(process)
        except (FileNotFoundError, ProcessLookupError):
            continue
    usage.memory += sum(_SOCKET_BYTES if name.startswith("socket:") else _PIPE_BYTES for name in kernel)
    if folder_bytes and len(tree) > 1:
        usage.memory += _held_by_folder(f"/proc/{tree[1]}/root/tmp", folder_bytes)
    return usage


def _add_process(usage: Usage, process: int) -> None:
    with open(f"/proc/{process}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    own, waited_for = (sum(map(int, fields[first : first + 2])) / _CLOCK_TICK for first in (11, 13))
    usage.seconds[process] = own
    usage.waited_for += waited_for
    usage.busy = usage.busy or fields[0] in _WANTS_TO_RUN or _a_thread_is_busy(process)
    with open(f"/proc/{process}/statm", "rb") as file:
        _, resident, of_files, *_ = map(int, file.read().split())
    # No program can share memory but by files, which are counted where they lie.
    usage.memory += (resident - of_files) * _PAGE


def _a_thread_is_busy(process: int) -> bool:
    threads = os.listdir(f"/proc/{process}/task")
    for thread in threads if len(threads) > 1 else []:
        try:
            with open(f"/proc/{process}/task/{thread}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] in _WANTS_TO_RUN:
                    return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def _pipes_and_sockets(process: int) -> set[str]:
    """Names of the pipes and sockets that a process has open; several may have the same one."""
    found = set()
    try:
        for number in os.listdir(f"/proc/{process}/fd"):
            name = os.readlink(f"/proc/{process}/fd/{number}")
            if name.startswith(("socket:", "pipe:")):
                found.add(name)
    except OSError:  # gone, or another user's for a moment, while it changes its own
        pass
    return found


def _held_by_folder(path: str, size: int) -> int:
    """Bytes that a temporary file system of this size holds: files, and the inodes of files that are empty."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    # Until the sandbox stands it is the machine's own that is found there.
    if found.f_blocks * found.f_frsize != size:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize + (found.f_files - found.f_ffree) * _INODE_BYTES
