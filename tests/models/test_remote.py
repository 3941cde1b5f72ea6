"""Code that comes with models runs where it is allowed alone, and nobody is asked."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sppo.config import CriticConfig, ModelConfig
from sppo.config.lora import LoraConfig
from sppo.critics.models import PromptCritic, make_value_model
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ModelError
from sppo.models.loading import load_model_config, load_policy, load_pretrained
from sppo.models.remote import is_remote, load_architecture
from sppo.models.scoring import load_classifier
from sppo.models.tokenizers import character_tokenizer
from sppo.training.build.fitting import _counted
from tests.conftest import tiny_qwen2
from tests.critics.test_checks import custom  # noqa: F401 - a fixture
from tests.runs.test_generators import Evil

KERNEL = "somebody/their-kernel"
TOKENIZER = character_tokenizer(ALPHABET)
REFUSED = rf"names {KERNEL} as its attention .*runs only with trust_remote_code"


@pytest.fixture
def with_kernel(tmp_path):
    tiny_qwen2().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(said | {"_attn_implementation": KERNEL}))
    return str(tmp_path / "model")


def test_a_kernel_of_the_hub_that_a_model_names_is_code(with_kernel):
    cpu, settings = torch.device("cpu"), {**tiny_qwen2().config.to_dict(), "_attn_implementation": KERNEL}
    critic = {"policy": tiny_qwen2(), "policy_tokenizer": TOKENIZER, "tokens_per_microbatch": 64}
    for load in (
        lambda: load_model_config(ModelConfig(path=with_kernel)),
        lambda: load_policy(ModelConfig(path=with_kernel), TOKENIZER, cpu),
        lambda: load_pretrained(AutoModel, with_kernel, False),
        lambda: load_classifier(with_kernel, "verification.reward_model.path", "cpu", 64, False),
        lambda: load_policy(ModelConfig(config=settings), TOKENIZER, cpu),
        lambda: make_value_model(PromptCritic, CriticConfig(path=with_kernel), **critic),
        lambda: make_value_model(PromptCritic, CriticConfig(config=settings), **critic),
    ):
        with pytest.raises(ModelError, match=REFUSED):
            load()
    assert load_architecture(with_kernel, True)._attn_implementation == KERNEL


def test_nobody_is_asked_for_code_that_is_allowed_or_is_not(custom, monkeypatch, tmp_path):  # noqa: F811
    folder, witness = custom
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_architecture(folder, False)
    assert not witness.exists()
    architecture = load_architecture(folder, True)
    assert is_remote(architecture)
    # Counted for a plan, and never asked about again.
    assert _counted(architecture, AutoModel, LoraConfig(), "critic").parameters
    settings = {
        "model_type": "bert",
        "auto_map": {"AutoModelForCausalLM": f"{folder}--own.OwnModel"},
        "hidden_size": 16,
    }
    settings |= {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16, "is_decoder": True}
    witness.unlink()
    load_policy(ModelConfig(config=settings), TOKENIZER, torch.device("cpu"))
    assert not witness.exists()


def test_a_models_own_attention_is_none_of_it():
    assert AutoModelForCausalLM.from_config(tiny_qwen2().config).config._attn_implementation == "sdpa"
    assert load_policy(
        ModelConfig(config=tiny_qwen2().config.to_dict(), attention="eager"), TOKENIZER, torch.device("cpu")
    )


def test_pickled_weights_run_nothing(tmp_path):
    model = tiny_qwen2()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_policy(ModelConfig(path=str(tmp_path)), TOKENIZER, torch.device("cpu"))
    torch.save({**model.state_dict(), "x": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_policy(ModelConfig(path=str(tmp_path)), TOKENIZER, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()
