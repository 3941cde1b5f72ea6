"""`sppo calibrate`: V of a run's critic against solve rates; resumed, refused, drawn."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sppo.cli import main
from sppo.commands import calibrate as module
from sppo.commands.calibrate import calibrate
from sppo.commands.train import train
from sppo.config.evaluation import evaluation_config
from sppo.errors import ConfigError, RunFolderError, TrainingError
from sppo.evaluation.sampled import measure, with_and_without_history
from sppo.report.calibration import write_calibration
from sppo.runs.lock import lock
from sppo.runs.progress import NoProgress
from sppo.runs.records import read_records
from tests.conftest import tiny_config


class Messages(NoProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.steps: list[int] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def update(self, step: int, metrics: object) -> None:
        self.steps.append(step)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose engine takes 12 rows at a time, so that prompts come in parts."""
    output = tmp_path_factory.mktemp("calibrate") / "run"
    train(tiny_config(output, **{"engine.max_rows": 12, "steps": 2, "evaluation.data": None}))
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def of(run: Path, **options: object) -> dict:
    config, _ = evaluation_config(str(run))
    arguments = {"prompts": 8, "samples_per_prompt": 4, **options}
    return calibrate(str(run), config, **arguments)  # type: ignore[arg-type]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "calibration/step_2/prompts.jsonl").read_text().splitlines()]


def test_a_record_a_prompt_and_their_measures(run):
    progress = Messages()
    result = of(run, progress=progress)
    assert (result["prompts"], result["responses"], result["checkpoint"]) == (8, 32, "step_2")
    lines = records(run)
    assert sorted(line["prompt_id"] for line in lines) == sorted(result["prompt_ids"])
    for line in lines:
        assert 0 < line["value"] < 1
        assert len(line["rewards"]) == 4
        assert line["solve_rate"] == sum(line["rewards"]) / 4
    assert json.loads((run / "calibration/step_2/result.json").read_text()) == result
    assert progress.steps == [3, 6, 8]


def test_prompts_are_held_out_ones(run):
    of(run)
    trained_on = {record["prompt"] for record in read_records(run)}
    assert not trained_on & {line["prompt"] for line in records(run)}


def test_stopped_anywhere_it_ends_with_the_same_numbers(run, monkeypatch):
    whole = of(run)
    folder, kept = run / "calibration/step_2", records(run)
    text = (folder / "prompts.jsonl").read_bytes()
    # As a killed process leaves it: without a result, its last line torn inside a character.
    (folder / "result.json").unlink()
    (folder / "prompts.jsonl").write_bytes(text[: text.index(b"\n") + 1] + '{"prompt_id": "é'.encode()[:-1])
    again = of(run)
    assert again == whole
    assert records(run) == kept
    # Nothing is sampled where all is there.
    monkeypatch.setattr(module, "sample", None)
    assert of(run) == whole


def test_more_prompts_go_on_with_those_that_are_there(run):
    few = of(run, prompts=4)
    progress = Messages()
    more = of(run, prompts=7, progress=progress)
    assert more["prompt_ids"][:4] == few["prompt_ids"]
    assert progress.steps == [7]
    assert of(run, prompts=4) == few


def test_other_settings_are_refused_unless_anew(run):
    of(run)
    with pytest.raises(RunFolderError, match=r"made otherwise \(samples_per_prompt: 4 -> 6\).*--anew"):
        of(run, samples_per_prompt=6)
    assert of(run, samples_per_prompt=6, anew=True)["responses"] == 48
    assert {len(line["rewards"]) for line in records(run)} == {6}


def test_only_one_process_writes(run):
    of(run)
    with lock(run / "calibration/step_2", print), pytest.raises(RunFolderError, match="Another process is writing"):
        of(run, samples_per_prompt=6, anew=True)
    assert len(records(run)) == 8


def test_all_held_out_prompts_where_more_are_asked_for(run):
    progress = Messages()
    assert of(run, prompts=500, samples_per_prompt=2, progress=progress)["prompts"] == 20
    assert "500 prompts asked for, but there are 20: all of them are taken" in progress.texts


