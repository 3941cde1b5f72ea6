"""Updates in whole runs: the temperature that log-probabilities are read at, optimisers as asked for, fine-tuning."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import sppo
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.engines import hf
from sppo.runs.folder import read_metrics
from sppo.runs.progress import NoProgress
from sppo.update.steps import StepGuard
from tests.conftest import tiny_config, tiny_qwen2, train_on


def all_right(prompts, completions, **columns):
    return [1.0] * len(prompts)


# What is read before the update


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_trainer_reads_log_probabilities_at_the_temperature_of_sampling(tmp_path, temperature):
    # One mini-batch: the policy is still the one that sampled, and the one that training started from.
    sppo.train(tiny_config(
        tmp_path, steps=1, optimizer__minibatch_size=16, sampling__temperature=temperature,
        algorithm__old_logprobs="trainer", algorithm__kl_coefficient=0.1,
    ))  # fmt: skip
    metrics = read_metrics(tmp_path)[1]
    for name in ("sampler/logprob_gap_max", "policy/approx_kl", "policy/kl_to_reference", "policy/clipfrac"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-4), name
    assert metrics["sampler/importance_weight_mean"] == pytest.approx(1.0, abs=1e-4)


def test_log_probabilities_of_the_sampler_are_compared_at_its_temperature(tmp_path):
    sppo.train(tiny_config(tmp_path, steps=1, optimizer__minibatch_size=16, sampling__temperature=0.5))
    assert read_metrics(tmp_path)[1]["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("factor", "weight"), [(1.5, 1.5), (3.0, 2.0), (0.5, 0.5)])
def test_tokens_weigh_what_the_trainer_says_over_what_the_sampler_says_up_to_the_cap(
    tmp_path, monkeypatch, factor, weight
):
    def understating(*args, **kwargs):
        chosen, logprobs = real(*args, **kwargs)
        return chosen, logprobs - math.log(factor)

    real = hf.draw
    monkeypatch.setattr(hf, "draw", understating)
    # A = R = 1 and a ratio of 1 to the trainer's own log-probabilities: the loss is minus the weight.
    (metrics,) = train_on(
        ["1+2="] * 20, tmp_path, all_right, algorithm__name="reinforce_pp", algorithm__whitening="none",
        algorithm__importance_cap=2.0,
    )  # fmt: skip
    assert metrics["sampler/logprob_gap_mean"] == pytest.approx(abs(math.log(factor)), abs=1e-4)
    assert metrics["sampler/importance_weight_mean"] == pytest.approx(weight, abs=1e-3)
    assert metrics["policy/loss"] == pytest.approx(-weight, abs=1e-3)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_a_kl_penalty_is_taken_from_the_reward_where_that_is_its_place_alone(tmp_path, place):
    # From the second step on the policy is not the reference any more.
    _, metrics = train_on(
        ["1+2="] * 20, tmp_path, all_right, steps=2, algorithm__name="reinforce_pp", algorithm__whitening="none",
        algorithm__kl_coefficient=10.0, algorithm__kl_place=place, optimizer__learning_rate=1e-2,
    )  # fmt: skip
    assert metrics["policy/kl_to_reference"] > 1e-4
    assert (metrics["advantage/std"] == 0.0) == (metrics["advantage/mean"] == 1.0) == (place == "loss")


# Optimisers


def test_policy_and_critic_have_optimisers_of_their_own_that_step_as_often_as_asked(tmp_path):
    train_on(
        ["1+2="] * 20, tmp_path, lambda prompts, completions, **_: [float(i % 2) for i in range(len(prompts))],
        steps=2, optimizer__minibatch_size=4, optimizer__epochs=3, optimizer__learning_rate=1e-4,
        optimizer__weight_decay=0.2, critic__minibatch_size=2, critic__epochs=2, critic__learning_rate=1e-3,
        critic__weight_decay=0.3,
    )  # fmt: skip
    saved = json.loads((tmp_path / "checkpoints" / "step_2" / "optimizers" / "optimizers.json").read_text())
    # Eight rows: two mini-batches of four, thrice in each of two steps; four of two, twice.
    for name, rate, decay, steps in (("policy", 1e-4, 0.2, 2 * 3 * 2), ("critic", 1e-3, 0.3, 4 * 2 * 2)):
        (group,) = saved[name]["param_groups"]
        assert (group["lr"], group["weight_decay"]) == (rate, decay)
        assert {state["step"]["tensor"] for state in saved[name]["state"].values()} == {steps}


@pytest.mark.parametrize(("max_norm", "moved"), [(1.0, [0.6, 0.8]), (100.0, [3.0, 4.0])])
def test_a_gradient_is_scaled_down_to_the_norm_allowed_and_told_as_it_was(max_norm, moved):
    module = torch.nn.Linear(2, 1, bias=False)
    start = module.weight.detach().clone()
    (module.weight * torch.tensor([[3.0, 4.0]])).sum().backward()
    guard = StepGuard(max_norm=max_norm)
    assert guard.step("policy", torch.optim.SGD(module.parameters(), lr=1.0), module, 0.0) == pytest.approx(5.0)
    assert (start - module.weight)[0].tolist() == pytest.approx(moved, rel=1e-5)


# Fine-tuning


class Losses(NoProgress):
    """Keeps the losses of fine-tuning."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def update(self, step, metrics):
        self.seen += [metrics["sft/loss"]] if "sft/loss" in metrics else []


def fine_tuned(folder, progress=None, **phase) -> dict[str, torch.Tensor]:
    """The weights after fine-tuning of a model that says all 40 tokens alike."""
    sppo.train(
        tiny_config(folder, steps=1, sft__phases=[{"batch_size": 8, **phase}]), progress=progress,
        model=tiny_qwen2(initializer_range=1e-5), tokenizer=character_tokenizer(ALPHABET),
    )  # fmt: skip
    return load_file(folder / "checkpoints" / "step_0" / "policy" / "model.safetensors")


def test_the_learning_rate_of_fine_tuning_falls_from_all_of_it_in_the_first_step(tmp_path):
    # AdamW's first step is the learning rate itself; its second, with half of it, no more than half.
    start = tiny_qwen2(initializer_range=1e-5).state_dict()
    for steps, furthest in ((1, 1.0), (2, 1.5)):
        after = fine_tuned(tmp_path / str(steps), steps=steps, learning_rate=1e-3)
        moved = max(float((after[name] - start[name]).abs().max()) for name in after)
        assert moved == pytest.approx(furthest * 1e-3, rel=2e-2)


def test_the_loss_of_fine_tuning_is_the_mean_over_tokens_whatever_their_rows(tmp_path):
    losses = Losses()
    fine_tuned(tmp_path, losses, steps=1, learning_rate=1e-3)
    assert losses.seen == [pytest.approx(math.log(40), abs=1e-3)]
