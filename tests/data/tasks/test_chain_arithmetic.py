"""The built-in task: hand-computed strings, disjoint splits, and the spread of difficulty."""

import random
from collections import Counter

import pytest

from sppo.config import DataConfig
from sppo.data.tasks import demonstrations, load_prompts
from sppo.data.tasks.chain_arithmetic import ALPHABET, demonstration, is_held_out, running_values
from sppo.errors import ConfigError, DataError
from tests.data.tasks.scripted import Scripted


def config(split="train", **options):
    return DataConfig(task="chain_arithmetic", split=split, options=options)


def test_full_demonstration_restates_each_operation_and_running_value():
    # 7+1 = 8, 8-3 = 5, 5+2 = 7
    assert demonstration("7+1-3+2=", "full", random.Random(0)) == "+18-35+27#7"


def test_values_wrap_around_modulo_10_in_both_directions():
    # 9+3 = 12 -> 2; 2-3 = -1 -> 9; 9+1 = 10 -> 0
    assert running_values("9+3-3+1=") == (["+3", "-3", "+1"], [2, 9, 0])
    assert demonstration("0-1=", "full", random.Random(0)) == "-19#9"


def test_terse_demonstration_leaves_out_the_values_that_chance_says_and_never_operations_or_answer():
    assert demonstration("7+1-3+2=", "terse", Scripted([0.1, 0.9, 0.2]), 0.5) == "+1-35+2#7"
    assert demonstration("7+1-3+2=", "terse", Scripted([0.6, 0.4, 0.5]), 0.5) == "+18-3+27#7"
    assert demonstration("7+1-3+2=", "terse", random.Random(0), 1.0) == "+1-3+2#7"
    assert demonstration("7+1-3+2=", "terse", random.Random(0), 0.0) == "+18-35+27#7"


def test_terse_demonstrations_leave_out_half_of_the_values():
    prompts = demonstrations(config(prompts=2000), "terse", seed=0)
    operations = sum(p.columns["operations"] for p in prompts)
    kept = sum(len(p.demonstration) - 2 - 2 * p.columns["operations"] for p in prompts)
    # About 9,000 coin flips: a standard deviation is 0.005.
    assert abs(kept / operations - 0.5) < 0.02


def test_full_and_terse_demonstrations_belong_to_the_same_prompts():
    full = demonstrations(config(prompts=50), "full", seed=3)
    terse = demonstrations(config(prompts=50), "terse", seed=3)
    assert [p.text for p in full] == [p.text for p in terse]
    assert [p.demonstration for p in full] != [p.demonstration for p in terse]
    assert all(p.demonstration == demonstration(p.text, "full", random.Random(0)) for p in full)


def test_prompt_fields():
    loaded = load_prompts(config(prompts=300), seed=0)
    assert loaded.notes == ()
    assert len({p.id for p in loaded.prompts}) == 300
    for prompt in loaded.prompts:
        operations, values = running_values(prompt.content)
        assert prompt.gold == str(values[-1]) == prompt.demonstration[-1]
        assert prompt.verifier == "final_answer"
        assert prompt.columns == {"operations": len(operations)}
    labels = {p.difficulty for p in loaded.prompts}
    assert labels == {"1 operation", *(f"{k} operations" for k in range(2, 9))}


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others():
    first = load_prompts(config(prompts=100), seed=1)
    assert first == load_prompts(config(prompts=100), seed=1)
    assert [p.text for p in first.prompts] != [p.text for p in load_prompts(config(prompts=100), seed=2).prompts]


def test_held_out_prompts_are_the_same_for_every_run_seed_unless_the_option_says_otherwise():
    held_out = load_prompts(config("held_out", prompts=100), seed=1)
    assert held_out == load_prompts(config("held_out", prompts=100), seed=2)
    other = load_prompts(config("held_out", prompts=100, seed=5), seed=1)
    assert [p.text for p in held_out.prompts] != [p.text for p in other.prompts]


