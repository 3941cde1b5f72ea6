"""Whole runs with tiny models: what they leave behind, that rewards rise, and how they stop."""

from __future__ import annotations

import os
import signal
import threading
from typing import ClassVar

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import sppo
from sppo.commands.train import fine_tune, train
from sppo.config import to_dict
from sppo.config.compatibility import read_config
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError, ModelError, RewardError, RunFolderError, TrainingError
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.folder import read_metrics, read_summary
from sppo.runs.progress import NoProgress
from sppo.runs.records import read_records
from sppo.training.build import build
from sppo.training.given import Given
from sppo.verifiers import VERIFIERS
from tests.conftest import begun, files_of, tiny_config, tiny_qwen2

ROWS = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]


def likes_threes(prompts, completions, **columns):
    """A reward that a tiny model can learn within a few steps."""
    return [completion.count("3") / len(completion) if completion else 0.0 for completion in completions]


def train_on_rows(output, reward=likes_threes, **options):
    settings = {
        "steps": 2, "prompts_per_step": 32, "optimizer__minibatch_size": 16, "critic__minibatch_size": 16,
        "sampling__max_response_tokens": 6, "data__max_prompt_tokens": 8, "evaluation__prompts": 10,
        "evaluation__final_samples_per_prompt": 2, "threads": 1, "device": "cpu",
        "optimizer__tokens_per_microbatch": 4096,
    }  # fmt: skip
    return sppo.train(
        model=tiny_qwen2(initializer_range=0.05), tokenizer=character_tokenizer(ALPHABET), rows=ROWS, reward=reward,
        output=str(output), **{**settings, **options},
    )  # fmt: skip


def test_a_run_leaves_a_whole_folder(tmp_path):
    summary = train(tiny_config(tmp_path / "run"))
    folder = tmp_path / "run"
    assert summary == read_summary(folder)
    assert set(summary) >= {
        "accuracy_before", "accuracy_after", "seconds", "tokens", "critic", "calibration", "examples", "versions",
        "seed",
    }  # fmt: skip
    assert set(summary["critic"]) == {"pearson", "spearman", "brier", "ece", "bias"}
    assert len(summary["examples"]) == 3
    assert summary["steps"] == 3
    assert summary["responses"] == 48
    assert read_config(folder)["prompts_per_step"] == 16
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [("eval/accuracy" in line) for line in lines] == [True, True, True, True]  # every checkpoint is measured
    assert {"reward/mean", "critic/value_mean", "critic/bce", "policy/clipfrac", "time/step"} <= set(lines[1])


def test_the_records_tell_every_response_whole(tmp_path):
    train(tiny_config(tmp_path / "run"))
    records = list(read_records(tmp_path / "run"))
    assert len(records) == 48
    tokenizer = character_tokenizer(ALPHABET)
    for record in records:
        assert record["advantage"] == pytest.approx(record["reward"] - record["value"], abs=1e-6)
        assert record["policy_version"] == 2 * (record["step"] - 1)  # two optimiser steps each
        assert tokenizer.decode(record["response_token_ids"], skip_special_tokens=True) == record["response"]
        assert tokenizer.decode(record["prompt_token_ids"]) == record["prompt"]
        assert record["verifier"] == "final_answer"
        assert record["verifier_version"] == VERIFIERS["final_answer"].version


def test_checkpoints_load_by_from_pretrained_and_old_ones_go(tmp_path):
    train(tiny_config(tmp_path / "run", steps=4))
    checkpoints = tmp_path / "run" / "checkpoints"
    kept = {path.name for path in checkpoints.iterdir() if not path.is_symlink()}
    assert {"step_3", "step_4"} <= kept
    assert len(kept) <= 3  # two newest, and the best
    assert (checkpoints / "last").resolve().name == "step_4"
    assert (checkpoints / "best").resolve().name in kept
    policy = AutoModelForCausalLM.from_pretrained(checkpoints / "last" / "policy")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints / "last" / "policy")
    AutoModel.from_pretrained(checkpoints / "last" / "critic")
    value = sppo.PromptCritic.from_pretrained(checkpoints / "last" / "critic").values([sppo.Prompt("x", "1+1=")])
    assert 0 < value.item() < 1
    assert tokenizer.get_vocab() == character_tokenizer(ALPHABET).get_vocab()
    assert policy(**tokenizer("1+1=", return_tensors="pt", return_token_type_ids=False)).logits.shape[-1] == 40


def test_the_reward_rises_with_ones_own_function_rows_model_and_tokenizer(tmp_path):
    summary = train_on_rows(tmp_path / "run", steps=25, optimizer__learning_rate=5e-3, critic__learning_rate=5e-3)
    lines = read_metrics(tmp_path / "run")
    assert summary["accuracy_before"] < 0.15
    assert summary["accuracy_after"] > 0.6
    assert lines[-1]["reward/mean"] > 4 * lines[1]["reward/mean"]
    assert (tmp_path / "run" / "curves.png").is_file()


