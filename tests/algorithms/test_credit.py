"""Every advantage: literal numbers worked out by hand, then the same from slow definitions in plain Python floats."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from sppo.algorithms.masked import whiten
from sppo.algorithms.options import GaeOptions, PpoOptions, SpoOptions
from sppo.algorithms.ppo import generalized_advantages
from sppo.algorithms.spo import retention
from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Batch, Credit, Estimates, Outcomes
from sppo.training.collate import LengthRules, collate
from sppo.types import Rollout, Verdict
from tests.conftest import make_rollout

SPO = SpoOptions()


def row(prompt_id: str, length: int, *, cut: bool = False) -> Rollout:
    made = make_rollout(prompt_id, [5, 6], [7] * length)
    return replace(made, completion=replace(made.completion, finish_reason="length")) if cut else made


def batch_of(rewards: list[float | None], prompts: str = "", lengths: list[int] | None = None, **options) -> Batch:
    """Rows with these rewards; "aab" means that rows 0 and 1 share a prompt."""
    names = prompts or "abcdefghijklmnop"[: len(rewards)]
    lengths = lengths or [1] * len(rewards)
    rollouts = [row(name, length) for name, length in zip(names, lengths, strict=True)]
    return collate(rollouts, [Verdict(reward) for reward in rewards], **options)


def credit_of(name: str, batch: Batch, **estimates) -> Credit:
    return ALGORITHMS[name].assign_credit(Outcomes.of(batch, Estimates(batch.sampler_logprobs, **estimates)))


def advantages(name: str, batch: Batch, **estimates) -> list[float]:
    return credit_of(name, batch, **estimates).advantages.flatten().tolist()


# Literal numbers


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo"])
def test_grpo_and_those_that_share_its_advantage(name):
    # Group a: 1, 0, 0, 1: mean 0.5, std sqrt(4 * 0.25 / 3) = 0.57735. Group b: 1, 0: mean 0.5, std 0.70711.
    found = advantages(name, batch_of([1.0, 1.0, 0.0, 0.0, 0.0, 1.0], "abaaba"))
    a, b = 0.5 / (0.5773503 + 1e-6), 0.5 / (0.7071068 + 1e-6)
    assert found == pytest.approx([a, b, -a, -a, -b, a])
    assert a == pytest.approx(0.8660239)


def test_dr_grpo_takes_the_mean_and_nothing_else():
    # a: 1, 0, 0.25: mean 5/12. b: 0.5 alone.
    found = advantages("dr_grpo", batch_of([1.0, 0.5, 0.0, 0.25], "abaa"))
    assert found == pytest.approx([7 / 12, 0.0, -5 / 12, -1 / 6], abs=1e-7)


def test_rloo_takes_the_mean_of_the_others():
    # a: 1, 0, 0.5: others' means 0.25, 0.75, 0.5. b: 1, 0.
    found = advantages("rloo", batch_of([1.0, 1.0, 0.0, 0.5, 0.0], "abaab"))
    assert found == pytest.approx([0.75, 1.0, -0.75, 0.0, -1.0])


def test_remax_takes_the_greedy_reward_and_gives_nothing_where_it_is_unknown():
    batch = batch_of([1.0, 0.0, 1.0, 0.5], greedy_rewards=[1.0, 1.0, math.nan, 0.25])
    assert advantages("remax", batch) == [0.0, -1.0, 0.0, 0.25]


def test_remax_hides_no_reward_that_is_not_finite():
    batch = batch_of([1.0, 1.0], greedy_rewards=[0.0, math.nan])
    found = advantages("remax", batch, kl_penalty=torch.full((2, 1), math.nan))
    assert math.isnan(found[0])
    assert found[1] == 0.0


def test_reinforce_pp_without_kl_is_the_reward_then_whitened():
    batch = batch_of([1.0, 0.0, 1.0, 1.0])
    credit = credit_of("reinforce_pp", batch)
    assert credit.advantages.tolist() == [[1.0], [0.0], [1.0], [1.0]]
    # mean 0.75, deviation sqrt(0.1875) = 0.4330127
    white = whiten(credit.advantages, batch.loss_mask, ALGORITHMS["reinforce_pp"].loss.whitening)
    assert white.flatten().tolist() == pytest.approx([0.5773503, -1.7320508, 0.5773503, 0.5773503])


def test_reinforce_pp_with_kl_takes_the_penalty_still_to_come():
    batch = batch_of([1.0, 0.5], lengths=[3, 2])
    penalty = torch.tensor([[0.1, 0.2, 0.3], [0.05, -0.1, 0.0]])
    found = credit_of("reinforce_pp", batch, kl_penalty=penalty).advantages
    assert found[0].tolist() == pytest.approx([0.4, 0.5, 0.7])
    assert found[1, :2].tolist() == pytest.approx([0.55, 0.6])


def test_reinforce_pp_with_several_samples_takes_the_groups_mean_first():
    assert advantages("reinforce_pp", batch_of([1.0, 0.0, 0.5, 0.5], "aabb")) == [0.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_kl_penalty_in_the_reward_is_that_of_the_whole_response(name):
    # Rewards 1 - 0.3 and 0 - (-0.1) have the mean 0.4.
    batch = batch_of([1.0, 0.0], "aa", lengths=[2, 1])
    found = advantages(name, batch, kl_penalty=torch.tensor([[0.1, 0.2], [-0.1, 0.0]]))
    scale = {"grpo": 1 / (0.6 / math.sqrt(2) + 1e-6), "dr_grpo": 1.0, "rloo": 2.0}[name]
    assert found == pytest.approx([0.3 * scale, -0.3 * scale])


def test_ppo_with_gamma_and_lambda_of_one_is_the_reward_minus_the_value_of_each_token():
    batch = batch_of([1.0, 0.0], lengths=[3, 2])
    values = torch.tensor([[0.5, 0.6, 0.8], [0.4, 0.1, 0.0]])
    credit = credit_of("ppo", batch, values=values)
    assert credit.advantages.flatten().tolist() == pytest.approx([0.5, 0.4, 0.2, -0.4, -0.1, 0.0])
    assert credit.value_targets is not None
    assert credit.value_targets[batch.mask].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.0], abs=1e-7)


def test_gae_with_gamma_and_lambda_below_one():
    # delta_2 = 1 - 0.8 = 0.2; delta_1 = 0.9 * 0.8 - 0.6 = 0.12; delta_0 = 0.9 * 0.6 - 0.5 = 0.04; gamma lambda = 0.45
    # A_2 = 0.2; A_1 = 0.12 + 0.45 * 0.2 = 0.21; A_0 = 0.04 + 0.45 * 0.21 = 0.1345
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]])
    found = generalized_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.9, gae_lambda=0.5)
    assert found[0].tolist() == pytest.approx([0.1345, 0.21, 0.2])


def test_gae_passes_over_what_the_policy_did_not_write():
    # The three tokens of the test above, with an answer of two tokens between the first ones and one at the end.
    places, mask = [0, 3, 4], torch.tensor([[True, False, False, True, True, False]])
    rewards, values = torch.zeros(1, 6), torch.full((1, 6), 9.0)
    rewards[0, places], values[0, places] = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
    alone = generalized_advantages(
        rewards[:, places], values[:, places], torch.ones(1, 3, dtype=torch.bool), gamma=0.9, gae_lambda=0.5
    )
    found = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.5)
    assert found[0, places].tolist() == alone[0].tolist()
    assert not found[~mask].any()


def test_ppos_reward_stands_at_the_last_token_that_the_policy_wrote():
    made = row("a", 4)
    batch = collate(
        [replace(made, completion=replace(made.completion, mask=[True, False, True, False]))], [Verdict(1.0)]
    )
    credit = credit_of("ppo", batch, values=torch.tensor([[0.5, 0.0, 0.75, 0.0]]))
    assert credit.advantages.tolist() == [[0.5, 0.0, 0.25, 0.0]]


@pytest.mark.parametrize(("gae_lambda", "expected"), [(0.0, [0.1, 0.2, 0.2]), (1.0, [0.5, 0.4, 0.2])])
def test_the_ends_of_lambda(gae_lambda, expected):
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]])
    found = generalized_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, gae_lambda)
    assert found[0].tolist() == pytest.approx(expected)


def test_a_kl_penalty_lowers_ppos_reward_at_its_own_token():
    batch = batch_of([1.0], lengths=[2])
    credit = credit_of("ppo", batch, values=torch.tensor([[0.5, 0.75]]), kl_penalty=torch.tensor([[0.1, 0.2]]))
    assert credit.advantages[0].tolist() == pytest.approx([0.7 - 0.5, 0.8 - 0.75])


def test_ppo_bce_learns_the_reward_itself_at_every_token():
    batch = batch_of([1.0, 0.0], lengths=[3, 1])
    values = torch.tensor([[0.5, 0.6, 0.8], [0.4, 0.0, 0.0]])
    credit = credit_of("ppo_bce", batch, values=values, kl_penalty=torch.zeros(2, 3))
    assert credit.value_targets is not None
    assert credit.value_targets.tolist() == [[1.0] * 3, [0.0] * 3]
    assert credit.advantages[0].tolist() == pytest.approx([0.5, 0.4, 0.2])


# SPO's counts


@pytest.mark.parametrize(
    ("drift", "rho"),
    [
        (0.0, 0.96),  # 2^0 = 1, above the limit
        (0.06, 0.875),  # 2^-1 = 0.5, below the limit
        (0.006, 0.9330330),  # 2^-0.1, between
    ],
)
def test_past_outcomes_keep_a_weight_by_how_far_the_policy_moved(drift, rho):
    assert retention(drift, SPO) == pytest.approx(rho)


def test_spo_has_sppos_advantage_then_whitened_with_each_sequence_counting_once():
    batch = batch_of([1.0, 0.0], lengths=[1, 9])
    credit = credit_of("spo", batch, values=torch.tensor([[0.75], [0.25]]))
    assert credit.advantages.flatten().tolist() == [0.25, -0.25]
    white = whiten(credit.advantages, batch.loss_mask, ALGORITHMS["spo"].loss.whitening)
    assert white.flatten().tolist() == pytest.approx([1.0, -1.0])


# Whitening


def test_whitening_by_hand():
    values, mask = torch.tensor([[1.0], [0.0]]), torch.tensor([[True, False, False], [True, True, True]])
    assert whiten(values, mask, "none").tolist() == [[1.0], [0.0]]
    assert whiten(values, mask, "sequence").flatten().tolist() == pytest.approx([1.0, -1.0])
    # Tokens: 1, 0, 0, 0 have mean 0.25 and deviation sqrt(3) / 4.
    assert whiten(values, mask, "token").flatten().tolist() == pytest.approx([3 / math.sqrt(3), -1 / math.sqrt(3)])


def test_whitening_of_token_advantages_ignores_padding():
    values = torch.tensor([[3.0, 99.0], [1.0, -1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    # 3, 1, -1: mean 1, deviation sqrt(8/3). Each sequence once: mean (3 + 0) / 2, variance (2.25 + (0.25 + 6.25)/2) / 2
    assert whiten(values, mask, "token")[mask].tolist() == pytest.approx(
        [2 / math.sqrt(8 / 3), 0, -2 / math.sqrt(8 / 3)]
    )
    deviation = math.sqrt(2.75)
    assert whiten(values, mask, "sequence")[mask].tolist() == pytest.approx([d / deviation for d in (1.5, -0.5, -2.5)])


@pytest.mark.parametrize("measure", ["sequence", "token"])
@pytest.mark.parametrize("value", [0.3, 0.7, 1.0, -0.1, 1000.3])
def test_where_nothing_varies_whitening_gives_zero_and_not_magnified_rounding(measure, value):
    mask = torch.rand(512, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[:, 0] = True
    assert whiten(torch.full((512, 1), value), mask, measure).abs().max().item() < 1e-3


# Edge cases


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_sample_alone_in_its_group_gets_nothing_rather_than_its_reward(name):
    batch = batch_of([1.0, None, 1.0, 0.0], "aabb")
    assert len(batch) == 3
    assert advantages(name, batch)[0] == 0.0
    assert advantages(name, batch)[1] > 0


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.3, 0.7])
def test_a_group_that_is_all_alike_gives_nothing(name, reward):
    found = advantages(name, batch_of([reward] * 512, "a" * 512))
    assert max(map(abs, found)) < 1e-3


def test_samples_left_out_do_not_count_in_the_groups_mean():
    assert advantages("dr_grpo", batch_of([1.0, None, 0.0, None], "aaaa")) == [0.5, -0.5]


def test_a_prompt_drawn_twice_in_a_step_makes_two_groups():
    batch = batch_of([1.0, 0.0, 1.0, 1.0], "aaaa", groups=[0, 0, 1, 1])
    assert advantages("dr_grpo", batch) == [0.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (9, -0.75), (10, -1.0), (12, -1.0)]
)
def test_dapos_overlong_penalty(length, penalty):
    assert LengthRules(longest=10, penalty_tokens=4).penalty(row("a", length)) == penalty
    assert LengthRules(longest=10, penalty_tokens=0).penalty(row("a", length)) == 0.0


def test_the_overlong_penalty_enters_the_reward_and_its_baseline():
    batch = batch_of([1.0, 1.0], "aa", [4, 8], rules=LengthRules(longest=8, penalty_tokens=2))
    assert batch.rewards.tolist() == [1.0, 0.0]
    assert advantages("dr_grpo", batch) == [0.5, -0.5]


def cut_batch(truncated: str) -> Batch:
    rollouts = [row("a", 2), row("a", 3, cut=True), row("a", 1)]
    return collate(rollouts, [Verdict(1.0), Verdict(0.0), Verdict(0.5)], rules=LengthRules(truncated, 3))  # type: ignore[arg-type]


def test_what_becomes_of_truncated_responses():
    kept, masked, dropped = (cut_batch(truncated) for truncated in ("keep", "mask", "drop"))
    assert advantages("dr_grpo", kept) == advantages("dr_grpo", masked) == [0.5, -0.5, 0.0]
    assert advantages("dr_grpo", dropped) == [0.25, -0.25]
    assert kept.loss_mask.sum(1).tolist() == [2, 3, 1]
    assert masked.loss_mask.sum(1).tolist() == [2, 0, 1]
    assert masked.mask.sum(1).tolist() == [2, 3, 1]
    # Whitening is over what is trained on: 0.5, 0.5, 0 have mean 1/3 and deviation sqrt(1/18).
    white = whiten(torch.tensor([[0.5], [-0.5], [0.0]]), masked.loss_mask, "token")
    assert white[[0, 2], 0].tolist() == pytest.approx([(1 / 6) / math.sqrt(1 / 18), -(1 / 3) / math.sqrt(1 / 18)])


def test_of_responses_that_were_all_dropped_there_is_no_batch():
    assert collate([row("a", 3, cut=True)], [Verdict(1.0)], rules=LengthRules("drop", 3)) is None


# The same from slow definitions


def random_batch(seed: int, **options) -> Batch:
    chance = random.Random(seed)
    count = 24
    rewards = [None if chance.random() < 0.15 else chance.choice([0.0, 1.0, chance.random()]) for _ in range(count)]
    rewards[:2] = [1.0, 0.0]
    prompts = "".join(chance.choice("abcdefgh") for _ in range(count))
    return batch_of(rewards, prompts, [chance.randint(1, 9) for _ in range(count)], **options)


def noise(batch: Batch, seed: int, scale: float = 1.0) -> torch.Tensor:
    drawn = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(batch.mask, scale * drawn, 0.0)


def slow_group_advantage(name: str, rewards: list[float], groups: list[int]) -> list[float]:
    found = []
    for mine, group in zip(rewards, groups, strict=True):
        members = [reward for reward, other in zip(rewards, groups, strict=True) if other == group]
        mean = sum(members) / len(members)
        if len(members) == 1:
            found.append(0.0)
        elif name == "rloo":
            found.append(mine - (sum(members) - mine) / (len(members) - 1))
        elif name == "dr_grpo":
            found.append(mine - mean)
        else:
            deviation = math.sqrt(sum((reward - mean) ** 2 for reward in members) / (len(members) - 1))
            found.append((mine - mean) / (deviation + 1e-6))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("penalised", [False, True])
def test_group_baselines_equal_a_loop_over_groups(name, seed, penalised):
    batch = random_batch(seed)
    penalty = noise(batch, seed, 0.1) if penalised else None
    rewards = [float(r) - (0.0 if penalty is None else sum(penalty[i].tolist())) for i, r in enumerate(batch.rewards)]
    expected = slow_group_advantage(name, rewards, batch.groups.tolist())
    assert advantages(name, batch, kl_penalty=penalty) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def slow_gae(rewards: list[float], values: list[float], gamma: float, gae_lambda: float, t: int = 0) -> list[float]:
    """A_t = delta_t + gamma lambda A_{t+1}, from token t on."""
    if t == len(rewards):
        return []
    after = slow_gae(rewards, values, gamma, gae_lambda, t + 1)
    following = values[t + 1] if t + 1 < len(values) else 0.0
    delta = rewards[t] + gamma * following - values[t]
    return [delta + gamma * gae_lambda * (after[0] if after else 0.0), *after]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (1.0, 0.95), (0.99, 0.9), (0.7, 0.0)])
def test_gae_equals_its_recursive_definition_sequence_by_sequence(seed, gamma, gae_lambda):
    batch = random_batch(seed)
    # Garbage beyond a response's end must not reach into it.
    values = torch.where(batch.mask, noise(batch, seed + 50), 7.0)
    penalty = noise(batch, seed + 90, 0.1)
    before = Estimates(batch.sampler_logprobs, values, kl_penalty=penalty)
    for options in (PpoOptions(gamma=gamma, gae_lambda=gae_lambda), GaeOptions(gamma=gamma, gae_lambda=gae_lambda)):
        name = "ppo" if isinstance(options, PpoOptions) else "ppo_bce"
        credit = replace(ALGORITHMS[name], options=options).assign_credit(Outcomes.of(batch, before))
        assert credit.value_targets is not None
        for i, length in enumerate(batch.mask.sum(1).tolist()):
            rewards = [-penalty[i, t].item() for t in range(length)]
            rewards[-1] += batch.rewards[i].item()
            mine = values[i, :length].tolist()
            slow = slow_gae(rewards, mine, gamma, gae_lambda)
            assert credit.advantages[i, :length].tolist() == pytest.approx(slow, abs=1e-5)
            returns = [a + v for a, v in zip(slow, mine, strict=True)]
            wanted = returns if name == "ppo" else [batch.rewards[i].item()] * length
            assert credit.value_targets[i, :length].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_reinforce_pp_equals_a_loop_over_tokens(seed):
    batch = random_batch(seed)
    penalty = noise(batch, seed, 0.1)
    found = credit_of("reinforce_pp", batch, kl_penalty=penalty).advantages
    rewards, groups = batch.rewards.tolist(), batch.groups.tolist()
    for i, length in enumerate(batch.mask.sum(1).tolist()):
        members = [reward for reward, group in zip(rewards, groups, strict=True) if group == groups[i]]
        if len(members) == 1:
            continue
        outcome = rewards[i] - sum(members) / len(members)
        for t in range(length):
            assert found[i, t].item() == pytest.approx(outcome - sum(penalty[i, t:length].tolist()), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("measure", ["sequence", "token"])
@pytest.mark.parametrize("wide", [False, True])
def test_whitening_equals_a_loop(seed, measure, wide):
    batch = random_batch(seed)
    values = noise(batch, seed) if wide else noise(batch, seed)[:, :1]
    found = whiten(values, batch.mask, measure).expand(batch.mask.shape)
    spread = values.expand(batch.mask.shape)
    weighted = []
    for i, length in enumerate(batch.mask.sum(1).tolist()):
        weighted += [(spread[i, t].item(), 1.0 if measure == "token" else 1 / length) for t in range(length)]
    total = sum(weight for _, weight in weighted)
    mean = sum(value * weight for value, weight in weighted) / total
    deviation = math.sqrt(sum(weight * (value - mean) ** 2 for value, weight in weighted) / total)
    expected = [(value - mean) / (deviation + 1e-8) for value, _ in weighted]
    assert found[batch.mask].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if ALGORITHMS[name].critic is None])
def test_advantages_do_not_depend_on_the_order_of_rows(name):
    batch = random_batch(7)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)).tolist()
    greedy = torch.arange(len(batch)) / len(batch)
    rewards = batch.rewards.tolist()
    rows = batch.rollouts
    straight = collate(rows, [Verdict(r) for r in rewards], greedy_rewards=greedy.tolist())
    mixed = collate(
        [rows[i] for i in order], [Verdict(rewards[i]) for i in order], greedy_rewards=greedy[order].tolist()
    )
    expected = credit_of(name, straight).advantages[order]
    torch.testing.assert_close(credit_of(name, mixed).advantages, expected, atol=1e-5, rtol=1e-5)
