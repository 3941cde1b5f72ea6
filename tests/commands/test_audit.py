"""`sppo audit`: what it finds, what it leaves out, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sppo.cli import main
from sppo.commands.audit import audit
from sppo.config import Config, DataConfig
from sppo.data.checks import CONFLICTING, FAULTY, REPEATED
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError
from sppo.models.tokenizers import character_tokenizer
from tests.conftest import SHARED_DATA

DAPO, MATH500 = SHARED_DATA / "dapo_math_17k.parquet", SHARED_DATA / "math_500.parquet"
TANK = "A tank of 840 litres is filled by two pipes, of which one alone needs 14 hours and both need 6 hours together. "
ROWS = [
    {"prompt": TANK + "How long does the other need alone?", "answer": "10.5"},
    {"prompt": "What is half of one?", "answer": "0.5"},
    {"prompt": "What is half of one ?", "answer": r"\frac12"},
    {"prompt": "Solve for x: 3x = 12", "answer": "4"},
    {"prompt": "Solve for $x$: $3x = 12$.", "answer": "5"},
    {"prompt": "What is 2 + 2?", "answer": None},
    {"prompt": "What is 2 - 2?", "answer": ""},
    {"prompt": " ", "answer": "3"},
    {"prompt": TANK + "Find how many hours the other needs.", "answer": "10.5"},
    {"prompt": TANK.replace("840", "960") + "How long does the other need alone?", "answer": "10.5"},
    {"prompt": "Solve for x: 3x = 12", "answer": "4"},
    {"prompt": "What is 1 + 1?", "answer": "2"},
    {"prompt": "What is 1 + 1?", "answer": "2"},
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", ROWS)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    rows = [{"problem": TANK + "How many hours does the other pipe need alone?", "answer": "10.5"}]
    return write(tmp_path / "evaluation.jsonl", [*rows, *rows, {"problem": "What is 9 + 9?", "answer": "18"}])


def of_file(path: Path, **options: object) -> Config:
    return Config(data=DataConfig(path=str(path), **options))  # type: ignore[arg-type]


def test_every_row_is_left_out_for_one_reason(data, evaluation):
    found = audit(of_file(data), [DataConfig(task="math500", path=str(evaluation))])
    assert (found.rows, found.task, found.verifier) == (13, "rows", "math")
    assert found.left_out() == {
        1: "copy of a problem of math500", 3: REPEATED, 4: CONFLICTING, 5: CONFLICTING, 6: FAULTY, 7: FAULTY,
        8: FAULTY, 9: "copy of a problem of math500", 11: CONFLICTING, 13: REPEATED,
    }  # fmt: skip
    assert not found.is_clean
    assert dict(found.repeats) == {3: 2, 13: 12}
    assert found.faulty == {6: "the gold answer is missing", 7: "the gold answer is missing", 8: "prompt is empty"}


def test_answers_conflict_by_the_verifier_and_not_by_their_text(data):
    found = audit(of_file(data))
    (conflict,) = found.conflicts
    assert (conflict.rows, conflict.golds) == ((4, 5, 11), ("4", "5", "4"))
    # 0.5 and \frac12 differ as text too.
    assert found.differ_as_text == 2
    strict = audit(of_file(data, verifier="exact"))
    assert [one.rows for one in strict.conflicts] == [(2, 3), (4, 5, 11)]
    assert strict.differ_as_text == 2


def test_overlap_counts_problems_once_and_keeps_variants(data, evaluation):
    (overlap,) = audit(of_file(data), [DataConfig(task="math500", path=str(evaluation))]).overlaps
    assert (overlap.problems, overlap.found) == (2, 1)
    assert [(pair.row, pair.other) for pair in overlap.copies] == [(1, 1), (9, 1)]
    assert [(pair.row, pair.other) for pair in overlap.variants] == [(10, 1)]
    assert overlap.copies[0].share > overlap.copies[1].share


def test_near_copies_within_the_data_are_told_and_kept(data):
    found = audit(of_file(data))
    assert [(pair.row, pair.other, pair.golds_agree) for pair in found.near_copies] == [(1, 9, True)]
    assert 9 not in found.left_out()


def test_golds_that_fail_are_named(tmp_path):
    rows = [{"prompt": "One?", "answer": "1"}, {"prompt": "Two?", "answer": "#"}, {"prompt": "Three?", "answer": "3"}]
    found = audit(of_file(write(tmp_path / "data.jsonl", rows), verifier="final_answer"))
    assert list(found.faulty) == [2]
    assert "does not verify against itself" in found.faulty[2]


def test_a_built_in_task_is_checked_too():
    config = Config(data=DataConfig(task="chain_arithmetic", options={"prompts": 200}))
    found = audit(config)
    assert (found.rows, found.faulty, found.conflicts) == (200, {}, ())
    assert found.distinct + len(found.repeats) == 200


def test_only_the_first_rows(data):
    assert audit(of_file(data, limit=3)).rows == 3


def test_rows_that_the_task_cannot_read_name_the_tasks_that_can(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"question": "What is 1 + 1?", "answer": "It is 2. #### 2"}])
    with pytest.raises(DataError, match=r"none of the 1 rows can be used, .*question, answer.*\(as in --task "):
        audit(of_file(path))
    assert audit(of_file(path, task="gsm8k")).is_clean
    with pytest.raises(DataError, match="holds no rows"):
        audit(of_file(write(tmp_path / "empty.jsonl", [])))
    with pytest.raises(ConfigError, match="no verifier 'maths'"):
        audit(of_file(path, task="gsm8k", verifier="maths"))
    with pytest.raises(DataError, match="--against gsm8k: none of the rows can be read"):
        audit(of_file(path, task="gsm8k"), [DataConfig(task="gsm8k", path=str(write(tmp_path / "e.jsonl", ROWS)))])


def test_the_command_says_what_it_found_and_writes_what_is_clean(data, evaluation, tmp_path, capsys):
    clean, out = tmp_path / "clean.jsonl", tmp_path / "out.json"
    against = f"math500={evaluation}"
    assert main(["audit", str(data), "--against", against, "--write", str(clean), "--json", str(out)]) == 1
    screen = capsys.readouterr().out
    for text in (
        "13 rows, 6 distinct prompts",
        "conflicting answers",
        "4 against 5",
        "3 clean rows written to",
        " and problem ",
    ):
        assert text in screen
    result = json.loads(out.read_text())
    assert result["written"] == 3
    assert result["left_out"] == {FAULTY: 3, CONFLICTING: 3, REPEATED: 2, "copy of a problem of math500": 2}
    lines = data.read_text().splitlines()
    assert clean.read_text().splitlines() == [lines[1], lines[9], lines[11]]
    # What is left is clean.
    assert main(["audit", str(clean), "--against", against]) == 0
    assert "3 kept" in capsys.readouterr().out


def test_mistakes_are_told_before_any_work(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    for arguments, said in (
        (["nothing"], "is no file (looked from"),
        ([str(data), "--write", str(data)], "is the data itself"),
        ([str(data), "--write", str(tmp_path / "clean.parquet")], "written as .jsonl"),
        ([str(data), "--against", "math5000"], "Did you mean 'math500'"),
        ([str(data), "--task", "row"], "Did you mean 'rows'"),
        ([str(data), "--json", str(tmp_path)], "is a folder"),
        ([str(data), "--data.taks", "rows"], "Did you mean"),
        ([str(data), "--verification.time_limit", "0"], "verification.time_limit is 0, but must be greater than 0"),
        ([str(tmp_path / "none")], "is a folder in which no data is found"),
        (["missing.jsonl"], "does not exist"),
        ([str(data), "--against", "math500=missing.jsonl"], "--against math500=missing.jsonl does not exist"),
        ([str(data), "--against", "chain_arithmetic"], "is no data set"),
        ([str(data), "--data.limit", "0"], "data.limit is 0"),
        ([str(data), "--data.options.prompts", "3"], "task rows takes none"),
        ([], "DATA is missing"),
    ):
        assert main(["audit", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_data_can_be_a_recipe_or_a_task_or_a_hub_name(data, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"extends: quickstart_gsm8k\ndata: {{task: rows, path: {data}, limit: 2}}\nevaluation: {{data: null}}\n"
    )
    assert main(["audit", str(recipe)]) == 0
    assert (
        main(["audit", "chain_arithmetic", "--data.options.prompts", "50", "--data.options.min_operations", "7"]) == 0
    )
    assert main(["audit", "demo", "--data.options.prompts", "50", "--data.options.min_operations", "7"]) == 0
    assert capsys.readouterr().out.count("50 rows") == 2


def test_a_file_that_changed_meanwhile_is_not_written(data, tmp_path, capsys, monkeypatch):
    from sppo.cli import audit as cli_audit

    stamps = iter([(1, 1), (2, 2)])
    monkeypatch.setattr(cli_audit, "_stamp", lambda _: next(stamps))
    assert main(["audit", str(data), "--write", str(tmp_path / "clean.jsonl")]) == 2
    assert "has changed since it was read" in capsys.readouterr().err
    assert not (tmp_path / "clean.jsonl").exists()


@pytest.mark.skipif(not DAPO.is_file() or not MATH500.is_file(), reason=f"no data in {SHARED_DATA}")
def test_dapo_against_math500(tmp_path):
    clean, out = tmp_path / "clean.parquet", tmp_path / "out.json"
    command = ["audit", str(DAPO), "--task", "dapo_math", "--against", f"math500={MATH500}"]
    assert main([*command, "--write", str(clean), "--json", str(out)]) == 1
    found = json.loads(out.read_text("utf-8"))
    assert (found["rows"], found["distinct"], found["faulty"], len(found["conflicts"])) == (17398, 16352, {}, 20)
    (overlap,) = found["overlaps"]
    copies, variants = ({(pair["row"], pair["other"]) for pair in overlap[kind]} for kind in ("copies", "variants"))
    # Judged by eye: 18 of the 24 are the same problem, 4 ask another question of the same set-up, 2 are others.
    assert overlap["found"] == 24
    assert {(5578, 102), (5676, 293), (5926, 413), (6006, 286), (6052, 81), (4825, 176), (16152, 277)} <= copies
    reworded = {(6035, 111), (17261, 139), (17211, 498), (5722, 127), (17310, 240), (17127, 154), (5819, 476)}
    assert reworded <= copies
    assert {(9409, 194), (6848, 156), (9004, 64)} <= variants
    assert pq.read_table(clean).num_rows == found["written"] == 16306


def test_three_prompts_are_shown_as_they_will_be_graded(tmp_path, capsys):
    rows = [{"prompt": f"How many are {n} and {n}?", "answer": f"{2 * n} (in thousands)"} for n in range(3)]
    path, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.json"
    assert main(["audit", str(path), "--json", str(out)]) == 1
    screen = " ".join(capsys.readouterr().out.split())
    assert "data.answer_form noted takes '0' out of it" in screen
    assert "What will be graded: 3 of the prompts" in screen
    assert "How many are 1 and 1?" in screen
    assert "3 of 3 prompts, the first 'rows/1', don't ask for a form that verifier math reads" in screen
    result = json.loads(out.read_text())
    assert [example["gold"] for example in result["examples"]] == [
        "0 (in thousands)",
        "2 (in thousands)",
        "4 (in thousands)",
    ]
    asked = ["--data.answer_form", "noted", "--data.instruction", "Put it in \\boxed{}."]
    assert main(["audit", str(path), *asked]) == 0
    screen = capsys.readouterr().out
    assert "math: the number 4" in screen
    assert "note" not in screen


def test_prompts_are_shown_through_the_chat_template_of_a_model(tmp_path, capsys):
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"problem": "1+1?", "answer": "2"}]
    path = write(tmp_path / "data.jsonl", rows)
    model = ["--model.tokenizer", str(tmp_path / "model")]
    assert main(["audit", str(path), "--task", "math500", *model]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "<1+1?" in screen
    assert "The chat template has no generation prompt" in screen
    assert main(["audit", str(path), "--task", "math500", "--model.path", str(tmp_path / "gone")]) == 0
    assert "Prompts are shown without the model's chat template: " in capsys.readouterr().out
