"""Trunks that can't be critics, or not with these options: told when the critic is built."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sppo.config import CriticConfig
from sppo.critics.checks import require_masking, require_readable
from sppo.critics.models import PromptCritic, make_value_model
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import DataError, ModelError
from sppo.models.tokenizers import character_tokenizer
from sppo.types import Prompt
from tests.conftest import tiny_qwen2

TOKENIZER = character_tokenizer(ALPHABET)
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 30, "pad_token_id": 1,
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}
XLNET = {"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
OPT = {"model_type": "opt", **SIZES, "ffn_dim": 32, "word_embed_proj_dim": 8}


def critic_of(settings: dict[str, Any], trust: bool = False, **options: Any) -> PromptCritic:
    config = CriticConfig(config=settings or None, **options)
    return make_value_model(
        PromptCritic, config, tiny_qwen2(), TOKENIZER, tokens_per_microbatch=4096, trust_remote_code=trust
    )


@pytest.mark.parametrize(
    ("model_type", "longest"),
    [("bert", 30), ("gpt2", 30), ("mpnet", 28), ("roberta", 28), ("xlm-roberta", 28), ("longformer", 28)],
)
def test_prompts_are_held_against_what_the_critic_reads_and_not_what_its_config_says(model_type, longest):
    more = {"attention_window": 8} if model_type == "longformer" else {}
    critic = critic_of({"model_type": model_type, **SIZES, **more})
    require_masking(critic)
    fitting = Prompt("fits", "1" * longest)
    require_readable(critic, [fitting])
    assert critic.values([fitting]).isfinite().all()
    message = rf"'long' has {longest + 1} tokens in the critic's tokenizer, but the critic reads 1 to {longest}\."
    with pytest.raises(DataError, match=message):
        require_readable(critic, [fitting, Prompt("long", "1" * (longest + 1))])


def test_an_empty_prompt_is_told_of_with_what_the_critic_reads():
    with pytest.raises(DataError, match="has 0 tokens in the critic's tokenizer, but the critic reads 1 to 128"):
        require_readable(critic_of({}), [Prompt("empty", "")])


def test_an_encoder_decoder_is_no_critic():
    with pytest.raises(ModelError, match=r"T5Model \(model_type t5\) can't be a critic, as it is an encoder-decoder.*"
                       r"Choose another trunk with --critic.path or --critic.config"):  # fmt: skip
        critic_of(T5)


@pytest.mark.parametrize("settings", [{"model_type": "albert", "embedding_size": 8, **SIZES}, XLNET])
def test_checkpointing_that_a_trunk_has_not_is_refused(settings):
    assert critic_of(settings).values([Prompt("x", "1+1=")]).item() == 0.5
    with pytest.raises(ModelError, match=r"critic.gradient_checkpointing is on, but.*does not support.*"
                       r"Set --critic.gradient_checkpointing false"):  # fmt: skip
        critic_of(settings, gradient_checkpointing=True)


def test_a_trunk_that_mixes_padding_in_is_no_critic():
    critic = critic_of({"model_type": "fnet", **SIZES})
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("short", "7="), Prompt("long", "1+1-1+1-1+1=")]
    assert abs(critic.values(prompts)[0] - critic.values(prompts[:1])[0]) > 0.01, "V depends on its neighbour"
    with pytest.raises(ModelError, match=r"The critic's trunk, FNetModel .*sees the padding behind a prompt"):
        require_masking(critic)


def test_a_trunk_whose_states_are_narrower_than_its_hidden_size(tmp_path):
    critic = critic_of(OPT)
    assert critic.head.in_features == 8
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    critic.save_pretrained(tmp_path)
    prompts = [Prompt("x", "1+1=")]
    assert torch.equal(PromptCritic.from_pretrained(tmp_path).values(prompts), critic.values(prompts))


CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel

Path({witness!r}).write_text("ran")

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def custom(tmp_path):
    """A folder whose model is Python code of its own, and the file that this code writes when it runs."""
    folder, witness = tmp_path / "custom", tmp_path / "witness"
    model = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=40, **SIZES))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "own-bert", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(CODE.format(witness=str(witness)))
    return folder, witness


def test_a_critics_own_code_runs_where_the_command_line_says_so_alone(custom, tmp_path):
    folder, witness = custom
    with pytest.raises(ModelError, match=r"^critic.path .* set --model.trust_remote_code true\.$"):
        critic_of({}, path=str(folder))
    assert not witness.exists()
    critic = critic_of({}, trust=True, path=str(folder))
    assert type(critic.trunk).__name__ == "OwnModel"
    assert witness.read_text() == "ran"
    witness.unlink()
    critic.save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match=r"set --model\.trust_remote_code true"):
        PromptCritic.from_pretrained(tmp_path / "saved")
    assert not witness.exists()
    prompts = [Prompt("x", "1+1=")]
    loaded = PromptCritic.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(loaded.values(prompts), critic.values(prompts))
