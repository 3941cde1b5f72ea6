from __future__ import annotations

import pytest

from sppo.batch import microbatches
from sppo.training.collate import collate
from sppo.types import Verdict
from tests.conftest import make_rollout


def test_collate_pads_on_the_right():
    rollouts = [make_rollout("a", [3], [5, 6, 1], [-0.1, -0.2, -0.3]), make_rollout("b", [3, 4], [7], [-0.5])]
    batch = collate(rollouts, [Verdict(1.0), Verdict(0.0)])
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.sampler_logprobs[1].tolist() == [-0.5, 0.0, 0.0]
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert batch.lengths == [4, 3]


def test_samples_of_one_prompt_share_a_group():
    rollouts = [make_rollout(name, [3], [5]) for name in ("a", "a", "b", "a")]
    assert collate(rollouts, [Verdict(1.0)] * 4).groups.tolist() == [0, 0, 1, 0]


def test_a_sample_whose_verifier_failed_is_left_out():
    rollouts = [make_rollout(name, [3], [5]) for name in "abc"]
    batch = collate(rollouts, [Verdict(1.0), Verdict(None, error="timed out"), Verdict(0.0)])
    assert [rollout.prompt.id for rollout in batch.rollouts] == ["a", "c"]


def test_of_responses_without_a_reward_there_is_no_batch():
    assert collate([make_rollout("a", [3], [5])], [Verdict(None, error="timed out")]) is None
    assert collate([], []) is None


@pytest.mark.parametrize("layout", ["sorted", "packed"])
def test_microbatches_hold_every_row_once_within_the_budget(layout):
    lengths = [5, 90, 3, 40, 41, 7, 7, 12, 64, 1]
    groups = microbatches(lengths, 100, layout)
    assert sorted(row for group in groups for row in group) == list(range(10))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert (sum(lengths[row] for row in group) if layout == "packed" else longest * len(group)) <= 100


def test_the_longest_row_comes_first_so_that_memory_runs_out_at_once_or_never():
    assert microbatches([5, 90, 40], 200)[0][0] == 1


def test_a_row_longer_than_the_budget_stands_alone():
    assert microbatches([500, 5, 5], 100) == [[0], [1, 2]]
