"""What two data sets have in common is found whatever they ask for beside the problem."""

from __future__ import annotations

import pytest

from sppo.config import DataConfig
from sppo.data.prompts import copy_keys, leave_out_copies
from sppo.data.tasks import load_prompts
from sppo.types import Prompt
from tests.conftest import SHARED_DATA

PROBLEMS = [f"{word} ${n}$ and {word.lower()}" for n, word in enumerate(["Add", "Bend", *"CDEFGHIJ"])]
FRAME = "Solve this. The last line is Answer: X.\n\n{}\n\nRemember to put it on its own line."


def prompts(texts, **options) -> list[Prompt]:
    rows = [{"prompt": text, "answer": "1"} for text in texts]
    return list(load_prompts(DataConfig(**options), seed=0, rows=rows, require_gold=False).prompts)


def published(texts, **options) -> list[Prompt]:
    """As DAPO-Math-17k comes, with its own request in each row."""
    rows = [{"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "1"}} for text in texts]
    config = DataConfig(task="dapo_math", **options)
    return list(load_prompts(config, seed=0, rows=rows, require_gold=False).prompts)


def copies(training, config: DataConfig, unseen, of: DataConfig) -> list[int]:
    kept, count = leave_out_copies(training, config, frozenset().union(*copy_keys(unseen, of)))
    places = [place for place, prompt in enumerate(training) if prompt not in kept]
    assert len(places) == count
    return places


@pytest.mark.parametrize(
    "other", [{}, {"instruction": "Box it."}, {"system_prompt": "Be good.", "instruction": "Think."}]
)
@pytest.mark.parametrize("own", [{}, {"instruction": "Use \\boxed{}."}, {"system_prompt": "Be brief."}])
def test_what_the_options_ask_for_is_no_part_of_the_problem(own, other):
    training = prompts(["what is $2$  plus two", "What is 3 plus three?", "What is 2 - two?"], **own)
    unseen = prompts(["What is 2 plus two?", "What is 4?"], **other)
    assert copies(training, DataConfig(**own), unseen, DataConfig(**other)) == [0]


def test_what_all_rows_of_published_data_ask_for_is_no_part_of_the_problem():
    framed, plain = published([FRAME.format(text) for text in PROBLEMS]), prompts(PROBLEMS[3:5], instruction="Box it.")
    dapo, rows = DataConfig(task="dapo_math"), DataConfig(instruction="Box it.")
    assert copies(framed, dapo, plain, rows) == [3, 4]
    assert copies(plain, rows, framed, dapo) == [0, 1]
    # What few rows share may be their problems.
    assert copies(framed[:5], dapo, plain, rows) == []


def test_what_rows_of_ones_own_begin_with_is_a_part_of_the_problem():
    sums = prompts([f"What is the sum of {n} and 4?" for n in range(20)])
    differences = prompts([f"What is the difference of {n} and 4?" for n in range(20)])
    assert copies(sums, DataConfig(), differences, DataConfig()) == []


def test_a_system_message_of_the_rows_is_a_part_of_the_problem():
    def chat(system):
        return Prompt(system, ({"role": "system", "content": system}, {"role": "user", "content": "Begin."}))

    assert copies([chat("Add 1."), chat("Add 2.")], DataConfig(), [chat("Add 1.")], DataConfig()) == [0]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared/data is not here")
def test_dapo_shares_problems_with_math500():
    dapo = DataConfig(task="dapo_math", path=str(SHARED_DATA / "dapo_math_17k.parquet"))
    math = DataConfig(task="math500", path=str(SHARED_DATA / "math_500.parquet"))
    training, unseen = (load_prompts(config, seed=0, require_gold=False).prompts for config in (dapo, math))
    kept, count = leave_out_copies(training, dapo, frozenset().union(*copy_keys(unseen, math)))
    assert (len(kept), count) == (17391, 7)
