"""QLoRA from loading to resuming, where bitsandbytes is installed: on a CPU, which runs otherwise refuse."""

from __future__ import annotations

import pytest
import torch

from sppo.commands.train import train
from sppo.config import ModelConfig
from sppo.config.lora import LoraConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ModelError
from sppo.models.adapters import adapt, plain_weights
from sppo.models.checks import adds_nothing
from sppo.models.loading import load_policy
from sppo.models.tokenizers import character_tokenizer
from sppo.training.build import checks
from tests.conftest import tiny_config, tiny_qwen2
from tests.training.test_adapters_in_runs import assert_same, tensors

modules = pytest.importorskip("bitsandbytes.nn.modules")
FOUR = LoraConfig(rank=4, quantize="4bit")


@pytest.fixture
def pretrained(tmp_path, monkeypatch):
    monkeypatch.setattr("sppo.models.quantization.require_quantization", lambda *arguments: None)
    monkeypatch.setattr(checks, "require_quantization", lambda *arguments: None)
    # Some CPUs pack the weights for inference when a model is in eval mode, and have no gradient from then on.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    tokenizer = character_tokenizer(ALPHABET)
    tiny_qwen2(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_layers_rest_in_four_bits_and_the_adapter_learns_in_float32(pretrained, tokenizer):
    policy = load_policy(ModelConfig(path=pretrained, lora=FOUR), tokenizer, torch.device("cpu"))
    adapt(policy, FOUR, pretrained, "model")
    layer = policy.model.layers[0].mlp.up_proj
    assert isinstance(layer.base_layer, modules.Linear4bit)
    assert layer.base_layer.weight.dtype == torch.uint8
    assert {weight.dtype for weight in policy.parameters() if weight.requires_grad} == {torch.float32}
    assert policy.lm_head.weight.dtype == torch.float32
    assert adds_nothing(policy)
    with pytest.raises(ModelError, match=r"held in 4 bits, and this engine needs them whole: .* engine\.name to hf"):
        next(plain_weights(policy))


def test_a_run_goes_on_as_it_would_have(pretrained, tmp_path):
    options = {
        "model__path": pretrained, "model__config": None, "model__tokenizer": None, "model__lora__rank": 4,
        "model__lora__quantize": "4bit", "optimizer__learning_rate": 1e-2, "algorithm__kl_coefficient": 0.1,
        "algorithm__old_logprobs": "trainer", "evaluation__every": 0,
    }  # fmt: skip
    train(tiny_config(tmp_path / "whole", steps=4, **options))
    train(tiny_config(tmp_path / "parts", steps=2, **options))
    train(tiny_config(tmp_path / "parts", steps=4, **options), resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert max(float(value.abs().max()) for name, value in tensors(tmp_path / "whole").items() if "lora_B" in name) > 0
