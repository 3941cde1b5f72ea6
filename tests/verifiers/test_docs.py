"""The tables of docs/verifiers.md are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sppo.config.verification import VerificationConfig
from sppo.types import Submission
from sppo.verifiers import VERIFIERS
from sppo.verifiers.tools import Tools

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifiers.md"
ROW = re.compile(r"\| `(?P<given>.+?)` \| `(?P<gold>.+?)` \| (?P<right>yes|no) \|")
HEADER = re.compile(r"\| (?P<kind>answer|response)(?: \((?P<verifier>\w+)\))? \| gold \| right \| why \|")


def examples() -> list[tuple[str, str, str, bool]]:
    """(verifier, response, gold, right) of every row of the tables with a column `right`."""
    found, header = [], None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        header = HEADER.fullmatch(line) or (header if line.startswith("|") else None)
        row = ROW.match(line)
        if header and row:
            response = rf"So \boxed{{{row['given']}}}" if header["kind"] == "answer" else row["given"]
            found.append((header["verifier"] or "math", response, row["gold"], row["right"] == "yes"))
    return found


@pytest.mark.parametrize("verifier", ["math", "minerva", "choice", "exact", "final_answer"])
def test_the_examples_of(verifier):
    rows = [row for row in examples() if row[0] == verifier]
    tools = Tools(VerificationConfig(time_limit=30.0))
    verdicts = VERIFIERS[verifier].grade([Submission(response, gold) for _, response, gold, _ in rows], tools)
    assert len(rows) >= 2
    assert [
        (*row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.reward != float(row[3])
    ] == []


def test_no_row_of_a_table_is_passed_over():
    inside = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        inside = bool(HEADER.fullmatch(line)) or (inside and line.startswith("|"))
        assert not inside or HEADER.fullmatch(line) or line.startswith("|---") or ROW.match(line), line
    assert len(examples()) == 193
