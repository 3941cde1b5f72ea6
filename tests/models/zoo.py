"""Tiny, randomly initialised models of many architectures."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
DELTA = {
    **GROUPED, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "num_key_value_heads": 2, "attn_layer_indices": [1]},
    "biogpt": {},
    "bloom": {},
    "falcon": {"alibi": True},
    "falcon_h1": {**MAMBA, **GROUPED, "mamba_d_ssm": 64},
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 32},
    "gpt2": {},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "intermediate_size": None},
    "gpt_oss": {**GROUPED, **EXPERTS, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        **MAMBA, **EXPERTS, "num_key_value_heads": 2, "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
    },
    "jamba": {
        **EXPERTS, "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_multiple_of": 1},
    "llama": {"num_key_value_heads": 2},
    "mamba": {},
    "minimax": {**GROUPED, **EXPERTS, "block_size": 8, "layer_types": ["full_attention", "linear_attention"]},
    "mistral": {**GROUPED, "sliding_window": 32},
    "mixtral": {**GROUPED, **EXPERTS},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "phimoe": {"num_key_value_heads": 2, **EXPERTS},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3_5_text": DELTA,
    "qwen3_moe": {**GROUPED, **EXPERTS},
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 24},
    "recurrent_gemma": {"num_key_value_heads": 1, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    "seed_oss": GROUPED,
    "starcoder2": {"num_key_value_heads": 2},
    "xglm": {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2, "init_std": 0.3},
    "zamba2": {
        "num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "mamba_d_state": 8,
        "layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "initializer_range": 0.1,
    },
}  # fmt: skip


def settings_of(model_type: str, **overrides: Any) -> dict[str, Any]:
    """Sizes of a tiny model, as model.config takes them."""
    sizes = {**COMMON, **SETTINGS[model_type], **overrides}
    return {"model_type": model_type, **{name: value for name, value in sizes.items() if value is not None}}


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> Any:
    """A causal language model of one type, in eval mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**settings_of(model_type, **overrides))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
