"""Rows of several turns: what the policy didn't write is read by every model, and nothing else comes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sppo.algorithms.algorithm import Algorithm
from sppo.algorithms.options import AstarPoOptions, GaeOptions, PpoOptions, SpoOptions
from sppo.algorithms.policy_loss import LossOptions
from sppo.algorithms.table import ALGORITHMS, settle_algorithm
from sppo.batch import Batch, Credit, Estimates, Outcomes
from sppo.config import AlgorithmConfig, CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.critic import Critic, NoCritic
from sppo.critics.fusion import BeliefCritic
from sppo.critics.models import PromptCritic, TokenCritic
from sppo.critics.optimal import OptimalValueCritic
from sppo.critics.prompt import PromptModelCritic
from sppo.critics.token import TokenModelCritic
from sppo.critics.tracker import TrackerCritic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.training.collate import LengthRules, collate
from sppo.training.collect import Collected
from sppo.training.record import response_metrics, response_records
from sppo.types import Completion, Rollout, StepScores, Verdict
from sppo.update.estimate import estimate
from sppo.update.logprobs import batch_logprobs
from sppo.update.policy import update_policy
from sppo.update.steps import StepGuard, make_optimizer
from sppo.verifiers.grading import Grader
from tests.conftest import make_rollouts, tiny_qwen2
from tests.update.test_policy import Gradients, unclipped

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, minibatch_size=8, weight_decay=0.0)
SAMPLING = SamplingConfig(temperature=0.8, max_response_tokens=20)
FOREIGN = [(), (-2, -3), (1,), (-4, -5, -6), (), (-3,), (0, 2), (-1, -2)]
"""Places in each response that the policy didn't write."""


def masked(completion: Completion, row: int) -> np.ndarray:
    mask = np.ones(len(completion), bool)
    mask[[place for place in FOREIGN[row] if -len(mask) < place < len(mask) - 1]] = False
    return mask


def turns(**of_foreign: object) -> tuple[list[Rollout], list[Verdict]]:
    """Rows of one turn and of several; `logprobs` or `token_ids` of the tokens that the policy didn't write."""
    rollouts, verdicts = make_rollouts(8)
    made = []
    for row, rollout in enumerate(rollouts):
        mask = masked(rollout.completion, row)
        changes = {name: np.where(mask, getattr(rollout.completion, name), value) for name, value in of_foreign.items()}
        made.append(replace(rollout, completion=replace(rollout.completion, mask=mask, **changes)))
    return made, verdicts


def test_the_rows_are_of_all_kinds():
    masks = [rollout.completion.mask for rollout in turns()[0]]
    inside = [mask for mask in masks if not mask.all() and mask[0] and mask[-1]]
    assert any(mask.all() for mask in masks)
    assert len(inside) >= 3
    assert not masks[7][-2:].any()
    assert any(not mask[0] for mask in masks)


def test_a_batch_knows_what_the_policy_wrote_and_what_the_models_have_to_read():
    rollouts, verdicts = turns(logprobs=np.nan)
    batch = collate(rollouts, verdicts)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.completion)
        assert batch.mask[row].tolist() == [
            *rollout.completion.mask.tolist(),
            *[False] * (batch.mask.shape[1] - length),
        ]
        assert batch.lengths[row] == len(rollout.prompt_token_ids) + length
    assert not batch.sampler_logprobs[~batch.mask].any()
    assert batch.sampler_logprobs[batch.mask].lt(0).all()
    nothing = replace(rollouts[0], completion=replace(rollouts[0].completion, mask=False))
    with pytest.raises(AssertionError, match="without a token of the policy's own"):
        collate([nothing], verdicts[:1])


@pytest.mark.parametrize("layout", ["sorted", "packed"])
def test_models_read_what_the_policy_did_not_write(layout):
    model, options = tiny_qwen2(), replace(OPTIMIZER, layout=layout)
    rollouts, verdicts = turns()
    batch = collate(rollouts, verdicts)
    said = batch_logprobs(model, batch, options, 0.8)
    whole = collate([replace(r, completion=replace(r.completion, mask=True)) for r in rollouts], verdicts)
    assert torch.equal(said, torch.where(batch.mask, batch_logprobs(model, whole, options, 0.8), 0.0))
    other = batch_logprobs(model, collate(*turns(token_ids=39)), options, 0.8)
    for row, mask in enumerate(batch.mask.tolist()):
        after = mask.index(False) if False in mask else len(mask)
        assert torch.allclose(said[row, :after], other[row, :after], atol=1e-5)
        if any(mask[after:]):
            assert not torch.allclose(said[row, after:], other[row, after:], atol=1e-2)


