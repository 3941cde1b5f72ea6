"""The critic of prompts over each source: no outcome in its own V, fusion, disagreement, learning, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from sppo.batch import Batch, Credit, Estimates
from sppo.config import CriticConfig
from sppo.critics.belief import PRIOR_WORTH
from sppo.critics.fusion import BeliefCritic, Source, worth_limits
from sppo.critics.history import History
from sppo.critics.models import PromptCritic
from sppo.critics.outcomes import prompt_keys
from sppo.critics.probe import ProbeSource
from sppo.critics.prompt import PromptModelCritic
from sppo.critics.recalibration import recalibrated
from sppo.critics.sources import SECOND_FOLDER, PairSource, RateSource
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.encode import encode
from sppo.training.collate import collate
from sppo.types import Prompt, Verdict
from sppo.update.steps import StepGuard
from tests.conftest import make_rollout, tiny_qwen2

TOKENIZER = character_tokenizer(ALPHABET)
CONFIG = CriticConfig(minibatch_size=4, learning_rate=1e-2, prior=0.4, epochs=2)
TEXTS = ["1+1=", "7-3=", "12+5=", "9*2=", "8-8=", "3*3="]
SOURCES = ["model", "probe", "pair", "rate"]


def model_of(seed: int, name: str = "critic") -> PromptModelCritic:
    model = PromptCritic(tiny_qwen2(seed=seed).model, TOKENIZER)
    model.started = True
    with torch.no_grad():
        model.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return PromptModelCritic(model, CONFIG, rows=8, guard=StepGuard(max_skipped=1), name=name)


def source_of(kind: str) -> Source:
    if kind == "model":
        return model_of(3)
    if kind == "pair":
        return PairSource(model_of(3), model_of(4, "critic_2"))
    if kind == "rate":
        return RateSource(0.4)
    probe = ProbeSource(tiny_qwen2(), TOKENIZER, CONFIG, tokens_per_microbatch=20, rows=8, guard=StepGuard())
    with torch.no_grad():
        probe.model.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return probe


def batch_of(texts: Sequence[str], rewards: Sequence[float]) -> Batch:
    rollouts = [
        make_rollout(f"row {row}", encode(Prompt("p", text), TOKENIZER).tolist(), [5, 6, 1], text=text)
        for row, text in enumerate(texts)
    ]
    return collate(rollouts, [Verdict(reward) for reward in rewards])


def learn(critic: BeliefCritic, batch: Batch, seed: int = 0) -> dict[str, float]:
    """A step: values first, and what they were learnt from after."""
    before = Estimates(batch.sampler_logprobs, critic.values(batch))
    return critic.learn(batch, before, Credit(torch.zeros(len(batch), 1)), seed=seed)


def past(critic: BeliefCritic) -> BeliefCritic:
    """The critic after two steps."""
    for seed, rewards in enumerate(([1, 0, 1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, 0, 1])):
        learn(critic, batch_of([*TEXTS, *TEXTS[:2]], rewards), seed)
    return critic


def critic_of(kind: str, stages: str) -> BeliefCritic:
    history = History() if "history" in stages else None
    return past(BeliefCritic(source_of(kind), history=history, recalibrate="recalibrate" in stages))


BATCHES = {
    "one each": TEXTS,
    "groups": [text for text in TEXTS[:3] for _ in range(3)],
    "the same prompt twice": [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[4]],
    "one prompt alone": [TEXTS[2]],
    "one prompt, a group": [TEXTS[2]] * 4,
    "never seen": ["2+2=", "6*7=", "2+2="],
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("stages", ["", "history", "recalibrate", "history recalibrate"])
def test_no_outcome_is_in_the_v_of_its_prompt(kind, stages):
    critic = critic_of(kind, stages)
    for texts in BATCHES.values():
        rewards = [float(row % 2) for row in range(len(texts))]
        batch, moved = batch_of(texts, rewards), False
        values = critic.values(batch)[:, 0]
        for row, text in enumerate(texts):
            flipped = rewards.copy()
            flipped[row] = 1 - flipped[row]
            again = critic.values(batch_of(texts, flipped))[:, 0]
            own = [place for place, other in enumerate(texts) if other == text]
            assert again[own].tolist() == values[own].tolist()
            moved |= bool((again != values).any())
        # Others' outcomes do reach it, where they are asked to and there are others.
        assert moved == ("recalibrate" in stages and len(set(texts)) > 1)


@pytest.mark.parametrize("kind", SOURCES)
def test_with_nothing_switched_on_v_is_the_sources_own(kind):
    critic, source, batch = critic_of(kind, ""), past(BeliefCritic(source_of(kind))).source, batch_of(TEXTS, [1] * 6)
    assert torch.equal(critic.values(batch), source.values(batch).double().mean(1).float()[:, None])
    prompts = batch.prompts
    expected = source.prompt_values(prompts).double().mean(dim=1)
    beliefs = critic.beliefs(prompts)
    assert beliefs.mean.tolist() == expected.tolist()
    assert (beliefs.worth <= PRIOR_WORTH).all()
    assert (beliefs.worth == PRIOR_WORTH).all() == (kind != "pair")


def test_what_a_choice_has_read_of_prompts_is_read_once_until_the_critic_learns():
    critic, batch, passes = BeliefCritic(model_of(3)), batch_of(TEXTS, [1, 0, 1, 1, 0, 0]), []
    expected = critic.values(batch)
    critic.source.model.trunk.register_forward_hook(lambda *_: passes.append(1))
    others = [Prompt("q", text) for text in ("5+5=", "6-1=")]
    critic.beliefs([*others, *batch.prompts])
    read = len(passes)
    torch.testing.assert_close(critic.values(batch), expected)
    assert len(passes) == read
    # Another prompt of the same text was not asked of; a batch that has one is read as a whole.
    torch.testing.assert_close(critic.values(batch_of(TEXTS, [1] * 6)), expected)
    assert len(passes) == read + 1
    learn(critic, batch)
    moved = critic.values(batch)
    assert not torch.allclose(moved, expected)
    torch.testing.assert_close(moved, BeliefCritic(critic.source).source.prompt_values(batch.prompts))


def test_v_is_recalibrated_and_then_fused():
    critic, plain = critic_of("model", "history recalibrate"), critic_of("model", "history recalibrate")
    batch = batch_of(TEXTS, [1, 0, 1, 1, 1, 0])
    raw, keys = plain.source.values(batch)[:, 0].double().numpy(), prompt_keys(batch.prompts)
    straight = recalibrated(raw, batch.rewards.double().numpy(), keys)
    fused = plain.history.fuse(keys, straight, np.full(6, math.inf))
    assert critic.values(batch)[:, 0].tolist() == pytest.approx(fused.mean.tolist(), rel=1e-6)
    # Choice reads beliefs before there are outcomes: of V as it is.
    unread = plain.history.fuse(keys, raw, np.full(6, math.inf))
    assert critic.beliefs(batch.prompts).mean.tolist() == unread.mean.tolist()
    # What V is worth is told by the V that was fused.
    learn(critic, batch)
    plain.history.learn(keys, straight, np.full(6, math.inf), batch.rewards.double().numpy())
    assert critic.history.log_likelihood == pytest.approx(plain.history.log_likelihood, rel=1e-9)


def test_equal_prompts_share_their_past_whatever_their_ids():
    critic = BeliefCritic(RateSource(0.5), history=History())
    for _ in range(6):
        learn(critic, batch_of([TEXTS[0], TEXTS[1]], [1.0, 0.0]))
    solved, failed, unseen = (Prompt("another id", text, gold="2") for text in (TEXTS[0], TEXTS[1], "5+5="))
    mean = critic.beliefs([solved, failed, unseen]).mean
    assert mean[0] > 0.8
    assert mean[1] < 0.2
    assert mean[2] == pytest.approx(0.5)
    assert critic.beliefs([replace(solved, gold="3")]).mean.item() == pytest.approx(0.5)


def test_disagreement_is_the_limit_of_what_v_is_worth():
    # Means .5 and .6; deviations .1 and .2: .25 / .01 - 1 and .24 / .04 - 1. Members at 0 and 1 are worth nothing.
    members = torch.tensor([[0.4, 0.6], [0.4, 0.8], [0.3, 0.3], [0.0, 1.0], [1.0, 1.0], [math.nan, 0.5]])
    assert worth_limits(members).tolist() == pytest.approx([24, 5, math.inf, 0, math.inf, math.inf], abs=1e-5)
    assert worth_limits(members[:, :1]).tolist() == [math.inf] * 6


def test_two_members_are_one_v_and_say_how_far_they_are_apart():
    pair = source_of("pair")
    critic, batch = BeliefCritic(pair), batch_of(TEXTS, [1, 0, 1, 1, 1, 0])
    first, second = (member.values(batch)[:, 0] for member in (pair.first, pair.second))
    assert critic.values(batch)[:, 0].tolist() == pytest.approx(((first + second) / 2).tolist(), rel=1e-6)
    metrics = learn(critic, batch)
    assert metrics["critic/disagreement"] == pytest.approx(((first - second).abs() / 2).mean().item(), rel=1e-5)
    assert metrics["critic/loss"] > 0
    assert set(critic.optimizers) == {"critic", "critic_2"}


def test_the_probe_is_a_linear_head_on_normalised_states_of_the_policy():
    probe = source_of("probe")
    prompt = Prompt("p", TEXTS[2])
    with torch.no_grad():
        states = probe.policy.model(torch.tensor([encode(prompt, TOKENIZER).tolist()])).last_hidden_state[0, -1]
        expected = probe.model.head(functional.layer_norm(states, states.shape)).sigmoid().item()
    others = [Prompt("q", text) for text in TEXTS]
    assert probe.prompt_values([prompt])[0].item() == pytest.approx(expected, abs=1e-6)
    assert probe.prompt_values([*others, prompt])[-1].item() == pytest.approx(expected, abs=1e-6)


def test_the_probe_learns_on_the_states_before_the_update_and_reads_the_present_ones():
    moved, still = source_of("probe"), source_of("probe")
    before = {name: tensor.clone() for name, tensor in moved.policy.state_dict().items()}
    batch = batch_of(TEXTS, [1, 0, 1, 1, 1, 0])
    credit = Credit(torch.zeros(6, 1), batch.rewards[:, None])
    for probe in (moved, still):
        probe.values(batch)
    assert all(torch.equal(tensor, moved.policy.state_dict()[name]) for name, tensor in before.items())
    with torch.no_grad():
        for parameter in moved.policy.parameters():
            parameter.mul_(0.9)
    for probe in (moved, still):
        probe.learn(batch, Estimates(batch.sampler_logprobs), credit, seed=1)
    assert torch.equal(moved.model.head.weight, still.model.head.weight)
    assert not torch.equal(moved.prompt_values(batch.prompts), still.prompt_values(batch.prompts))
    assert all(parameter.grad is None for parameter in moved.policy.parameters())


@pytest.mark.parametrize("kind", SOURCES)
def test_it_learns_from_the_rewards_where_the_algorithm_has_no_targets(kind):
    critic = BeliefCritic(source_of(kind), history=History())
    batch = batch_of(TEXTS[:2] * 4, [1, 0] * 4)
    errors = [learn(critic, batch, seed)["critic/brier_text"] for seed in range(40)]
    values = critic.values(batch)[:, 0].tolist()
    assert values[0] > 0.85
    assert values[1] < 0.15
    if kind != "rate":
        assert errors[-1] < errors[0] / 2
    named = BeliefCritic(source_of(kind), history=History())
    targets = Credit(torch.zeros(8, 1), batch.rewards[:, None])
    given = named.learn(batch, Estimates(batch.sampler_logprobs, named.values(batch)), targets, seed=0)
    assert given == learn(BeliefCritic(source_of(kind), history=History()), batch)


def test_a_batch_that_was_not_read_is_read_when_it_is_learnt_from():
    read, unread, batch = critic_of("probe", "history"), critic_of("probe", "history"), batch_of(TEXTS, [1] * 6)
    expected = learn(read, batch)
    assert unread.learn(batch, Estimates(batch.sampler_logprobs), Credit(torch.zeros(6, 1)), seed=0) == expected


def test_metrics_tell_what_history_adds():
    critic = critic_of("model", "history")
    metrics = learn(critic, batch_of(TEXTS, [1, 0, 1, 1, 0, 0]))
    assert {"critic/history_m", "critic/history_gamma", "critic/belief_worth_mean", "critic/brier_text"} <= set(metrics)
    assert 0.5 <= metrics["critic/history_m"] <= 1e6
    assert 0.5 <= metrics["critic/history_gamma"] <= 1
    assert not {"critic/brier_text", "critic/history_m"} & set(learn(critic_of("model", ""), batch_of(TEXTS, [1] * 6)))


def read_again(kind: str, folder: Path) -> Source:
    source = source_of(kind)
    if kind == "probe":
        source.model.load_head(folder)
    elif kind == "rate":
        source.load(folder)
    else:
        members = [source] if kind == "model" else [source.first, source.second]
        for member, place in zip(members, (folder, folder / SECOND_FOLDER), strict=False):
            member.model.load_state_dict(PromptCritic.from_pretrained(place).state_dict())
    return source


@pytest.mark.parametrize("kind", SOURCES)
def test_it_comes_back_whole_from_its_folder(tmp_path, kind):
    critic = critic_of(kind, "history recalibrate")
    critic.save_pretrained(tmp_path / "critic")
    again = BeliefCritic(read_again(kind, tmp_path / "critic"), history=History(), recalibrate=True)
    again.load_history(tmp_path / "critic")
    batch = batch_of(TEXTS, [1, 0, 1, 1, 0, 0])
    assert torch.equal(again.values(batch), critic.values(batch))
    left, right = again.beliefs(batch.prompts), critic.beliefs(batch.prompts)
    assert (left.mean.tolist(), left.worth.tolist()) == (right.mean.tolist(), right.worth.tolist())
