"""The hand-labelled table: every verdict as a careful person gave it, also from threads and from several processes.

Each line of labelled_answers.jsonl has the verifier, what the row is about, the response (or the answer inside a box),
the gold answer and whether it is right; some have columns, or were cut off at the length limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sppo.config.verification import VerificationConfig
from sppo.types import Submission
from sppo.verifiers import VERIFIERS
from sppo.verifiers.tools import Tools

TABLE = Path(__file__).with_name("labelled_answers.jsonl")
ROWS: list[dict[str, Any]] = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
# Generous, for a machine that is busy: no row needs a second.
TOOLS = Tools(VerificationConfig(time_limit=30.0))


def misjudged(rows: Sequence[dict[str, Any]], tools: Tools = TOOLS) -> list[str]:
    """The rows whose verdict is not as labelled, with the verdict."""
    wrong = []
    for name in dict.fromkeys(row["verifier"] for row in rows):
        mine = [row for row in rows if row["verifier"] == name]
        verdicts = VERIFIERS[name].grade([submission(row) for row in mine], tools)
        wrong += [
            f"{row} -> {verdict}"
            for row, verdict in zip(mine, verdicts, strict=True)
            if verdict.reward != float(row["right"])
        ]
    return wrong


def submission(row: dict[str, Any]) -> Submission:
    response = row["response"] if "response" in row else rf"Thus $\boxed{{{row['answer']}}}$."
    return Submission(response, row["gold"], row.get("finished", True), columns=row.get("columns", {}))


@pytest.mark.parametrize("about", dict.fromkeys((row["verifier"], row["about"]) for row in ROWS), ids=": ".join)
def test_as_labelled(about):
    rows = [row for row in ROWS if (row["verifier"], row["about"]) == about]
    assert misjudged(rows) == []


def test_the_table_is_large_and_has_both_verdicts_and_no_row_twice():
    assert len(ROWS) > 1100
    assert 0.4 < sum(row["right"] for row in ROWS) / len(ROWS) < 0.6
    assert len({json.dumps({**row, "about": ""}, sort_keys=True) for row in ROWS}) == len(ROWS)


def test_from_eight_threads_at_once_on_one_pool():
    wrong: list[str] = []
    done: list[int] = []

    def work(share: int) -> None:
        wrong.extend(misjudged(ROWS[share::8]))
        done.append(share)

    threads = [threading.Thread(target=work, args=[share]) for share in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(done) == list(range(8))
    assert wrong == []


def test_from_two_processes_at_once():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.verifiers.test_table import ROWS, misjudged\n"
        "wrong = misjudged(ROWS[int(sys.argv[2]) :: 4])\n"
        "print(len(wrong), *wrong, sep='\\n')"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(TABLE.parents[2]), str(share)], stdout=subprocess.PIPE, text=True
        )
        for share in range(2)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in running] == ["0", "0"]
