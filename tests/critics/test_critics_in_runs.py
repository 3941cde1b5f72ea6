"""Critics in whole runs: what they start from, when they are read, and what counts in their loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HELD_OUT, train_on

EASY, HARD = "1+2=", "9-4="


def run(output: Path, reward: Callable[..., list[float | None]], **options: Any) -> list[dict[str, float]]:
    """Metrics of each step of a run on as many easy prompts as hard ones."""
    return train_on([EASY, HARD] * 40, output, reward, **options)


def by_prompt(prompts, completions, **columns):
    return [float(prompt == EASY) for prompt in prompts]


@pytest.mark.parametrize("name", ["sppo", "ppo", "ppo_bce"])
def test_v_is_read_before_the_critic_learns_from_the_same_rewards(tmp_path, name):
    # A new critic says the first batch's mean reward m of everything, so the advantages are 1 - m and -m. After so
    # large a step of its own it would say something else.
    (metrics,) = run(tmp_path, by_prompt, algorithm__name=name, critic__learning_rate=0.1)
    mean = metrics["reward/mean"]
    assert 0.2 < mean < 0.8
    assert metrics["critic/value_mean"] == pytest.approx(mean, abs=1e-5)
    if name == "sppo":  # PPO's advantages are those of tokens
        assert metrics["advantage/mean"] == pytest.approx(0.0, abs=1e-5)
        assert metrics["advantage/std"] == pytest.approx(math.sqrt(mean * (1 - mean)), abs=1e-5)
    assert metrics["critic/grad_norm"] > 0


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
    # Four samples of the easy prompt, all right; of the hard one a single wrong one has a reward. V starts at their
    # mean, 4/5. The loss is -(4 log 4/5 + log 1/5) / 5; by prompts it would be -(log 4/5 + log 1/5) / 2.
    def three_unknown(prompts, completions, **columns):
        hard = [index for index, prompt in enumerate(prompts) if prompt == HARD]
        return [None if index in hard[1:] else float(index not in hard) for index in range(len(prompts))]

    for seed in range(20):  # until the step's two prompts are one of each
        folder = tmp_path / str(seed)
        (metrics,) = run(folder, three_unknown, seed=seed, prompts_per_step=2, sampling__samples_per_prompt=4)
        if metrics["reward/left_out_share"] == 3 / 8:
            break
    assert metrics["reward/left_out_share"] == 3 / 8
    assert metrics["critic/value_mean"] == pytest.approx(0.8, abs=1e-5)
    assert metrics["critic/loss"] == pytest.approx(-(4 * math.log(0.8) + math.log(0.2)) / 5, abs=1e-5)
