"""The loss and its gradient don't depend on how a mini-batch is cut; steps that are not finite are skipped."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sppo.algorithms.masked import token_weights
from sppo.algorithms.options import SppoOptions
from sppo.algorithms.policy_loss import LossOptions, policy_loss
from sppo.algorithms.sppo import sppo_credit
from sppo.batch import Batch, Credit, Estimates, Outcomes
from sppo.config import AlgorithmConfig, CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.models import PromptCritic, distinct
from sppo.critics.prompt import PromptModelCritic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import TrainingError
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.encode import encode_many
from sppo.rollouts.engines.hf import HFEngine
from sppo.rollouts.sample import sample, sampling_parameters
from sppo.training.collate import LengthRules, collate
from sppo.types import Prompt, Verdict
from sppo.update.estimate import estimate, sampler_notes
from sppo.update.logprobs import batch_logprobs, row_logprobs, token_rows
from sppo.update.policy import _Losing, _part_loss, update_policy
from sppo.update.steps import StepGuard, make_optimizer, minibatches
from tests.conftest import make_rollout, make_rollouts, tiny_qwen2

ALGORITHM = AlgorithmConfig(dual_clip=3.0)
SAMPLING = SamplingConfig(temperature=0.8)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, minibatch_size=4, weight_decay=0.0)


def unclipped() -> StepGuard:
    return StepGuard(max_norm=1e9, max_skipped=1)


def critic() -> PromptCritic:
    trunk = tiny_qwen2(seed=3).model
    made = PromptCritic(trunk, character_tokenizer(ALPHABET))
    made.set_prior(0.4)
    with torch.no_grad():
        made.head.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    return made


class Gradients(torch.optim.Optimizer):
    """Keeps the gradients it is given instead of using them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), {})
        self.seen: list[list[torch.Tensor]] = []

    def step(self, closure=None):
        self.seen.append([p.grad.clone() for g in self.param_groups for p in g["params"] if p.grad is not None])


def policy_gradients(**changes):
    """The gradients of each mini-batch of one step, and the step's metrics."""
    model, batch = tiny_qwen2(), collate(*make_rollouts(8))
    loss = LossOptions(dual_clip=3.0, aggregation=changes.pop("aggregation", "token_mean"))
    optimizer = replace(OPTIMIZER, **changes)
    importance = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(2))
    before = Estimates(batch.sampler_logprobs, torch.full((8, 1), 0.4), importance_weights=importance)
    recorder = Gradients(model)
    metrics = update_policy(
        model, recorder, batch, before, sppo_credit(Outcomes.of(batch, before), SppoOptions()),
        loss_options=loss, optimizer=optimizer, sampling=SAMPLING, expected_rows=8, seed=1, guard=unclipped(),
    )  # fmt: skip
    return recorder.seen, metrics


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("layout", ["sorted", "packed"])
@pytest.mark.parametrize("budget", [30, 55, 10_000])
def test_policy_gradient_is_the_same_for_every_cut(aggregation, layout, budget):
    expected, expected_metrics = policy_gradients(aggregation=aggregation)
    found, metrics = policy_gradients(aggregation=aggregation, tokens_per_microbatch=budget, layout=layout)
    assert len(found) == len(expected) == 2
    for left, right in zip(found, expected, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-6)


