"""The `code` verifier: the last block of code in a response is run against the tests in the gold answer.

    reward = 1 if all tests pass, else 0                                        reward all
    reward = tests passed / tests                                               reward fraction
    reward = clip(speed-up / runtime_target, 0.1, 1), if all pass               reward runtime

The speed-up is the median time of the reference solution over that of the program, both measured from outside, in
turns; loading them counts. What the program does wrong, running too long included, is reward 0 with a reason; a sandbox
that fails, or tests that cannot be run, are errors. What something outside may have killed is run once more, alone; a
program that is killed again has done it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sppo.config.verification import CodeOptions, VerificationConfig
from sppo.errors import ConfigError
from sppo.types import Submission, Verdict
from sppo.verifiers.code.blocks import find_code
from sppo.verifiers.code.published import asserts_nothing
from sppo.verifiers.code.runner import Report, run_suite
from sppo.verifiers.code.suite import Suite, SuiteError, read_suite
from sppo.verifiers.sandbox import Backend, SandboxError, open_sandbox
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Gold

NAME = "code"
_SHOWN = 200
_LEAST = 0.1
"""Least reward of a program that is right but slow: more than a wrong one's."""
_REPEATS = 3
"""Timed runs of program and reference, taking turns; their medians count."""


def check(options: VerificationConfig) -> None:
    """Refuses a folder of packages that is not there.

    Raises:
        ConfigError: names it.
    """
    packages = options.code.packages
    if packages is not None and not Path(packages).expanduser().is_dir():
        raise ConfigError(
            f"verification.code.packages is {packages!r}, which is no folder (looked from {Path.cwd()}). Make it: pip "
            f"install --target {packages or 'FOLDER'} numpy"
        )


def prepare(tools: Tools) -> None:
    """Finds the sandbox.

    Raises:
        ConfigError: there is none on this machine.
    """
    open_sandbox(tools.options.code.unsafe_code)


def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
    """Returns one verdict a submission, in order; as many as the pool has workers are run at a time.

    Raises:
        ConfigError: there is no sandbox on this machine.
    """
    options = tools.options.code
    backend = open_sandbox(options.unsafe_code)

    def judge(given: Submission, again: bool = False) -> Verdict:
        try:
            return judge_one(given, options, backend, again=again)
        except SuiteError as failure:
            return Verdict(None, error=str(failure), caused_by="verifier")
        except SandboxError as failure:
            return Verdict(None, error=f"the sandbox failed: {failure}", caused_by="verifier")

    # Each thread only waits for processes, and no thread outlives its batch.
    with ThreadPoolExecutor(min(tools.pool.workers, len(submissions)) or 1) as pool:
        verdicts = list(pool.map(judge, submissions))
    return [
        verdict if verdict.error is None else judge(given, again=True)
        for given, verdict in zip(submissions, verdicts, strict=True)
    ]


def reference(given: Submission) -> str | None:
    """Returns a response with the gold answer's reference solution, if it has one."""
    try:
        solution = read_suite(given.gold).reference
    except SuiteError:
        # Without one, verifying says what is wrong with the tests.
        return "```python\n```"
    return None if solution is None else fenced(solution)


def read_gold(given: Submission) -> Gold:
    """How many tests there are, and of what kind."""
    try:
        suite = read_suite(given.gold)
    except SuiteError as failure:
        return Gold(f"no tests: {failure}")  # which verifying says again
    kinds = {
        "input": "of input and output",
        "call": f"of calls of {suite.function}",
        "assertions": "of assertions",
        "functions": "that are functions",
    }
    count = f"{suite.count} test{'' if suite.count == 1 else 's'}"
    codes = [suite.tests] if isinstance(suite.tests, str) else suite.tests if suite.style == "assertions" else []
    empty = suite.style not in ("input", "call") and asserts_nothing("\n".join([suite.setup, *codes]))
    fault = "has no test that asserts anything, so that any program passes" if empty else ""
    return Gold(f"{count} {kinds.get(suite.style, 'that is a function')}; {_solution(suite)}", fault)


def _solution(suite: Suite) -> str:
    return "no reference solution" if suite.reference is None else "with a reference solution"


def fenced(code: str) -> str:
    """Returns a response that consists of this code."""
    return f"```python\n{code}\n```"


def judge_one(given: Submission, options: CodeOptions, backend: Backend, *, again: bool = False) -> Verdict:
    """Returns the verdict on one response.

    Args:
        given: the response.
        options: how it is judged.
        backend: the sandbox.
        again: it was killed before, so that it is the program that does it if it happens again.

    Raises:
        SuiteError: the gold answer's tests cannot be run.
        SandboxError: a sandbox failed, or something killed the program.
    """
    suite = read_suite(given.gold)
    found = find_code(given.response)
    if found.text is None:
        return Verdict(0.0, None, found.reason)
    shown = shown_tests(suite, options)
    count_all = options.reward == "fraction" or shown > 0
    report = run_suite(found.text, suite, suite.tests, options, backend, every_test=count_all)
    if report.killed and not again:
        raise SandboxError("something killed the program")
    share, parts = _shares(report, suite, shown, options)
    passed = f"{sum(report.passed)} of {max(len(report.passed), suite.count)} tests passed"
    reason = passed if share == 1.0 or not report.reason else f"{passed}; {report.reason}"
    if options.reward == "fraction":
        reward = share
    elif share < 1.0:
        reward = 0.0
    elif options.reward == "all":
        reward = 1.0
    else:
        speed_up = _speed_up(found.text, report, suite, options, backend)
        reward = min(max(speed_up / options.runtime_target, _LEAST), 1.0)
        reason = f"{reason}; {speed_up:.2f} times as fast as the reference"
    return Verdict(reward, found.text[:_SHOWN], reason, parts=parts)


def shown_tests(suite: Suite, options: CodeOptions) -> int:
    """Returns how many of the first tests count as shown; one test at least is held out."""
    shown = suite.shown if suite.shown is not None else int(options.shown_share * suite.count)
    return min(shown, suite.count - 1)


def _shares(report: Report, suite: Suite, shown: int, options: CodeOptions) -> tuple[float, dict[str, float | None]]:
    """Returns the share passed of the tests that make the reward, and where some are shown, of both kinds."""
    passed = list(report.passed) + [False] * (suite.count - len(report.passed))
    if shown == 0:
        return sum(passed) / len(passed) if report.share is None else report.share, {}
    of_shown, of_others = sum(passed[:shown]) / shown, sum(passed[shown:]) / (len(passed) - shown)
    share = of_others if options.graded == "held_out" else sum(passed) / len(passed)
    return share, {"shown": of_shown, "held_out": of_others}


def _speed_up(program: str, report: Report, suite: Suite, options: CodeOptions, backend: Backend) -> float:
    """Returns how many times faster than the reference solution a program is that passed."""
    if suite.reference is None:
        raise SuiteError("verification.code.reward is runtime, but the gold answer has no reference solution")
    if program.strip() == suite.reference.strip():
        return options.runtime_target
    ours, theirs = [report.seconds], []
    for turn in range(_REPEATS):
        other = run_suite(suite.reference, suite, suite.tests, options, backend)
        if other.killed:
            raise SandboxError("something killed the reference solution")
        if not all(other.passed):
            raise SuiteError(f"the reference solution fails: {other.reason}")
        theirs.append(other.seconds)
        if turn:
            again = run_suite(program, suite, suite.tests, options, backend)
            # One that is right only now and then is as slow as may be.
            ours.append(again.seconds if all(again.passed) else options.total_seconds)
    return statistics.median(theirs) / max(statistics.median(ours), 1e-9)