# The policy


LOSSES = {
    "token_mean": LossOptions(dual_clip=3.0),
    "sequence_mean": LossOptions(aggregation="sequence_mean", kl_coefficient=0.1),
    "sequence_sum": LossOptions(aggregation="sequence_sum", entropy_coefficient=0.05),
}


def before_of(batch: Batch) -> Estimates:
    generator = torch.Generator().manual_seed(5)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(batch.mask.shape, generator=generator)

    base = batch_logprobs(tiny_qwen2(), batch, OPTIMIZER, 0.8)
    # Numbers outside the mask, too: nobody may read them.
    return Estimates(base + noise(0.3), noise(0.2), base + noise(0.2), None, 1 + noise(0.1).abs())


def slow_loss(model: nn.Module, batch: Batch, before: Estimates, advantages: Tensor, options: LossOptions) -> Tensor:
    """The loss written out token by token, over the tokens that the policy wrote."""
    assert before.ref_logprobs is not None
    assert before.importance_weights is not None
    total, loss = int(batch.mask.sum()), torch.zeros(())
    for row, rollout in enumerate(batch.rollouts):
        prompt, response = rollout.prompt_token_ids.tolist(), rollout.completion.token_ids.tolist()
        logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0] / 0.8
        own = [t for t in range(len(response)) if rollout.completion.mask[t]]
        weight = {
            "token_mean": 1 / total, "sequence_mean": 1 / (len(own) * len(batch)), "sequence_sum": 1 / (len(batch) * 20)
        }[options.aggregation]  # fmt: skip
        for t in own:
            said = logits[len(prompt) - 1 + t].log_softmax(-1)
            ratio, advantage = (said[response[t]] - before.old_logprobs[row, t]).exp(), advantages[row, t]
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            if options.dual_clip is not None and advantage < 0:
                surrogate = torch.maximum(surrogate, options.dual_clip * advantage)
            difference = said[response[t]] - before.ref_logprobs[row, t]
            entropy = -(said.exp() * said).sum()
            term = options.kl_coefficient * ((-difference).exp() - 1 + difference)
            term = term - surrogate * before.importance_weights[row, t] - options.entropy_coefficient * entropy
            loss = loss + weight * term
    return loss


