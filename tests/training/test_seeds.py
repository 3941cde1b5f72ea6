"""Randomness in whole runs: what must differ differs, what must be the same is, and a resumed run goes on as it was.

Every prompt of a run has the same text, so that nothing but the seed of a row tells its response from another's.
"""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from sppo.errors import TrainingError
from sppo.runs.folder import read_summary
from tests.conftest import HELD_OUT, train_on

ASKED = "1+2="
ROWS = 8
STILL = {"optimizer__learning_rate": 1e-30}
"""Too small to change a weight."""


def run(output, reward, **options):
    """A run of two steps with eight rows each, all of the same prompt, measured on four responses."""
    four = {"evaluation__final_samples_per_prompt": 4, "evaluation__samples_per_prompt": 4}
    return train_on([ASKED] * 40, output, reward, **{"steps": 2, **four, **options})


def listening(judge=lambda call, count: [1.0, 0.0] * (count // 2)):
    """A reward function that keeps what it is shown, [training, evaluation], a list of responses each call.

    `judge` makes the rewards from the number of the training call, counted from 0, and the number of responses.
    """
    heard: dict[str, list[list[str]]] = {ASKED: [], HELD_OUT: []}

    def reward(prompts, completions, **columns):
        (text,) = set(prompts)
        heard[text].append(list(completions))
        return judge(len(heard[text]) - 1, len(completions)) if text == ASKED else [0.0] * len(completions)

    return reward, heard[ASKED], heard[HELD_OUT]


def shared(left: list[str], right: list[str]) -> int:
    """How many rows have the same response in both; a very short response may be the same by chance."""
    return sum(a == b for a, b in zip(left, right, strict=True))


# What must differ


@pytest.mark.parametrize("samples", [1, 4])
def test_the_same_prompt_gets_another_response_in_every_row_and_every_step(tmp_path, samples):
    reward, training, _ = listening()
    run(
        tmp_path / "run",
        reward,
        steps=3,
        prompts_per_step=ROWS // samples,
        sampling__samples_per_prompt=samples,
        **STILL,
    )
    assert [len(responses) for responses in training] == [ROWS] * 3
    for responses in training:
        assert len(set(responses)) >= ROWS - 1
    for step in range(3):
        assert shared(training[step], training[step - 1]) <= 1


def test_another_seed_gives_other_responses_from_the_same_model(tmp_path):
    first = []
    for seed in (0, 1):
        reward, training, _ = listening()
        run(tmp_path / str(seed), reward, seed=seed, steps=1)
        first += training
    assert shared(*first) <= 1


def test_another_seed_gives_the_prompts_in_another_order(tmp_path):
    asked: list[list[str]] = []

    def reward(prompts, completions, **columns):
        asked.extend([list(prompts)] if HELD_OUT not in prompts else [])
        return [1.0] * len(prompts)

    for seed in (0, 0, 1):
        train_on([f"{a}+{b}=" for a in range(5) for b in range(5)], tmp_path / str(len(asked)), reward, seed=seed)
    assert asked[0] == asked[1]
    assert shared(asked[0], asked[2]) <= 3


def test_the_rounds_of_dynamic_sampling_give_the_same_prompt_other_responses(tmp_path):
    # One mixed group in each round, of the four that a step wants.
    reward, training, _ = listening(lambda call, count: [1.0, *[0.0] * (count - 1)])
    run(
        tmp_path / "run", reward, steps=1, algorithm__name="dapo",
        prompts_per_step=ROWS // 2, sampling__samples_per_prompt=2,
    )  # fmt: skip
    assert len(training) == 4
    for left, right in itertools.combinations(range(4), 2):
        assert shared(training[left], training[right]) <= 1


def test_the_first_samples_of_spo_are_not_the_responses_that_it_trains_on(tmp_path):
    reward, training, _ = listening()
    run(tmp_path / "run", reward, steps=1, algorithm__name="spo", algorithm__options={"offline_samples": 1})
    sampled, offline = training
    assert shared(sampled, offline) <= 1


def test_policy_and_critic_go_through_the_rows_in_orders_of_their_own_in_each_step(tmp_path, monkeypatch):
    orders = []

    def listening_to(total, *args, **kwargs):
        order = real(total, *args, **kwargs)
        orders.append((total, tuple(order.tolist())))
        return order

    real = torch.randperm
    monkeypatch.setattr(torch, "randperm", listening_to)
    run(tmp_path / "run", listening()[0], steps=3, optimizer__minibatch_size=4, critic__minibatch_size=4)
    of_the_batch = [order for total, order in orders if total == ROWS]
    assert len(of_the_batch) == 2 * 3
    assert len(set(of_the_batch)) == 2 * 3


# What must not


def test_an_evaluation_of_unchanged_weights_gives_the_same_responses_whenever_it_is_made(tmp_path):
    reward, _, evaluations = listening()
    run(tmp_path / "run", reward, steps=2, **STILL)
    run(tmp_path / "run", reward, steps=4, resume=True, **STILL)
    assert len(evaluations) == 5  # before, and after each step
    assert all(responses == evaluations[0] for responses in evaluations)
    assert len(set(evaluations[0])) == 4
    # All are equally good: the first of them stays the best.
    assert read_summary(tmp_path / "run")["best"]["step"] == 0


def test_an_evaluation_has_a_temperature_of_its_own(tmp_path):
    reward, training, evaluations = listening()
    run(tmp_path / "run", reward, steps=1, evaluation__temperature=0.0)
    assert all(len(set(responses)) == 1 for responses in evaluations)
    assert len(set(training[0])) >= ROWS - 1


# Resumption


def test_global_generators_go_on_where_the_checkpoint_was_made(tmp_path):
    # Nothing of ours draws from them; a reward function may.
    drawn: list[tuple[float, float, float]] = []

    def reward(prompts, completions, **columns):
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return [0.5] * len(completions)

    def seeded(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    seeded(1)
    run(tmp_path / "whole", reward, steps=4)
    whole = drawn.copy()
    drawn.clear()
    seeded(1)
    run(tmp_path / "parts", reward, steps=2)
    before = len(drawn)
    seeded(2)
    run(tmp_path / "parts", reward, steps=4, resume=True)
    assert before < len(whole)
    for place, name in enumerate(("random", "numpy", "torch")):
        assert [draws[place] for draws in drawn] == [draws[place] for draws in whole], name


def overflowing(steps: set[int]):
    """Rewards so large in some steps that the gradient's norm is infinite."""
    return listening(lambda call, count: [1e30 if call + 1 in steps else 1.0, *[0.0] * (count - 1)])[0]


GROUPS = {
    "algorithm__name": "rloo", "prompts_per_step": ROWS // 4, "sampling__samples_per_prompt": 4,
}  # fmt: skip


def skipped(steps) -> list[float]:
    return [line["update/skipped_steps"] for line in steps]


def test_the_count_of_skipped_steps_goes_on_after_a_resume(tmp_path):
    run(tmp_path / "run", overflowing({1, 2}), steps=2, **GROUPS)
    assert skipped(run(tmp_path / "run", overflowing(set()), steps=3, resume=True, **GROUPS)) == [1, 2, 2]
    assert read_summary(tmp_path / "run")["skipped_optimizer_steps"] == 2


def test_skipped_steps_in_a_row_stop_a_resumed_run_as_they_would_have_stopped_it_whole(tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in 5 optimiser steps in a row"):
        run(tmp_path / "whole", overflowing({1, 2, 3, 4, 5}), steps=6, **GROUPS)
    run(tmp_path / "parts", overflowing({1, 2, 3}), steps=3, **GROUPS)
    with pytest.raises(TrainingError, match=r"not finite in 5 optimiser steps in a row"):
        run(tmp_path / "parts", overflowing({1, 2}), steps=6, resume=True, **GROUPS)


def test_a_step_that_is_taken_ends_the_row_of_skipped_ones_also_across_a_resume(tmp_path):
    run(tmp_path / "run", overflowing({1, 2}), steps=3, **GROUPS)
    steps = run(tmp_path / "run", overflowing({1, 2}), steps=6, resume=True, **GROUPS)
    assert skipped(steps) == [1, 2, 2, 3, 4, 4]


def test_at_temperature_0_a_held_out_prompt_is_answered_once(tmp_path):
    reward, _, evaluations = listening()
    run(tmp_path / "run", reward, evaluation__temperature=0.0)
    assert [len(set(responses)) for responses in evaluations] == [1, 1, 1]
    assert [len(responses) for responses in evaluations] == [1, 1, 1]