def test_evaluation_data_may_give_more_prompts_than_the_run_measured(run, tmp_path):
    rows = [{"prompt": f"{a}+1-{b}=", "answer": str((a + 1 - b) % 10)} for a in range(10) for b in (1, 2, 3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        "--evaluation.data.task=rows", f"--evaluation.data.path={file}", "--evaluation.prompts=3",
        "--evaluation.data.verifier=final_answer",
    ]  # fmt: skip
    config, _ = evaluation_config(str(run), None, overrides)
    assert calibrate(str(run), config, prompts=25, samples_per_prompt=2)["prompts"] == 25


def test_a_tracker_knows_only_prompts_it_has_seen(tmp_path):
    output = tmp_path / "run"
    train(replace(tiny_config(output, **{"algorithm.name": "spo"}), steps=1))
    progress = Messages()
    result = of(output, progress=progress)
    assert result["prompts"] == 8
    assert any("only for prompts that it was trained on" in text for text in progress.texts)
    assert any("only for prompts that it was trained on" in text for text in result["notes"])
    trained_on = {record["prompt_id"] for record in read_records(output)}
    assert set(result["prompt_ids"]) <= trained_on


@pytest.fixture(scope="module")
def chose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRPO whose prompts a probe with history chose."""
    output = tmp_path_factory.mktemp("chose") / "run"
    options = {
        "algorithm.name": "grpo", "selection.name": "top", "sampling.samples_per_prompt": 2, "critic.source": "probe",
        "critic.history": True, "critic.path": None, "critic.config": None, "critic.tokenizer": None, "steps": 2,
        "evaluation.data": None,
    }  # fmt: skip
    train(tiny_config(output, **options))
    return output


def test_a_critic_that_only_chooses_prompts_is_measured_with_and_without_history(chose, capsys):
    assert main(["calibrate", str(chose), "--prompts", "6", "-n", "4"]) == 0
    screen = capsys.readouterr().out
    assert "6 prompts of the pool with outcomes in training, 24 responses" in screen
    assert re.search(r"V of the text +with history +difference, 95% +perfect V", screen)
    folder = chose / "calibration" / "step_2"
    result = json.loads((folder / "result.json").read_text())
    asked = {record["prompt_id"] for record in read_records(chose)}
    lines = [json.loads(text) for text in (folder / "pool.jsonl").read_text().splitlines()]
    assert {record["prompt_id"] for record in lines} <= asked
    assert result["pool"]["belief"]["prompts"] == 6
    assert all(record["value"] != record["text_value"] for record in lines)
    # Nobody counted outcomes of held-out prompts.
    assert not {record["prompt"] for record in lines} & {record["prompt"] for record in read_held_out(folder)}
    assert all("text_value" not in record for record in read_held_out(folder))
    # An evaluation reads the same critic.
    assert main(["eval", str(chose)]) == 0
    assert "How well the critic foresees success" in capsys.readouterr().out
    # The same prompts, and more of them, from what is there.
    before = (folder / "pool.jsonl").read_bytes()
    of(chose, prompts=7)
    assert (folder / "pool.jsonl").read_bytes().startswith(before)


def read_held_out(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "prompts.jsonl").read_text().splitlines()]


def test_history_alone_is_measured_too(tmp_path):
    output = tmp_path / "run"
    options = {"algorithm.name": "grpo", "selection.name": "history", "sampling.samples_per_prompt": 2, "steps": 1}
    train(tiny_config(output, **options))
    pool = of(output)["pool"]
    # Without it there is one running mean for all.
    assert pool["text"]["of_prompts"]["pearson"]["value"] is None
    assert pool["belief"]["prompts"] == 8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("grpo", "has no critic"),
        ("ppo", "values the states of a response"),
        ("astar_po", r"has a V\* above the solve rate"),
    ],
)
def test_algorithms_without_a_value_of_the_prompt_are_refused(run, name, said):
    options = yaml.safe_load((run / "config.yaml").read_text())
    options["algorithm"]["name"] = name
    options["sampling"]["samples_per_prompt"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(ConfigError, match=f"{name}, which {said}"):
        of(run)


def test_a_run_made_from_rows_does_not_hold_them(run):
    options = yaml.safe_load((run / "config.yaml").read_text())
    options["data"] = {"task": "rows"}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(ConfigError, match=r"rows that a Python program handed over.*--data\.path FILE"):
        of(run)


@pytest.mark.parametrize("options", [{"prompts": 0}, {"samples_per_prompt": 1}])
def test_numbers_that_say_nothing_are_refused(run, options):
    with pytest.raises(ConfigError, match="take at least 1 prompt, and 2 samples"):
        of(run, **options)


def line(value: float, *rewards: float | None) -> dict:
    known = [reward for reward in rewards if reward is not None]
    rate = sum(known) / len(known) if known else None
    return {"prompt_id": f"p{value}{rewards}", "value": value, "rewards": list(rewards), "solve_rate": rate}


def test_measures_by_hand():
    result = measure([line(0.8, 1, 1, 1, 0), line(0.4, 0, 1, 0, 0), line(0.2, 0, 0, 0, 0), line(0.9, None, None)])
    assert (result["prompts"], result["responses"], result["left_out"]) == (3, 12, 1)
    assert result["mean_value"] == pytest.approx(1.4 / 3)
    assert result["mean_solve_rate"] == pytest.approx(1 / 3)
    brier = result["of_prompts"]["brier"]
    assert brier["value"] == pytest.approx((0.05**2 + 0.15**2 + 0.2**2) / 3)
    noise = (0.1875 / 3 + 0.1875 / 3 + 0) / 3
    assert brier["reachable"] == pytest.approx(noise)
    assert brier["corrected"] == pytest.approx(brier["value"] - noise)
    assert result["of_prompts"]["bias"]["value"] == pytest.approx(1.4 / 3 - 1 / 3)
    # Bins [.8, .9): .05; [.4, .5): .15; [.2, .3): .2.
    assert result["of_prompts"]["ece"]["value"] == pytest.approx((0.05 + 0.15 + 0.2) / 3)
    responses = result["of_responses"]
    squares = 3 * 0.2**2 + 0.8**2 + 0.6**2 + 3 * 0.4**2 + 4 * 0.2**2
    assert responses["brier"]["value"] == pytest.approx(squares / 12)
    assert responses["brier"]["reachable"] == pytest.approx((0.25 + 0.25) / 3)
    # 4 solved, 8 failed. The 3 of .8 beat 7 and tie with 1; the one of .4 beats 4 and ties with 3.
    assert responses["auroc"]["value"] == pytest.approx((3 * 7.5 + 5.5) / 32)
    assert result["of_prompts"]["spearman"]["value"] == pytest.approx(1.0)


def test_history_is_held_against_the_text_of_the_same_prompts():
    lines = [
        {**line(0.75, 1, 1, 1, 0), "text_value": 0.5},
        {**line(0.25, 0, 1, 0, 0), "text_value": 0.5},
        {**line(0.1, 0, 0, 0, 0), "text_value": 0.4},
        {**line(0.9, None), "text_value": 0.5},
    ]
    found = with_and_without_history(lines)
    text, belief = (found[name]["of_prompts"] for name in ("text", "belief"))
    assert text["brier"]["value"] == pytest.approx((0.25**2 + 0.25**2 + 0.4**2) / 3)
    assert belief["brier"]["value"] == pytest.approx(0.1**2 / 3)
    assert found["difference"]["brier"]["value"] == pytest.approx((0.1**2 - 2 * 0.25**2 - 0.4**2) / 3)
    assert found["difference"]["bias"]["value"] == pytest.approx((1.1 - 1.4) / 3)
    assert belief["bias"]["value"] == pytest.approx(0.1 / 3)


def test_fractions_of_rewards_count_as_they_are():
    result = measure([line(0.5, 0.25, 0.75), line(0.1, 0.0, 0.5)])
    assert result["of_responses"]["brier"]["value"] == pytest.approx((2 * 0.25**2 + 0.1**2 + 0.4**2) / 4)


@pytest.mark.parametrize(
    ("lines", "undefined"),
    [
        ([line(0.5, 1, 0), line(0.5, 1, 1), line(0.5, 0, 0)], ["pearson", "spearman"]),
        ([line(0.5, 1, 1), line(0.6, 1, 1), line(0.7, 1, 1)], ["pearson", "spearman", "auroc"]),
        ([line(0.5, 1, 0)], ["pearson", "spearman"]),
    ],
    ids=["constant V", "all solved", "one prompt"],
)
def test_what_is_undefined_is_none_and_the_rest_is_not(lines, undefined, tmp_path, capsys):
    result = measure(lines)
    values = {**result["of_prompts"], **result["of_responses"]}
    assert [name for name, found in values.items() if found["value"] is None] == undefined
    # No NaN, which is no JSON; and the picture and the table are made all the same.
    result |= {"run": "run", "checkpoint": "step_1", "samples_per_prompt": 2, "notes": []}
    (tmp_path / "result.json").write_text(json.dumps(result, allow_nan=False))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert write_calibration(tmp_path).read_bytes().startswith(b"\x89PNG")
    from rich.console import Console

    from sppo.cli.calibrate import print_calibration

    print_calibration(Console(), result)
    assert "–" in capsys.readouterr().out


def test_a_perfect_critic_reaches_what_is_reachable():
    import numpy as np

    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, 400)
    lines = [line(float(p), *map(float, rng.random(64) < p)) for p in rates]
    result = measure(lines)
    for group, name, within in (
        ("of_prompts", "pearson", 0.005), ("of_prompts", "brier", 0.001), ("of_responses", "brier", 0.01),
        ("of_responses", "auroc", 0.01),
    ):  # fmt: skip
        found = result[group][name]
        assert found["value"] == pytest.approx(found["reachable"], abs=within)
        assert found["low"] < found["value"] < found["high"]
    assert result["of_prompts"]["pearson"]["corrected"] == pytest.approx(1.0, abs=0.005)
    assert result["of_prompts"]["brier"]["corrected"] == pytest.approx(0.0, abs=0.001)


def test_nothing_of_the_picture_is_cut_off(tmp_path):
    from matplotlib.image import imread

    # As wide as numbers get: a long name, thousands of responses, values at both ends.
    lines = [line(n / 40, *[float(k < n) for k in range(40)]) for n in range(41)]
    result = {**measure(lines), "prompts": 10_000, "responses": 640_000, "notes": []}
    result |= {"run": "r1_distill_7b_dapo_small_critic", "checkpoint": "step_1000", "samples_per_prompt": 64}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    picture = imread(write_calibration(tmp_path))[..., :3]
    for margin in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]):
        assert margin.min() == 1.0
    assert not list(tmp_path.glob(".*"))


def test_nothing_to_measure():
    with pytest.raises(TrainingError, match="None of the 1 prompts"):
        measure([line(0.5, None, None)])


def test_rewards_outside_of_the_unit_are_refused(run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def two(completions):\n    return [2.0] * len(completions)\n")
    config, _ = evaluation_config(str(run), None, [f"--data.reward={tmp_path / 'mine.py'}:two"])
    with pytest.raises(ConfigError, match=r"got reward 2.0: V is held against rewards in \[0, 1\]"):
        calibrate(str(run), config, prompts=4, samples_per_prompt=2)


def test_the_command(run, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["calibrate", str(run), "--prompts", "6", "-n", "4", "--checkpoint", "step_1", "--json", str(out)]) == 0
    screen = capsys.readouterr().out
    for text in ("6 prompts, 24 responses, checkpoint step_1", "V and solve rate, by prompt", "AUROC", "perfect V"):
        assert text in screen
    folder = run / "calibration" / "step_1"
    assert sorted(file.name for file in folder.glob("[!.]*")) == [
        "calibration.png", "prompts.jsonl", "result.json", "settings.json",
    ]  # fmt: skip
    assert json.loads(out.read_text()) == json.loads((folder / "result.json").read_text())
    assert math.isfinite(json.loads(out.read_text())["mean_value"])


def test_mistakes_are_told(run, tmp_path, capsys):
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "is no run folder"),
        ([str(run / "checkpoints" / "step_1")], f"sppo calibrate {run} --checkpoint step_1"),
        ([str(run), "--checkpoint", "newest"], "must be best, last, or step_N"),
        ([str(run), "--checkpoint", "step_9"], "step_1, step_2"),
        ([str(run), "--prompts", "many"], "--prompts is 'many'"),
        ([str(run), "-n", "1"], "--samples_per_prompt is '1', but must be a whole number, at least 2"),
        ([str(run), "--output", "there"], "--output means nothing here: the results go into"),
        ([str(run), "--json", str(tmp_path)], "is a folder"),
        ([], "RUN is missing"),
    ):
        assert main(["calibrate", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    with pytest.raises(RunFolderError, match="no finished calibration"):
        write_calibration(run)
