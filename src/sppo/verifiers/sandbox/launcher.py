"""The first code that runs inside a sandbox: sets the limits, gives up privileges, then becomes the program.

The parent sends this module as compiled code with a specification (see process.py); it imports nothing of ours and runs
in the same interpreter as the program, so that a sandboxed start costs one start of Python.
"""

from __future__ import annotations

import builtins
import os
import sys

# Importing typing would cost more than all else that is done before the program begins.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def launch(specification: dict[str, Any]) -> None:
    """Runs the program in a confined child and exits with its exit code.

    The parent stays behind as the first process of the sandbox's process namespace: when it ends, the kernel kills all
    others, and bubblewrap, whose child it is, waits for it, so that no zombie is left outside.
    """
    set_limits(specification["limits"])
    same_user = specification.get("same_user", False)
    if same_user:
        open_memory(False)
    program = os.fork()
    if program == 0:
        os.close(specification["lifeline"])
        if same_user:
            # What it holds is counted from outside, by the same user.
            open_memory(True)
        if specification["user"] is not None:
            drop_privileges(specification["user"])
        if specification["folder"] != "/":
            os.chdir(specification["folder"])
        for name, content in specification["files"].items():
            with open(name, "wb") as file:
                file.write(content)
        become(specification)
        return
    let_go(specification)
    ended = 0
    while ended != program:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def let_go(specification: dict[str, Any]) -> None:
    """Closes what is the program's alone: whoever listens to it must see it end."""
    for number in (*specification["channels"], specification["status"]):
        os.close(number)


def open_memory(opened: bool) -> None:
    """Lets other processes of the same user read and write this one's memory through /proc, or keeps them out."""
    # Importing all of ctypes would take ten times as long.
    import _ctypes

    set_dumpable = 4
    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
    if _ctypes.call_function(prctl, (set_dumpable, int(opened), 0, 0, 0)) != 0:
        raise OSError("prctl refuses to say who may see this process's memory")


def drop_privileges(user: int) -> None:
    """Becomes a user and group that own nothing; there is no way back."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def set_limits(limits: dict[str, int]) -> None:
    """Sets soft and hard limits, by their names in `resource`."""
    import resource

    for name, value in limits.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # One second between the signal that says why and the one that cannot be ignored.
        hard = value + (name == "RLIMIT_CPU" and hard != value)
        try:
            resource.setrlimit(number, (value, hard))
        except (ValueError, OSError):
            # macOS has no limit on address space; it is reached with unsafe code alone.
            if sys.platform == "linux":
                raise


def become(specification: dict[str, Any]) -> None:
    """Says that the sandbox stands, and runs the program as `__main__`."""
    os.write(specification["status"], b"1")
    os.close(specification["status"])
    module_type = type(sys)
    for name, code in specification["modules"].items():
        module = module_type(name)
        sys.modules[name] = module
        exec(code, module.__dict__)
    main = module_type("__main__")
    main.__dict__.update(specification["variables"])
    sys.modules["__main__"] = main
    sys.argv = ["program.py", *specification["arguments"]]
    sys.path.insert(0, os.getcwd())
    if specification["packages"]:
        # Last, so that nothing there stands in for Python's own.
        sys.path.append(specification["packages"])
        # numpy's library would start a thread for each core: more, and more memory, than a program may have.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # The module site, which would bring them, is not loaded.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    code = specification["main"]
    if isinstance(code, str):
        code = compile(code, "program.py", "exec", dont_inherit=True)
    exec(code, main.__dict__)