def test_policy_gradient_equals_a_slow_computation_row_by_row():
    (found,), metrics = policy_gradients(minibatch_size=8)
    model, batch = tiny_qwen2(), collate(*make_rollouts(8))
    importance = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(2))
    total = int(batch.mask.sum())
    loss = torch.zeros(())
    for row, rollout in enumerate(batch.rollouts):
        prompt, response = rollout.prompt_token_ids, rollout.completion.token_ids
        logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0] / 0.8
        for t, token in enumerate(response):
            logprob = logits[len(prompt) - 1 + t].log_softmax(-1)[token]
            ratio = (logprob - batch.sampler_logprobs[row, t]).exp()
            advantage = batch.rewards[row] - 0.4
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            if advantage < 0:
                surrogate = torch.maximum(surrogate, 3.0 * advantage)
            loss = loss - surrogate * importance[row, t] / total
    loss.backward()
    assert metrics["policy/loss"] == pytest.approx(loss.item(), rel=1e-4)
    for ours, slow in zip(found, [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-4)


def critic_gradients(budget: int, rows: int = 8):
    made, (rollouts, verdicts) = critic(), make_rollouts(rows)
    # Rows 0 and 1 ask the same, with different outcomes.
    rollouts[1] = replace(rollouts[1], prompt=replace(rollouts[1].prompt, content=rollouts[0].prompt.content))
    verdicts[:2] = [Verdict(1.0), Verdict(0.0)]
    made.tokens_per_microbatch = budget
    batch = collate(rollouts, verdicts)
    before = Estimates(batch.sampler_logprobs, made.values(batch.prompts))
    wrapped = PromptModelCritic(made, CriticConfig(minibatch_size=8), guard=unclipped())
    wrapped.adam = recorder = Gradients(made)
    metrics = wrapped.learn(batch, before, sppo_credit(Outcomes.of(batch, before), SppoOptions()), seed=1)
    return recorder.seen[0], metrics, before, batch


@pytest.mark.parametrize("budget", [9, 20])
def test_critic_gradient_is_the_same_for_every_cut(budget):
    expected, expected_metrics, *_ = critic_gradients(10_000)
    found, metrics, *_ = critic_gradients(budget)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)