def test_several_samples_a_prompt_are_a_number_not_another_path(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1, prompts_per_step=8, sampling__samples_per_prompt=4, **{
        "optimizer.minibatch_size": 16, "critic.minibatch_size": 16,
    }))  # fmt: skip
    records = list(read_records(tmp_path / "run"))
    assert [record["prompt_id"] for record in records[:4]] == [records[0]["prompt_id"]] * 4
    assert len({tuple(record["response_token_ids"]) for record in records[:4]}) > 1
    assert len(records) == 32


@pytest.mark.parametrize("changes", [{"optimizer__layout": "packed"}, {"model__gradient_checkpointing": True}])
def test_layout_and_checkpointing_do_not_change_the_result(tmp_path, changes):
    plain = train(tiny_config(tmp_path / "plain"))
    other = train(tiny_config(tmp_path / "other", **changes))
    assert other["accuracy_after"] == plain["accuracy_after"]
    a, b = (read_metrics(tmp_path / name)[-1]["policy/loss"] for name in ("plain", "other"))
    assert a == pytest.approx(b, abs=1e-5)


def test_none_leaves_a_sample_out(tmp_path):
    def every_other(prompts, completions, **columns):
        return [None if index % 2 else 1.0 for index in range(len(completions))]

    summary = train_on_rows(tmp_path / "run", every_other)
    assert summary["responses_left_out"] == 32
    assert read_metrics(tmp_path / "run")[1]["reward/left_out_share"] == 0.5


def fails(prompts, completions, **columns):
    raise KeyError("oops")


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        (lambda prompts, completions, **_: [1.0], RewardError, r"1 rewards? .*20|20 .*1"),
        (lambda prompts, completions, **_: [float("nan")] * len(prompts), RewardError, "nan"),
        (lambda prompts, completions, **_: [2.5] * len(prompts), RewardError, r"rewards must lie in \[0, 1\]"),
        (lambda prompts, completions, **_: [None] * len(prompts), TrainingError, "None of the 20 held-out responses"),
        (fails, RewardError, "oops"),
    ],
)
def test_a_reward_function_that_misbehaves(tmp_path, reward, error, message):
    with pytest.raises(error, match=message):
        train_on_rows(tmp_path / "run", reward)


def test_fine_tuning_alone(tmp_path):
    phase = {"demonstrations": "full", "steps": 30, "batch_size": 32, "learning_rate": 1e-2}
    summary = fine_tune(tiny_config(tmp_path / "run", sft__phases=[phase], sampling__max_response_tokens=37))
    assert summary["steps"] == 0
    assert summary["seconds"]["warm_start"] > 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "last" / "policy")


def test_an_interrupt_saves_the_step_and_says_how_to_go_on(tmp_path):
    class Interrupts(NoProgress):
        said: list[str] = []  # noqa: RUF012

        def update(self, step, metrics):
            if step == 1 and "reward/mean" in metrics:
                os.kill(os.getpid(), signal.SIGINT)

        def message(self, text):
            self.said.append(text)

    config = tiny_config(tmp_path / "run", steps=5, checkpoint__every=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupts())
    assert "Saved step 1. Go on with the same command and --resume." in Interrupts.said
    assert (tmp_path / "run" / "checkpoints" / "step_1").is_dir()
    assert train(config, resume=True)["steps"] == 5


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path):
    config = tiny_config(tmp_path / "run")
    expected = train(tiny_config(tmp_path / "other"))
    begun(tmp_path / "run", to_dict(config))
    assert train(config, resume=True)["accuracy_after"] == expected["accuracy_after"]


@pytest.mark.parametrize("stopped", ["by Ctrl-C", "while saving"])
def test_the_same_command_starts_over_a_run_that_was_stopped_before_its_first_checkpoint(
    tmp_path, monkeypatch, stopped
):
    from sppo.training import loop, start

    def killed(*_, **__):
        raise KeyboardInterrupt

    config = tiny_config(tmp_path / "run", steps=1, logging__sinks=["tensorboard"])
    place = (start, "evaluate") if stopped == "by Ctrl-C" else (loop, "save_checkpoint")
    monkeypatch.setattr(*place, killed)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    assert (tmp_path / "run" / "tensorboard").is_dir()
    assert train(config)["steps"] == 1
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1]


