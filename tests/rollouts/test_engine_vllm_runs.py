"""Engine "vllm" as it starts, as it fails, and in runs; with the real vLLM, as in `test_engine_vllm.py`."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sppo.commands.evaluate import evaluate_run
from sppo.commands.train import train
from sppo.config.evaluation import evaluation_config
from sppo.errors import ConfigError, ModelError, TrainingError
from sppo.models.adapters import plain_weights
from sppo.rollouts.engines import vllm_process
from sppo.rollouts.engines.vllm import VllmEngine
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from sppo.training.given import Given
from tests.conftest import tiny_config, tiny_qwen2
from tests.models.zoo import tiny_model
from tests.rollouts.with_vllm import (
    EXACT,
    LONG_PROMPTS,
    PROMPTS,
    SIZES,
    engine_of,
    gap,
    moved,
    needs_vllm,
    rows,
    sampled,
    sampling,
)
from tests.training.test_loop import likes_threes

pytestmark = needs_vllm


def test_a_failure_ends_the_engine_with_its_last_words(monkeypatch):
    model = tiny_qwen2(**SIZES)
    engine = engine_of(model)

    def breaks(policy):
        yield from list(plain_weights(policy))[:3]
        raise RuntimeError("many lines\nof which these\nare the last\nthree")

    with monkeypatch.context() as patch:
        patch.setattr(vllm_process, "plain_weights", breaks)
        last = "failed while taking over the weights: RuntimeError: of which these are the last three. .*--resume"
        with pytest.raises(TrainingError, match=last):
            engine.load_weights(model, 1)
    for again in (lambda: engine.load_weights(model, 2), lambda: sampled(engine, PROMPTS, sampling())):
        with pytest.raises(TrainingError, match="not used again after it failed while taking over"):
            again()
    engine.close()
    engine.close()


def heads_of_8() -> PreTrainedModel:
    return tiny_qwen2()


def doubled() -> PreTrainedModel:
    """A model with logits that its config says nothing of."""
    model = tiny_qwen2(**SIZES)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (heads_of_8, r"can't sample from Qwen2ForCausalLM \(model_type qwen2\): RuntimeError: .*head_dim=8"),
        (doubled, r"computes something else than Qwen2ForCausalLM .* differ by up to [0-9.]+ nats.*--engine.name hf"),
    ],
)
def test_a_model_that_vllm_can_not_be_trusted_with_is_refused(make: Callable[[], PreTrainedModel], message):
    with pytest.raises(ModelError, match=message):
        engine_of(make())


WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
OTHERS = {
    "llama": {"head_dim": 32},
    "gpt2": {},
    # Tied, and vLLM's has no lm_head and refuses a weight of that name. On a CPU it caps attention by an approximation
    # that is 0.01 nats off with weights such as these: here the cap is out of reach, and they are smaller.
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 1e4, "initializer_range": 0.05},
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures_are_given_their_weights(model_type):
    model = tiny_model(model_type, **WIDE, **OTHERS[model_type])
    with closing(engine_of(model)) as engine:
        before = sampled(engine, LONG_PROMPTS, sampling())
        engine.load_weights(moved(model), 1)
        assert gap(model, LONG_PROMPTS, sampled(engine, LONG_PROMPTS, sampling()), 1.0) < 1e-3
        assert gap(model, LONG_PROMPTS, before, 1.0) > 0.5


def test_weights_by_other_names_than_a_checkpoints_are_refused():
    with pytest.raises(ModelError, match=r"Engine vllm can't run MixtralForCausalLM .*Or use --engine.name hf"):
        engine_of(tiny_model("mixtral", **WIDE, head_dim=32))


def test_a_model_of_a_short_context_bounds_the_rows(tmp_path):
    with closing(engine_of(tiny_qwen2(**{**SIZES, "max_position_embeddings": 64}), max_rows=3)) as engine:
        with pytest.raises(ConfigError, match=r"together 70, more than the 64 tokens of the model's context"):
            sampled(engine, rows(range(2, 12)), sampling(60))
        # More rows than are decoded at one time.
        assert len(sampled(engine, rows(range(2, 12)) * 8, sampling(54))) == 8


def test_nothing_is_left_behind():
    model = tiny_qwen2(**SIZES)
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    engine = engine_of(model)
    sampled(engine, PROMPTS, sampling())
    engine.load_weights(model, 1)
    folder = engine._folder.name
    assert os.path.exists(folder)
    engine.close()
    assert torch.set_num_threads is setter
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert not torch.distributed.is_initialized()
    assert not os.path.exists(folder)


def test_an_engine_that_nobody_closed_makes_room_for_the_next():
    left, model = engine_of(tiny_qwen2(**SIZES, seed=3)), tiny_qwen2(**SIZES)
    with closing(engine_of(model)) as engine:
        for use in (lambda: sampled(left, PROMPTS, sampling()), lambda: left.load_weights(model, 1)):
            with pytest.raises(AssertionError, match="the engine is closed"):
                use()
        left.close()
        assert gap(model, PROMPTS, sampled(engine, PROMPTS, sampling()), 1.0) < EXACT


def test_a_sharded_policy_on_a_rank(monkeypatch):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    plain, sharded = tiny_qwen2(**SIZES), tiny_qwen2(**SIZES)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for layer in sharded.model.layers:
            fully_shard(layer)
        fully_shard(sharded)
        with closing(engine_of(sharded)) as engine:
            assert all(isinstance(weight, DTensor) for weight in sharded.parameters())
            assert sampled(engine, [], sampling()) == []
            for model in (plain, sharded):
                with torch.no_grad():
                    model.lm_head.weight.mul_(1.5)
                    model.model.layers[0].mlp.up_proj.weight.mul_(0.5)
            engine.load_weights(sharded, 1)
            assert gap(plain, PROMPTS, sampled(engine, PROMPTS, sampling()), 1.0) < EXACT
        assert dist.is_initialized(), "the ranks go on without the engine"
    finally:
        # vLLM's too, which would outlive those of this test.
        importlib.import_module("vllm.distributed.parallel_state").destroy_distributed_environment()


RUN = {
    "engine__name": "vllm", "algorithm__old_logprobs": "trainer", "model.config.hidden_size": 64,
    "model.config.num_attention_heads": 2, "model.config.num_key_value_heads": 2,
}  # fmt: skip


def test_a_run_of_sppo_resumes_and_is_measured(tmp_path):
    config = tiny_config(tmp_path / "run", **RUN)
    given = Given(reward_function=likes_threes)
    train(replace(config, steps=2), given)
    summary = train(config, given, resume=True)
    assert summary["steps"] == 3
    assert "vllm" in summary["versions"]
    gaps = [line["sampler/logprob_gap_max"] for line in read_metrics(tmp_path / "run")[1:]]
    assert len(gaps) == 3
    assert max(gaps) < EXACT
    whole = tiny_config(tmp_path / "whole", **RUN)
    train(whole, given)
    texts, again = ([record["response"] for record in read_records(tmp_path / name)] for name in ("run", "whole"))
    assert texts == again
    evaluated, _ = evaluation_config(str(tmp_path / "run"), None, ())
    measured = evaluate_run(str(tmp_path / "run"), evaluated, reward_function=likes_threes)
    assert measured["prompts"] == 20


def test_a_run_whose_engine_dies_goes_on(tmp_path, monkeypatch):
    given = Given(reward_function=likes_threes)
    config = tiny_config(tmp_path / "run", **RUN)
    real = VllmEngine._reload
    versions: list[int] = []

    def dies(self: VllmEngine) -> None:
        versions.append(self.version)
        if self.version == 4:
            raise RuntimeError("out of luck")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(VllmEngine, "_reload", dies)
        with pytest.raises(
            TrainingError, match=r"taking over the weights: RuntimeError: out of luck. The run ends here"
        ):
            train(config, given)
    assert versions == [0, 2, 4]
    assert train(config, given, resume=True)["steps"] == 3
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]
