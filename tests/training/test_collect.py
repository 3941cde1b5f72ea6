"""A step's responses: everything that is generated is counted, and each baseline gets what it needs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sppo.algorithms.astar_po import optimal_value
from sppo.config.recipes import load_recipe
from sppo.critics.optimal import OptimalValueCritic
from sppo.critics.tracker import TrackerCritic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import RewardError
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.folder import read_metrics
from sppo.training.build import build, check
from sppo.training.given import Given
from sppo.training.loop import Parts
from tests.conftest import tiny_qwen2
from tests.training.test_loop import ROWS, train_on_rows


class CountingEngine:
    """The real engine, remembering every row that it answered."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.calls: list[tuple[list, object, list]] = []

    @property
    def version(self) -> int:
        return self.engine.version

    def load_weights(self, model, version):
        self.engine.load_weights(model, version)

    def awake(self):
        return self.engine.awake()

    def generate(self, prompts, sampling, *, seeds):
        completions = self.engine.generate(prompts, sampling, seeds=seeds)
        self.calls.append((list(prompts), sampling, completions))
        return completions

    @property
    def responses(self) -> int:
        return sum(len(completions) for *_, completions in self.calls)

    @property
    def tokens(self) -> int:
        return sum(len(one) for *_, completions in self.calls for one in completions)


def has_a_three(prompts, completions, **columns):
    return [float("3" in completion) for completion in completions]


def made(reward, **options) -> tuple[Parts, CountingEngine]:
    settings = {
        "model.path": "tiny", "prompts_per_step": 8, "optimizer.minibatch_size": 8, "critic.minibatch_size": 8,
        "sampling.max_response_tokens": 6, "data.max_prompt_tokens": 8, "evaluation.prompts": 4, "device": "cpu",
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in options.items()}
    given = Given(tiny_qwen2(initializer_range=0.05), character_tokenizer(ALPHABET), ROWS, reward_function=reward)
    config = check(load_recipe(None, settings), given)
    parts = build(config, given)
    counting = CountingEngine(parts.engine)
    return replace(parts, engine=counting, collector=replace(parts.collector, engine=counting)), counting


def sampled(collected) -> tuple[int, int]:
    """Responses and tokens that a step reports."""
    tokens = sum(len(rollout.completion) for rollout in collected.rollouts)
    return len(collected.rollouts) + collected.extra_responses, tokens + collected.extra_tokens