@pytest.mark.parametrize("layout", ["sorted", "packed"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_policys_gradient_is_that_of_its_own_tokens(name, layout):
    batch, options = collate(*turns()), LOSSES[name]
    before = before_of(batch)
    credit = credit_of(replace(ALGORITHMS["ppo"], options=GaeOptions(0.9, 0.8)), batch, before)
    model, slow = tiny_qwen2(), tiny_qwen2()
    recorder = Gradients(model)
    metrics = update_policy(
        model, recorder, batch, before, credit, loss_options=options,
        optimizer=replace(OPTIMIZER, layout=layout, tokens_per_microbatch=55), sampling=SAMPLING, expected_rows=8,
        seed=1, guard=unclipped(),
    )  # fmt: skip
    loss = slow_loss(slow, batch, before, credit.advantages, options)
    loss.backward()
    assert metrics["policy/loss"] == pytest.approx(loss.item(), rel=1e-4)
    for ours, theirs in zip(recorder.seen[0], slow.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs.grad, atol=1e-5, rtol=1e-4)


def credit_of(algorithm: Algorithm, batch: Batch, before: Estimates) -> Credit:
    return algorithm.assign_credit(Outcomes.of(batch, before))


def critic_of(name: str, policy: nn.Module) -> Critic:
    kind, trunk = ALGORITHMS[name].critic, tiny_qwen2(seed=3).model
    config, tokenizer = CriticConfig(minibatch_size=8, learning_rate=1e-2, prior=0.4), character_tokenizer(ALPHABET)
    if kind == "prompt":
        return BeliefCritic(PromptModelCritic(PromptCritic(trunk, tokenizer), config, rows=8))
    if kind == "token":
        bce, clip = ALGORITHMS[name].value_loss == "bce", PpoOptions().value_clip
        model = TokenCritic(trunk, tokenizer)
        return TokenModelCritic(model, config, probability=bce, value_clip=clip, rows=8, guard=unclipped())
    if kind == "optimal":
        return OptimalValueCritic(AstarPoOptions())
    return TrackerCritic(policy, SpoOptions(), OPTIMIZER, 0.8) if kind == "tracker" else NoCritic()


def step_of(name: str, rollouts: list[Rollout], verdicts: list[Verdict], **options) -> tuple[dict[str, float], Tensor]:
    """Two steps of an algorithm on the same rows: their metrics, and the policy's weights after them."""
    policy, reference = tiny_qwen2(), tiny_qwen2(seed=1)
    section = AlgorithmConfig(name=name, **options)
    algorithm = settle_algorithm(section, samples_per_prompt=8)
    critic, adam = critic_of(name, policy), make_optimizer(policy, 1e-2, 0.0)
    metrics: dict[str, float] = {}
    for step in range(2):
        batch = collate(rollouts, verdicts, process_weight=0.5 if verdicts[0].step_scores else 0.0)
        needed = reference if algorithm.needs_reference else None
        before, gaps = estimate(batch, policy, needed, critic.values(batch), section, OPTIMIZER, SAMPLING)
        credit = credit_of(algorithm, batch, before)
        learned = critic.learn(batch, before, credit, seed=step)
        moved = update_policy(
            policy, adam, batch, before, credit, loss_options=algorithm.loss, optimizer=OPTIMIZER,
            sampling=SAMPLING, expected_rows=8, seed=step, guard=StepGuard(max_skipped=1),
        )  # fmt: skip
        metrics |= {f"{key} {step}": value for key, value in {**gaps, **learned, **moved}.items()}
    return metrics, torch.cat([p.detach().flatten() for p in policy.parameters()])


CASES = {
    "sppo": {}, "ppo": {}, "ppo_bce": {}, "grpo": {"kl_coefficient": 0.1}, "gspo": {}, "cispo": {}, "dr_grpo": {},
    "reinforce_pp": {"kl_coefficient": 0.1, "kl_place": "reward", "kl_estimator": "k1"}, "spo": {},
    "astar_po": {},
    "rloo": {"old_logprobs": "sampler"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_samplers_word_on_foreign_tokens_changes_nothing(name):
    rollouts, verdicts = turns()
    verdicts = [replace(verdict, step_scores=StepScores((0, 1), (0.2, 0.9))) for verdict in verdicts]
    if name in ("grpo", "gspo", "cispo", "dr_grpo", "astar_po"):  # whose gradient process rewards would bias
        verdicts = turns()[1]
    expected, weights = step_of(name, rollouts, verdicts, **CASES[name])
    for logprobs in (-40.0, np.nan):
        metrics, again = step_of(name, turns(logprobs=logprobs)[0], verdicts, **CASES[name])
        assert metrics == expected
        assert torch.equal(again, weights)


@pytest.mark.parametrize("name", CASES)
def test_a_mask_of_all_tokens_is_none(name):
    rollouts, verdicts = make_rollouts(8)
    said = [replace(r, completion=replace(r.completion, mask=np.ones(len(r.completion), bool))) for r in rollouts]
    (expected, weights), (metrics, again) = (step_of(name, rows, verdicts, **CASES[name]) for rows in (rollouts, said))
    assert metrics == expected
    assert torch.equal(again, weights)


# Critics


@pytest.mark.parametrize("name", ["ppo", "ppo_bce"])
def test_a_token_critic_values_and_learns_the_states_that_the_policy_wrote_in(name):
    batch, critic = collate(*turns()), critic_of(name, tiny_qwen2())
    assert isinstance(critic, TokenModelCritic)
    torch.nn.init.normal_(critic.model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    values = critic.values(batch)
    assert not values[~batch.mask].any()
    losses = []
    for row, rollout in enumerate(batch.rollouts):
        ids = torch.tensor([[*rollout.prompt_token_ids.tolist(), *rollout.completion.token_ids.tolist()]])
        with torch.no_grad():
            hidden = critic.model.trunk(ids).last_hidden_state[0]
            outputs = critic.model.head(hidden[len(rollout.prompt_token_ids) - 1 : -1]).squeeze(1)
        for t in np.flatnonzero(rollout.completion.mask):
            value, reward = outputs[t], batch.rewards[row]
            expected = value.sigmoid() if name == "ppo_bce" else value
            assert values[row, t].item() == pytest.approx(expected.item(), abs=1e-5)
            bce = nn.functional.binary_cross_entropy_with_logits
            losses.append(bce(value, reward) if name == "ppo_bce" else 0.5 * (value - reward) ** 2)
    before = Estimates(batch.sampler_logprobs, values)
    credit = credit_of(ALGORITHMS[name], batch, before)
    recorder = Gradients(critic.model)
    critic.adam = recorder  # type: ignore[assignment]
    metrics = critic.learn(batch, before, credit, seed=0)
    # With gamma = lambda = 1 the return of each token is the reward.
    assert metrics["critic/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_a_trackers_drift_is_that_of_the_policys_own_tokens(tmp_path):
    policy = tiny_qwen2()
    critic = critic_of("spo", policy)
    assert isinstance(critic, TrackerCritic)
    batch = collate(*turns())
    before = Estimates(batch_logprobs(policy, batch, OPTIMIZER, 0.8), critic.values(batch))
    credit = credit_of(ALGORITHMS["spo"], batch, before)
    critic.learn(batch, before, credit, seed=0)
    critic.save_pretrained(tmp_path / "critic")
    again = TrackerCritic(policy, critic.options, OPTIMIZER, 0.8)
    again.load(tmp_path / "critic")
    with torch.no_grad():
        policy.lm_head.weight.mul_(0.9)
    moved = (batch_logprobs(policy, batch, OPTIMIZER, 0.8) - before.old_logprobs).abs()
    expected = [moved[row][batch.mask[row]].mean().item() for row in range(len(batch))]
    assert min(expected) > 0
    for one in (critic, again):
        assert one.learn(batch, before, credit, seed=0)["critic/drift_mean"] == pytest.approx(
            sum(expected) / 8, rel=1e-4
        )


# What is counted


def test_lengths_and_counters_are_of_what_the_policy_wrote():
    rollouts, _ = turns()
    written = [int(rollout.completion.mask.sum()) for rollout in rollouts]
    assert sum(written) < sum(len(rollout.completion) for rollout in rollouts)
    metrics = response_metrics(rollouts)
    assert metrics["response/tokens"] == sum(written)
    assert metrics["response/length_max"] == max(written)
    rules = LengthRules(longest=10, penalty_tokens=4)
    assert [rules.penalty(rollout) for rollout in rollouts] == [-min(max(n - 6, 0) / 4, 1.0) for n in written]
    assert [Grader().submission(rollout).tokens for rollout in rollouts] == written


@pytest.mark.parametrize("name", ["sppo", "ppo"])
def test_the_record_says_what_the_policy_wrote(name):
    rollouts, verdicts = turns()
    batch = collate(rollouts, verdicts)
    values = torch.where(batch.mask, torch.rand(batch.mask.shape), 0.0) if name == "ppo" else torch.full((8, 1), 0.4)
    before = Estimates(batch.sampler_logprobs, values)
    credit = credit_of(ALGORITHMS[name], batch, before)
    collected = Collected([], rollouts, verdicts, list(range(8)), None, 0, 0, 0, None, {})
    records = list(response_records(1, collected, batch, before, credit, Grader(lambda *_: [])))
    for row, (record, rollout) in enumerate(zip(records, rollouts, strict=True)):
        mask = rollout.completion.mask
        assert record["response_token_ids"] == rollout.completion.token_ids.tolist()
        assert record["response_mask"] == (None if mask.all() else mask.tolist())
        first = int(mask.argmax()) if name == "ppo" else 0
        assert record["value"] == values[row, first].item()
        assert record["advantage"] == credit.advantages[row, first].item()
        if name == "ppo":
            assert len(record["token_values"]) == mask.sum()
