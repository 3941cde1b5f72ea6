"""V* of A*-PO: what it is made of, that training leaves it alone, and what a checkpoint keeps."""

from __future__ import annotations

import math

import pytest
import torch

from sppo.algorithms.options import AstarPoOptions
from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Batch, Credit, Estimates, Outcomes
from sppo.critics.optimal import OptimalValueCritic
from sppo.training.collate import collate
from sppo.types import Verdict
from tests.conftest import make_rollout

HALF = 0.5 * math.log((1 + math.e**2) / 2)


def batch_of(*prompts: str) -> Batch:
    batch = collate([make_rollout(name, [5], [7]) for name in prompts], [Verdict(1.0) for _ in prompts])
    assert batch is not None
    return batch


def made(**outcomes: list[float]) -> OptimalValueCritic:
    critic = OptimalValueCritic(AstarPoOptions())
    for name, rewards in outcomes.items():
        critic.observe(make_rollout(name, [5], [7]).prompt, rewards)
    return critic


def test_each_prompts_value_is_of_its_own_offline_outcomes():
    critic = made(half=[1.0, 0.0], never=[0.0, 0.0], partly=[0.25])
    found = critic.values(batch_of("never", "half", "partly", "half"))
    assert found.flatten().tolist() == pytest.approx([0.0, HALF, 0.25, HALF])
    assert found.dtype == torch.float32


def test_a_prompt_lacks_all_its_samples_until_one_has_a_reward():
    critic, prompts = made(half=[1.0, 0.0], unknown=[]), batch_of("half", "unknown", "new").prompts
    assert critic.lacking(prompts) == [0, 8, 8]
    # Of what no sample could be judged for, the mean of the others is the best guess; of nothing at all, 0.
    assert critic.values(batch_of("unknown")).item() == pytest.approx(HALF)
    assert made(unknown=[]).values(batch_of("unknown")).item() == 0.0


def test_the_policys_own_outcomes_change_nothing():
    critic, batch = made(half=[1.0, 0.0], never=[0.0]), batch_of("half", "never")
    before = Estimates(batch.sampler_logprobs, critic.values(batch))
    credit: Credit = ALGORITHMS["astar_po"].assign_credit(Outcomes.of(batch, before))
    assert credit.advantages.flatten().tolist() == pytest.approx([1 - HALF, 1.0])
    metrics = critic.learn(batch, before, credit, seed=0)
    assert metrics == {"critic/optimal_value_mean": pytest.approx(HALF / 2), "critic/prompts": 2}
    assert torch.equal(critic.values(batch), before.values)


def test_it_is_no_solve_rate_and_is_not_given_out_as_one():
    assert made(half=[1.0, 0.0]).beliefs(batch_of("half", "new").prompts) is None


def test_it_comes_back_whole_from_its_folder(tmp_path):
    critic, again = made(a=[1.0, 0.0, 0.0], b=[0.1]), made()
    critic.save_pretrained(tmp_path / "critic")
    again.load(tmp_path / "critic")
    assert again == critic
    assert list(again.optimal) == list(critic.optimal)  # whose mean is summed in this order
