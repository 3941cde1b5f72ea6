from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sppo.config import CriticConfig
from sppo.critics.models import PromptCritic, make_value_model
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ModelError
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.encode import encode_many
from sppo.types import Prompt
from tests.conftest import tiny_qwen2

PROMPTS = [Prompt(str(i), text) for i, text in enumerate(["1+1=", "2+3-1+2=", "7=", "1+1="])]
TOKENIZER = character_tokenizer(ALPHABET)


def critic_of(config: CriticConfig) -> PromptCritic:
    return make_value_model(PromptCritic, config, tiny_qwen2(), TOKENIZER, tokens_per_microbatch=16384)


def excite(critic: PromptCritic) -> PromptCritic:
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    return critic


def test_a_new_critic_says_the_prior_for_every_prompt():
    critic = critic_of(CriticConfig())
    critic.set_prior(0.3)
    assert critic.values(PROMPTS).flatten().tolist() == pytest.approx([0.3] * 4, rel=1e-6)


def test_a_prior_of_zero_or_one_stays_finite():
    critic = critic_of(CriticConfig())
    critic.set_prior(0.0)
    assert critic.values(PROMPTS)[0].item() == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_last_prompt_token_is_found_by_index_whatever_the_padding(padding_side):
    critic = excite(critic_of(CriticConfig()))
    critic.tokenizer.padding_side = padding_side
    together = critic.values(PROMPTS)
    alone = torch.cat([critic.values([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)
    hidden = critic.trunk(torch.tensor(encode_many(PROMPTS[1:2], critic.tokenizer)[0])[None]).last_hidden_state[0, -1]
    assert critic.values(PROMPTS[1:2]).item() == pytest.approx(critic.head(hidden).sigmoid().item(), rel=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_any_trunk_can_be_a_critic(model_type):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    critic = excite(critic_of(CriticConfig(config={"model_type": model_type, **sizes})))
    together = critic.values(PROMPTS)
    alone = torch.cat([critic.values([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_critic_has_its_own_tokenizer(tmp_path):
    own = character_tokenizer("=+-0123456789")
    own.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    critic = critic_of(CriticConfig(config={"model_type": "llama", **sizes}, tokenizer=str(tmp_path)))
    assert critic.trunk.get_input_embeddings().weight.shape[0] == len(own) == 15
    assert encode_many(PROMPTS[2:3], critic.tokenizer)[0].tolist() == own("7=")["input_ids"]


def test_the_default_critic_is_a_copy_of_the_policy_and_shares_nothing():
    policy = tiny_qwen2()
    critic = make_value_model(PromptCritic, CriticConfig(), policy, TOKENIZER, tokens_per_microbatch=16384)
    ours, theirs = critic.trunk.get_input_embeddings().weight, policy.get_input_embeddings().weight
    assert torch.equal(ours, theirs)
    assert ours.data_ptr() != theirs.data_ptr()


def test_saved_and_loaded_again_bit_for_bit(tmp_path):
    critic = excite(critic_of(CriticConfig()))
    critic.set_prior(0.2)
    critic.save_pretrained(tmp_path)
    loaded = PromptCritic.from_pretrained(tmp_path)
    assert torch.equal(critic.values(PROMPTS), loaded.values(PROMPTS))
    trunk = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(trunk.get_input_embeddings().weight, critic.trunk.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CriticConfig(path="no/such/critic"), "critic.path 'no/such/critic' can't be loaded"),
        (CriticConfig(config={"hidden_size": 8}), "critic.config has no model_type"),
        (CriticConfig(config={"model_type": "quen2"}), "critic.config makes no 'quen2' model"),
        (
            CriticConfig(config={"model_type": "llama", "vocab_size": 7, "hidden_size": 8, "num_attention_heads": 2}),
            "tokenizer has 40 tokens, but the critic embeds only 7",
        ),
    ],
)
def test_a_critic_that_cannot_be(config, message):
    with pytest.raises(ModelError, match=message):
        critic_of(config)


def test_a_folder_without_a_head_is_no_critic(tmp_path):
    AutoModel.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"value_head\.safetensors is missing"):
        PromptCritic.from_pretrained(tmp_path)
