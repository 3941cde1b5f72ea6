"""The ways to confine a program, in the order in which they are tried, and the choice between them.

`bubblewrap` has namespaces for everything; `landlock` is for root where bubblewrap is absent or may not make namespaces
(in many containers); `none` is what a user gets who allowed unsafe code in so many words, and confines nothing.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import platform
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sppo.errors import ConfigError
from sppo.verifiers.sandbox.seccomp import filter_program
from sppo.verifiers.sandbox.tree import children_of, kill

ENVIRONMENT = {"PATH": "/nonexistent", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
"""All that a program sees; the fixed seed makes the order of its sets, and so its verdict, repeatable."""
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_STORES = ("/nix/store", "/gnu/store")
_DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Confinement:
    """How one run is started by one backend."""

    prefix: tuple[str, ...] = ()
    """Command put before Python's own."""
    specification: dict[str, Any] = field(default_factory=dict)
    """What the launcher must know of it."""
    filter: bytes | None = None
    """Seccomp filter that the prefix loads, from the file descriptor that replaces {filter} in it."""


@dataclass(frozen=True)
class Backend:
    """One way to confine a program."""

    name: str
    unavailable: Callable[[], str | None]
    """Why it cannot be had on this machine, as far as can be told without running it."""
    confine: Callable[[int, str], Confinement]
    """(bytes that may be written to disk in all, folder of packages or "") -> how to start one run."""
    launcher: str
    """Function that the sandbox begins with, as module:function."""
    strike: Callable[[int], None]
    """Ends a run, given the number of the process that was started; the end of its lifeline has come before."""
    temporary_folder: bool
    """Whether the program gets an empty /tmp of its own; without it there is nowhere to write."""
    counts_processes: bool
    """Whether its processes are a user's or a namespace's own, so that their number can be limited."""


def python_executable() -> str:
    """Returns the interpreter that programs run with: our own, without the virtual environment around it."""
    return os.path.realpath(sys.executable)


