"""The main program of the sandbox in which the tests run: it has never seen the response's code.

What the tests call is a stand-in that sends plain data to the program's sandbox and gets plain data back, so nothing
that the program does to itself reaches the tests. Its one result goes to a pipe that the program has no end of.
"""

from __future__ import annotations

import builtins
import functools
import os
import signal
import sys
from types import CodeType

from sppo.verifiers.code.channel import Channel, Faulty, Gone, Unanswered
from sppo.verifiers.code.comparison import same_output, same_value
from sppo.verifiers.code.wire import NotPlain, decode, encode, to_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

SETTINGS: dict[str, Any] = globals().get("SETTINGS", {})
"""Given by runner.py."""

NOTE = "__note__"
"""Name under which counted assertions find the counter."""
_NOT_RAISED = (
    "StopIteration", "StopAsyncIteration", "UnicodeDecodeError", "UnicodeEncodeError", "UnicodeTranslateError",
    "ExceptionGroup", "BaseExceptionGroup",
)  # fmt: skip
"""Exceptions that the tests see as what is above them: some would quietly end a test's loop, others take no message."""
_RAISED_AS_SUCH = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException) and name not in _NOT_RAISED
}


class ProgramError(Exception):
    """The program raised something of its own."""


class Tests:
    """Runs the tests one after the other and keeps count."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.passed: list[bool] = []
        self.reason = ""
        self.killed = False
        """Whether a run of the whole program was killed, by nobody of ours."""
        self.assertions_seen: dict[int, dict[tuple[int, ...], bool]] = {}
        """Where a counted assertion stands -> what was asked before it -> whether it held whenever that was asked."""
        self.answers: tuple[int, ...] = ()

    def note(self, passed: bool, reason: str = "") -> None:
        """Counts one test."""
        if not passed and not self.reason:
            self.reason = f"test {len(self.passed) + 1}: {reason}"
        self.passed.append(passed)

    def done(self) -> bool:
        """Whether the rest cannot change the reward."""
        return SETTINGS["stop_at_failure"] and False in self.passed

    def load(self) -> None:
        """Lets the program be loaded.

        Raises:
            Gone: it cannot be.
            Faulty: neither can the prompt's code, which runs before it, alone.
        """
        try:
            self.channel.load()
        except Gone:
            try:
                exec(compiled(SETTINGS["prelude"]), {})
            except Exception as failure:
                raise Faulty(f"{described(failure)}, in the prompt") from None
            raise

    def run(self) -> None:
        """Runs all, or as many as are needed."""
        for test in _STYLES[SETTINGS["style"]](self):
            self.channel.begin_test()
            test()
            if self.channel.over is not None:
                raise self.channel.over
            if self.done():
                break

    def pairs_of_texts(self) -> Iterator[Callable[[], None]]:
        """Input and output of the whole program."""
        for given, expected in SETTINGS["tests"]:
            yield functools.partial(self._output, given, expected)

    def _output(self, given: str, expected: str) -> None:
        answer = self.channel.ask({"input": given})
        ending, code, output = answer.get("ending"), answer.get("code"), answer.get("output")
        if type(output) is not str:
            raise self.channel.end(Gone("the program sent no output"))
        if ending is not None:
            return self.note(False, str(ending)[:200])
        self.killed = self.killed or code == -signal.SIGKILL
        if code != 0:
            return self.note(False, f"exit code {code}: {str(answer.get('last'))[:200]}")
        return self.note(same_output(output, expected, SETTINGS["tolerance"]), "the output is another")

    def pairs_of_values(self) -> Iterator[Callable[[], None]]:
        """Arguments and value of one function."""
        function = self.stand_in(SETTINGS["function"])
        for given, expected in SETTINGS["tests"]:
            yield functools.partial(self.attempt, functools.partial(self._value, function, given, expected))

    def _value(self, function: Callable[..., Any], given: list[Any], expected: Any) -> bool:
        value, tolerance = function(*given), SETTINGS["tolerance"]
        return same_value(value, expected, tolerance) or (
            SETTINGS["wrapped"] and same_value(value, expected[0], tolerance)
        )

    def assertions(self) -> Iterator[Callable[[], None]]:
        """Lines of test code, each a test of its own."""
        codes = [compiled(source) for source in (SETTINGS["setup"], *SETTINGS["tests"])]
        pythons = set(dir(builtins)) - set(SETTINGS["defined"])
        found = [names_of(code) for code in codes]
        # A program's own `sum` is asked for where tests know of nothing else; its own `abs` may not pass for Python's.
        one = set.intersection(*found[1:]) if not set().union(*found) - pythons else set()
        names = one if len(one) == 1 else set().union(*found) - pythons
        space = self.space(names)
        self.execute(codes[0], space)
        for code in codes[1:]:
            yield functools.partial(self.attempt, functools.partial(exec, code, space))

    def space(self, names: Iterable[str]) -> dict[str, Any]:
        """The names that test code finds: the program's, bare, as methods of Solution, and in a module solution."""
        solution = type(sys)("solution")
        # Python looks for what a module has not in a function of this name.
        vars(solution)["__getattr__"] = self.of_module
        sys.modules["solution"] = solution
        own = {name: self.of_module(name) for name in names if not name.startswith("__")}
        return {"__name__": "tests", **own}

    def of_module(self, name: str) -> Any:
        """What stands for a name of the program."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Solution(self.stand_in) if name == "Solution" else self.stand_in(name)

    def functions(self) -> Iterator[Callable[[], None]]:
        """Functions test..., and methods of classes, unittest's or plain ones."""
        code = compiled(SETTINGS["setup"])
        space = self.space(names_of(code) - (set(dir(builtins)) - set(SETTINGS["defined"])))
        self.execute(code, space)
        for name in SETTINGS["tests"]:
            yield functools.partial(self.attempt, functools.partial(run_test, space, name))

    def check_function(self) -> Iterator[Callable[[], None]]:
        """A function `check` that is given the candidate."""
        space: dict[str, Any] = {}
        self.execute(compiled(SETTINGS["setup"]), space)
        space[NOTE] = self._count
        self.execute(compiled(SETTINGS["tests"], counting=SETTINGS["count_assertions"]), space)
        candidate = space[SETTINGS["function"]] = self.stand_in(SETTINGS["function"])
        if not callable(space.get("check")):
            raise Faulty("they define no function check(candidate)")
        yield functools.partial(self._check, space["check"], candidate)

    def _count(self, place: int, failure: BaseException | None) -> None:
        """Counts an assertion of a check function: those at one place that follow from the same answers as one.

        Else a program could return a long list for a loop of assertions to go through.
        """
        if isinstance(failure, (Gone, Faulty)):
            raise failure
        failure, self.channel.unanswered = self.channel.unanswered or failure, None
        if self.channel.asked:
            self.answers = tuple(self.channel.asked)
            self.channel.asked.clear()
        outcomes = self.assertions_seen.setdefault(place, {})
        outcomes[self.answers] = outcomes.get(self.answers, True) and failure is None
        if failure is not None and not self.reason:
            number = sum(map(len, self.assertions_seen.values()))
            self.reason = f"test {number}: {described(failure)}"

    def _check(self, check: Callable[..., Any], candidate: Callable[..., Any]) -> None:
        self.attempt(functools.partial(check, candidate))
        if self.passed == [True] and self.assertions_seen:
            self.passed = [held for outcomes in self.assertions_seen.values() for held in outcomes.values()]

    @property
    def share(self) -> float | None:
        """The share of a check function's assertions that held, each place weighing the same; None if not counted.

        So a loop that a program makes longer is worth no more.
        """
        if not self.assertions_seen or self.passed == [False]:
            return None
        shares = [sum(outcomes.values()) / len(outcomes) for outcomes in self.assertions_seen.values()]
        return sum(shares) / len(shares)

    def attempt(self, action: Callable[[], Any]) -> None:
        """Runs one test, which fails if it says False or raises anything.

        Raises:
            Gone: the program is gone, be it that the test caught that.
        """
        try:
            passed, reason = action() is not False, "the value is another"
        except BaseException as failure:
            passed, reason = False, described(failure)
        if self.channel.over is not None:
            raise self.channel.over
        if self.channel.unanswered is not None:
            passed, reason = False, described(self.channel.unanswered)
        self.note(passed, reason)

    def execute(self, code: CodeType, space: dict[str, Any]) -> None:
        """Runs what comes before the tests; if it asks the program something, failing is the program's failure."""
        try:
            exec(code, space)
        except BaseException as failure:
            if self.channel.over is not None:
                raise self.channel.over from None
            if self.channel.number:
                raise Gone(described(failure)) from None
            raise Faulty(f"{described(failure)}, before the first test") from None
        if self.channel.over or self.channel.unanswered:
            raise self.channel.over or Gone(described(self.channel.unanswered))

    def stand_in(self, name: str) -> Callable[..., Any]:
        """Returns a function that calls the program's function of that name."""

        def ask(*arguments: Any, **keywords: Any) -> Any:
            try:
                request = {"call": name, "arguments": encode(arguments), "keywords": encode(keywords)}
            except NotPlain as failure:
                raise self.channel.end(Faulty(f"they call {name} with {failure}")) from None
            answer = self.channel.ask(request)
            if "error" in answer:
                raise raised(answer)
            try:
                return decode(answer.get("value"))
            except (NotPlain, RecursionError) as failure:
                raise self.channel.end(Gone(f"the program sent {failure}")) from None

        return ask