def test_without_a_baseline_of_its_own_nothing_extra_is_generated():
    parts, engine = made(has_a_three, algorithm__name="rloo", sampling__samples_per_prompt=4)
    collected = parts.collector.collect(1, version=0)
    assert (collected.extra_responses, collected.extra_tokens, collected.discarded_groups) == (0, 0, 0)
    assert collected.greedy_rewards is None
    assert collected.groups == [index // 4 for index in range(32)]
    for start in range(0, 32, 4):
        assert len({rollout.prompt.id for rollout in collected.rollouts[start : start + 4]}) == 1
    assert sampled(collected) == (engine.responses, engine.tokens)


def test_remax_gets_one_greedy_response_a_prompt_which_counts():
    rewards_seen = []

    def by_length(prompts, completions, **columns):
        rewards_seen.append([len(completion) / 10 for completion in completions])
        return rewards_seen[-1]

    parts, engine = made(by_length, algorithm__name="remax", sampling__samples_per_prompt=2)
    collected = parts.collector.collect(1, version=0)
    (_, training, _), (prompts, greedy, completions) = engine.calls
    assert training.temperature == 1.0
    assert greedy == replace(training, temperature=0.0)
    assert collected.greedy_rewards == [reward for reward in rewards_seen[1] for _ in range(2)]
    assert all(map(np.array_equal, prompts, [rollout.prompt_token_ids for rollout in collected.rollouts[::2]]))
    assert collected.extra_responses == 8
    assert sampled(collected) == (engine.responses, engine.tokens) == (24, engine.tokens)
    again = parts.engine.generate(prompts, greedy, seeds=range(len(prompts)))
    assert all(map(np.array_equal, [one.token_ids for one in again], [one.token_ids for one in completions]))


def test_a_greedy_response_without_a_reward_is_unknown_not_wrong():
    calls = []

    def none_for_greedy(prompts, completions, **columns):
        calls.append(completions)
        return [None if len(calls) == 2 else 1.0] * len(completions)

    parts, _ = made(none_for_greedy, algorithm__name="remax")
    greedy = parts.collector.collect(1, version=0).greedy_rewards
    assert greedy is not None
    assert all(math.isnan(reward) for reward in greedy)


def test_remaxs_greedy_rewards_bear_the_overlong_penalty_as_the_sampled_ones_do():
    parts, engine = made(
        lambda prompts, completions, **_: [1.0] * len(prompts), algorithm__name="remax",
        algorithm__overlong_penalty_tokens=4,
    )  # fmt: skip
    greedy = parts.collector.collect(1, version=0).greedy_rewards
    lengths = [len(one) for one in engine.calls[1][2]]
    # The limit is 6 tokens, so the penalty grows by a quarter for each beyond 2.
    assert greedy == [1.0 - max(length - 2, 0) / 4 for length in lengths]
    assert max(lengths) > 2


def test_spo_starts_each_new_prompt_on_offline_samples_once():
    parts, engine = made(has_a_three, algorithm__name="spo", algorithm__options={"offline_samples": 3})
    first = parts.collector.collect(1, version=0)
    assert first.extra_responses == 24
    assert sampled(first) == (engine.responses, engine.tokens)
    assert isinstance(parts.critic, TrackerCritic)
    assert parts.critic.beliefs([rollout.prompt for rollout in first.rollouts]).worth.tolist() == [3.0] * 8
    assert len(parts.critic.counts) == 8
    # 96 prompts to train on, so the first eight come again in step 13.
    for step in range(2, 13):
        assert parts.collector.collect(step, version=0).extra_responses == 24
    assert parts.collector.collect(13, version=0).extra_responses == 0


def test_spo_without_offline_samples_starts_at_a_half():
    parts, engine = made(has_a_three, algorithm__name="spo", algorithm__options={"offline_samples": 0})
    assert parts.collector.collect(1, version=0).extra_responses == 0
    assert len(engine.calls) == 1
    assert isinstance(parts.critic, TrackerCritic)
    assert len(parts.critic.counts) == 0
    batch = parts.collector.batch(parts.collector.collect(2, version=0))
    assert set(parts.critic.values(batch).flatten().tolist()) == {0.5}


def test_spo_refuses_rewards_that_no_count_can_hold():
    parts, _ = made(lambda prompts, completions, **_: [2.0] * len(prompts), algorithm__name="spo")
    with pytest.raises(RewardError, match=r"rewards must lie in \[0, 1\]"):
        parts.collector.collect(1, version=0)


def made_with_reference(reward, **options) -> tuple[Parts, CountingEngine]:
    """As a run of A*-PO is once its reference is read: the policy as it starts."""
    parts, engine = made(reward, algorithm__name="astar_po", algorithm__options={"offline_samples": 3}, **options)
    parts.policy.reference = copy.deepcopy(parts.policy.model)
    return parts, engine


def test_astar_po_values_each_new_prompt_by_offline_samples_once():
    parts, engine = made_with_reference(has_a_three)
    first = parts.collector.collect(1, version=0)
    assert first.extra_responses == 24
    assert sampled(first) == (engine.responses, engine.tokens)
    assert isinstance(parts.critic, OptimalValueCritic)
    assert {rollout.prompt.id for rollout in first.rollouts} == set(parts.critic.optimal)
    for step in range(2, 13):
        assert parts.collector.collect(step, version=0).extra_responses == 24
    assert parts.collector.collect(13, version=0).extra_responses == 0


def test_astar_pos_offline_samples_are_the_references_however_far_the_policy_has_moved():
    (still, unmoved), (parts, engine) = made_with_reference(has_a_three), made_with_reference(has_a_three)
    with torch.no_grad():
        for weight in parts.policy.model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    weights = {name: weight.clone() for name, weight in parts.policy.model.state_dict().items()}
    engine.load_weights(parts.policy.model, 7)
    still.collector.collect(1, version=0)
    collected = parts.collector.collect(1, version=7)
    online, offline = (
        [[one.token_ids.tolist() for one in engines.calls[number][2]] for engines in (unmoved, engine)]
        for number in (0, 1)
    )
    assert online[0] != online[1]
    assert offline[0] == offline[1]
    assert {rollout.policy_version for rollout in collected.rollouts} == {7}
    # Afterwards the engine has the policy again, and neither model has changed.
    assert engine.version == 7
    assert all(torch.equal(weight, weights[name]) for name, weight in parts.policy.model.state_dict().items())
    engine.calls.clear()
    parts.collector.collect(1, version=7)
    assert isinstance(parts.critic, OptimalValueCritic)
    assert len(parts.critic.optimal) == 16


def test_astar_pos_offline_rewards_bear_the_overlong_penalty_as_the_sampled_ones_do():
    parts, engine = made_with_reference(
        lambda prompts, completions, **_: [1.0] * len(prompts), algorithm__overlong_penalty_tokens=4
    )
    collected = parts.collector.collect(1, version=0)
    lengths = [len(one) for one in engine.calls[1][2]]
    assert max(lengths) > 2
    assert isinstance(parts.critic, OptimalValueCritic)
    for number, rollout in enumerate(collected.rollouts):
        rewards = [1.0 - max(length - 2, 0) / 4 for length in lengths[3 * number : 3 * number + 3]]
        assert parts.critic.optimal[rollout.prompt.id] == pytest.approx(optimal_value(rewards, 0.5))


def test_an_offline_sample_that_could_not_be_judged_is_no_part_of_the_value():
    calls = []

    def first_of_three_unknown(prompts, completions, **columns):
        calls.append(completions)
        return [None if len(calls) == 2 and index % 3 == 0 else 1.0 for index in range(len(completions))]

    parts, _ = made_with_reference(first_of_three_unknown)
    parts.collector.collect(1, version=0)
    assert isinstance(parts.critic, OptimalValueCritic)
    assert list(parts.critic.optimal.values()) == [1.0] * 8


def test_dynamic_sampling_keeps_mixed_groups_alone_and_counts_the_rest():
    parts, engine = made(has_a_three, algorithm__name="dapo", sampling__samples_per_prompt=4)
    collected = parts.collector.collect(1, version=0)
    rewards = [verdict.reward for verdict in collected.verdicts]
    groups = [rewards[start : start + 4] for start in range(0, len(rewards), 4)]
    assert len(groups) <= 8
    assert all(set(group) == {0.0, 1.0} for group in groups)
    assert len(engine.calls) > 1
    assert len(groups) + collected.discarded_groups == 8 * len(engine.calls)
    assert collected.extra_responses == 4 * collected.discarded_groups
    assert sampled(collected) == (engine.responses, engine.tokens)
    seen = [prompt.tobytes() for prompts, *_ in engine.calls for prompt in prompts[::4]]
    assert len(seen) == len(set(seen))  # other prompts each round


def test_dynamic_sampling_goes_on_with_what_its_rounds_found():
    calls = []

    def one_mixed_group(prompts, completions, **columns):
        calls.append(len(completions))
        return [1.0, 0.0, *[0.0] * (len(completions) - 2)]

    parts, engine = made(one_mixed_group, algorithm__name="dapo", sampling__samples_per_prompt=2)
    collected = parts.collector.collect(1, version=0)
    assert calls == [16, 16, 16, 16]
    assert [verdict.reward for verdict in collected.verdicts] == [1.0, 0.0] * 4
    assert collected.groups == [0, 0, 1, 1, 2, 2, 3, 3]
    assert collected.discarded_groups == 28
    assert sampled(collected) == (64, engine.tokens)


def test_groups_found_beyond_those_wanted_are_counted_too():
    calls = []

    def first_seven_then_all(prompts, completions, **columns):
        calls.append(len(completions))
        rewards = [1.0, 0.0] * (len(completions) // 2)
        return [*rewards[:-2], 0.0, 0.0] if len(calls) == 1 else rewards

    parts, engine = made(first_seven_then_all, algorithm__name="dapo", sampling__samples_per_prompt=2)
    collected = parts.collector.collect(1, version=0)
    assert len(collected.rollouts) == 16
    assert collected.extra_responses == 16
    assert sampled(collected) == (engine.responses, engine.tokens)


def test_a_group_without_any_reward_is_not_mixed():
    def unknown_first(prompts, completions, **columns):
        return [None, None, *[1.0, 0.0] * (len(completions) // 2 - 1)]

    parts, _ = made(unknown_first, algorithm__name="dapo", sampling__samples_per_prompt=2)
    assert all(verdict.reward is not None for verdict in parts.collector.collect(1, version=0).verdicts)


@pytest.mark.parametrize("name", ["dapo", "remax"])
def test_dynamic_sampling_that_finds_nothing_counts_what_it_sampled_and_says_what_to_change(name):
    parts, engine = made(
        lambda prompts, completions, **_: [1.0] * len(prompts), algorithm__name=name, sampling__samples_per_prompt=2,
        algorithm__dynamic_sampling=True,
    )  # fmt: skip
    collected = parts.collector.collect(1, version=0)
    assert (collected.rollouts, collected.discarded_groups) == ([], 32)
    assert parts.collector.batch(collected) is None
    assert sampled(collected) == (engine.responses, engine.tokens) == (64, engine.tokens)
    why = parts.collector.why_idle(collected)
    assert "none of 32 groups had rewards that differ (mean reward 1). To mend it, raise" in why


@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_is_the_same_when_it_is_taken_again(seed):
    twice = []
    for _ in range(2):
        parts, _ = made(has_a_three, algorithm__name="dapo", sampling__samples_per_prompt=4, seed=seed)
        collected = parts.collector.collect(5, version=0)
        twice.append([rollout.completion.token_ids.tolist() for rollout in collected.rollouts])
    assert twice[0] == twice[1]


@pytest.mark.parametrize(
    ("name", "options", "responses"),
    [
        ("grpo", {"sampling__samples_per_prompt": 2}, 2 * 16),
        ("remax", {}, 2 * (8 + 8)),
        ("spo", {}, 2 * 8 + 16 * 8),
        ("astar_po", {}, 2 * 8 + 16 * 8),
        ("dapo", {"sampling__samples_per_prompt": 2}, None),
    ],
)
def test_the_summary_counts_every_response_and_token(tmp_path, monkeypatch, name, options, responses):
    import sppo.training.collect

    generated = []

    def counting(*args, **kwargs):
        rollouts = real(*args, **kwargs)
        generated.extend(len(rollout.completion) for rollout in rollouts)
        return rollouts

    real = sppo.training.collect.sample
    monkeypatch.setattr("sppo.training.collect.sample", counting)
    summary = train_on_rows(
        tmp_path / "run", has_a_three, algorithm__name=name, prompts_per_step=8, optimizer__minibatch_size=8,
        critic__minibatch_size=8, **options,
    )  # fmt: skip
    assert summary["responses"] == len(generated)
    assert summary["tokens"]["sampled"] == sum(generated)
    assert responses in (len(generated), None)
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["responses/total"], last["tokens/total"]) == (len(generated), sum(generated))
    if name == "dapo":
        assert summary["responses"] > 2 * 16
