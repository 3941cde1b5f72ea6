"""A run with an engine that has weights of its own is the run with one that shares the trainer's."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pandas
import pytest
import torch
from safetensors.torch import load_file

from sppo.commands.calibrate import calibrate
from sppo.commands.evaluate import evaluate_run
from sppo.commands.train import fine_tune, train
from sppo.config import EngineConfig
from sppo.config.compatibility import Written, config_differences
from sppo.config.evaluation import evaluation_config
from sppo.config.ranges import AtLeastOne, Section
from sppo.errors import ConfigError
from sppo.rollouts.engines import ENGINES, EngineKind, build_engine, engine_options
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.vllm_options import VllmOptions
from sppo.rollouts.sample import sample
from sppo.runs.folder import read_metrics
from sppo.training.build import build, check
from sppo.training.given import Given
from sppo.types import Prompt
from tests.conftest import tiny_config, tiny_qwen2
from tests.training.copying import COPYING, CopyingEngine
from tests.training.test_loop import likes_threes

SFT = {"demonstrations": "full", "steps": 25, "batch_size": 16, "learning_rate": 3e-3}
SETTINGS = {
    "steps": 4, "algorithm.old_logprobs": "trainer", "evaluation.every": 1, "optimizer.learning_rate": 1e-3,
    "sft.phases": [{**SFT, "stop_at_accuracy": 0.9}, SFT],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _copying(monkeypatch):
    monkeypatch.setitem(ENGINES, "copying", COPYING)
    monkeypatch.setattr("sppo.update.sft.CHECK_EVERY", 10)
    monkeypatch.setattr(CopyingEngine, "made", [])


def left_by(folder):
    """Weights, metrics, the accuracies of the summary, and records."""
    weights = {
        f"{part}.{name}": tensor
        for part in ("policy/model", "critic/model")
        for name, tensor in load_file(folder / "checkpoints" / "last" / f"{part}.safetensors").items()
    }
    metrics = [
        {name: value for name, value in line.items() if not name.startswith(("time/", "throughput/"))}
        for line in read_metrics(folder)
    ]
    summary = json.loads((folder / "summary.json").read_text())
    records = [pandas.read_json(path, lines=True) for path in sorted((folder / "rollouts").iterdir())]
    return weights, metrics, {key: summary[key] for key in summary if "accuracy" in key}, pandas.concat(records)


def test_a_run_with_weights_of_its_own_is_the_run_with_the_trainers(tmp_path):
    for name, engine in (("shared", "hf"), ("copied", "copying")):
        config = tiny_config(tmp_path / name, **SETTINGS, engine__name=engine)
        given = Given(reward_function=likes_threes)
        train(replace(config, steps=2), given)
        train(config, given, resume=True)
    shared, copied = left_by(tmp_path / "shared"), left_by(tmp_path / "copied")
    assert shared[0].keys() == copied[0].keys()
    for name, tensor in shared[0].items():
        assert torch.equal(copied[0][name], tensor), name
    assert copied[1:3] == shared[1:3]
    pandas.testing.assert_frame_equal(copied[3], shared[3])
    assert 0 < copied[2]["accuracy_before"] < 1
    gaps = [line["sampler/logprob_gap_max"] for line in copied[1] if "sampler/logprob_gap_max" in line]
    assert len(gaps) == 4
    assert max(gaps) < 1e-5
    # 50 steps of fine-tuning, checked and handed over at each tenth of the first 25; two optimiser steps a step.
    first, second = CopyingEngine.made
    assert first.loaded == [10, 20, 25, 50, 52, 54]
    assert second.loaded == [54, 56, 58]
    assert [*dict.fromkeys(copied[3]["policy_version"])] == [50, 52, 54, 56]


def test_offline_samples_of_the_reference_leave_such_an_engine_with_the_policy(tmp_path):
    settings = {**SETTINGS, "steps": 3, "optimizer.learning_rate": 1e-2, "sft.phases": [SFT]}
    for name, engine in (("shared", "hf"), ("copied", "copying")):
        config = tiny_config(tmp_path / name, **settings, engine__name=engine, algorithm__name="astar_po")
        train(config, Given(reward_function=likes_threes))
    shared, copied = (read_metrics(tmp_path / name) for name in ("shared", "copied"))
    same = ("reward/mean", "critic/optimal_value_mean", "policy/loss", "policy/kl_to_reference", "eval/accuracy")
    for name in same:
        assert [line.get(name) for line in shared] == [line.get(name) for line in copied], name
    assert shared[-1]["policy/kl_to_reference"] > 1e-3
    # The reference for each step's new prompts, and back to the policy, which then learns.
    assert CopyingEngine.made[0].loaded == [25, -1, 25, 27, -1, 27, 29, -1, 29, 31]


def test_fine_tuning_alone_measures_what_it_made(tmp_path):
    options = {"sft.phases": [SFT]}
    before, after = (
        fine_tune(tiny_config(tmp_path / name, **options, engine__name=name)) for name in ("hf", "copying")
    )
    assert after["accuracy_after"] == before["accuracy_after"]
    assert CopyingEngine.made[0].loaded == [25]


def test_evaluation_and_calibration_take_any_engine(tmp_path):
    train(tiny_config(tmp_path / "run", steps=1, engine__name="copying"))
    config, _ = evaluation_config(str(tmp_path / "run"), None, ())
    assert evaluate_run(str(tmp_path / "run"), config)["prompts"] == 20
    assert calibrate(str(tmp_path / "run"), config, prompts=4, samples_per_prompt=2)["samples_per_prompt"] == 2
    assert [engine.loaded for engine in CopyingEngine.made] == [[2], [], []]


def test_a_policy_that_rests_while_its_critic_is_fitted_stays_the_version_that_it_is(tmp_path):
    config = tiny_config(tmp_path / "run", engine__name="copying", critic__prefit__samples=32)
    train(config)
    assert CopyingEngine.made[0].loaded == [2, 4, 6]
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())
    assert state["optimizer_steps"] == {"critic": 10, "policy": 6}


def test_an_engine_with_another_version_of_the_policy_is_refused(tokenizer):
    model = tiny_qwen2()
    engine = build_engine(model, EngineConfig(name="copying"), max_tokens=8, memory_share=0.5)
    options = {"samples_per_prompt": 1, "seeds": [0]}
    with engine.awake():
        assert sample(engine, [Prompt("a", "1=")], tokenizer, SamplingParameters(4), **options, version=0)
    engine.load_weights(model, 3)
    for version in (0, 4):
        with pytest.raises(AssertionError, match=f"the engine has version 3 of the policy, asked for {version}"):
            sample(engine, [Prompt("a", "1=")], tokenizer, SamplingParameters(4), **options, version=version)


@dataclass(frozen=True)
class BlockOptions(Section):
    """Options of an engine of the tests."""

    block_size: AtLeastOne = 16
    """Tokens a block."""


def test_an_engine_is_built_with_what_it_has_to_hold(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "copying", EngineKind(CopyingEngine, BlockOptions))
    config = tiny_config(
        tmp_path / "run", engine__name="copying", engine__max_rows=7, engine__options={"block_size": 32},
        data__max_prompt_tokens=20, evaluation__data__max_prompt_tokens=24,
    )  # fmt: skip
    build(check(config, Given()), Given())
    setup = CopyingEngine.made[0].setup
    assert (setup.max_rows, setup.max_tokens, setup.dtype) == (7, 24 + 8, torch.float32)
    assert setup.options == BlockOptions(32)
    assert 0 < setup.memory_share < 0.9
    assert engine_options(EngineConfig(name="copying")) == BlockOptions()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"name": "hff"}, r"engine.name is 'hff', which is no engine. Did you mean 'hf'"),
        ({"name": "hf", "options": {"block_size": 32}}, r"engine.options.block_size is no option of engine hf, .*none"),
        ({"name": "own", "options": {"block": 32}}, r"engine.options.block is no option of engine own, .*block_size"),
        ({"name": "own", "options": {"block_size": 0}}, r"engine.options.block_size is 0"),
        ({"name": "far"}, r"engine.name is far, but not_here is not installed: pip install 'sppo\[not_here\]', or use"),
    ],
)
def test_an_engines_own_options_are_checked_before_anything_is_loaded(tmp_path, monkeypatch, engine, message):
    monkeypatch.setitem(ENGINES, "own", EngineKind(CopyingEngine, BlockOptions))
    monkeypatch.setitem(ENGINES, "far", EngineKind(CopyingEngine, package="not_here"))
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(tmp_path / "run", engine=engine))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_share": 0}, r"engine.options.memory_share is 0, but must be in \(0, 1\]"),
        ({"memory_share": 1.5}, r"engine.options.memory_share is 1.5, but must be in \(0, 1\]"),
        ({"eager": "yes"}, r"engine.options.eager is 'yes', but must be true or false"),
        (
            {"gpu_memory_utilization": 0.5},
            r"gpu_memory_utilization is no option of engine vllm, .*: memory_share",
        ),
    ],
)
def test_options_of_engine_vllm_are_checked(monkeypatch, options, message):
    # As if it were installed, which it is in an environment of its own.
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], package=None))
    assert engine_options(EngineConfig(name="vllm", options={"memory_share": 0.4})) == VllmOptions(0.4)
    with pytest.raises(ConfigError, match=message):
        engine_options(EngineConfig(name="vllm", options=options))


def test_a_temperature_that_the_engine_has_not_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], package=None))
    for key, value in (("sampling__temperature", 3.0), ("evaluation__temperature", 0.001)):
        with pytest.raises(ConfigError, match=rf"is {value:g}, but vLLM samples at 0, or from 0.01 to 2"):
            train(tiny_config(tmp_path / "run", engine__name="vllm", **{key: value}))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_may_change_an_engines_options_but_not_the_engine(tmp_path):
    config = tiny_config(tmp_path / "run")
    old = Written(config, "0.3.0", {})
    assert not config_differences(old, replace(config, engine=EngineConfig(options={"memory_share": 0.4})))
    assert config_differences(old, replace(config, engine=EngineConfig(name="vllm"))) == ["engine.name: 'hf' -> 'vllm'"]
