"""Critics in whole runs: what they start from, when they are read, and what counts in their loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sppo.batch import Credit, Estimates
from sppo.errors import RewardError, TrainingError
from sppo.runs.folder import read_metrics, read_summary
from tests.conftest import HELD_OUT, train_on
from tests.critics.test_critics import batch_in, token_critic

EASY, HARD = "1+2=", "9-4="


def run(output: Path, reward: Callable[..., list[float | None]], **options: Any) -> list[dict[str, float]]:
    """Metrics of each step of a run on as many easy prompts as hard ones."""
    return train_on([EASY, HARD] * 40, output, reward, **options)


def by_prompt(prompts, completions, **columns):
    return [float(prompt == EASY) for prompt in prompts]


@pytest.mark.parametrize("name", ["sppo", "ppo", "ppo_bce"])
def test_v_is_read_before_the_critic_learns_from_the_same_rewards(tmp_path, name):
    # A new critic says its prior of everything, so the advantages are .7 and -.3. After so large a step of its own it
    # would say something else.
    (metrics,) = run(tmp_path, by_prompt, algorithm__name=name, critic__learning_rate=0.1, critic__prior=0.3)
    mean = metrics["reward/mean"]
    assert 0.2 < mean < 0.8
    assert metrics["critic/value_mean"] == pytest.approx(0.3, abs=1e-5)
    if name == "sppo":  # PPO's advantages are those of tokens
        assert metrics["advantage/mean"] == pytest.approx(mean - 0.3, abs=1e-5)
        assert metrics["advantage/std"] == pytest.approx(math.sqrt(mean * (1 - mean)), abs=1e-5)
    assert metrics["critic/grad_norm"] > 0


def test_a_first_step_without_a_prior_takes_the_mean_of_the_others_for_v(tmp_path):
    # No response's own outcome is in its V: with a share m of n right, 1 less (n m - 1) / (n - 1) of others, and so on.
    (metrics,) = run(tmp_path, by_prompt, algorithm__name="sppo")
    mean, n = metrics["reward/mean"], 8
    assert metrics["critic/value_mean"] == pytest.approx(mean, abs=1e-5)
    assert metrics["advantage/mean"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["advantage/std"] == pytest.approx(math.sqrt(mean * (1 - mean)) * n / (n - 1), abs=1e-5)


def test_a_trackers_v_is_read_before_the_outcome_is_counted(tmp_path):
    # Without offline samples v is 1/2; with the reward counted it would be (0.48 + 1) / 1.96.
    (metrics,) = run(
        tmp_path, lambda prompts, completions, **_: [1.0] * len(prompts), algorithm__name="spo",
        algorithm__options={"offline_samples": 0},
    )  # fmt: skip
    assert metrics["critic/value_mean"] == 0.5
    assert metrics["advantage/mean"] == 0.5


@pytest.mark.parametrize("name", ["sppo", "ppo", "ppo_bce"])
def test_v_starts_at_the_first_batchs_mean_and_never_again(tmp_path, name):
    calls = []

    def first_good_then_bad(prompts, completions, **columns):
        calls.extend([prompts] if HELD_OUT not in prompts else [])
        return [0.9 if len(calls) <= 1 else 0.0] * len(prompts)

    # So slow a critic stays where it was started; a step's own mean would be 0, also the first after a resume.
    still = {"algorithm__name": name, "critic__learning_rate": 1e-9}
    run(tmp_path, first_good_then_bad, steps=2, **still)
    steps = run(tmp_path, first_good_then_bad, steps=3, resume=True, **still)
    assert [line["reward/mean"] for line in steps] == [pytest.approx(0.9), 0.0, 0.0]
    assert [line["critic/value_mean"] for line in steps] == pytest.approx([0.9] * 3, abs=1e-4)


def test_each_sample_counts_once_in_the_critics_loss_however_many_share_a_prompt(tmp_path):
    # Four samples of the easy prompt, all right; of the hard one a single wrong one has a reward. V starts at 4/5.
    # The loss is -(4 log 4/5 + log 1/5) / 5; by prompts it would be -(log 4/5 + log 1/5) / 2.
    def three_unknown(prompts, completions, **columns):
        hard = [index for index, prompt in enumerate(prompts) if prompt == HARD]
        return [None if index in hard[1:] else float(index not in hard) for index in range(len(prompts))]

    for seed in range(20):  # until the step's two prompts are one of each
        folder = tmp_path / str(seed)
        (metrics,) = run(
            folder, three_unknown, seed=seed, prompts_per_step=2, sampling__samples_per_prompt=4, critic__prior=0.8
        )
        if metrics["reward/left_out_share"] == 3 / 8:
            break
    assert metrics["reward/left_out_share"] == 3 / 8
    assert metrics["critic/value_mean"] == pytest.approx(0.8, abs=1e-5)
    assert metrics["critic/loss"] == pytest.approx(-(4 * math.log(0.8) + math.log(0.2)) / 5, abs=1e-5)


@pytest.mark.parametrize(("loss", "right", "wrong"), [("bce", 1.0, 0.0), ("mse", 7.0, 3.0)])
def test_a_prompt_critic_learns_by_the_loss_that_is_asked_for(tmp_path, loss, right, wrong):
    # V starts at the mean reward; a share p of the responses is right. The loss is the entropy of p, or the variance of
    # the rewards.
    (metrics,) = run(
        tmp_path, lambda prompts, completions, **_: [right if prompt == EASY else wrong for prompt in prompts],
        critic__loss=loss,
    )  # fmt: skip
    p = (metrics["reward/mean"] - wrong) / (right - wrong)
    assert 0.2 < p < 0.8
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert metrics["critic/loss"] == pytest.approx(entropy if loss == "bce" else 16 * p * (1 - p), rel=1e-5)


def test_the_squared_loss_of_a_token_critic_is_that_of_the_value_kept_near_the_old_one():
    # The values have moved by up to a half since they were read, more than the clip of 0.1.
    critic, batch = token_critic("ppo"), batch_in(list(range(8)))
    critic.value_clip = 0.1
    now, generator = critic.values(batch), torch.Generator().manual_seed(0)
    old = torch.where(batch.mask, now + torch.rand(now.shape, generator=generator) - 0.5, 0.0)
    goals = batch.rewards[:, None].expand_as(old)
    found = critic.learn(batch, Estimates(batch.sampler_logprobs, old), Credit(goals - old, goals), seed=1)
    losses = []
    for row, t in batch.mask.nonzero().tolist():
        v, before, goal = now[row, t].item(), old[row, t].item(), goals[row, t].item()
        near = min(max(v, before - 0.1), before + 0.1)
        losses.append(0.5 * max((v - goal) ** 2, (near - goal) ** 2))
    assert found["critic/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_critic_whose_steps_are_all_skipped_ends_the_run_although_the_policy_learns(tmp_path):
    # Whitened, the advantages are harmless; the critic's squares overflow.
    with pytest.raises(TrainingError, match=r"The critic's loss or gradient was not finite in 5 optimiser steps"):
        run(
            tmp_path, lambda prompts, completions, **_: [1e30, *[0.0] * (len(prompts) - 1)], steps=9,
            algorithm__name="ppo",
        )  # fmt: skip
    assert [line["policy/grad_norm"] > 0 for line in read_metrics(tmp_path)[1:]] == [True] * 4


def test_each_prompts_first_samples_are_its_own(tmp_path):
    # Always right, or always wrong: v says so from the start, and nothing is left for the advantages.
    (metrics,) = run(tmp_path, by_prompt, algorithm__name="spo", algorithm__options={"offline_samples": 2})
    assert 0.2 < metrics["critic/value_mean"] == metrics["reward/mean"] < 0.8
    assert metrics["advantage/std"] == 0.0


def test_a_first_sample_is_held_to_the_same_range_as_the_responses(tmp_path):
    calls = []

    def twice_as_good_the_second_time(prompts, completions, **columns):
        calls.extend([prompts] if HELD_OUT not in prompts else [])
        return [2.0 if prompt != HELD_OUT and len(calls) == 2 else 1.0 for prompt in prompts]

    with pytest.raises(RewardError, match=r"is 2, .*rewards must lie in \[0, 1\]"):
        run(tmp_path, twice_as_good_the_second_time, algorithm__name="spo", algorithm__options={"offline_samples": 1})


def test_calibration_in_training_is_that_of_all_steps_also_after_a_resume(tmp_path):
    run(tmp_path, by_prompt, steps=2)
    run(tmp_path, by_prompt, steps=3, resume=True)
    bins = read_summary(tmp_path)["calibration_in_training"]
    assert sum(row["count"] for row in bins) == 3 * 8
