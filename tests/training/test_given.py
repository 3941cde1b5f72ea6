"""What a Python program hands over: gone on with when it is handed over again, and never replaced without a word."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sppo
from sppo.cli import main
from sppo.commands.calibrate import calibrate
from sppo.commands.evaluate import evaluate_pair
from sppo.commands.plan import plan
from sppo.commands.train import train
from sppo.config.compatibility import read_config
from sppo.config.evaluation import evaluation_config
from sppo.config.recipes import load_recipe
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError, ModelError, RunFolderError
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.progress import NoProgress
from sppo.training.given import Given
from sppo.verifiers.functions import function_name
from tests.conftest import tiny_config, tiny_qwen2
from tests.training import test_loop
from tests.training.test_loop import likes_threes, train_on_rows

ROWS = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(6) for b in range(6)]
OTHER_ROWS = [{"prompt": f"{a}-{b}=", "answer": str((a - b) % 10)} for a in range(6) for b in range(6)]


def even(completions):
    return [float(len(completion) % 2 == 0) for completion in completions]


def odd(completions):
    return [float(len(completion) % 2 == 1) for completion in completions]


class Messages(NoProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's task, graded by a function of this program."""
    config = tiny_config(tmp_path_factory.mktemp("rewarded") / "run", steps=1)
    sppo.train(config, reward=even)
    return Path(config.output)


def of(run: Path, **changes: object):
    return tiny_config(run, steps=2, **changes)


def test_the_run_folder_notes_the_functions_name_and_no_code(rewarded):
    assert read_config(rewarded)["data"]["reward"] == f"handed over by a Python program: {__name__}:even"


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (None, rf"was trained with the reward function {__name__}:even, .*but none is handed over now.*reward=FUNC"),
        (odd, rf"was trained with the reward function {__name__}:even, .*but now it is {__name__}:odd"),
    ],
)
def test_a_resume_with_another_reward_is_refused_and_nothing_is_written(rewarded, reward, said):
    before = {path: path.read_bytes() for path in rewarded.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=said):
        sppo.train(of(rewarded), reward=reward, resume=True)
    with pytest.raises(ConfigError, match=r"reward=FUNCTION"):
        plan(of(rewarded), resume=True)
    assert before == {path: path.read_bytes() for path in rewarded.rglob("*") if path.is_file()}


def test_a_resume_with_the_same_function_goes_on(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1), Given(reward_function=even))
    assert train(of(tmp_path / "run"), Given(reward_function=even), resume=True)["steps"] == 2


def test_a_function_handed_over_to_a_run_without_one_is_refused(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1))
    with pytest.raises(ConfigError, match=rf"trained with verifiers, and now the reward function {__name__}:even"):
        train(of(tmp_path / "run"), Given(reward_function=even), resume=True)


def test_a_function_handed_over_takes_the_place_of_the_recipes(tmp_path):
    (tmp_path / "named.py").write_text("def one(completions):\n    return [1.0] * len(completions)\n")
    named = {"data.reward": f"{tmp_path / 'named.py'}:one"}
    train(tiny_config(tmp_path / "run", steps=1, **named), Given(reward_function=even))
    with pytest.raises(ConfigError, match=f"{__name__}:even, which a Python program handed over"):
        sppo.evaluate(tmp_path / "run")


def test_evaluations_ask_for_the_function_and_say_if_it_is_another(rewarded, tmp_path, capsys):
    asks = rf"data.reward is the reward function {__name__}:even, which a Python program handed over.*reward=FUNCTION"
    with pytest.raises(ConfigError, match=asks):
        sppo.evaluate(rewarded)
    with pytest.raises(ConfigError, match=asks):
        calibrate(str(rewarded), evaluation_config(str(rewarded))[0], prompts=4, samples_per_prompt=2)
    with pytest.raises(ConfigError, match=asks):
        evaluate_pair(str(rewarded), str(rewarded))
    assert main(["eval", str(rewarded)]) == 2
    assert "--data.reward path/to/file.py:function" in capsys.readouterr().err.replace("\n", " ")
    progress = Messages()
    assert 0 < sppo.evaluate(rewarded, reward=even, samples_per_prompt=2, progress=progress)["accuracy"] < 1
    assert progress.texts == []
    sppo.evaluate(rewarded, reward=odd, samples_per_prompt=1, progress=progress)
    assert progress.texts == [
        f"Graded by the reward function {__name__}:odd, where the run was trained with the reward function "
        f"{__name__}:even."
    ]
    (tmp_path / "again.py").write_text("def even(completions):\n    return [0.25] * len(completions)\n")
    config, _ = evaluation_config(str(rewarded), None, [f"--data.reward={tmp_path / 'again.py'}:even"])
    assert calibrate(str(rewarded), config, prompts=4, samples_per_prompt=2)["mean_solve_rate"] == 0.25