@pytest.mark.parametrize("run", [train, fine_tune])
def test_a_second_process_on_the_same_run_is_refused_and_changes_nothing(tmp_path, run):
    config = tiny_config(tmp_path / "run", steps=1, sft__phases=[{"steps": 1, "batch_size": 4}])

    class TriesAsWell(NoProgress):
        refused: ClassVar[list[str]] = []

        def phase(self, name, total, unit="steps"):
            for thread in threading.enumerate():
                if thread.name == "sppo checkpoint":  # which is written beside the run's next steps
                    thread.join()
            for resume in (False, True):
                before = files_of(tmp_path)
                with pytest.raises(RunFolderError) as error:
                    run(config, resume=resume)
                self.refused.append(str(error.value))
                assert files_of(tmp_path) == before

    run(config, progress=TriesAsWell())
    assert len(TriesAsWell.refused) > 2
    for said in TriesAsWell.refused:
        assert f"Another process is writing to {tmp_path / 'run'}: process {os.getpid()} on" in said
    assert run(config, resume=True)["steps"] == (1 if run is train else 0)


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    train(tiny_config(tmp_path / "run", steps=2))
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match="steps is 1, but the run is at step 2 already"):
        train(tiny_config(tmp_path / "run", steps=1, logging__sinks=["tensorboard"]), resume=True)
    assert files_of(tmp_path) == before
    # Refused by what only the checkpoint says.
    generators = tmp_path / "run" / "checkpoints" / "step_2" / "random.safetensors"
    generators.write_bytes(b"damaged")
    before = files_of(tmp_path)
    with pytest.raises(RunFolderError, match=r"random\.safetensors is damaged"):
        train(tiny_config(tmp_path / "run", steps=3, logging__sinks=["tensorboard"]), resume=True)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"algorithm__name": "sppp"}, ConfigError, "algorithm.name is 'sppp'.*Did you mean 'sppo'"),
        ({"engine__name": "vlm"}, ConfigError, "engine.name is 'vlm'"),
        ({"data__task": "chain_arithmatic"}, ConfigError, "Did you mean 'chain_arithmetic'"),
        ({"evaluation__data": None, "evaluation__prompts": 5000}, DataError, "5000"),
        ({"data__max_prompt_tokens": 1}, DataError, "so none is left"),
        ({"sampling__max_response_tokens": 500}, ConfigError, "but the model was made for 128"),
        ({"sampling__stop_token_ids": [-5]}, ConfigError, "sampling.stop_token_ids.0 is -5"),
        ({"sampling__top_p": 0.9}, ConfigError, "algorithm.old_logprobs is sampler, but with sampling.top_p 0.9"),
        ({"sft__betas": [0.9, 1.0]}, ConfigError, r"sft.betas.1 is 1.0, but must be less than 1"),
        ({"sft__phases": [{"batch_size": 0}]}, ConfigError, "sft.phases.0.batch_size is 0"),
        ({"sft__phases": [{"demonstrations": "longhand"}]}, ConfigError, "longhand"),
        ({"threads": 0}, ConfigError, "threads is 0"),
        ({"logging__sinks": ["wandb"]}, ConfigError, r"pip install 'sppo\[wandb\]'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(tiny_config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_refused_before_loading(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1))
    with pytest.raises(RunFolderError, match="--resume"):
        train(tiny_config(tmp_path / "run", steps=1))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no end token"):
        train(tiny_config(tmp_path / "run"), Given(tokenizer=tokenizer))


def test_tensorboard_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    train(tiny_config(tmp_path / "run", logging__sinks=["tensorboard"]))
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"reward/mean" in events.read_bytes()


def test_fine_tuning_never_sees_a_held_out_prompt(tmp_path):
    rows = [{**row, "demonstration": row["answer"]} for row in ROWS]
    config = tiny_config(
        tmp_path / "run", sft__phases=[{"steps": 1}], evaluation__data=None, data__task="rows", data__options={},
        data__verifier="exact",
    )  # fmt: skip
    parts = build(config, Given(rows=rows))
    held_out = {tuple(parts.tokenizer(prompt.text)["input_ids"]) for prompt in parts.held_out.prompts}
    shown = {tuple(row.prompt.tolist()) for row in parts.warm_start.demonstrations[0]}
    assert len(held_out) == 20
    assert len(shown) == 80
    assert not held_out & shown


def test_a_half_precision_model_is_trained_in_float32(tmp_path):
    summary = sppo.train(
        tiny_config(tmp_path / "run", steps=1), model=tiny_qwen2().to(torch.bfloat16),
        tokenizer=character_tokenizer(ALPHABET),
    )  # fmt: skip
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "last" / "policy", dtype="auto")
    assert saved.dtype == torch.float32
    assert summary["steps"] == 1


def test_a_prompt_too_long_for_the_critic_is_named(tmp_path):
    changes = {"critic.config.max_position_embeddings": 4}
    with pytest.raises(DataError, match=r"Prompt 'chain_arithmetic/.*' has \d+ tokens in the critic's tokenizer"):
        train(tiny_config(tmp_path / "run", **changes))


@pytest.mark.parametrize("damage", ["truncated", "pointer"])
@pytest.mark.parametrize("key", ["model", "critic"])
def test_damaged_weights_are_an_error_of_ours(tmp_path, damage, key):
    tiny_qwen2().save_pretrained(tmp_path / "model")
    character_tokenizer(ALPHABET).save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200] if damage == "truncated" else b"version https://git-lfs\n")
    with pytest.raises(ModelError, match=rf"{key}.path '.*' can't be loaded"):
        train(
            tiny_config(tmp_path / "run", **{f"{key}__path": str(tmp_path / "model"), "model__tokenizer": "characters"})
        )