def python_folders() -> list[str]:
    """Returns the files and folders that the interpreter needs, its executable first."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    folders = [python_executable(), *(sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib"))]
    if sys.base_prefix != "/usr":
        folders.append(f"{sys.base_prefix}/lib")
    stores = [store for store in _STORES if python_executable().startswith(store)]
    return list(dict.fromkeys(os.path.realpath(folder) for folder in [*folders, *stores] if os.path.exists(folder)))


@functools.cache
def spare_users() -> range:
    """Returns user ids that nobody has and that we may become; empty where we are not root.

    Containers map fewer ids: an outer range for whole systems, and one below 65,536.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return range(0)
    mapped = [[int(number) for number in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    for first, last in ((1_900_000_000, 2_000_000_000), (60_001, 65_000)):
        if any(start <= first and last <= start + count for start, _, count in mapped):
            return range(first, last)
    return range(0)


_turn = itertools.count(secrets.randbelow(2**31))


def next_user() -> int:
    """Returns a spare user id that no other run of this process has: who shares one is killed with the other.

    The id behind it is spare, too: who kills the user's processes has it, see `supervisor.kill_user`.
    """
    users = spare_users()
    # A process that was forked off goes on from the same count.
    return users[2 * ((next(_turn) + 7919 * os.getpid()) % (len(users) // 2))]


@functools.cache
def _bubblewrap_unavailable() -> str | None:
    program = shutil.which("bwrap")
    if sys.platform != "linux" or program is None:
        return "bubblewrap (the program bwrap) is not installed"
    options = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    missing = [name for name in ("--size", "--disable-userns") if name not in options.stdout + options.stderr]
    return f"bubblewrap is too old: it has no {missing[0]} (0.8 has)" if missing else None


def _bubblewrap(disk_bytes: int, packages: str) -> Confinement:
    program = shutil.which("bwrap")
    assert program is not None, "bubblewrap was found to be available"
    arguments = [program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    # The launcher is the first process itself: bubblewrap waits for that one, but not for a first process of its own.
    arguments += ["--as-pid-1", "--die-with-parent", "--new-session"]
    identity: dict[str, Any] = {"user": None, "same_user": True}
    if spare_users():
        # Only root can bind an interpreter in root's home, so the launcher changes the user, after the mounts. It is
        # another user to the kernel too, which a user namespace alone would not give: root's own limits do not bind.
        identity = {"user": next_user()}
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-user", "--uid", "65534", "--gid", "65534", "--disable-userns"]
    arguments += _mounts(disk_bytes, packages)
    seccomp = filter_program()
    if seccomp is not None:
        arguments += ["--seccomp", "{filter}"]
    return Confinement((*arguments, "--"), identity, seccomp)


def _mounts(disk_bytes: int, packages: str) -> list[str]:
    paths = list(dict.fromkeys([*_LIBRARIES, *python_folders()]))
    # By itself bubblewrap makes the folders on the way as closed as they are outside, as root's home is.
    folders = {str(folder) for path in paths for folder in Path(path).parents} - {"/"}
    arguments = [part for folder in sorted(folders - set(paths)) for part in ("--perms", "0755", "--dir", folder)]
    for path in paths:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif not any(path.startswith(other + "/") for other in paths):
            arguments += ["--ro-bind-try", path, path]
    # A shared mapping of /dev/zero is memory that no process is charged with: bound like this it can't be opened.
    arguments += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", "/dev/null", "/dev/zero", "--remount-ro", "/dev"]
    arguments += ["--perms", "1777", "--size", str(disk_bytes), "--tmpfs", "/tmp"]
    if packages and not any(packages.startswith(path + "/") for path in paths):
        # Behind /tmp, in which it may lie.
        for folder in reversed(Path(packages).parents[:-1]):
            arguments += [] if str(folder) in folders | {"/tmp"} else ["--perms", "0755", "--dir", str(folder)]
        arguments += ["--ro-bind", packages, packages]
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp"]


@functools.cache
def _landlock_unavailable() -> str | None:
    if sys.platform != "linux":
        return "landlock is a part of Linux"
    if not spare_users():
        return "the fallback (landlock, seccomp and a user of its own) needs root, and user ids to spare"
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
        return "this kernel has no landlock"
    if filter_program() is None:
        return f"there is no seccomp filter for {platform.machine()}"
    return None


def _landlock(disk_bytes: int, packages: str) -> Confinement:
    specification = {
        "user": next_user(),
        "readable": [*python_folders()[1:], *_LIBRARIES, *filter(None, [packages])],
        "devices": list(_DEVICES),
        "filter": filter_program(),
    }
    return Confinement(specification=specification)


def _nothing(disk_bytes: int, packages: str) -> Confinement:
    return Confinement(specification={"user": None})


def _kill_namespace(started: int) -> None:
    # Its first process takes all others with it, and bubblewrap, which was started, waits for that one.
    kill(children_of(started))


def _kill_nothing(started: int) -> None:
    # The supervisor, which was started, sees its lifeline closed and kills all of the program's user.
    pass


def _kill_group(started: int) -> None:
    kill([-started])


_LAUNCHER = "sppo.verifiers.sandbox.launcher:launch"
_SUPERVISOR = "sppo.verifiers.sandbox.supervisor:supervise"

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("bubblewrap", _bubblewrap_unavailable, _bubblewrap, _LAUNCHER, _kill_namespace, True, True),
        Backend("landlock", _landlock_unavailable, _landlock, _SUPERVISOR, _kill_nothing, False, True),
        Backend("none", lambda: None, _nothing, _LAUNCHER, _kill_group, False, False),
    )
}
"""In the order in which they are tried; "none" only where it was asked for."""

MEND = (
    "Install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap) and let users "
    "make namespaces (sysctl user.max_user_namespaces; in a container, one that is privileged), or run as root on a "
    "kernel with landlock. To run what the model writes with nothing around it, say so: --unsafe-code, or "
    "verification.code.unsafe_code true."
)


@functools.cache
def choose(unsafe_code: bool, probe: Callable[[Backend], str | None]) -> Backend:
    """Returns the first backend that works on this machine, found out by running each, once a process.

    Args:
        unsafe_code: take "none" rather than refuse.
        probe: runs a small program with a backend; returns what went wrong.

    Raises:
        ConfigError: none works, and unsafe code was not allowed; says why, and how to mend it.
    """
    reasons = []
    for backend in BACKENDS.values():
        if backend.name == "none":
            continue
        reason = backend.unavailable() or probe(backend)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    if unsafe_code:
        return BACKENDS["none"]
    raise ConfigError(f"There is no sandbox to run code in. {'; '.join(reasons)}. {MEND}")