def test_a_recipe_of_its_own_has_a_grader_of_its_own(rewarded):
    config = replace(tiny_config(rewarded), steps=1)
    assert sppo.evaluate(rewarded, recipe=config, samples_per_prompt=1)["measure"] == "accuracy"


class Judge:
    def __init__(self, bonus: float) -> None:
        self.bonus = bonus

    def __call__(self, completions):
        return [self.bonus] * len(completions)

    def method(self, completions):
        return [self.bonus] * len(completions)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Judge(0.5), "Judge"),
        (Judge(0.5).method, "Judge.method"),
        (functools.partial(even), "even"),
        (functools.partial(functools.partial(Judge(1.0))), "Judge"),
        (lambda completions: even(completions), "<lambda>"),
    ],
)
def test_names_hold_no_addresses(function, name):
    assert function_name(function) == f"{__name__}:{name}"


def test_a_program_is_named_as_it_is_when_it_is_imported(monkeypatch):
    def reward(completions):
        return []

    import __main__

    reward.__module__, reward.__qualname__ = "__main__", "reward"
    monkeypatch.setattr(__main__, "__spec__", None, raising=False)
    monkeypatch.setattr(__main__, "__file__", "/somewhere/my_training.py", raising=False)
    assert function_name(reward) == "my_training:reward"
    monkeypatch.delattr(__main__, "__file__")  # as in a notebook
    assert function_name(reward) == "__main__:reward"


def started(folder: Path, *, resume: bool = False, steps: int = 1, path: str = "handed over", **changes: Any) -> dict:
    """A run on rows, with a new model; `changes` to what is handed over, and `path` of a model instead."""
    config = load_recipe(None, {
        "sampling.max_response_tokens": 4, "data.max_prompt_tokens": 8, "evaluation.prompts": 6, "steps": steps,
        "evaluation.final_samples_per_prompt": 1, "device": "cpu", "threads": 1, "prompts_per_step": 8,
        "optimizer.minibatch_size": 8, "critic.minibatch_size": 8, "checkpoint.every": 1, "data.verifier": "exact",
        "optimizer.learning_rate": 1e-3, "output": str(folder), "model.path": path,
    })  # fmt: skip
    given = Given(tiny_qwen2(), character_tokenizer(ALPHABET), ROWS, OTHER_ROWS)
    return train(config, replace(given, **changes), resume=resume)


@pytest.fixture(scope="module")
def on_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "run"
    started(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rows": None}, ConfigError, r"made from rows that .*rows=rows, resume=True"),
        ({"held_out_rows": None}, ConfigError, r"made from held_out_rows that .*held_out_rows=held_out_rows"),
        ({"rows": None, "held_out_rows": None}, ConfigError, r"made from rows and held_out_rows that"),
        ({"rows": ROWS[:-1]}, RunFolderError, "belongs to other prompts"),
        ({"held_out_rows": OTHER_ROWS[1:]}, RunFolderError, "held-out prompts are not those"),
        ({"model": tiny_qwen2(hidden_size=8)}, ModelError, r"cannot take the weights of .*policy .*size mismatch"),
        ({"tokenizer": character_tokenizer(ALPHABET[::-1])}, ModelError, "another vocabulary or chat template"),
        ({"reward_function": even}, ConfigError, "trained with verifiers, and now"),
    ],
)
def test_other_things_than_were_handed_over_are_refused(on_rows, changes, error, said):
    with pytest.raises(error, match=said):
        started(on_rows, resume=True, steps=2, **changes)


def test_model_and_tokenizer_are_the_checkpoints(on_rows, tmp_path):
    whole = started(tmp_path / "whole", steps=2)
    started(tmp_path / "again")
    model = tiny_qwen2(seed=1)
    again = started(tmp_path / "again", steps=2, resume=True, model=model)
    started(tmp_path / "alone")
    alone = started(tmp_path / "alone", steps=2, resume=True, model=None, tokenizer=None, path=model_name(on_rows))
    assert whole["accuracy_after"] == again["accuracy_after"] == alone["accuracy_after"]
    trained, *others = (
        load_file(tmp_path / name / "checkpoints/last/policy/model.safetensors") for name in ("whole", "again", "alone")
    )
    for name, weight in trained.items():
        assert all(torch.equal(weight, other[name]) for other in others), name
        assert torch.equal(weight, model.state_dict()[name]), "the model handed over again is trained in place"