def test_splits_are_disjoint_as_prompts_and_held_out_has_no_duplicates():
    train = {p.text for p in load_prompts(config(prompts=5000), seed=0).prompts}
    held_out = [p.text for p in load_prompts(config("held_out"), seed=0).prompts]
    assert len(held_out) == len(set(held_out)) == 1000
    assert train.isdisjoint(held_out)
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, train))


def test_the_number_of_operations_is_uniform_in_training():
    counts = Counter(p.columns["operations"] for p in load_prompts(config(prompts=8000), seed=0).prompts)
    assert sorted(counts) == list(range(1, 9))
    # Expected 1,000 each, standard deviation 30.
    assert all(abs(count - 1000) < 130 for count in counts.values())


def test_every_beginning_of_held_out_is_as_even_as_the_distinct_prompts_admit():
    prompts = load_prompts(config("held_out"), seed=0).prompts
    available = {k: sum(map(is_held_out, all_prompts(k))) for k in (1, 2)}
    assert available == {1: 4, 2: 35}
    for size in (8, 24, 100, 1000):
        counts = Counter(p.columns["operations"] for p in prompts[:size])
        largest = max(counts.values())
        assert all(count >= largest - 1 or count == available[k] for k, count in counts.items())


def all_prompts(k):
    texts = [str(digit) for digit in range(10)]
    for _ in range(k):
        texts = [f"{text}{sign}{digit}" for text in texts for sign in "+-" for digit in "123"]
    return [f"{text}=" for text in texts]


def test_alphabet_makes_40_tokens_and_covers_prompts_and_demonstrations():
    assert len(set(ALPHABET)) == len(ALPHABET) == 38
    for prompt in load_prompts(config(prompts=200), seed=0).prompts:
        assert set(prompt.text + prompt.demonstration) <= set(ALPHABET)


def test_the_option_demonstrations_fills_the_prompts():
    prompts = load_prompts(config(prompts=20, demonstrations="terse", p_leave_out=1.0), seed=0).prompts
    assert all(len(p.demonstration) == 2 + 2 * p.columns["operations"] for p in prompts)


def test_limit_takes_the_first_prompts():
    whole = load_prompts(config(prompts=30), seed=0).prompts
    limited = load_prompts(DataConfig(task="chain_arithmetic", limit=7, options={"prompts": 30}), seed=0).prompts
    assert limited == whole[:7]


def test_more_held_out_prompts_than_there_are_is_refused_with_the_number():
    with pytest.raises(ConfigError, match=r"prompts is 100, .* only 39 held-out prompts"):
        load_prompts(config("held_out", prompts=100, max_operations=2), seed=0)
    assert len(load_prompts(config("held_out", prompts=39, max_operations=2), seed=0).prompts) == 39


@pytest.mark.parametrize(
    "fields", [{"path": "x.jsonl"}, {"instruction": "Box it."}, {"system_prompt": "You add."}], ids=lambda f: str(f)
)
def test_keys_that_make_no_sense_here_are_refused(fields):
    with pytest.raises(ConfigError, match=f"data.{next(iter(fields))} is .* makes its own prompts"):
        load_prompts(DataConfig(task="chain_arithmetic", **fields), seed=0)


def test_rows_are_refused():
    with pytest.raises(ConfigError, match="makes its own prompts: rows are for"):
        load_prompts(config(), seed=0, rows=[{"prompt": "1+1="}])


def test_text_of_another_form_and_unknown_kinds_are_refused():
    for text in ("7+4=", "7=", "7+1", "77+1=", "", "7+1=\n"):
        with pytest.raises(DataError, match="is no chain_arithmetic prompt"):
            demonstration(text, "full", random.Random(0))
    with pytest.raises(ConfigError, match=r"'teres' is no kind of demonstration.*Did you mean 'terse'"):
        demonstration("7+1=", "teres", random.Random(0))
    with pytest.raises(ConfigError, match="'teres' is no kind of demonstration of task"):
        demonstrations(config(prompts=5), "teres", seed=0)
