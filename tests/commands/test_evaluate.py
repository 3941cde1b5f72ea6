"""Measuring a run or a model, from Python and from the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import sppo
from sppo import api
from sppo.cli import main
from sppo.commands.evaluate import evaluate_run
from sppo.commands.train import train
from sppo.config import Config
from sppo.config.evaluation import evaluation_config
from sppo.errors import ConfigError
from sppo.runs.progress import NoProgress
from sppo.runs.records import read_records
from tests.conftest import tiny_config

ROWS = [{"prompt": f"{a}+1=", "answer": str(a + 1), "difficulty": "one"} for a in range(1, 6)]
SMALL = ["--evaluation.prompts", "4", "--samples_per_prompt", "2", "--data.options.prompts", "200", "--device", "cpu"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(tiny_config(tmp_path_factory.mktemp("measure") / "run"), steps=1)
    train(config)
    return Path(config.output)


class Messages(NoProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.closed = 0

    def message(self, text: str) -> None:
        self.texts.append(text)

    def close(self) -> None:
        self.closed += 1


def quarter(completions):
    return [0.25] * len(completions)


def ends_right(completions, answer):
    return [float(text.endswith(gold)) for text, gold in zip(completions, answer, strict=True)]


def test_a_run_is_measured_with_its_critic_on_the_screen_and_in_a_file(run_folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["eval", str(run_folder), "--samples_per_prompt", "2", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["prompts"], result["samples_per_prompt"]) == (20, 2)
    assert "How well the critic foresees success" in capsys.readouterr().out
    assert set(result["critic"]) == {"pearson", "spearman", "brier", "ece", "bias"}


def test_a_model_is_read_by_its_own_tokenizer(run_folder, capsys):
    policy = run_folder / "checkpoints" / "last" / "policy"
    config, _ = evaluation_config(str(policy), "demo")
    assert (config.model.path, config.model.tokenizer, config.model.config) == (str(policy), None, None)
    config, _ = evaluation_config(str(policy), "demo", ["--model.tokenizer", "characters", "--seed", "4"])
    assert (config.model.tokenizer, config.seed) == ("characters", 4)
    config, _ = evaluation_config(str(policy), "demo", {"model": {"tokenizer": "characters"}})
    assert (config.model.path, config.model.tokenizer) == (str(policy), "characters")
    assert main(["eval", str(policy), "--recipe", "demo", *SMALL]) == 0
    assert "foresees" not in capsys.readouterr().out


def test_a_run_of_another_version_is_measured_and_says_what_it_ignores(run_folder, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run_folder, old, symlinks=True)
    options = yaml.safe_load((old / "config.yaml").read_text())
    options["critic"]["depth"] = 2
    del options["engine"]
    (old / "config.yaml").write_text(yaml.safe_dump(options))
    progress = Messages()
    result = evaluate_run(str(old), samples_per_prompt=1, progress=progress)
    assert result["prompts"] == 20
    note = "config.yaml: critic.depth is no option of this version, and is ignored."
    assert any(text.endswith(note) for text in progress.texts)


def test_rows_and_a_reward_from_python(run_folder):
    progress = Messages()
    result = api.evaluate(run_folder, rows=ROWS, reward=quarter, progress=progress)
    assert (result["prompts"], result["accuracy"], result["accuracy_stderr"]) == (5, 0.25, 0.0)
    assert result["measure"] == "mean reward"
    assert result["accuracy_by_difficulty"]["one"]["prompts"] == 5
    assert progress.closed == 1
    model = run_folder / "checkpoints" / "last" / "policy"
    again = api.evaluate(
        model, rows=ROWS, reward=ends_right, samples_per_prompt=1, device="cpu", sampling__max_response_tokens=4,
        data__max_prompt_tokens=16, threads=1,
    )  # fmt: skip
    assert (again["prompts"], again["samples_per_prompt"]) == (5, 1)


def test_a_run_made_from_rows_does_not_hold_them(run_folder, tmp_path):
    old = tmp_path / "run"
    shutil.copytree(run_folder, old, symlinks=True)
    options = yaml.safe_load((old / "config.yaml").read_text())
    options["data"] = {"task": "rows"}
    options["evaluation"]["data"] = None
    (old / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(ConfigError, match=r"rows that a Python program handed over.*--data.path FILE"):
        evaluate_run(str(old))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config, _ = evaluation_config(str(old), None, [f"--data.path={tmp_path / 'rows.jsonl'}", "--evaluation.prompts=2"])
    assert evaluate_run(str(old), config, samples_per_prompt=1)["prompts"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"reward": 3}, "reward is a int, but must be a function"),
        ({"reward": "nowhere.py:f"}, "there is no file nowhere.py"),
        ({"model": 3}, "model is a int, but must be a folder, a hub name, or a loaded causal"),
        ({"model": Config}, "model is a type"),
        ({"tokenizer": 3}, "tokenizer is a int, but must be"),
    ],
)
def test_what_python_hands_over_is_checked_before_anything_is_made(arguments, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        api.train("demo", output=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_path_and_a_named_reward_do_as_output_and_reward(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def half(completions):\n    return [0.5] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    progress = Messages()
    config = replace(tiny_config(tmp_path / "unused"), steps=1)
    summary = api.train(config, output=tmp_path / "run", reward="mine.py:half", progress=progress)
    assert (summary["output"], summary["accuracy_after"]) == (str(tmp_path / "run"), 0.5)
    assert progress.closed
    record = next(read_records(tmp_path / "run"))
    assert record["verifier"] == "reward function mine.py:half"


def test_the_package_offers_what_it_lists():
    for name in sppo.__all__:
        assert callable(getattr(sppo, name)), name


def test_at_temperature_0_a_prompt_is_answered_once_whatever_was_asked_for(run_folder):
    heard: list[str] = []

    def odd(prompts, completions, **columns):
        heard.extend(prompts)
        return [float(index % 2) for index in range(len(completions))]

    result = sppo.evaluate(
        str(run_folder), reward=odd, samples_per_prompt=3, evaluation__prompts=8, evaluation__temperature=0.0
    )
    assert len(set(heard)) == len(heard) == result["prompts"] == 8
    assert result["samples_per_prompt"] == 1
    assert result["accuracy"] == 0.5
    assert result["accuracy_stderr"] == pytest.approx((0.25 / 7) ** 0.5)  # of eight independent prompts
