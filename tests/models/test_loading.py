"""Weights that are loaded lie where torch puts them, so that a CPU rounds as it did."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from sppo.config import CriticConfig, ModelConfig
from sppo.critics.models import PromptCritic, make_value_model
from sppo.errors import ModelError
from sppo.models.loading import align, freeze, frozen_names, load_policy, pick_device
from tests.conftest import tiny_qwen2


def addresses(model: torch.nn.Module) -> set[int]:
    return {weight.data_ptr() % 64 for weight in model.parameters()}


def test_loaded_weights_lie_at_torchs_own_addresses(tmp_path, tokenizer):
    assert addresses(tiny_qwen2()) == {0}
    for number in range(4):
        # Another header, another address: this one's is as long as the text.
        folder = tmp_path / str(number)
        tiny_qwen2().save_pretrained(folder)
        file = folder / "model.safetensors"
        save_file(load_file(file), file, metadata={"format": "pt", "text": "." * 8 * number})
        policy = load_policy(ModelConfig(path=str(folder)), tokenizer, torch.device("cpu"))
        assert addresses(policy) == {0}
        config = CriticConfig(path=str(folder), tokenizer=None)
        tokenizer.save_pretrained(folder)
        critic = make_value_model(PromptCritic, config, policy, tokenizer, tokens_per_microbatch=1024)
        assert addresses(critic) == {0}
        critic.save_pretrained(folder / "critic")
        assert addresses(PromptCritic.from_pretrained(folder / "critic")) == {0}


def test_weights_that_are_moved_stay_what_they_are():
    model = tiny_qwen2(tie_word_embeddings=True)
    mapped = torch.zeros(model.lm_head.weight.numel() + 2)[2:].view_as(model.lm_head.weight)
    mapped.copy_(model.lm_head.weight.detach())
    model.lm_head.weight.data = mapped
    assert addresses(model) == {0, 8}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    align(model)
    assert addresses(model) == {0}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_rests_is_named_and_rests_again():
    model = tiny_qwen2()
    assert frozen_names(model) == []
    freeze(model, ["model.norm.weight", "lm_head.weight"])
    assert frozen_names(model) == ["model.norm.weight", "lm_head.weight"]
    freeze(model, [])
    assert frozen_names(model) == []


def test_devices_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(ModelError, match=r"device is mps, but torch sees no Apple GPU here\. Use --device cpu"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps").type == "mps"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr("sppo.models.loading.ranks.world_size", lambda: 2)
    with pytest.raises(ModelError, match="device is mps, which runs in one process"):
        pick_device("mps")
