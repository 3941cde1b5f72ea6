"""data.answer_form: the answer is taken out of what the column holds, in training's loader and in the audit."""

from __future__ import annotations

import json

import pytest

from sppo.commands.audit import audit
from sppo.config import Config, DataConfig
from sppo.data.tasks import load_prompts
from sppo.errors import ConfigError, DataError

SOLUTIONS = [
    {"prompt": "Half of 14?", "answer": "It is 14 / 2 = <<14/2=7>>7.\n#### 7"},
    {"prompt": "Half of 3?", "answer": r"So it is $\boxed{\frac32}$."},
    {"prompt": "Half of 2?", "answer": "There is one left."},
]
NOTED = [{"prompt": "How many apples?", "answer": "9 (in thousands)"}, {"prompt": "How many pears?", "answer": "3"}]


def golds(rows, **options):
    loaded = load_prompts(DataConfig(**options), seed=0, rows=rows)
    return [prompt.gold for prompt in loaded.prompts], loaded.left_out


def test_worked_solutions():
    kept, left_out = golds(SOLUTIONS)
    assert kept == [r"So it is $\boxed{\frac32}$."]
    assert "data.answer_form solution takes '7'" in left_out[1]
    kept, left_out = golds(SOLUTIONS, answer_form="solution")
    assert kept == ["7", r"\frac32"]
    assert "no final statement" in left_out[3]


def test_answers_with_a_note():
    with pytest.raises(DataError, match=r"data\.answer_form noted takes '9'"):
        golds(NOTED[:1])
    assert golds(NOTED, answer_form="noted") == (["9", "3"], {})


def test_the_audit_reads_answers_as_training_does(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SOLUTIONS), encoding="utf-8")
    assert list(audit(Config(data=DataConfig(path=str(path)))).faulty) == [1, 3]
    found = audit(Config(data=DataConfig(path=str(path), answer_form="solution")))
    assert list(found.faulty) == [3]


def test_a_task_that_makes_its_own_answers_has_no_such_option():
    with pytest.raises(ConfigError, match="answer_form"):
        load_prompts(DataConfig(task="skills", answer_form="solution"), seed=0)
