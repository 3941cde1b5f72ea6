"""What only a GPU can show: run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sppo.commands.train import train
from sppo.config import EngineConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.checks import readable_tokens, trunk_outputs
from sppo.models.logprobs import response_logprobs
from sppo.models.packing import TokenRow
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.engines import build_engine
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records
from sppo.types import as_token_ids
from tests.conftest import make_rollouts, tiny_config, tiny_qwen2
from tests.rollouts.with_vllm import LONG_PROMPTS, gap, moved, sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("layout", ["sorted", "packed"])
def test_logprobs_and_gradients_in_bfloat16_are_near_those_in_float32(layout):
    rows = [TokenRow(r.prompt_token_ids, r.completion.token_ids) for r in make_rollouts(6)[0]]
    width = max(len(row.response) for row in rows)
    results, gradients = [], []
    for device in ("cpu", "cuda"):
        model = tiny_qwen2(hidden_size=64, initializer_range=0.05).to(device)
        said = response_logprobs(model, rows, width=width, temperature=0.6, chunk=5, layout=layout).logprobs
        said.mean().backward()
        results.append(said.detach().cpu())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    assert (results[0] - results[1]).abs().max() < 0.05
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_a_critic_that_reads_less_than_its_config_says_leaves_the_gpu_alive():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("roberta", vocab_size=40, max_position_embeddings=30, pad_token_id=1, **sizes)
    trunk = AutoModel.from_config(config).eval().cuda()
    assert readable_tokens(trunk, trunk_outputs(trunk), 30) == 28
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_a_whole_run_on_the_gpu_resumes(tmp_path):
    changes = {"device": "cuda", "algorithm__old_logprobs": "trainer"}
    train(tiny_config(tmp_path / "run", steps=2, **changes))
    summary = train(tiny_config(tmp_path / "run", steps=4, **changes), resume=True)
    assert summary["steps"] == 4
    assert summary["skipped_optimizer_steps"] == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    # bfloat16 rounds differently in the cached and the whole forward pass; more would be a defect.
    assert all(line["sampler/logprob_gap_mean"] < 0.05 for line in lines[1:])
    assert len(list(read_records(tmp_path / "run"))) == 64
    assert (
        json.loads((tmp_path / "run" / "summary.json").read_text())["versions"]["device"]
        == torch.cuda.get_device_name()
    )


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_an_adapter_learns_on_the_gpu_and_goes_on(tmp_path, quantize):
    if quantize == "4bit":
        pytest.importorskip("bitsandbytes")
    tokenizer = character_tokenizer(ALPHABET)
    tiny_qwen2(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    changes = {
        "device": "cuda", "algorithm__old_logprobs": "trainer", "algorithm__kl_coefficient": 0.1,
        "model__path": str(tmp_path / "base"), "model__config": None, "model__tokenizer": None, "model__lora__rank": 4,
        "model__lora__quantize": quantize, "optimizer__learning_rate": 1e-2,
    }  # fmt: skip
    train(tiny_config(tmp_path / "run", steps=2, **changes))
    assert train(tiny_config(tmp_path / "run", steps=4, **changes), resume=True)["steps"] == 4
    lines = read_metrics(tmp_path / "run")[1:]
    assert all(line["sampler/logprob_gap_mean"] < 0.05 for line in lines)
    assert abs(lines[0]["policy/kl_to_reference"]) < 1e-6 < lines[-1]["policy/kl_to_reference"]
    assert not (tmp_path / "run" / "reference").exists()


def test_sampling_takes_no_attention_that_makes_a_plan_for_each_length(monkeypatch):
    engine = HFEngine(tiny_qwen2().to("cuda"))
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def listening(*args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listening)
    engine.generate([as_token_ids([3, 4, 5])], SamplingParameters(max_tokens=4), seeds=[1])
    assert seen
    assert not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_engine_vllm_gives_its_memory_back_and_wakes_with_the_policys_weights():
    pytest.importorskip("vllm", reason="needs vLLM")
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.05}
    model = tiny_qwen2(**sizes).to("cuda")
    config = EngineConfig(name="vllm", options={"memory_share": 0.2})
    with closing(build_engine(model, config, max_tokens=400, memory_share=0.5)) as engine:
        free = torch.cuda.mem_get_info()[0]
        before = []
        for version in (1, 2):
            with engine.awake():
                assert torch.cuda.mem_get_info()[0] < free - 2**30
                completions = engine.generate(LONG_PROMPTS, sampling(temperature=0.6), seeds=range(4))
            assert torch.cuda.mem_get_info()[0] > free - 2**28
            # bfloat16 on both sides.
            assert gap(model, LONG_PROMPTS, completions, 0.6) < 0.25
            assert not before or gap(model, LONG_PROMPTS, before, 0.6) > 0.5, "the update is seen"
            before = completions
            engine.load_weights(moved(model, version), version)