def test_critic_loss_is_the_mean_bce_of_all_rows():
    _, metrics, before, batch = critic_gradients(10_000)
    assert before.values is not None
    v, r = before.values.flatten(), batch.rewards
    expected = -(r * v.log() + (1 - r) * (1 - v).log()).mean()
    assert metrics["critic/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_equal_prompts_are_computed_once():
    made = critic()
    prompts = [
        make_rollout(name, [3], [5], text=text).prompt for name, text in (("a", "1+1="), ("b", "2+2="), ("c", "1+1="))
    ]
    token_rows, inverse = distinct(encode_many(prompts, made.tokenizer))
    assert len(token_rows) == 2
    assert inverse.tolist() == [0, 1, 0]
    assert made.values(prompts)[0] == made.values(prompts)[2]


def test_a_fresh_ratio_is_one_so_nothing_is_clipped():
    model, batch = tiny_qwen2(), collate(*make_rollouts(8))
    before, metrics = estimate(batch, model, None, None, ALGORITHM, OPTIMIZER, SAMPLING)
    result = policy_loss(
        before.old_logprobs, before.old_logprobs, torch.ones(8, 1),
        token_weights(batch.mask, "token_mean", int(batch.mask.sum()), 8), LossOptions(),
    )  # fmt: skip
    assert result.loss.item() == pytest.approx(-1.0, rel=1e-6)
    assert not result.clipped.any()
    gap = (before.old_logprobs - batch.sampler_logprobs).abs()[batch.mask]
    assert metrics["sampler/logprob_gap_mean"] == pytest.approx(gap.mean().item(), rel=1e-5)
    assert before.importance_weights is not None
    assert before.importance_weights.max() <= 2.0


def test_old_logprobs_of_the_sampler_cost_no_forward_pass():
    batch = collate(*make_rollouts(4))
    before, metrics = estimate(batch, None, None, None, replace(ALGORITHM, old_logprobs="sampler"), OPTIMIZER, SAMPLING)  # type: ignore[arg-type]
    assert before.old_logprobs is batch.sampler_logprobs
    assert before.importance_weights is None
    assert metrics == {}


def test_left_out_samples_make_minibatches_smaller_not_fewer():
    sizes = [len(rows) for rows in minibatches(total=7, expected=8, size=2, epochs=1, seed=0)]
    assert sizes == [2, 2, 2, 1]
    assert sorted(row for rows in minibatches(7, 8, 2, 1, 0) for row in rows) == list(range(7))


def test_two_epochs_see_the_rows_in_different_orders():
    first, second = minibatches(total=16, expected=16, size=16, epochs=2, seed=0)
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_minibatch_of_masked_rows_alone_moves_nothing():
    model, batch = tiny_qwen2(), collate(*make_rollouts(8))
    adam = make_optimizer(model, 1e-2, weight_decay=0.1)

    def update(batch):
        credit = Credit(torch.ones(len(batch), 1))
        return update_policy(
            model, adam, batch, Estimates(batch.sampler_logprobs), credit, loss_options=LossOptions(whitening="token"),
            optimizer=OptimizerConfig(minibatch_size=4), sampling=SamplingConfig(max_response_tokens=13),
            expected_rows=8, seed=0, guard=StepGuard(max_skipped=1),
        )  # fmt: skip

    update(batch)  # so that AdamW has momentum
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    metrics = update(replace(batch, trained=torch.zeros(8, dtype=torch.bool)))
    assert math.isnan(metrics["policy/grad_norm"])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert {int(state["step"]) for state in adam.state.values()} == {2}


def test_a_step_that_is_not_finite_is_skipped_and_counted_then_stops_the_run():
    module = nn.Linear(2, 1)
    start = copy.deepcopy(module.state_dict())
    adam, guard = make_optimizer(module, 0.1, 0.0), StepGuard(max_skipped=2)

    def step(value: float) -> float:
        (module(torch.ones(1, 2)) * value).sum().backward()
        return guard.step("policy", adam, module, loss=value)

    assert step(float("nan")) != step(1.0)
    assert guard.skipped_total == 1
    assert guard.taken == {"policy": 1}
    moved = copy.deepcopy(module.state_dict())
    assert not torch.equal(moved["weight"], start["weight"])
    step(float("inf"))
    with pytest.raises(TrainingError, match=r"policy's loss or gradient was not finite in 2 optimiser steps in a row"):
        step(float("nan"))
    assert torch.equal(module.weight, moved["weight"])


def test_one_step_makes_a_rewarded_response_likelier_and_an_unrewarded_one_less_likely():
    model = tiny_qwen2()
    batch = collate(
        [make_rollout("a", [3], [5, 6, 1]), make_rollout("b", [4], [7, 8, 1])], [Verdict(1.0), Verdict(0.0)]
    )
    before, _ = estimate(batch, model, None, None, ALGORITHM, OPTIMIZER, SamplingConfig())
    before = replace(before, values=torch.full((2, 1), 0.5), importance_weights=None)
    adam = make_optimizer(model, 1e-3, 0.0)
    update_policy(
        model, adam, batch, before, sppo_credit(Outcomes.of(batch, before), SppoOptions()), loss_options=LossOptions(),
        optimizer=OPTIMIZER, sampling=SamplingConfig(temperature=1.0), expected_rows=2, seed=0, guard=unclipped(),
    )  # fmt: skip
    after, _ = estimate(batch, model, None, None, ALGORITHM, OPTIMIZER, SamplingConfig())
    change = (after.old_logprobs - before.old_logprobs).sum(dim=1)
    assert change[0] > 0 > change[1]


@pytest.mark.parametrize("surrogate", ["ppo", "cispo"])
def test_a_loss_made_token_by_token_equals_that_of_whole_rows(surrogate):
    """Advantages of single tokens, KL, entropy, importance weights and tokens left out, on an off-policy batch."""
    batch, generator = collate(*make_rollouts(6)), torch.Generator().manual_seed(3)

    def noise(scale: float) -> torch.Tensor:
        return torch.where(batch.mask, scale * torch.randn(batch.mask.shape, generator=generator), 0.0)

    weights = token_weights(batch.mask, "token_mean", int(batch.mask.sum()), len(batch))
    weights[2] = 0.0
    base = batch_logprobs(tiny_qwen2(), batch, OPTIMIZER, 0.8)
    before = Estimates(base + noise(0.3), None, base + noise(0.2), None, 1 + noise(0.1).abs())
    options = LossOptions(surrogate=surrogate, dual_clip=3.0, kl_coefficient=0.1, entropy_coefficient=0.05)
    advantages, rows, found = noise(1.0), list(range(len(batch))), []
    for at_once in (True, False):
        policy = tiny_qwen2()
        losing = _Losing.of(before, advantages, weights, rows, options, torch.device("cpu"))
        if at_once:
            loss = _part_loss(policy, losing, token_rows(batch, rows), OPTIMIZER, 0.8)
        else:
            said = row_logprobs(policy, token_rows(batch, rows), batch.mask.shape[1], OPTIMIZER, 0.8)
            loss = losing.loss(said.logprobs, said.entropy, ...)
        loss.backward()
        found.append((float(loss.detach()), [p.grad for p in policy.parameters()], losing.seen))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in found[1][1])
    for ours, whole in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-6 * largest, rtol=1e-4)
    for name, values in found[0][2].items():
        torch.testing.assert_close(values[batch.mask], found[1][2][name][batch.mask], atol=1e-6, rtol=1e-5, msg=name)