_STYLES: dict[str, Callable[[Tests], Iterator[Callable[[], None]]]] = {
    "input": Tests.pairs_of_texts,
    "call": Tests.pairs_of_values,
    "assertions": Tests.assertions,
    "check": Tests.check_function,
    "functions": Tests.functions,
}


class Solution:
    """Stands for the program's class Solution, and for an object of it."""

    def __init__(self, stand_in: Callable[[str], Callable[..., Any]]):
        self.__stand_in = stand_in

    def __call__(self) -> Solution:
        """An object of it."""
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__stand_in(name)


def run_test(space: dict[str, Any], name: str) -> None:
    """Runs one test that test code has defined; unittest's so that what it raises comes through."""
    kind, _, method = name.partition(".")
    if not method:
        space[kind]()
        return
    made = space[kind]
    if not hasattr(made, "debug"):
        getattr(made(), method)()
        return
    made.setUpClass()
    try:
        made(method).debug()
    finally:
        made.tearDownClass()


def raised(answer: dict[str, Any]) -> BaseException:
    """Returns what the tests see of what the program raised: the nearest of Python's own classes, with its message."""
    kind, message = str(answer["error"])[:100], str(answer.get("message"))[:200]
    kinds = answer.get("kinds")
    known = [_RAISED_AS_SUCH[name] for name in kinds if name in _RAISED_AS_SUCH] if isinstance(kinds, list) else []
    if not known or (known[0] is Exception and kind != "Exception"):
        return ProgramError(f"{kind}: {message}")
    return known[0](message)


