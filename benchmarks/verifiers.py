"""How fast answers are verified: MATH-500's golds, identical and in other forms, and a batch with bombs in it.

    python benchmarks/verifiers.py --data ../shared/data/math_500.parquet --json verifiers.json

Four measurements, with 2 workers that have been started (starting is reported apart) and nothing remembered:

- identical: every gold answer in a box, as it stands. Strings decide them all, in the caller.
- other form: every gold answer written another way that means the same (5.0 for 5, a fraction that is not in lowest
  terms, sums and lists in another order, half of a larger root); golds that none of these touch stand as they are. The
  share that goes to sympy is named, and timed alone.
- sympy alone: every gold answer that is one expression, as \\frac{2(...)}{2}, so that strings decide nothing. This is
  what the workers can do; how many answers get there is up to the model.
- bombs: 2,000 answers of which 1% would run for ever or eat all memory. What they may take is time limit x bombs /
  workers + 10%, beside what the other answers take; memory is the highest seen in any worker.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from sppo.config.verification import VerificationConfig
from sppo.types import Submission, Verdict
from sppo.verifiers import get_verifier
from sppo.verifiers.math.latex import normalise
from sppo.verifiers.math.verifier import fast
from sppo.verifiers.tools import Tools, shared_pool

BOMBS = ("9^9^9^9", "(10^{10})!", r"\frac{1}{" * 150 + "x" + "}" * 150, "x^{(10^{10})!}", "9^{9^{9^9}}")
NOT_EVEN_READ = (r"\frac{1}{" * 500 + "x" + "}" * 500, "1+" * 500_000 + "1")


def golds(path: Path) -> list[str]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [row["reward_model"]["ground_truth"] if "reward_model" in row else row["answer"] for row in rows]


def other_form(gold: str) -> str:
    """Writes an answer another way that means the same; as it stands where no way is known."""
    number = re.fullmatch(r"-?\d+", gold)
    if number:
        return f"{gold}.0"
    if re.fullmatch(r"-?\\frac\{\d+\}\{\d+\}", gold):
        top, bottom = re.findall(r"\d+", gold)
        return f"{'-' if gold.startswith('-') else ''}\\dfrac{{{3 * int(top)}}}{{{3 * int(bottom)}}}"
    if re.fullmatch(r"[\d\sa-z^+{}\\]*sqrt[\d\sa-z^+{}\\]*", gold) and re.search(r"\\sqrt\{\d+\}", gold):
        return re.sub(r"\\sqrt\{(\d+)\}", lambda root: rf"\frac{{\sqrt{{{4 * int(root[1])}}}}}{{2}}", gold)
    terms = re.fullmatch(r"([\da-z^]+) ?\+ ?([\da-z^]+)", gold)
    if terms:
        return f"{terms[2]}+{terms[1]}"
    if re.fullmatch(r"[\d\s,\-]+", gold) and "," in gold and not re.fullmatch(r"\d{1,3}(,\d{3})+", gold):
        return ", ".join(reversed(gold.split(",")))
    if re.fullmatch(r"\d+ ?\\pi", gold):
        return gold.replace(r"\pi", r"\cdot \pi")
    return gold


def timed(submissions: Sequence[Submission], tools: Tools) -> tuple[float, list[Verdict]]:
    began = time.perf_counter()
    verdicts = get_verifier("math").grade(submissions, tools)
    return time.perf_counter() - began, verdicts


def boxed(answers: Sequence[str], references: Sequence[str]) -> list[Submission]:
    return [
        Submission(rf"Thus the answer is $\boxed{{{answer}}}$.", gold)
        for answer, gold in zip(answers, references, strict=True)
    ]


def by_sympy(gold: str) -> str | None:
    """Writes an expression so that only sympy can tell; None for answers that are no single expression."""
    if re.search(r"[,=<>_]|text|begin|cup|infty|\\[lg]e|pm|\\in|circ|\\\$|%|[\[\]]|dots|mbox", gold) or re.search(
        r"[A-Za-z]{4,}$", gold
    ):
        return None
    return rf"\frac{{2\left({gold}\right)}}{{2}}"


WARM_UP = boxed([r"\sqrt{8}", r"\sqrt{12}"], [r"2\sqrt{2}", r"2\sqrt{3}"])


def measure_speed(
    name: str, submissions: list[Submission], options: VerificationConfig, repeats: int
) -> dict[str, Any]:
    asked = [given for given in submissions if fast(given.response, given.gold or "", True) is None]
    whole, sympy, verdicts = [], [], []
    for repeat in range(repeats):
        # Another pool each round, as parsed answers are kept; the limit only tells the pools apart.
        tools = Tools(replace(options, time_limit=options.time_limit + repeat / 1000))
        timed(WARM_UP, tools)
        normalise.cache_clear()
        seconds, verdicts = timed(submissions, tools)
        whole.append(seconds)
        tools.pool.close()
        shared_pool.cache_clear()
        if asked:
            timed(WARM_UP, tools)
            sympy.append(timed(asked, tools)[0])
            tools.pool.close()
            shared_pool.cache_clear()
    return {
        "measurement": name,
        "answers": len(submissions),
        "rewritten": sum(rf"\boxed{{{given.gold}}}" not in given.response for given in submissions),
        "right": sum(verdict.reward == 1.0 for verdict in verdicts),
        "answers_per_second": round(len(submissions) / statistics.median(whole)),
        "to_sympy": len(asked),
        "sympy_answers_per_second": round(len(asked) / statistics.median(sympy)) if sympy else None,
        "sympy_share_of_time": round(statistics.median(sympy) / statistics.median(whole), 2) if sympy else 0.0,
    }


class PeakMemory:
    """Watches the workers' resident memory while a block runs."""

    def __init__(self, tools: Tools):
        self.tools = tools
        self.peak = 0
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for process in self.tools.pool.process_ids():
                self.peak = max(self.peak, _resident_bytes(process))


