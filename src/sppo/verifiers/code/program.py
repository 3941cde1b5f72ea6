"""The main program of the sandbox in which a response's code runs: does what the tests ask, and answers with data.

It knows the code and, one after the other, the arguments or the input of each test; never what is expected. The code
may do what it likes to this process, which then answers wrongly or not at all.
"""

from __future__ import annotations

import builtins
import gc
import os
import select
import sys

from sppo.verifiers.code.wire import NotPlain, decode, encode, from_line, to_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

SETTINGS: dict[str, Any] = globals().get("SETTINGS", {})
"""Given by runner.py."""

_EXCEPTIONS = {id(kind): kind.__name__ for kind in vars(builtins).values() if type(kind) is type}
"""Python's own classes, kept before the code can put others in their places."""
_LAST_WORDS = 4096
"""Bytes of what a program writes to its standard error that are kept."""
_CHUNK = 65536


def main() -> CodeType | None:
    """Serves until the tests close their end; returns only in a child that is to run the code."""
    # Sent before any of the code is looked at: that the sandbox stands, and that its start is over.
    reply({"id": -1})
    with os.fdopen(SETTINGS["requests"], "rb") as requests:
        # Nothing is done before the tests look at the clock.
        requests.readline()
        if SETTINGS["style"] == "input":
            code = load(lambda: compile(SETTINGS["source"], "program.py", "exec", dont_inherit=True))
            # A collection in a child would copy every page that it looks at.
            gc.freeze()
            for line in requests:
                request = from_line(line)
                if "stop" in request:  # for a run that ended just before
                    continue
                child = Child(request["input"].encode("utf-8", "surrogatepass"))
                if child.process == 0:
                    return code
                reply({"id": request["id"], **child.finish(SETTINGS["output_bytes"])})
        else:
            functions = load(define)
            for line in requests:
                request = from_line(line)
                reply({"id": request["id"], **call(functions, request)})
    os._exit(0)


def reply(message: dict[str, Any]) -> None:
    """Sends one message to the tests."""
    content = to_line(message)
    while content:
        content = content[os.write(SETTINGS["replies"], content) :]


def load(action: Callable[[], Any]) -> Any:
    """Loads the code and tells the tests how that went."""
    try:
        loaded = action()
    except BaseException as failure:
        reply({"id": 0, **described(failure)})
        os._exit(0)
    reply({"id": 0})
    return loaded


def define() -> Any:
    """Runs the code as a module that is not `__main__`, and returns the module."""
    module = type(sys)("program")
    sys.modules["program"] = module
    if SETTINGS["prelude"]:
        exec(compile(SETTINGS["prelude"], "prompt.py", "exec", dont_inherit=True), module.__dict__)
        # The prompt's own stub must not stand in for a function that the response fails to define.
        module.__dict__.pop(SETTINGS["function"], None)
    exec(compile(SETTINGS["source"], "program.py", "exec", dont_inherit=True), module.__dict__)
    return module


def call(functions: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Calls a function of the code, or a method of its class Solution, with plain data."""
    name = request["call"]
    try:
        if not hasattr(functions, name) and hasattr(functions, "Solution"):
            functions = functions.Solution()
        if not hasattr(functions, name):
            return {"unanswered": f"NameError: the program defines no {name!r}"}
        value = getattr(functions, name)(*decode(request["arguments"]), **decode(request["keywords"]))
    except BaseException as failure:
        return described(failure)
    try:
        return {"value": encode(value)}
    except (NotPlain, RecursionError, MemoryError) as failure:
        return {"unanswered": f"the program returned what cannot be sent: {failure}"}
    except BaseException as failure:  # of a generator
        return described(failure)


def described(failure: BaseException) -> dict[str, Any]:
    """Returns an exception as data: its own name, and those of Python's classes that it is of, the nearest first."""
    try:
        message = str(failure)[:200]
    except BaseException:
        message = ""
    kinds = [_EXCEPTIONS[id(kind)] for kind in type(failure).__mro__ if id(kind) in _EXCEPTIONS]
    return {"error": type(failure).__name__, "kinds": kinds, "message": message}


class Child:
    """One run of the code as a whole program, forked from this process so that Python need not start again."""

    def __init__(self, given: bytes):
        # A file rather than a pipe, as programs that read fast ask for its size.
        os.ftruncate(SETTINGS["input"], 0)
        os.pwrite(SETTINGS["input"], given, 0)
        os.lseek(SETTINGS["input"], 0, os.SEEK_SET)
        self.stdout, theirs_out = os.pipe()
        self.stderr, theirs_err = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            for number, standard in ((SETTINGS["input"], 0), (theirs_out, 1), (theirs_err, 2)):
                os.dup2(number, standard)
                os.close(number)
            for number in (self.stdout, self.stderr, SETTINGS["replies"]):
                os.close(number)
            return
        os.close(theirs_out)
        os.close(theirs_err)

    def finish(self, output_bytes: int) -> dict[str, Any]:
        """Reads what it prints, to its end or a limit; that its time is over is told by the tests."""
        kept = {self.stdout: bytearray(), self.stderr: bytearray()}
        reading = [self.stdout, self.stderr]
        ending = None
        while reading and ending is None:
            for number in select.select([*reading, SETTINGS["requests"]], [], [])[0]:
                chunk = os.read(number, _CHUNK)
                if number == SETTINGS["requests"]:
                    ending = from_line(chunk)["stop"]
                    continue
                kept[number] += chunk
                if number == self.stderr:
                    del kept[number][:-_LAST_WORDS]  # of what nobody compares only the end is told
                if not chunk:
                    reading.remove(number)
                elif len(kept[number]) > output_bytes:
                    ending = f"printed more than {output_bytes} bytes"
        if ending is not None:
            os.kill(self.process, 9)
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.stdout)
        os.close(self.stderr)
        said = kept[self.stderr].decode("utf-8", "replace").strip().splitlines()
        output = kept[self.stdout].decode("utf-8", "replace")
        return {"output": output, "code": code, "ending": ending, "last": said[-1][:200] if said else ""}


if __name__ == "__main__":
    _code = main()
    assert _code is not None, "only a child returns"
    sys.modules["__main__"] = type(sys)("__main__")
    exec(_code, sys.modules["__main__"].__dict__)