def described(failure: BaseException | None) -> str:
    """Returns what was raised, in a few words."""
    if failure is None or isinstance(failure, Unanswered):
        return str(failure or "")[:200]
    return f"{type(failure).__name__}: {str(failure)[:200]}"


def compiled(source: str, counting: bool = False) -> CodeType:
    """Compiles test code; counting makes each assertion count on its own, and none end the run."""
    try:
        if not counting:
            return compile(source, "tests.py", "exec", dont_inherit=True)
        from sppo.verifiers.code.counting import count_assertions

        return count_assertions(source)
    except (SyntaxError, ValueError) as failure:
        raise Faulty(f"they cannot be compiled: {failure}") from None


def names_of(code: CodeType) -> set[str]:
    """Returns every name that code may look up outside itself."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_of(constant)
    return names


def main() -> None:
    """Runs the tests and sends the result."""
    channel = Channel(SETTINGS)
    tests = Tests(channel)
    faulty, started = None, False
    try:
        channel.begin()
        started = True
        tests.load()
        tests.run()
    except Gone as gone:
        if SETTINGS["style"] == "check":
            tests.passed.clear()
        tests.note(False, str(gone))
    except Faulty as fault:
        faulty = str(fault)
    result = {"passed": tests.passed, "reason": tests.reason, "seconds": channel.seconds, "share": tests.share}
    result |= {"faulty": faulty, "started": started, "closed": channel.closed, "killed": tests.killed}
    content = to_line(result)
    while content:
        content = content[os.write(SETTINGS["result"], content) :]
    os._exit(0)


if __name__ == "__main__":
    main()
