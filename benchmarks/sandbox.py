"""What the code sandbox adds to a plain start of Python, and how many programs are verified a second.

    python benchmarks/sandbox.py --json sandbox.json

Plain Python, with the same flags, and each sandbox of this machine take turns with a program that does nothing. Then a
HumanEval-like check function is verified, and a program with 50 inputs: all of them in one sandbox, beside what 50
plain starts of Python take.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from typing import Any

from common import machine, medians, parse, parser, print_machine, take_turns, write_json

from sppo.config.verification import VerificationConfig
from sppo.types import Submission
from sppo.verifiers.code import verifier as code
from sppo.verifiers.sandbox import BACKENDS, Backend, run
from sppo.verifiers.sandbox.backends import ENVIRONMENT, python_executable
from sppo.verifiers.sandbox.run import probe
from sppo.verifiers.tools import Tools

LIMIT_MS = 30.0
INPUTS = 50
CHECK = {
    "test": "def check(candidate):\n    for n in range(100):\n        assert candidate(n) == n * n",
    "entry_point": "square",
    "prompt": "def square(n):\n    '''The square of n.'''\n",
}
SQUARE = code.fenced("def square(n):\n    return n * n")
TEXTS = {"inputs": [str(n) for n in range(INPUTS)], "outputs": [str(n * n) for n in range(INPUTS)]}
PRINT_SQUARE = code.fenced("print(int(input()) ** 2)")


def start_plain(program: str = "pass", given: bytes = b"") -> None:
    command = [python_executable(), "-s", "-S", "-B", "-c", program]
    subprocess.run(command, env=ENVIRONMENT, input=given, stdout=subprocess.DEVNULL, check=True)


def start_sandboxed(backend: Backend) -> None:
    outcome = run("pass", backend=backend)
    assert outcome.exit_code == 0, outcome


def verify(gold: dict[str, Any], response: str, count: int, workers: int) -> None:
    verdicts = code.grade([Submission(response, json.dumps(gold))] * count, Tools(VerificationConfig(workers=workers)))
    assert all(verdict.reward == 1.0 for verdict in verdicts), verdicts


def measure_starts(repeats: int) -> dict[str, Any]:
    working = [found for found in BACKENDS.values() if not (found.unavailable() or probe(found))]
    contenders = {"plain": lambda _: start_plain()}
    contenders |= {found.name: lambda _, found=found: start_sandboxed(found) for found in working}
    seconds = take_turns(contenders, repeats)
    # Both of a round ran one after the other, so what else the machine did weighs on both.
    added = {
        name: 1000
        * statistics.median(mine - plain for mine, plain in zip(seconds[name], seconds["plain"], strict=True))
        for name in contenders
    }
    middle = medians(seconds)
    return {
        "median_ms": {name: 1000 * value for name, value in middle.items()},
        "added_ms": added,
        # The least of all rounds is what it takes when nothing else wants the cores.
        "least_added_ms": {name: 1000 * (min(seconds[name]) - min(seconds["plain"])) for name in contenders},
        "ratio": {name: value / middle["plain"] for name, value in middle.items()},
    }


def measure_verification(repeats: int, workers: int) -> dict[str, Any]:
    seconds = take_turns(
        {
            "check functions": lambda _: verify(CHECK, SQUARE, 4 * workers, workers),
            "one of 50 inputs": lambda _: verify(TEXTS, PRINT_SQUARE, 1, 1),
            "50 plain starts": lambda _: [start_plain("print(int(input()) ** 2)", b"7") for _ in range(INPUTS)],
        },
        repeats,
    )
    middle = medians(seconds)
    return {
        "workers": workers,
        "check_functions_per_second": 4 * workers / middle["check functions"],
        "seconds_for_50_inputs": middle["one of 50 inputs"],
        "ratio_to_50_plain_starts": middle["one of 50 inputs"] / middle["50 plain starts"],
    }


def main() -> None:
    options = parser(__doc__, repeats=25)
    options.add_argument("--workers", type=int, default=2, help="programs verified at a time (default: %(default)s)")
    arguments = parse(options)
    described = machine(arguments.threads)
    print_machine(described)
    starts = measure_starts(arguments.repeats)
    for name, value in starts["median_ms"].items():
        added, ratio = starts["added_ms"][name], starts["ratio"][name]
        least = starts["least_added_ms"][name]
        print(f"{name:>10}: start {value:5.1f} ms, adds {added:5.1f} ms, at least {least:.1f} ms ({ratio:.2f} x plain)")
    best = next(name for name in BACKENDS if name in starts["added_ms"])
    print(f"{best} adds {starts['added_ms'][best]:.1f} ms; the limit is {LIMIT_MS:.0f} ms")
    verified = measure_verification(max(3, arguments.repeats // 5), arguments.workers)
    print(f"{verified['check_functions_per_second']:.1f} check functions a second with {arguments.workers} workers")
    print(
        f"50 inputs of one program: {verified['seconds_for_50_inputs']:.2f} s, "
        f"{verified['ratio_to_50_plain_starts']:.2f} x the time of 50 plain starts"
    )
    write_json(arguments.json, described, [starts, verified])


if __name__ == "__main__":
    main()
