"""The token critic and the tracker: values, gradients that no cut or order changes, and what a checkpoint keeps."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sppo.algorithms.options import PpoOptions, SpoOptions
from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Batch, Credit, Estimates, Outcomes
from sppo.config import CriticConfig, OptimizerConfig
from sppo.critics.learning import means_of_others
from sppo.critics.models import TokenCritic
from sppo.critics.outcomes import digests
from sppo.critics.token import TokenModelCritic
from sppo.critics.tracker import COUNTS_FILE, DRIFT_TOKENS, TrackerCritic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.training.collate import collate
from sppo.types import Rollout, Verdict
from sppo.update.logprobs import batch_logprobs
from sppo.update.steps import StepGuard
from tests.conftest import make_rollout, make_rollouts, tiny_qwen2
from tests.update.test_policy import Gradients

KINDS = ["ppo", "ppo_bce"]
SPO = SpoOptions()


def token_critic(name: str, budget: int = 10_000, **config) -> TokenModelCritic:
    model = TokenCritic(tiny_qwen2(seed=3).model, character_tokenizer(ALPHABET), tokens_per_microbatch=budget)
    model.started = "prior" not in config
    with torch.no_grad():
        model.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    options = replace(CriticConfig(minibatch_size=8, learning_rate=1e-2), **config)
    own = ALGORITHMS[name].options
    clip = own.value_clip if isinstance(own, PpoOptions) else None
    probability = ALGORITHMS[name].value_loss == "bce"
    return TokenModelCritic(
        model, options, probability=probability, value_clip=clip, guard=StepGuard(max_norm=1e9, max_skipped=1)
    )


def batch_in(order: list[int]) -> Batch:
    rollouts, verdicts = make_rollouts(8)
    return collate([rollouts[row] for row in order], [verdicts[row] for row in order])


# Tokens


@pytest.mark.parametrize("name", KINDS)
def test_values_are_those_of_each_row_alone_and_zero_on_padding(name):
    critic, batch = token_critic(name), batch_in(list(range(8)))
    together = critic.values(batch)
    assert not together[~batch.mask].any()
    for row, rollout in enumerate(batch.rollouts):
        ids = [*rollout.prompt_token_ids, *rollout.completion.token_ids]
        with torch.no_grad():
            hidden = critic.model.trunk(torch.tensor([ids])).last_hidden_state[0]
            # V before the first response token is read at the prompt's last.
            outputs = critic.model.head(hidden[len(rollout.prompt_token_ids) - 1 : -1]).squeeze(1)
        expected = outputs.sigmoid() if name == "ppo_bce" else outputs
        torch.testing.assert_close(together[row][batch.mask[row]], expected, atol=1e-5, rtol=1e-5)


def test_a_value_does_not_see_the_token_that_it_stands_before():
    critic, batch = token_critic("ppo"), batch_in(list(range(8)))
    changed = []
    for rollout in batch.rollouts:
        ids = (*rollout.completion.token_ids[:-1], 39)
        changed.append(replace(rollout, completion=replace(rollout.completion, token_ids=ids)))
    again = replace(batch, rollouts=tuple(changed))
    torch.testing.assert_close(critic.values(batch), critic.values(again), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_the_prior_is_the_value_of_every_state_of_a_new_critic(name):
    critic, batch = token_critic(name, prior=0.3), batch_in([0, 1])
    torch.nn.init.zeros_(critic.model.head.weight)
    values = critic.values(batch)
    assert values[batch.mask].tolist() == pytest.approx([0.3] * int(batch.mask.sum()))
    assert critic.beliefs(batch.prompts) is None


def gradients(name: str, budget: int, order: list[int]) -> tuple[list[Tensor], dict[str, float]]:
    """The gradient of one update on all rows, the values having moved since they were read."""
    critic, batch = token_critic(name, budget), batch_in(order)
    noise = torch.rand(8, batch.mask.shape[1], generator=torch.Generator().manual_seed(1))[order]
    values = torch.where(batch.mask, critic.values(batch) + (noise - 0.5 if name == "ppo" else 0.0), 0.0)
    before = Estimates(batch.sampler_logprobs, values)
    credit = ALGORITHMS[name].assign_credit(Outcomes.of(batch, before))
    recorder = Gradients(critic.model)
    critic.adam = recorder  # type: ignore[assignment]
    metrics = critic.learn(batch, before, credit, seed=1)
    (only,) = recorder.seen
    return only, metrics


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", [22, 55])
@pytest.mark.parametrize("order", [list(range(8)), [5, 2, 7, 0, 3, 6, 1, 4]])
def test_no_cut_or_order_changes_the_critics_gradient(name, budget, order):
    expected, expected_metrics = gradients(name, 10_000, list(range(8)))
    found, metrics = gradients(name, budget, order)
    assert sum(float(part.norm()) for part in expected) > 0.01
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    assert metrics == pytest.approx(expected_metrics, rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_the_critics_loss_is_the_mean_over_all_tokens(name):
    critic, batch = token_critic(name), batch_in(list(range(8)))
    values = critic.values(batch)
    before = Estimates(batch.sampler_logprobs, values)
    credit = ALGORITHMS[name].assign_credit(Outcomes.of(batch, before))
    metrics = critic.learn(batch, before, credit, seed=1)
    losses = []
    for row, t in batch.mask.nonzero().tolist():
        v, reward = values[row, t].item(), batch.rewards[row].item()
        # With gamma = lambda = 1 the return of each token is the reward, for both.
        losses.append(-math.log(v if reward else 1 - v) if name == "ppo_bce" else 0.5 * (v - reward) ** 2)
    assert metrics["critic/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    inside = values[batch.mask]
    assert metrics["critic/value_mean"] == pytest.approx(inside.mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_learning_brings_the_values_towards_the_rewards(name):
    critic, batch = token_critic(name, learning_rate=1e-2), batch_in(list(range(8)))
    gaps = []
    for step in range(20):
        before = Estimates(batch.sampler_logprobs, critic.values(batch))
        credit = ALGORITHMS[name].assign_credit(Outcomes.of(batch, before))
        gaps.append(critic.learn(batch, before, credit, seed=step))
    assert gaps[-1]["critic/error_mean"] < 0.5 * gaps[0]["critic/error_mean"]


# Counts


def tracker_critic() -> TrackerCritic:
    return TrackerCritic(tiny_qwen2(), SPO, OptimizerConfig(tokens_per_microbatch=40), temperature=0.8)


def sampled_by(critic: TrackerCritic, rollouts: list[Rollout], rewards: list[float]) -> Batch:
    """A batch whose log-probabilities are the policy's own, as a sampler's are."""
    batch = collate(rollouts, [Verdict(reward) for reward in rewards])
    said = batch_logprobs(critic.policy, batch, critic.optimizer, critic.temperature)
    own = []
    for row, rollout in enumerate(rollouts):
        logprobs = tuple(said[row][batch.mask[row]].tolist())
        own.append(replace(rollout, completion=replace(rollout.completion, logprobs=logprobs)))
    return collate(own, [Verdict(reward) for reward in rewards])


def counts_of(critic: TrackerCritic, prompt_id: str) -> tuple[float, float]:
    (row,) = critic.counts.find(digests([prompt_id]))
    assert row >= 0
    return critic.counts.alpha[row].item(), critic.counts.beta[row].item()


def all_of(critic: TrackerCritic) -> dict[str, list]:
    return {name: array.tolist() for name, array in critic.counts.arrays().items()}


def take_in(critic: TrackerCritic, batch: Batch) -> dict[str, float]:
    before = Estimates(batch.sampler_logprobs, critic.values(batch))
    credit = ALGORITHMS["spo"].assign_credit(Outcomes.of(batch, before))
    return critic.learn(batch, before, credit, seed=0)


def test_values_are_read_before_their_update_and_unseen_prompts_lack_offline_samples():
    critic = tracker_critic()
    rollouts = make_rollouts(3)[0]
    prompts = [rollouts[row].prompt for row in (0, 1, 0, 2)]
    assert critic.lacking(prompts) == [8, 8, 8, 8]
    for prompt in prompts[:2]:
        critic.observe(prompt, [1.0, 0.0, 0.0, 0.0])
    assert critic.lacking(prompts) == [0, 0, 0, 8]
    critic.observe(prompts[3], [1.0, 0.0, 0.0, 0.0])
    batch = sampled_by(critic, rollouts, [1.0, 0.0, 0.5])
    assert critic.values(batch).tolist() == [[0.25]] * 3
    take_in(critic, batch)
    # rho is at its limit: 0.96 + R and 0.96 * 3 + 1 - R.
    assert counts_of(critic, "p0") == pytest.approx((1.96, 2.88))
    assert counts_of(critic, "p2") == pytest.approx((1.46, 3.38))
    unknown = replace(rollouts[0].prompt, id="other")
    beliefs = critic.beliefs([unknown, rollouts[0].prompt])
    assert beliefs.values == [None, pytest.approx(1.96 / 4.84)]
    assert beliefs.worth.tolist() == [0, pytest.approx(4.84)]


def test_the_drift_is_the_mean_move_of_the_log_probabilities_of_the_last_response():
    critic, rollouts = tracker_critic(), make_rollouts(4)[0]
    for rollout in rollouts:
        critic.observe(rollout.prompt, [1.0, 0.0])
    batch = sampled_by(critic, rollouts, [1.0, 0.0, 1.0, 0.0])
    assert take_in(critic, batch)["critic/drift_mean"] == 0.0  # never answered before
    assert take_in(critic, batch)["critic/drift_mean"] == pytest.approx(0.0, abs=1e-6)  # the policy has not moved
    counts = {rollout.prompt.id: counts_of(critic, rollout.prompt.id) for rollout in rollouts}
    with torch.no_grad():
        critic.policy.lm_head.weight.mul_(0.998)
    now = batch_logprobs(critic.policy, batch, critic.optimizer, critic.temperature)
    moved = [(now[row] - batch.sampler_logprobs[row])[batch.mask[row]].abs().mean().item() for row in range(4)]
    # Other responses to the same prompts: the drift is still read on the last ones.
    fresh = sampled_by(critic, [replace(rollouts[row], completion=rollouts[row - 1].completion) for row in range(4)],
                       [0.0] * 4)  # fmt: skip
    assert take_in(critic, fresh)["critic/drift_mean"] == pytest.approx(sum(moved) / 4, rel=1e-3)
    for row, rollout in enumerate(rollouts):
        rho = min(max(2 ** (-moved[row] / 0.06), 0.875), 0.96)
        alpha, _ = counts_of(critic, rollout.prompt.id)
        assert alpha == pytest.approx(rho * counts[rollout.prompt.id][0], rel=1e-4)
    assert any(0.876 < 2 ** (-move / 0.06) < 0.959 for move in moved)


def test_the_drift_is_of_the_policy_and_not_of_its_gap_to_the_sampler():
    # With top_p or top_k the sampler's log-probabilities are those of another distribution, however still the policy.
    critic, rollouts = tracker_critic(), make_rollouts(4)[0]
    for rollout in rollouts:
        critic.observe(rollout.prompt, [1.0, 0.0])
    batch = collate(rollouts, [Verdict(1.0)] * 4)
    said = batch_logprobs(critic.policy, batch, critic.optimizer, critic.temperature)
    assert (said - batch.sampler_logprobs).abs().max() > 0.5
    before = Estimates(said, critic.values(batch))
    for _ in range(2):
        credit = ALGORITHMS["spo"].assign_credit(Outcomes.of(batch, before))
        metrics = critic.learn(batch, before, credit, seed=0)
    assert metrics["critic/drift_mean"] == pytest.approx(0.0, abs=1e-5)


def test_the_tracker_comes_back_whole_from_its_folder(tmp_path):
    critic, again = tracker_critic(), tracker_critic()
    rollouts = make_rollouts(3)[0]
    for rollout in rollouts:
        critic.observe(rollout.prompt, [1.0, 0.0])
    take_in(critic, sampled_by(critic, rollouts, [1.0, 0.0, 0.5]))
    critic.save_pretrained(tmp_path / "critic")
    again.load(tmp_path / "critic")
    assert all_of(again) == all_of(critic)
    assert kept_by(again) == kept_by(critic)
    with torch.no_grad():
        critic.policy.lm_head.weight.mul_(0.998)
        again.policy.lm_head.weight.mul_(0.998)
    moved = sampled_by(critic, rollouts, [0.0, 0.0, 0.0])
    assert take_in(again, moved) == take_in(critic, moved)
    assert all_of(again) == all_of(critic)


def kept_by(critic: TrackerCritic) -> dict[str, tuple[list[int], list[float]]]:
    return {name: (ids.tolist(), logprobs.tolist()) for name, (ids, logprobs) in critic.last.items()}


def test_a_tracker_that_saw_no_response_yet_comes_back(tmp_path):
    critic, again = tracker_critic(), tracker_critic()
    critic.observe(make_rollouts(1)[0][0].prompt, [1.0, 0.0])
    critic.save_pretrained(tmp_path / "critic")
    again.load(tmp_path / "critic")
    assert all_of(again) == all_of(critic)
    assert again.last == {}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_tracker_of_an_earlier_version_is_read(tmp_path, version):
    critic, again = tracker_critic(), tracker_critic()
    rollouts = make_rollouts(2)[0]
    take_in(critic, sampled_by(critic, rollouts, [1.0, 0.0]))
    last = {
        rollout.prompt.id: [rollout.prompt_token_ids.tolist(), *kept_by(critic)[rollout.prompt.id]]
        for rollout in rollouts
    }
    critic.save_pretrained(tmp_path / "critic")
    (tmp_path / "critic" / COUNTS_FILE).unlink()
    counts = {name: counts_of(critic, name) for name in last}
    state = {"counts": counts, "last": last if version == "0.1.0" else list(last)}
    (tmp_path / "critic" / "tracker.json").write_text(json.dumps(state))
    again.load(tmp_path / "critic")
    assert all_of(again) == all_of(critic)
    assert kept_by(again) == kept_by(critic)


def long_rollouts(count: int, length: int) -> list[Rollout]:
    ids = torch.randint(2, 40, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [make_rollout(f"p{row}", [3, 4], ids[row], text=str(row)) for row in range(count)]


def test_what_is_kept_of_a_prompt_has_a_bound_in_memory_and_on_the_disk(tmp_path):
    # At most 8 bytes for each of 1,024 tokens; the rest is Python's and numpy's own, whatever the length.
    assert 8 * DRIFT_TOKENS == 8192
    rollouts = long_rollouts(64, 2500)
    critic, batch = tracker_critic(), collate(rollouts, [Verdict(1.0)] * 64)
    before, credit = Estimates(batch.sampler_logprobs, torch.full((64, 1), 0.5)), Credit(torch.zeros(64, 1))
    tracemalloc.start()
    critic.learn(batch, before, credit, seed=0)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 64 * (8192 + 1000)
    for beginning in critic.last.values():
        # Owners of what they hold: a view would keep the whole step's tensors alive.
        assert all(array.base is None and array.nbytes == 4096 for array in beginning)
    critic.save_pretrained(tmp_path / "critic")
    assert sum(file.stat().st_size for file in (tmp_path / "critic").iterdir()) < 64 * (8192 + 100)


def test_the_drift_of_a_long_response_is_that_of_its_beginning():
    critic, rollouts = tracker_critic(), long_rollouts(2, DRIFT_TOKENS + 50)
    critic.optimizer = OptimizerConfig()
    batch = sampled_by(critic, rollouts, [1.0, 0.0])
    take_in(critic, batch)
    with torch.no_grad():
        critic.policy.lm_head.weight.mul_(0.998)
    now = batch_logprobs(critic.policy, batch, critic.optimizer, critic.temperature)
    moved = (now - batch.sampler_logprobs)[:, :DRIFT_TOKENS].abs().mean(dim=1)
    assert take_in(critic, batch)["critic/drift_mean"] == pytest.approx(moved.mean().item(), rel=1e-4)


def test_log_probabilities_that_are_not_finite_leave_the_counts_finite():
    critic, rollouts = tracker_critic(), make_rollouts(2)[0]
    for rollout in rollouts:
        critic.observe(rollout.prompt, [1.0, 0.0])
    batch = sampled_by(critic, rollouts, [1.0, 0.0])
    damaged = Estimates(torch.full_like(batch.sampler_logprobs, math.nan), critic.values(batch))
    for _ in range(2):
        credit = ALGORITHMS["spo"].assign_credit(Outcomes.of(batch, damaged))
        critic.learn(batch, damaged, credit, seed=0)
    # Never answered before, so rho is 0.96; then as far as can be, 0.875.
    assert counts_of(critic, "p0")[0] == pytest.approx(0.875 * (0.96 + 1) + 1)
    assert counts_of(critic, "p1")[0] == pytest.approx(0.875 * 0.96)


def test_at_the_start_v_is_the_mean_reward_of_the_other_prompts():
    rewards, groups = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([0, 0, 1, 2])
    assert means_of_others(rewards, groups).tolist() == pytest.approx([0.75, 0.75, 0.5, 2 / 3])
    assert means_of_others(torch.tensor([1.0, 1.0]), torch.tensor([0, 0])).tolist() == [0.5, 0.5]
