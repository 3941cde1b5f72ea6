"""Beliefs in whole runs: each option trains and resumes exactly, known rates begin counts, what can't be is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sppo
from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Credit, Estimates
from sppo.config import CriticConfig, OptimizerConfig, SamplingConfig
from sppo.critics.build import Owner, build_critic, check_critic
from sppo.critics.checks import known_rates
from sppo.critics.critic import Critic
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, DataError, ModelError
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.folder import read_metrics
from sppo.training.collate import collate
from sppo.types import Prompt, Verdict
from sppo.update.steps import StepGuard
from tests.conftest import HELD_OUT, make_rollout, tiny_qwen2, train_on

SWITCHES: dict[str, dict[str, Any]] = {
    "history": {"history": True},
    "recalibrated": {"recalibrate": True, "epochs": 2},
    "probe": {"source": "probe", "history": True},
    "pair": {"members": 2, "history": True, "recalibrate": True},
    "pair alone": {"members": 2},
}
TEXTS = ["1+2=", "9-4=", "3*3=", "8-1="] * 10


def has_a_three(prompts, completions, **columns):
    return [float("3" in text) for text in completions]


def timeless(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith(("time/", "throughput/", "eval/"))}


@pytest.mark.parametrize("name", SWITCHES)
def test_two_steps_and_two_more_are_four(tmp_path, name):
    options = {f"critic__{key}": value for key, value in SWITCHES[name].items()}
    options |= {"critic__learning_rate": 1e-2, "optimizer__learning_rate": 5e-3, "sampling__samples_per_prompt": 2}
    whole = train_on(TEXTS, tmp_path / "whole", has_a_three, steps=4, **options)
    train_on(TEXTS, tmp_path / "parts", has_a_three, steps=2, **options)
    parts = train_on(TEXTS, tmp_path / "parts", has_a_three, steps=4, resume=True, **options)
    assert list(map(timeless, parts)) == list(map(timeless, whole))
    last = [tmp_path / run / "checkpoints" / "last" for run in ("whole", "parts")]
    files = sorted(path.relative_to(last[0]) for path in last[0].rglob("*/*.safetensors"))
    assert len(files) > 1
    for file in files:
        left, right = (load_file(folder / file) for folder in last)
        assert all(torch.equal(left[key], right[key]) for key in left), file
    assert ("critic/history_m" in whole[-1]) == ("history" in SWITCHES[name])
    assert ("critic/disagreement" in whole[-1]) == ("members" in SWITCHES[name])
    saved = last[0] / "critic"
    assert (saved / "model.safetensors").exists() == (name != "probe")  # a probe is its head alone
    # The same belief in an evaluation of the checkpoint as in the run itself.
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["calibration"]
    assert all(math.isfinite(row["mean_value"]) for row in summary["calibration"])


def test_a_pair_begins_apart_and_its_first_as_a_single_critic_does(tmp_path):
    single = train_on(TEXTS, tmp_path / "single", has_a_three, critic__learning_rate=1e-9, critic__prior=0.5)
    pair = train_on(TEXTS, tmp_path / "pair", has_a_three, critic__learning_rate=1e-9, critic__prior=0.5,
                    critic__members=2)  # fmt: skip
    assert single[0]["critic/value_mean"] == pytest.approx(0.5, abs=1e-6)
    assert 0.005 < pair[0]["critic/disagreement"] < 0.1  # half of a difference of V, .25 times one of logits
    weights = [load_file(tmp_path / run / "checkpoints" / "last" / "critic" / "model.safetensors") for run in
               ("single", "pair")]  # fmt: skip
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])


def test_history_learns_what_the_text_does_not_say(tmp_path):
    # One learning rate of next to nothing: V of the text stays, and history finds the prompts apart.
    lines = train_on(
        ["1+2=", "9-4="] * 40, tmp_path, lambda prompts, completions, **_: [float(p == "1+2=") for p in prompts],
        steps=6, critic__history=True, critic__learning_rate=1e-9, critic__prior=0.5,
    )  # fmt: skip
    assert lines[0]["critic/brier"] == pytest.approx(0.25, abs=1e-6)
    assert lines[-1]["critic/brier"] < 0.05
    assert lines[-1]["critic/brier_text"] == pytest.approx(0.25, abs=1e-6)


def test_known_rates_are_what_a_run_begins_with(tmp_path):
    rows = [{"prompt": text, "rate": 0.9 if text == "1+2=" else 0.1} for text in ("1+2=", "9-4=")] * 8
    sppo.train(
        model=tiny_qwen2(initializer_range=0.05), tokenizer=character_tokenizer(ALPHABET), reward=has_a_three,
        rows=rows, held_out_rows=[{"prompt": HELD_OUT}], output=str(tmp_path), steps=1, prompts_per_step=16,
        optimizer__minibatch_size=16, critic__minibatch_size=16, sampling__max_response_tokens=4,
        data__max_prompt_tokens=8, threads=1, device="cpu", critic__history=True, critic__prior=0.5,
        critic__known_rates="rate", critic__known_rates_worth=1e6, evaluation__final_samples_per_prompt=1,
    )  # fmt: skip
    (file,) = (tmp_path / "rollouts").glob("*1.jsonl*")
    import pandas

    records = pandas.read_json(file, lines=True, dtype=False)
    for text, value in zip(records["prompt"], records["value"], strict=True):
        # One eighth of the grid, m = 1e6, holds V to be worth as much as the rate.
        rate = 0.9 if text == "1+2=" else 0.1
        assert value == pytest.approx(rate * 7 / 8 + (rate + 0.5) / 16, abs=1e-3)
    assert read_metrics(tmp_path)[1]["critic/belief_worth_mean"] > 3


def test_history_alone_is_a_kind_of_its_own_that_a_group_algorithm_can_have(tmp_path):
    policy, tokenizer = tiny_qwen2(), character_tokenizer(ALPHABET)
    prompts = [Prompt("a", "1+1=", columns={"rate": 0.9}), Prompt("b", "1+2=", columns={"rate": 0.1})]
    owner = Owner(
        policy, tokenizer, ALGORITHMS["grpo"], OptimizerConfig(), SamplingConfig(), 8, prompts, False, training=prompts
    )
    config = CriticConfig(known_rates="rate", prior=0.3)

    def made(saved: Path | None) -> Critic:
        return build_critic("history", config, owner, saved=saved, rows=4, guard=StepGuard())

    critic = made(None)
    assert critic.optimizers == {}
    low, high, new = critic.beliefs([prompts[1], prompts[0], Prompt("c", "7-3=")]).mean
    assert 0.1 < low < 0.3 < high < 0.9
    assert new == pytest.approx(0.3)
    batch = collate([make_rollout("x", [3, 4], [5], text="1+2=") for _ in range(4)], [Verdict(1.0)] * 4)
    assert critic.values(batch).shape == (4, 1)
    metrics = critic.learn(batch, Estimates(batch.sampler_logprobs), Credit(torch.zeros(4, 1)), seed=0)
    assert metrics["critic/history_m"] > 0
    critic.save_pretrained(tmp_path / "critic")
    again = made(tmp_path / "critic")
    assert again.beliefs(prompts).mean.tolist() == critic.beliefs(prompts).mean.tolist()
    (tmp_path / "critic" / "history.safetensors").unlink()
    with pytest.raises(ModelError, match="without history"):
        made(tmp_path / "critic")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "prompt 'b' has no such column; it has: none"),
        ({"rate": 1.5}, "prompt 'b' that is 1.5"),
        ({"rate": math.nan}, "prompt 'b' that is nan"),
        ({"rate": "0.5"}, "prompt 'b' that is '0.5'"),
        ({"rate": None}, "prompt 'b' that is None"),
        ({"rate": True}, "prompt 'b' that is True"),
    ],
)
def test_a_rate_that_is_none_is_refused_by_row_and_value(columns, said):
    prompts = [Prompt("a", "1+1=", columns={"rate": 0}), Prompt("b", "1+2=", columns=columns)]
    with pytest.raises(DataError, match=said):
        known_rates(prompts, "rate")
    assert known_rates(prompts[:1], "rate").tolist() == [0.0]


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"history": True}, "token", "critic.history is true, which is for critics of prompts, .* a token critic"),
        ({"recalibrate": True}, None, "critic.recalibrate is true, .* this run has none"),
        ({"members": 2, "loss": "mse"}, "prompt", "critic.members is 2, .* critic.loss is mse"),
        ({"source": "probe", "loss": "mse"}, "prompt", "critic.source is probe, .* critic.loss is mse"),
        ({"source": "probe", "path": "x"}, "prompt", "critic.path is set.* Set critic.path to null"),
        ({"source": "probe", "config": {}}, "prompt", "critic.config is set"),
        ({"source": "probe", "members": 2}, "prompt", "two logistic regressions"),
        ({"known_rates": "rate"}, "prompt", "Set critic.history to true"),
        ({"source": "probe", "history": True}, "history", "source is probe, .* by past outcomes alone"),
        ({"members": 2}, "history", "members is 2, .* set selection.name to top and critic.history to true"),
        ({"known_rates": "rate"}, "tracker", "critic.known_rates is rate, .* a tracker critic"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(options, kind, said):
    with pytest.raises(ConfigError, match=said):
        check_critic(CriticConfig(**options), kind)


def test_what_can_be_is_taken():
    for options in SWITCHES.values():
        check_critic(CriticConfig(**options), "prompt")
    for kind in (None, "token", "tracker", "prompt", "history"):
        check_critic(CriticConfig(), kind)
    check_critic(CriticConfig(known_rates="rate"), "history")


def test_a_run_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"critic\.history is true, .* this run has none"):
        train_on(TEXTS, tmp_path, has_a_three, algorithm__name="grpo", sampling__samples_per_prompt=2,
                 critic__history=True)  # fmt: skip
    with pytest.raises(DataError, match=r"critic\.known_rates is rate, but prompt"):
        train_on(TEXTS, tmp_path, has_a_three, critic__history=True, critic__known_rates="rate")
