"""Steps without a response that the policy can be trained on: counted, said, resumed exactly, and not for ever."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sppo.commands.train import train
from sppo.errors import TrainingError
from sppo.runs.folder import read_metrics
from sppo.runs.progress import NoProgress
from sppo.runs.records import read_records
from sppo.training.collate import LengthRules, why_nothing
from sppo.training.given import Given
from sppo.types import Completion, Prompt, Rollout, Verdict
from tests.conftest import tiny_config

TRAINED = 16
"""Responses of a step of training; an evaluation has others, and its rewards stay."""
ALL_CUT = {"sampling.temperature": 0.01, "sampling.max_response_tokens": 1}
"""The most likely first token of this random model is never an end token."""


class Messages(NoProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def nothing(prompts, completions):
    return [None if len(prompts) == TRAINED else 1.0 for _ in completions]


def now_and_then(prompts, completions):
    """None for a step of training or for none of it, by its prompts alone, so that it's the same in every process."""
    idle = len(prompts) == TRAINED and zlib.crc32("".join(prompts).encode()) % 2 == 0
    return [None if idle else float(len(completion) % 2) for completion in completions]


def lines(folder: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "throughput/"))}
        for line in read_metrics(folder)
    ]


def records(folder: Path) -> list[dict]:
    return list(read_records(folder))


def weights(folder: Path, step: str, part: str = "policy") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / step / part / "model.safetensors")


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, right[name]) for name, weight in left.items())


def test_responses_that_are_all_cut_and_dropped_are_said_counted_and_end_the_run(tmp_path):
    progress, folder = Messages(), tmp_path / "run"
    config = tiny_config(folder, **ALL_CUT, **{"algorithm.truncated": "drop", "steps": 6})
    cut = r"Of 16 responses 16 were cut at the limit of 1 tokens \(algorithm.truncated: drop\)\. To mend it, raise "
    cut += "sampling.max_response_tokens, or set algorithm.truncated to keep."
    with pytest.raises(TrainingError, match=rf"Steps 1 to 5 had no response to train on. {cut} .*last/policy"):
        train(config, progress=progress)
    assert [text for text in progress.texts if "no response" in text] == [
        f"Step {step} had no response to train on. {cut}".replace("\\", "") for step in (1, 2, 3, 4)
    ]
    # The steps count, go into the metrics and the records, and take prompts; nothing learns from them.
    assert [line.get("update/idle_steps") for line in lines(folder)] == [None, 1, 2, 3, 4]
    assert [line["response/clipped_share"] for line in lines(folder)[1:]] == [1.0] * 4
    kept = records(folder)
    said = {(record["step"], record["value"], record["advantage"]) for record in kept}
    assert said == {(step, None, None) for step in (1, 2, 3, 4)}
    assert [record["prompt_id"] for record in kept[:16]] != [record["prompt_id"] for record in kept[16:32]]
    for part in ("policy", "critic"):
        assert equal(weights(folder, "step_3", part), weights(folder, "step_4", part))


def test_a_run_goes_on_over_such_steps_and_is_resumed_exactly(tmp_path):
    def run(name: str, steps: int, resume: bool = False) -> dict:
        config = tiny_config(tmp_path / name, steps=steps, **{"evaluation.final_samples_per_prompt": 1})
        return train(config, Given(reward_function=now_and_then), resume=resume)

    whole = run("whole", 8)
    idle = [line.get("update/idle_steps", 0) for line in lines(tmp_path / "whole")]
    assert 0 < idle[4] < idle[8] < 8, "no test without such steps on both sides of the resumption"
    run("parts", 4)
    parts = run("parts", 8, resume=True)
    assert whole["idle_steps"] == parts["idle_steps"] == idle[8]
    assert whole["responses_left_out"] == parts["responses_left_out"] == 16 * idle[8]
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert records(tmp_path / "whole") == records(tmp_path / "parts")
    # Such steps leave the weights, and so their version, as they were.
    moved = {step: 2 * (step - 1 - idle[step - 1]) for step in range(1, 9)}  # 2 mini-batches each
    assert {record["step"]: record["policy_version"] for record in records(tmp_path / "parts")} == moved
    for part in ("policy", "critic"):
        assert equal(weights(tmp_path / "whole", "last", part), weights(tmp_path / "parts", "last", part))


def test_how_many_there_were_in_a_row_is_resumed_too(tmp_path):
    def run(steps: int, resume: bool = False) -> dict:
        config = tiny_config(tmp_path / "run", steps=steps)
        return train(config, Given(reward_function=nothing), resume=resume)

    assert run(2)["idle_steps"] == 2
    with pytest.raises(TrainingError, match=r"Steps 1 to 5 .*Of 16 responses 16 were left out by the reward function"):
        run(9, resume=True)


def test_where_all_are_masked_the_critic_learns_and_the_policy_rests(tmp_path):
    folder = tmp_path / "run"
    # Momentum and decay move weights without a gradient, too.
    options = {"algorithm.truncated": "mask", "optimizer.weight_decay": 0.1, "steps": 6, "checkpoint.keep": 9}
    with pytest.raises(
        TrainingError, match=r"Steps 1 to 5 .*cut at the limit of 1 tokens \(algorithm.truncated: mask\)"
    ):
        train(tiny_config(folder, **ALL_CUT, **options))
    assert equal(weights(folder, "step_0"), weights(folder, "step_4"))
    assert not equal(weights(folder, "step_1", "critic"), weights(folder, "step_2", "critic"))
    assert "critic/loss" in lines(folder)[2]
    assert "policy/loss" not in lines(folder)[2]
    assert all(record["advantage"] is not None for record in records(folder))


def test_dynamic_sampling_that_finds_nothing_is_such_a_step(tmp_path):
    folder = tmp_path / "run"
    options = {"algorithm.name": "dapo", "sampling.samples_per_prompt": 2, "prompts_per_step": 8, "steps": 6}
    said = (
        r"Steps 1 to 5 .*In 4 rounds of dynamic sampling none of 32 groups had rewards that differ \(mean reward 0.5\)"
    )
    with pytest.raises(TrainingError, match=rf"{said}\. To mend it, raise .*, or choose easier or harder prompts"):
        train(tiny_config(folder, **options), Given(reward_function=lambda completions: [0.5] * len(completions)))
    line = lines(folder)[1]
    assert (line["update/idle_steps"], line["sampling/discarded_groups"], line["responses/total"]) == (1, 32, 64)
    assert line["response/tokens"] == 0


def test_what_became_of_the_responses():
    def rollout(finish_reason):
        return Rollout(Prompt("a", "1="), (2,), Completion((3, 4), (-1.0, -1.0), finish_reason), "1")

    rollouts = [rollout("length"), rollout("length"), rollout("stop"), rollout("stop")]
    failed, left_out = Verdict(None, error="timed out"), Verdict(None, reason="left out by the reward function")
    assert why_nothing(rollouts, [Verdict(1.0), left_out, failed, failed], LengthRules("drop", 2)) == (
        "Of 4 responses 1 were cut at the limit of 2 tokens (algorithm.truncated: drop), verification failed on 2 (the "
        "first: 'timed out'), 1 were left out by the reward function. To mend it, raise sampling.max_response_tokens, "
        "or set algorithm.truncated to keep; mend what the verifier says; see why it returns None."
    )
