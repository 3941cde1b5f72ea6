"""No problem that a run is measured on is trained on, wherever it is measured."""

from __future__ import annotations

import json

import pytest

from sppo.config import DataConfig, EvaluationConfig, SftPhase
from sppo.data.prompts import copy_keys
from sppo.data.stream import fingerprint
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import DataError
from sppo.models.tokenizers import character_tokenizer
from sppo.training.prompts import Prompts, load_data, load_demonstrations
from sppo.verifiers.tools import Tools

ROWS = [{"prompt": f"{n}+{n}=", "answer": "1", "demonstration": str(n)} for n in range(20)]
COPIES = [{"prompt": f" {n} + {n} =", "answer": "1"} for n in (3, 7, 19, 30)]


def load(evaluation: EvaluationConfig, *, held_out_rows=None, rows=ROWS, data: DataConfig | None = None) -> Prompts:
    return load_data(
        data or DataConfig(), evaluation, character_tokenizer(ALPHABET), seed=0, tools=Tools(), require_gold=False,
        rows=rows, held_out_rows=held_out_rows,
    )  # fmt: skip


def numbers(prompts) -> list[int]:
    return [int(prompt.text.strip().partition("+")[0]) for prompt in prompts]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in COPIES))
    return DataConfig(path=str(path))


LEFT = [n for n in range(20) if n not in (3, 7, 19)]


def test_copies_of_evaluation_data_are_left_out_of_training_and_counted(file):
    loaded = load(EvaluationConfig(data=file))
    assert numbers(loaded.training) == LEFT
    assert numbers(loaded.held_out) == [3, 7, 19, 30]
    assert "3 of 20 prompts to train on left out: copies of prompts of evaluation.data" in loaded.notes


def test_so_are_copies_of_rows_that_a_program_hands_over(file):
    loaded = load(EvaluationConfig(), held_out_rows=COPIES)
    assert numbers(loaded.training) == LEFT
    assert loaded.notes == ("3 of 20 prompts to train on left out: copies of prompts of held_out_rows",)


def test_so_are_those_of_which_this_run_draws_none(file):
    # Otherwise more of them could not be measured later, as calibrations do.
    for count in (1, 2, 4):
        loaded = load(EvaluationConfig(data=file, prompts=count))
        assert (numbers(loaded.training), len(loaded.held_out)) == (LEFT, count)


def test_where_there_are_none_nothing_is_said_and_nothing_moves():
    alone = load(EvaluationConfig(prompts=5), held_out_rows=[{"prompt": "1-1=", "answer": "0"}])
    assert alone.notes == ()
    assert numbers(alone.training) == list(range(20))
    assert fingerprint(alone.training, 0) == fingerprint(load(EvaluationConfig(), held_out_rows=COPIES[3:]).training, 0)


def test_evaluation_data_that_is_the_training_data_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"All 20 prompts .* copies of prompts of held_out_rows\. Leave held_out_rows out"
    ):
        load(EvaluationConfig(), held_out_rows=ROWS)
    chains = DataConfig(task="chain_arithmetic", options={"prompts": 30})
    with pytest.raises(
        DataError, match=r"All 30 prompts .* copies of prompts of evaluation.data. Leave evaluation.data"
    ):
        load(EvaluationConfig(data=chains, prompts=4), rows=None, data=chains)


def test_held_out_prompts_of_the_training_data_are_as_before():
    loaded = load(EvaluationConfig(prompts=6))
    assert sorted(numbers(loaded.training) + numbers(loaded.held_out)) == list(range(20))
    assert loaded.unseen == frozenset().union(*copy_keys(loaded.held_out, DataConfig()))


@pytest.mark.parametrize("count", [1, 4])
def test_nothing_is_demonstrated_that_is_measured(file, count):
    tokenizer = character_tokenizer(ALPHABET)
    loaded = load(EvaluationConfig(data=file, prompts=count))
    (shown,) = load_demonstrations([SftPhase()], DataConfig(), tokenizer, loaded.unseen, seed=0, rows=ROWS)
    assert [tokenizer.decode(row.prompt) for row in shown] == [f"{n}+{n}=" for n in LEFT]
    with pytest.raises(DataError, match="All 1 demonstrations are of prompts to measure on"):
        load_demonstrations([SftPhase()], DataConfig(), tokenizer, loaded.unseen, seed=0, rows=ROWS[3:4])
