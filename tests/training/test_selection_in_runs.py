"""Choosing prompts within a run: who gets a critic for it, what is counted, second responses, exact resume, no leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sppo.algorithms.table import ALGORITHMS, settle_algorithm
from sppo.commands.train import train
from sppo.config import AlgorithmConfig, CriticConfig
from sppo.config.recipes import load_recipe
from sppo.critics.critic import NoCritic
from sppo.data.selection import BeliefSelection, UniformSelection
from sppo.errors import ConfigError
from sppo.runs.folder import read_metrics, read_summary
from sppo.runs.records import read_records
from sppo.training.build import algorithm_of, notes_on
from sppo.types import Beliefs
from tests.conftest import tiny_config
from tests.training.test_collect import has_a_three, made


def settled(name: str, samples: int = 4, **options):
    return settle_algorithm(AlgorithmConfig(name=name), samples, **options)


def test_sppo_chooses_by_itself_and_the_others_take_what_comes():
    assert {name: settled(name).selection for name in ALGORITHMS} == {
        name: "auto" if name == "sppo" else "uniform" for name in ALGORITHMS
    }
    assert settled("sppo", critic=CriticConfig(loss="mse")).selection == "uniform"


def test_sppo_chooses_nothing_by_itself_where_dynamic_sampling_throws_outcomes_away():
    assert settle_algorithm(AlgorithmConfig(dynamic_sampling=True), 4).selection == "uniform"


def test_a_group_algorithm_has_a_critic_only_where_a_choice_asks_for_one():
    assert settled("grpo").critic is None
    assert settled("grpo", selection="top").critic == "prompt"
    assert settled("grpo", selection="history").critic == "history"
    assert settled("grpo", selection="top").needs_unit_rewards
    assert not settled("grpo").needs_unit_rewards


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dapo", {"selection": "top"}, "dynamic sampling throws away the groups that would tell"),
        ("ppo", {"selection": "auto"}, "ppo's critic values tokens. Set selection.name to uniform"),
        ("sppo", {"selection": "top", "critic": CriticConfig(loss="mse")}, "predicts rewards of any size"),
        ("sppo", {"selection": "history"}, "for algorithms without a critic, but sppo has one"),
        ("grpo", {"adaptive_share": 0.2}, "sampling.adaptive_share is 0.2, .* and has no critic"),
        ("ppo", {"adaptive_share": 0.2}, "needs a critic of prompts for that, and has one that can't tell"),
    ],
)
def test_what_cannot_choose_is_refused_with_the_reason(name, options, said):
    with pytest.raises(ConfigError, match=said):
        settled(name, **options)


def test_second_responses_and_several_samples_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"adaptive_share is 0\.25, .*samples_per_prompt is 2"):
        train(tiny_config(tmp_path / "run", sampling__adaptive_share=0.25, sampling__samples_per_prompt=2))


class Knowing(NoCritic):
    """Believes in a rate for each prompt."""

    def __init__(self, rates) -> None:
        self.rates = rates

    def beliefs(self, prompts):
        return Beliefs(np.array([self.rates(prompt) for prompt in prompts]), np.full(len(prompts), 1e9))


def test_the_prompts_are_chosen_before_anything_is_sampled_and_second_responses_keep_the_budget():
    parts, engine = made(has_a_three, algorithm__name="sppo", selection__name="top", sampling__adaptive_share=0.25)
    assert isinstance(parts.collector.selection, BeliefSelection)
    wanted = {prompt.id for prompt in parts.collector.selection.stream.at(range(40))}
    critic = Knowing(lambda prompt: 0.5 if prompt.id in wanted else 0.01)
    collector = replace(parts.collector, critic=critic)
    collected = collector.collect(1, version=0)
    (chosen,) = collected.rounds
    assert len(chosen.prompts) == 6  # of 8 responses two are second or third ones
    assert all(prompt.id in wanted for prompt in chosen.prompts[1:])
    counts = [collected.groups.count(group) for group in range(6)]
    assert sum(counts) == len(collected.rollouts) == engine.responses == 8
    assert [rollout.prompt for rollout in collected.rollouts] == [
        prompt for prompt, count in zip(chosen.prompts, counts, strict=True) for _ in range(count)
    ]
    batch = collector.batch(collected)
    metrics = collector.observe(collected, batch)
    assert metrics["selection/control_share"] == pytest.approx(1 / 6)


def test_second_responses_need_no_choice_of_prompts():
    parts, engine = made(has_a_three, algorithm__name="sppo", selection__name="uniform", sampling__adaptive_share=0.5)
    assert isinstance(parts.collector.selection, UniformSelection)
    collected = parts.collector.collect(1, version=0)
    assert len(collected.rounds[0].prompts) == 4
    assert len(collected.rollouts) == engine.responses == 8


def test_second_responses_have_the_greedy_reward_of_their_own_prompt():
    parts, engine = made(
        has_a_three, algorithm__name="remax", selection__name="top", sampling__adaptive_share=0.25,
        critic__minibatch_size=8,
    )  # fmt: skip
    collected = parts.collector.collect(1, version=0)
    assert max(collected.groups.count(group) for group in range(6)) > 1
    assert engine.responses == 8 + 6  # one greedy response a prompt
    of_prompt = dict(zip(collected.groups, collected.greedy_rewards, strict=True))
    assert collected.greedy_rewards == [of_prompt[group] for group in collected.groups]


def test_second_responses_go_to_what_is_unknown_as_to_one_half_worth_a_sample():
    rates = [np.nan, 0.5, 0.1, np.nan]  # E[p (1 - p)] = .125, .25, .09, .125
    order, parts = (
        made(has_a_three, algorithm__name="spo", selection__name="uniform", sampling__adaptive_share=0.5)[0]
        for _ in range(2)
    )
    asked = [prompt.id for prompt in order.collector.selection.stream.take(4)]
    critic = Knowing(lambda prompt: rates[asked.index(prompt.id)])
    collected = replace(parts.collector, critic=critic).collect(1, version=0)
    assert [collected.groups.count(group) for group in range(4)] == [2, 3, 1, 2]


@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo"])
def test_a_group_algorithm_learns_what_to_ask(tmp_path, name):
    config = tiny_config(
        tmp_path / "run", algorithm__name=name, sampling__samples_per_prompt=4, prompts_per_step=4, steps=2,
        selection__name="top", critic__epochs=2, optimizer__minibatch_size=16, critic__minibatch_size=8,
    )  # fmt: skip
    train(config)
    last = read_metrics(tmp_path / "run")[-1]
    assert last["selection/control_share"] == 0.25
    assert 0 <= last["critic/brier"] <= 1
    assert last["critic/bias"] == pytest.approx(last["critic/value_mean"] - last["reward/mean"])
    assert {"time/value", "time/critic", "time/select", "time/estimate"} <= set(last)
    assert read_summary(tmp_path / "run")["selection"]["steps_chosen"] == 2
    assert (tmp_path / "run" / "checkpoints" / "last" / "critic").is_dir()
    assert len({record["prompt_id"] for record in read_records(tmp_path / "run") if record["step"] == 2}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"selection__name": "auto"},
        {"selection__name": "top"},
        {"selection__name": "sqrt", "sampling__adaptive_share": 0.25},
        {"selection__name": "history", "algorithm__name": "grpo", "sampling__samples_per_prompt": 2},
        {"selection__name": "top", "critic__prefit__samples": 16},
    ],
)
def test_a_run_that_chooses_goes_on_exactly(tmp_path, options):
    options = {"optimizer__minibatch_size": 8, "critic__minibatch_size": 8, "prompts_per_step": 16, **options}
    train(tiny_config(tmp_path / "whole", steps=4, **options))
    train(tiny_config(tmp_path / "parts", steps=2, **options))
    train(tiny_config(tmp_path / "parts", steps=4, **options), resume=True)

    def said(folder):
        kept = [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "eval/"))}
                for line in read_metrics(folder)]  # fmt: skip
        return kept, [(r["step"], r["prompt_id"], r["response_token_ids"], r["value"]) for r in read_records(folder)]

    assert said(tmp_path / "parts") == said(tmp_path / "whole")


def test_the_reward_of_a_response_changes_no_value_and_no_choice_of_its_own_step():
    """V, beliefs and the prompts of a step are there before any of its rewards is."""
    outcomes = []
    for reward in (
        has_a_three,
        lambda prompts, completions, **columns: [1.0 - r for r in has_a_three(prompts, completions)],
    ):
        parts, _ = made(reward, algorithm__name="sppo", selection__name="top", critic__prior=0.5)
        collected = parts.collector.collect(1, version=0)
        batch = parts.collector.batch(collected)
        values = parts.critic.values(batch)
        outcomes.append((values, [r.prompt.id for r in collected.rollouts], collected.rounds[0].beliefs.mean))
    (one, prompts, mean), (other, same, alike) = outcomes
    assert torch.equal(one, other)
    assert prompts == same
    assert np.array_equal(mean, alike)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"selection.name": "top", "prompts_per_step": 16}, "a step asks 16 prompts, and there are 16"),
        ({"selection.name": "top", "prompts_per_step": 1}, "a step asks a single prompt"),
        (
            {"selection.name": "top", "prompts_per_step": 2, "sampling.adaptive_share": 0.5},
            "a step asks a single prompt, which is its control group",
        ),
        ({"selection.name": "top", "selection.uniform_share": 1.0}, "uniform_share 1 leaves none of 8"),
        ({"sampling.adaptive_share": 0.05}, "adaptive_share 0.05 of 8 responses a step is none"),
        ({"optimizer.learning_rate_warmup": 9}, "optimizer.learning_rate_warmup 9 reaches past the run's 5 steps"),
        ({"critic.learning_rate_warmup": 5}, "critic.learning_rate_warmup 5 reaches past"),
    ],
)
def test_what_can_have_no_effect_is_said(options, said):
    small = {"steps": 5, "prompts_per_step": 8, "optimizer.minibatch_size": 1, "critic.minibatch_size": 1}
    config = load_recipe("demo", {**small, "optimizer.learning_rate_warmup": 0, **options})
    (note,) = notes_on(config, algorithm_of(config), pool=16)
    assert said in note


def test_of_a_sound_run_nothing_is_said():
    config = load_recipe("demo", {"selection.name": "top", "sampling.adaptive_share": 0.25})
    assert notes_on(config, algorithm_of(config), pool=20000) == []