def model_name(folder: Path) -> str:
    return read_config(folder)["model"]["path"]


def test_measures_need_the_rows_or_a_file_of_them(on_rows, tmp_path):
    with pytest.raises(ConfigError, match=r"rows that a Python program handed over.*--evaluation.data.path FILE"):
        sppo.evaluate(on_rows)
    assert sppo.evaluate(on_rows, rows=OTHER_ROWS, samples_per_prompt=1)["prompts"] == 36
    config, _ = evaluation_config(str(on_rows))
    with pytest.raises(ConfigError, match=r"--data.path FILE and --evaluation.data.path FILE\."):
        calibrate(str(on_rows), config, prompts=4, samples_per_prompt=2)
    for name, rows in (("rows", ROWS), ("held_out", OTHER_ROWS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _ = evaluation_config(
        str(on_rows), None,
        [f"--data.path={tmp_path / 'rows.jsonl'}", f"--evaluation.data.path={tmp_path / 'held_out.jsonl'}"],
    )  # fmt: skip
    assert calibrate(str(on_rows), config, prompts=4, samples_per_prompt=2)["prompts"] == 4


def test_rows_to_measure_on_beside_a_task_are_not_forgotten(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1), Given(held_out_rows=ROWS))
    with pytest.raises(ConfigError, match=r"rows that a Python program handed over.*--evaluation.data.path FILE"):
        sppo.evaluate(tmp_path / "run")
    with pytest.raises(ConfigError, match="made from held_out_rows that a Python program handed over"):
        train(of(tmp_path / "run"), resume=True)


def test_a_run_of_a_model_object_goes_on_without_it_as_its_checkpoints_hold_it(tmp_path):
    train_on_rows(tmp_path / "run", steps=1)
    summary = sppo.train(
        rows=test_loop.ROWS, reward=likes_threes, output=str(tmp_path / "run"), resume=True, steps=2,
        prompts_per_step=32,
        optimizer__minibatch_size=16, critic__minibatch_size=16, sampling__max_response_tokens=6,
        data__max_prompt_tokens=8, evaluation__prompts=10, evaluation__final_samples_per_prompt=2, threads=1,
        device="cpu", optimizer__tokens_per_microbatch=4096,
    )  # fmt: skip
    assert summary["steps"] == 2


def test_a_model_without_weights_to_train_is_refused(tmp_path):
    frozen = tiny_qwen2().requires_grad_(False)
    with pytest.raises(ModelError, match="The model has no weights to train"):
        train(tiny_config(tmp_path / "run"), Given(model=frozen, tokenizer=character_tokenizer(ALPHABET)))
    assert not (tmp_path / "run").exists()


def test_an_empty_list_of_rows_to_measure_on_is_named(tmp_path):
    with pytest.raises(DataError, match="no rows to measure on"):
        train_on_rows(tmp_path / "run", held_out_rows=[])


def test_verls_rows_give_verls_function_its_ground_truth(tmp_path):
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info):
        seen.append((data_source, ground_truth, extra_info["index"]))
        return float(solution_str == ground_truth)

    rows = [
        {"data_source": "sums", "prompt": row["prompt"], "reward_model": {"ground_truth": row["answer"]},
         "extra_info": {"index": index}}
        for index, row in enumerate(test_loop.ROWS)
    ]  # fmt: skip
    train(tiny_config(tmp_path / "run", steps=1, data={"task": "rows", "options": {}}, evaluation__data=None),
          Given(rows=rows, reward_function=compute_score))  # fmt: skip
    assert seen
    assert {(source, truth) for source, truth, _ in seen} <= {("sums", row["answer"]) for row in test_loop.ROWS}
    assert all(truth == test_loop.ROWS[index]["answer"] for _, truth, index in seen)
    del rows[7]["reward_model"]
    with pytest.raises(ConfigError, match=r"takes ground_truth, but 1 of \d+ prompts have none"):
        train(tiny_config(tmp_path / "again", data={"task": "rows", "options": {}}, evaluation__data=None),
              Given(rows=rows, reward_function=compute_score))  # fmt: skip
    assert not (tmp_path / "again").exists()
