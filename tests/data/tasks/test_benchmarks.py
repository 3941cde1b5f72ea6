"""Benchmarks: every published layout is read, repeats are folded, unusable rows are named, and mistakes are told."""

from __future__ import annotations

import json

import pytest

from sppo.data.tasks import TASKS
from sppo.data.tasks.problem import BOXED_INSTRUCTION
from sppo.errors import ConfigError, DataError
from sppo.evaluation.benchmarks import BENCHMARKS, load_benchmark, parse_benchmarks
from sppo.verifiers import VERIFIERS
from sppo.verifiers.verify import verify
from tests.conftest import SHARED_DATA

HUB_ROWS = {
    "aime24": {"id": 60, "problem": "Every morning?", "solution": "...", "answer": "204", "url": "", "year": "2024"},
    "aime25": {"id": "0", "problem": "Sum of bases?", "answer": "70", "solution": "...", "year": "2025"},
    "amc23": {"id": 0, "question": "Cities A and B?", "answer": "27.0", "url": "https://example.org"},
    "math500": {
        "problem": "What?", "solution": "...", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2,
        "unique_id": "test/algebra/1.json",
    },
    "minerva": {"question": "Find the flux in W/m^2.", "answer": "1.3e-4"},
    "gsm8k": {"question": "How many?", "answer": "2 + 1 = <<2+1=3>>3\n#### 3"},
}  # fmt: skip


def verl_row(text, gold, index):
    return {
        "data_source": "math__aime",
        "prompt": [{"role": "user", "content": text}],
        "ability": "math",
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": index},
    }


def contents(problems):
    return [prompt.text for prompt in problems.prompts]


def known(name):
    if name not in TASKS or TASKS[name].verifier not in VERIFIERS:
        pytest.skip(f"the task or verifier of {name} is not in the table yet")
    return name


@pytest.mark.parametrize("name", HUB_ROWS)
def test_the_hub_layout_gets_the_instruction_and_its_gold_is_right_in_a_box(name):
    (prompt,) = load_benchmark(known(name), rows=[HUB_ROWS[name]]).prompts
    question = HUB_ROWS[name].get("problem") or HUB_ROWS[name]["question"]
    assert prompt.text == f"{question}\n{BOXED_INSTRUCTION}"
    assert prompt.gold is not None
    assert verify(f"so \\boxed{{{prompt.gold}}}", prompt.gold, prompt.verifier).reward == 1


@pytest.mark.parametrize("name", HUB_ROWS)
def test_verls_layout_keeps_its_own_instruction(name):
    (prompt,) = load_benchmark(known(name), rows=[verl_row("What? Box it.", "3", 0)]).prompts
    assert (prompt.text, prompt.gold) == ("What? Box it.", "3")


def test_amc_stores_27_as_a_decimal_and_27_is_right():
    (prompt,) = load_benchmark("amc23", rows=[HUB_ROWS["amc23"]]).prompts
    assert prompt.gold == "27.0"
    assert verify("\\boxed{27}", prompt.gold, prompt.verifier).reward == 1
    assert verify("\\boxed{270}", prompt.gold, prompt.verifier).reward == 0


def test_the_table_has_a_task_of_the_same_name_for_each():
    assert list(BENCHMARKS) == ["aime24", "aime25", "amc23", "math500", "minerva", "gsm8k", "humaneval"]
    assert [name for name in BENCHMARKS if not BENCHMARKS[name].votes] == ["humaneval"]
    for name in BENCHMARKS:
        assert TASKS[known(name)].hub_name


def test_a_problem_that_stands_several_times_counts_once():
    rows = [verl_row(text, gold, index) for index, (text, gold) in enumerate([("A?", "1")] * 3 + [("B?", "2")] * 3)]
    problems = load_benchmark("aime24", rows=rows)
    assert [prompt.id for prompt in problems.prompts] == ["aime24/0", "aime24/3"]
    assert problems.notes == (
        "aime24: 6 rows are 2 problems; each counts once",
        "aime24: 2 problems, but 30 are published",
    )


def test_two_answers_to_one_prompt_are_two_problems_and_told():
    problems = load_benchmark("aime24", rows=[verl_row("A?", "1", 0), verl_row("A?", "2", 1), verl_row("A?", "2", 2)])
    assert [prompt.gold for prompt in problems.prompts] == ["1", "2"]
    assert any("conflicting answers" in note for note in problems.notes)


def test_minervas_answers_that_were_cut_off_are_left_out_and_every_row_is_named():
    golds = ["4.5e33", "\\frac{1", "x_{0} + 1", "I(0) e^{-\\frac{t", "\\{1, 2\\}", "}{"] + ["a^{2"] * 30
    rows = [{"question": f"Question {number}?", "answer": gold} for number, gold in enumerate(golds)]
    problems = load_benchmark(known("minerva"), rows=rows)
    assert set(problems.left_out) >= {2, 4, *range(6, 37)}
    assert {1, 3, 5}.isdisjoint(problems.left_out)
    assert problems.left_out[36] == "the gold answer is cut off as published: its braces do not balance"
    assert "rows left out" in problems.notes[0]


def test_instruction_and_system_prompt():
    problems = load_benchmark("aime24", rows=[HUB_ROWS["aime24"]], instruction="Be brief.", system_prompt="Think.")
    assert contents(problems) == ["Think.\nEvery morning?\nBe brief."]


def test_names_and_files():
    assert parse_benchmarks("aime24, math500=a/b.parquet") == {"aime24": None, "math500": "a/b.parquet"}
    assert parse_benchmarks(["gsm8k"]) == parse_benchmarks({"gsm8k": None}) == {"gsm8k": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("math", r"There is no benchmark 'math'. Did you mean 'math500'"),
        ("aime24,aime24=x.parquet", "'aime24' is given twice"),
        ("aime24=", "has no file behind the equals sign"),
        ("", "names none. Known: aime24"),
    ],
)
def test_names_that_are_wrong(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_benchmarks(text)


def test_a_missing_file_is_named_as_it_was_given(tmp_path):
    (tmp_path / "math_500.jsonl").write_text(json.dumps(HUB_ROWS["math500"]) + "\n")
    with pytest.raises(DataError, match=r"^--benchmarks math500=.*math_50.jsonl does not exist. Did you mean"):
        load_benchmark("math500", str(tmp_path / "math_50.jsonl"))
    assert len(load_benchmark("math500", str(tmp_path / "math_500.jsonl")).prompts) == 1


def test_gsm8k_of_the_hub_is_its_test_split(monkeypatch):
    asked = []

    def no_network(name, config, split, revision):
        asked.append((name, config, split))
        raise OSError("no network")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    with pytest.raises(DataError, match=r"openai/gsm8k \(split 'test'\).*With a local file: --benchmarks gsm8k=FILE$"):
        load_benchmark("gsm8k")
    assert asked == [("openai/gsm8k", "main", "test")]


@pytest.mark.parametrize(
    ("name", "file", "problems", "notes"),
    [
        ("aime24", "aime24_repeated_8x.parquet", 30, 1),
        ("math500", "math_500.parquet", 500, 0),
        ("gsm8k", "gsm8k_test.jsonl", 1319, 0),
    ],
)
def test_the_published_files(name, file, problems, notes):
    path = SHARED_DATA / file
    if not path.exists():
        pytest.skip(f"shared/data/{file} is not here")
    loaded = load_benchmark(known(name), str(path))
    assert (len(loaded.prompts), len(loaded.notes), loaded.left_out) == (problems, notes, {})