def test_the_kl_penalty_in_the_reward_is_k1_unless_told_otherwise():
    batch, policy, reference = collate(*make_rollouts(4)), tiny_qwen2(), tiny_qwen2(seed=1)
    config = AlgorithmConfig(name="grpo", kl_coefficient=0.5, kl_place="reward")
    before, _ = estimate(batch, policy, reference, None, config, OPTIMIZER, SamplingConfig())
    assert before.ref_logprobs is not None
    expected = 0.5 * (before.old_logprobs - before.ref_logprobs)
    assert expected.min() < -0.1  # as no other estimator can be
    assert before.kl_penalty is not None
    torch.testing.assert_close(before.kl_penalty, torch.where(batch.mask, expected, 0.0))


# What is read while a step is taken


def metrics_of(batch: Batch, before: Estimates, credit: Credit, adam=None, model=None, **optimizer) -> dict[str, float]:
    model = model or tiny_qwen2()
    return update_policy(
        model, adam or Gradients(model), batch, before, credit, loss_options=LossOptions(clip_low=0.1, clip_high=0.1),
        optimizer=replace(OPTIMIZER, **{"minibatch_size": 8, **optimizer}), sampling=SAMPLING, expected_rows=8, seed=1,
        guard=StepGuard(max_skipped=2, max_norm=1e9),
    )  # fmt: skip


def test_means_over_tokens_are_of_those_that_are_trained_on():
    rollouts, verdicts = make_rollouts(8)
    cut = [replace(r, completion=replace(r.completion, finish_reason="length")) if i % 2 else r
           for i, r in enumerate(rollouts)]  # fmt: skip
    batch = collate(cut, verdicts, rules=LengthRules("mask", 14))
    model = tiny_qwen2()
    said = [row_logprobs(model, token_rows(batch, [row]), batch.mask.shape[1], OPTIMIZER, 0.8) for row in range(8)]
    noise = 0.3 * torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))
    old = torch.cat([row.logprobs for row in said]).detach() + noise
    ratios, kls, entropies = [], [], []
    for row in (0, 2, 4, 6):
        for t in range(int(batch.mask[row].sum())):
            ratio = math.exp(-noise[row, t])
            ratios.append(ratio)
            kls.append(ratio - 1 - math.log(ratio))
            entropies.append(said[row].entropy[0, t].item())
    metrics = metrics_of(batch, Estimates(old, importance_weights=None), Credit(torch.ones(8, 1)))
    count = len(ratios)
    assert metrics["policy/clipfrac"] == pytest.approx(sum(ratio > 1.1 for ratio in ratios) / count, rel=1e-6)
    assert metrics["policy/approx_kl"] == pytest.approx(sum(kls) / count, rel=1e-4)
    assert metrics["policy/entropy"] == pytest.approx(sum(entropies) / count, rel=1e-5)
    assert 0.1 < metrics["policy/clipfrac"] < 0.9