def _resident_bytes(process: int) -> int:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_bombs(references: Sequence[str], tools: Tools, total: int) -> dict[str, Any]:
    plain = boxed([other_form(references[i % len(references)]) for i in range(total)], (references * 5)[:total])
    without, _ = timed(plain, tools)
    mixed = list(plain)
    kinds = BOMBS + NOT_EVEN_READ
    places = range(50, total, 100)
    for count, place in enumerate(places):
        mixed[place] = boxed([kinds[count % len(kinds)]], [r"2\sqrt{2}"])[0]
    with PeakMemory(tools) as memory:
        seconds, verdicts = timed(mixed, tools)
    bound = 1.1 * (tools.options.time_limit * len(places) / tools.pool.workers)
    return {
        "measurement": "bombs",
        "answers": total,
        "bombs": len(places),
        "errors": sum(verdict.error is not None for verdict in verdicts),
        "bombs_marked_right": sum(verdicts[place].reward == 1.0 for place in places),
        "others_marked_right": sum(verdict.reward == 1.0 for verdict in verdicts),
        "seconds": round(seconds, 2),
        "seconds_without_bombs": round(without, 2),
        "bound_seconds": round(bound, 2),
        "peak_worker_mib": round(memory.peak / 2**20),
    }


def main() -> None:
    options = common.parser(__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--data", type=Path, default=Path("../shared/data/math_500.parquet"), help="MATH-500")
    options.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    options.add_argument("--time-limit", type=float, default=3.0, help="seconds an answer (default: %(default)s)")
    arguments = common.parse(options)
    if not arguments.data.is_file():
        options.error(f"--data is {arguments.data}, but there is no such file.")
    references = golds(arguments.data)
    tools = Tools(VerificationConfig(workers=arguments.workers, time_limit=arguments.time_limit))
    began = time.perf_counter()
    timed(WARM_UP, tools)
    described = {**common.machine(1), "start_seconds": round(time.perf_counter() - began, 2)}
    common.print_machine(described)
    written = {
        "identical": [(gold, gold) for gold in references],
        "other form": [(other_form(gold), gold) for gold in references],
        "sympy alone": [(answer, gold) for gold in references if (answer := by_sympy(gold))],
    }
    results = []
    for name, pairs in written.items():
        submissions = boxed([answer for answer, _ in pairs], [gold for _, gold in pairs])
        results.append(measure_speed(name, submissions, tools.options, arguments.repeats))
        print(results[-1], flush=True)
    results.append(measure_bombs(references, tools, 2000))
    print(results[-1], flush=True)
    common.write_json(arguments.json, described, results)


if __name__ == "__main__":
    main()
