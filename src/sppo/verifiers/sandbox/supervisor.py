"""Inside the fallback sandbox: landlock, seccomp and a user of its own, with a supervisor that kills all that is left.

Without a process namespace nothing but a common user ties a program's processes together. So each run has a user id
that no other has; a supervisor, still root, waits for the program or for its parent's end of a pipe to close, and then
kills every process of that user at once. Like launcher.py, this is sent as compiled code.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import sys
import time

from sppo.verifiers.sandbox.launcher import become, drop_privileges, let_go, set_limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVILEGES = 1, 4, 22, 36, 38
_FILTER_MODE = 2
_RULE_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 5: 16}
"""Landlock's version -> number of rights on files that it knows."""
_NETWORK_RIGHTS, _NETWORK_VERSION = 0b11, 4
_SCOPES, _SCOPE_VERSION = 0b11, 6

libc = ctypes.CDLL(None, use_errno=True)


def supervise(specification: dict[str, Any]) -> None:
    """Runs the program in a confined child, and leaves no process of it behind; exits with its exit code."""
    lifeline, user = specification["lifeline"], specification["user"]
    checked(libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0))
    program = os.fork()
    if program == 0:
        os.close(lifeline)
        confine(specification)
        become(specification)
        return
    let_go(specification)
    ended = os.pidfd_open(program)
    select.select([ended, lifeline], [], [])
    code = 1
    while True:
        kill_user(user)
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
            while process:
                code = os.waitstatus_to_exitcode(status) if process == program else code
                process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        time.sleep(0.001)
    os._exit(code if code >= 0 else 128 - code)


def kill_user(user: int) -> None:
    """Kills every process of a user in one call, so that none can fork in between.

    The killer acts as that user and is another, whom no process of the user may signal: else one that is quicker could
    stop it.
    """
    killer = os.fork()
    if killer == 0:
        try:
            os.setgroups([])
            os.setresgid(user + 1, user + 1, user + 1)
            os.setresuid(user + 1, user, user + 1)
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def confine(specification: dict[str, Any]) -> None:
    """Gives up everything that the program does not need."""
    os.setsid()
    standard_library = reopen_standard_library()
    os.chdir(specification["folder"])
    set_limits(specification["limits"])
    checked(libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    readable = specification["readable"]
    if specification["folder"] != "/":
        readable = [*readable, specification["folder"]]
    restrict_files(readable, standard_library, specification["devices"])
    drop_privileges(specification["user"])
    # Changing the user undid both: /proc/self must be ours to find the library by, and we must not outlive the parent.
    checked(libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0))
    checked(libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    load_filter(specification["filter"])


def reopen_standard_library() -> list[int]:
    """Lets imports go through open folders, as the new user may not reach the interpreter's, in root's home say."""
    opened = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in sys.path if os.path.isdir(path)}

    def moved(path: str) -> str:
        for old, number in sorted(opened.items(), key=lambda item: -len(item[0])):
            if path == old or path.startswith(old + "/"):
                return f"/proc/self/fd/{number}{path[len(old) :]}"
        return path

    sys.path[:] = [moved(path) for path in opened]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if getattr(module, "__path__", None):
            module.__path__ = [moved(path) for path in module.__path__]
    return list(opened.values())


def restrict_files(readable: list[str], folders: list[int], devices: list[str]) -> None:
    """Landlock: these may be read, null and the like also written; nothing else is opened, made, removed or run."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    rights = (1 << max(count for since, count in _FILE_RIGHTS_BY_VERSION.items() if since <= version)) - 1
    attributes = struct.pack(
        "=QQQ",
        rights,
        _NETWORK_RIGHTS if version >= _NETWORK_VERSION else 0,
        _SCOPES if version >= _SCOPE_VERSION else 0,
    )
    size = 24 if version >= _SCOPE_VERSION else 16 if version >= _NETWORK_VERSION else 8
    ruleset = checked(libc.syscall(_CREATE_RULESET, attributes, size, 0))
    for number in [*folders, *(os.open(path, os.O_PATH) for path in readable if os.path.exists(path))]:
        allow(ruleset, number, _READ_FILE | _READ_DIRECTORY)
    for path in devices:
        allow(ruleset, os.open(path, os.O_PATH), _READ_FILE | _WRITE_FILE)
    checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))


def allow(ruleset: int, number: int, rights: int) -> None:
    """Adds a rule for what stands beneath an open path."""
    if not os.stat(number).st_mode & 0o040000:
        rights &= ~_READ_DIRECTORY
    checked(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, number), 0))


def load_filter(program: bytes) -> None:
    """Loads a seccomp filter for this process and all that it starts."""
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    checked(libc.prctl(_SET_SECCOMP, _FILTER_MODE, header, 0, 0))


def checked(result: int) -> int:
    """Returns a system call's result.

    Raises:
        OSError: it failed.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