def test_means_over_tokens_are_of_all_epochs():
    batch = collate(*make_rollouts(8))
    start = batch_logprobs(tiny_qwen2(), batch, OPTIMIZER, 0.8)
    before, credit = Estimates(start), Credit(batch.rewards[:, None] - 0.5)
    found = []
    for epochs in (1, 2):
        model = tiny_qwen2()
        adam = torch.optim.SGD(model.parameters(), lr=0.5)
        found.append(metrics_of(batch, before, credit, adam, model, epochs=epochs))
        if epochs == 1:
            moved = (batch_logprobs(model, batch, OPTIMIZER, 0.8) - start)[batch.mask]
    second = float((moved.exp() - 1 - moved).mean())
    assert second > 1e-3
    assert found[0]["policy/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert found[1]["policy/approx_kl"] == pytest.approx(second / 2, rel=1e-3)


def test_what_a_skipped_step_read_is_no_part_of_the_means():
    batch = collate(*make_rollouts(8))
    start = batch_logprobs(tiny_qwen2(), batch, OPTIMIZER, 0.8)
    advantages = torch.ones(8, 1)
    skipped, _ = minibatches(8, 8, 4, 1, seed=1)
    advantages[skipped[0]] = math.nan
    shift = torch.zeros(8, 1)
    shift[skipped] = 1.0  # would be a KL of e - 2 a token
    metrics = metrics_of(batch, Estimates(start - shift), Credit(advantages), minibatch_size=4)
    assert metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert math.isfinite(metrics["policy/loss"])
    nothing = metrics_of(batch, Estimates(start), Credit(advantages), minibatch_size=8)
    assert all(math.isnan(value) for value in nothing.values())


def test_the_mean_importance_weight_is_of_the_tokens_that_it_weighs():
    rollouts, verdicts = make_rollouts(4)
    cut = replace(rollouts[0], completion=replace(rollouts[0].completion, finish_reason="length"))
    batch = collate([cut, *rollouts[1:]], verdicts, rules=LengthRules("mask", 14))
    before, metrics = estimate(batch, tiny_qwen2(), None, None, ALGORITHM, OPTIMIZER, SAMPLING)
    assert before.importance_weights is not None
    weights = before.importance_weights[1:][batch.mask[1:]]
    assert metrics["sampler/importance_weight_mean"] == pytest.approx(weights.mean().item(), rel=1e-6)
    assert metrics["sampler/importance_weight_mean"] != pytest.approx(
        before.importance_weights[batch.mask].mean().item(), rel=1e-3
    )


@pytest.mark.parametrize(
    ("cut", "compared"),
    [({}, True), ({"top_p": 0.7}, False), ({"top_k": 5}, False), ({"top_p": 0.9, "top_k": 9}, False)],
)
@pytest.mark.parametrize("cap", [2.0, None])
def test_sampler_and_trainer_are_compared_only_where_they_have_one_distribution(cut, compared, cap):
    model, sampling = tiny_qwen2(), SamplingConfig(temperature=0.8, max_response_tokens=12, **cut)
    prompts = [Prompt(str(row), f"{row}+1=", gold="2") for row in range(16)]
    tokenizer = character_tokenizer(ALPHABET)
    parameters = sampling_parameters(sampling, tokenizer, model)
    rollouts = sample(
        HFEngine(model), prompts, tokenizer, parameters, samples_per_prompt=1, seeds=range(len(prompts)), version=0
    )
    batch = collate(rollouts, [Verdict(1.0)] * 16)
    algorithm = AlgorithmConfig(importance_cap=cap)
    before, metrics = estimate(batch, model, None, None, algorithm, OPTIMIZER, sampling)
    notes = sampler_notes(algorithm, sampling)
    if compared:
        assert notes == []
        assert metrics["sampler/logprob_gap_max"] < 1e-4
        assert (before.importance_weights is None) == (cap is None)
    else:
        (note,) = notes
        assert f"top_p {cut.get('top_p', 1):g} and top_k {cut.get('top_k', 0)}" in note
        assert ("importance_cap is off" in note) == (cap is not None)
        # The truth is a gap of 0 and weights of 1; the quotient of the two is neither.
        assert (before.old_logprobs - batch.sampler_logprobs)[batch.mask].exp().mean() < 0.98
        assert metrics == {}
        assert before.importance_weights is None
