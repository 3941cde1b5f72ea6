"""The values that flow: what they hold, what they cost, and when two are equal."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine, _completions
from sppo.rollouts.sample import sample
from sppo.types import Completion, Prompt
from tests.conftest import make_rollout


def test_a_response_takes_eight_bytes_a_token():
    tokens, rows = 2000, 20
    ids, logprobs = torch.randint(1, 150_000, (tokens, rows)), -torch.rand(tokens, rows)
    tracemalloc.start()
    completions = _completions(ids, logprobs, torch.zeros(150_000, dtype=torch.bool), 3)
    assert completions[0].versions.tolist() == [3] * len(completions[0])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(completions) == rows
    assert 8 <= taken / (tokens * rows) < 8.5


def test_a_completion_is_made_of_read_only_arrays():
    completion = Completion([3, 4], [-0.5, -0.25], "stop")
    assert (completion.token_ids.dtype, completion.logprobs.dtype) == (np.int32, np.float32)
    for array in (completion.token_ids, completion.logprobs, make_rollout("a", [3], [5]).prompt_token_ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
    with pytest.raises(AssertionError, match="one log-probability a token"):
        Completion([3, 4], [-0.5], "stop")


def test_completions_are_equal_where_all_of_them_is():
    completion = Completion([3, 4], [-0.5, -0.25], "stop")
    assert completion == Completion([3, 4], [-0.5, -0.25], "stop")
    for changes in (
        {"token_ids": [3, 5]}, {"logprobs": [-0.5, -0.125]}, {"finish_reason": "length"}, {"mask": [True, False]},
        {"versions": [0, 1]},
    ):  # fmt: skip
        assert completion != replace(completion, **changes)
    assert completion != Completion([3, 4, 4], [-0.5, -0.25, -0.25], "stop")
    assert completion != (3, 4)


def test_a_response_is_as_old_as_its_oldest_token():
    rollout = make_rollout("a", [3], [5, 6, 7])
    assert rollout.completion.versions.tolist() == [0, 0, 0]
    assert rollout.policy_version == 0
    late = replace(rollout, completion=replace(rollout.completion, versions=[4, 4, 6]))
    assert late.policy_version == 4


def test_a_policy_wrote_every_token_unless_said_otherwise():
    completion = Completion([3, 4, 5], [-0.5, -0.25, -1.0], "stop")
    assert completion.mask.tolist() == [True] * 3
    assert (len(completion), completion.written) == (3, 3)
    answered = replace(completion, mask=[True, False, True])
    assert (len(answered), answered.written) == (3, 2)
    with pytest.raises(ValueError, match="read-only"):
        answered.mask[1] = True


def test_the_same_response_twice_is_two_rollouts():
    one, other = make_rollout("a", [3], [5]), make_rollout("a", [3], [5])
    assert one != other
    assert {one: 1, other: 2}[other] == 2


def test_samples_of_one_prompt_share_its_ids(policy, tokenizer):
    prompts = [Prompt("a", "1+1="), Prompt("b", "2+2=")]
    rollouts = sample(
        HFEngine(policy), prompts, tokenizer, SamplingParameters(4), samples_per_prompt=3, seeds=range(6), version=0
    )  # fmt: skip
    assert [rollout.prompt.id for rollout in rollouts] == ["a"] * 3 + ["b"] * 3
    assert all(rollout.prompt_token_ids is rollouts[0].prompt_token_ids for rollout in rollouts[:3])
    assert rollouts[3].prompt_token_ids.tolist() == tokenizer("2+2=")["input_ids"]
