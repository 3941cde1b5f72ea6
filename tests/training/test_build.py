"""What is refused while a run is built, with the option to set; and what is built that once was refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sppo.config.compatibility import config_differences, written
from sppo.config.options import to_dict
from sppo.critics.token import TokenModelCritic
from sppo.errors import ConfigError, DataError, ModelError
from sppo.training.build import build
from sppo.training.given import Given
from sppo.training.loop import Parts
from tests.conftest import tiny_config
from tests.models.zoo import settings_of

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def parts_of(tmp_path: Any, model_type: str = "", sizes: dict[str, Any] | None = None, **overrides: Any) -> Parts:
    """Builds the demo's run with a tiny policy of another type."""
    model = {"model.config": settings_of(model_type, vocab_size=None, **sizes or {})} if model_type else {}
    return build(tiny_config(tmp_path / "run", **{**model, **overrides}), Given())


def test_packing_is_refused_for_a_policy_whose_rows_see_each_other(tmp_path):
    with pytest.raises(ModelError, match=r"optimizer.layout is packed, but OPTForCausalLM .*--optimizer.layout sorted"):
        parts_of(tmp_path, "opt", optimizer__layout="packed")
    assert parts_of(tmp_path, "opt").policy.model.config.model_type == "opt"
    assert parts_of(tmp_path, optimizer__layout="packed").policy.model.config.model_type == "qwen2"


def test_checkpointing_of_the_policy_is_refused_where_train_mode_is_random(tmp_path):
    with pytest.raises(
        ModelError, match=r"model.gradient_checkpointing is on.*Set --model.gradient_checkpointing false"
    ):
        parts_of(tmp_path, "phimoe", {"router_jitter_noise": 0.5}, model__gradient_checkpointing=True)


def test_checkpointing_of_the_critic_is_refused_where_it_cannot_be(tmp_path):
    settings = {"model_type": "albert", "embedding_size": 8, **BERT}
    with pytest.raises(ModelError, match=r"critic.gradient_checkpointing is on.*--critic.gradient_checkpointing false"):
        parts_of(tmp_path, critic__config=settings, critic__gradient_checkpointing=True)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "gptj", "gpt_neo", "bloom", "mpt"])
def test_a_policy_gets_the_attention_that_it_has(model_type, tmp_path):
    assert tiny_config(tmp_path).model.attention is None
    assert parts_of(tmp_path, model_type).policy.model.config.model_type == model_type


def test_attention_may_be_another_when_a_run_is_resumed(tmp_path):
    old = written(to_dict(tiny_config(tmp_path, model__attention="sdpa")))
    assert config_differences(old, tiny_config(tmp_path)) == []


@pytest.mark.parametrize("model_type", ["recurrent_gemma", "minimax"])
def test_a_policy_that_cannot_be_sampled_from_is_refused(model_type, tmp_path):
    with pytest.raises(ModelError, match=rf"Engine 'hf' can't sample from .*\(model_type {model_type}\)"):
        parts_of(tmp_path, model_type)


def test_a_critic_that_mixes_padding_in_is_refused(tmp_path):
    with pytest.raises(ModelError, match="sees the padding behind a prompt"):
        parts_of(tmp_path, critic__config={"model_type": "fnet", **BERT})


def test_a_critic_that_reads_less_than_its_config_says_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tokens in the critic's tokenizer, but the critic reads 1 to 4\."):
        parts_of(tmp_path, critic__config={"model_type": "roberta", "max_position_embeddings": 6, **BERT})


def test_a_token_critic_reads_as_much_as_a_prompt_and_its_response(tmp_path):
    options: dict[str, Any] = {"algorithm.name": "ppo", "data.max_prompt_tokens": 16}
    critic = parts_of(
        tmp_path, **options, critic__config={"model_type": "gpt2", **BERT, "max_position_embeddings": 24}
    ).critic
    assert isinstance(critic, TokenModelCritic)
    short = {"model_type": "gpt2", **BERT, "max_position_embeddings": 23}
    with pytest.raises(ConfigError, match="= 24 tokens, but the critic was made for 23"):
        parts_of(tmp_path, **options, critic__config=short)
    behind_padding = {"model_type": "roberta", **BERT, "max_position_embeddings": 25, "is_decoder": True}
    with pytest.raises(ConfigError, match="= 24 tokens, but the critic was made for 23"):
        parts_of(tmp_path, **options, critic__config=behind_padding)


def test_checks_leave_a_new_runs_weights_and_random_state_as_they_were(tmp_path, monkeypatch):
    """A run in which all is checked starts from the same weights and generator as one in which nothing is."""
    found = []
    for checked in (False, True):
        with monkeypatch.context() as patch:
            if not checked:
                patch.setattr("sppo.training.build.parts.require_packing", lambda *_: None)
                patch.setattr("sppo.training.build.parts.require_recomputation", lambda *_: None)
                patch.setattr("sppo.critics.build.require_recomputation", lambda *_: None)
                patch.setattr("sppo.critics.build.require_masking", lambda *_: None)
                patch.setattr("sppo.critics.checks.readable_tokens", lambda *_: 10**6)
                patch.setattr("sppo.rollouts.engines.hf.HFEngine._cache_trouble", lambda *_, **__: None)
            parts = parts_of(
                tmp_path, optimizer__layout="packed", model__gradient_checkpointing=True,
                critic__gradient_checkpointing=True,
            )  # fmt: skip
            weights = [*parts.policy.model.state_dict().values(), *parts.critic.source.model.state_dict().values()]
            found.append([*weights, torch.get_rng_state()])
    assert all(map(torch.equal, *found))
