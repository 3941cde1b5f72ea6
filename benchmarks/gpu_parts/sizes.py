"""Sizes of what is measured, and the arithmetic that they ask for.

One multiplication with an addition counts as two operations. Of a row of S tokens, of which T are said something of:

    forward = 2 (weights of the blocks) S + 2 V H T + 2 L H S^2

The last term is attention, half of 4 L H S^2, as no token looks ahead. An embedding multiplies nothing. An update takes
three times the forward pass, or twice where the weights rest and activations alone have gradients (an adapter's own
products are left out); what gradient checkpointing computes again is no part of it.

Letters: L layers, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Sizes = Mapping[str, int]
"""Of a Qwen2, as transformers names them."""


@dataclass(frozen=True)
class Scale:
    """Sizes of one run of the benchmark."""

    policy: Sizes
    small: Sizes
    """The small critic."""
    large: Sizes
    """The policy that is trained by an adapter."""
    rank: int
    """Of the adapter."""
    prompt: int
    """Tokens."""
    response: int
    rows: int
    """Of an update; in two mini-batches."""
    tokens_per_microbatch: int
    sampled: tuple[tuple[int, int], ...]
    """(rows, tokens of a prompt) of each sampling."""
    new: int
    """Tokens sampled of each row."""
    asked: int
    """Prompts of a whole step."""
    group: int
    """Responses to each of them in a group."""
    short_prompt: int
    """Tokens of a prompt and of a response of a whole step."""
    short_response: int
    copied: int
    """Numbers copied, and side of the matrices multiplied, of the ceilings."""
    side: int


# DeepSeek-R1-Distill-Qwen-1.5B and -7B, whose input and output embeddings are two, and Qwen2.5-0.5B.
FULL = Scale(
    policy={"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "intermediate_size": 8960, "vocab_size": 151936},
    small={"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
           "intermediate_size": 4864, "vocab_size": 151936},
    large={"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
    rank=64, prompt=512, response=8192, rows=8, tokens_per_microbatch=16384,
    sampled=((1, 512), (64, 512), (256, 512), (64, 7936)), new=64,
    asked=64, group=8, short_prompt=128, short_response=128, copied=2**30, side=8192,
)  # fmt: skip
# Heads as large as kernels for a GPU want them.
_TINY_MODEL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
               "intermediate_size": 64, "vocab_size": 128}  # fmt: skip
TINY = Scale(
    policy=_TINY_MODEL, small={**_TINY_MODEL, "num_hidden_layers": 1}, large=_TINY_MODEL,
    rank=2, prompt=8, response=24, rows=4, tokens_per_microbatch=64,
    sampled=((1, 8), (4, 8), (4, 24)), new=4,
    asked=4, group=2, short_prompt=6, short_response=6, copied=2**20, side=128,
)  # fmt: skip


def settings(sizes: Sizes) -> dict[str, Any]:
    """A whole config of a model of these sizes."""
    rest = {"max_position_embeddings": 16384, "tie_word_embeddings": False, "eos_token_id": 1, "pad_token_id": 0}
    return {"model_type": "qwen2", **rest, **sizes}


def block_weights(sizes: Sizes) -> int:
    """Weights of all layers that multiply: attention and the gated block."""
    hidden, heads, pairs = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
    attention = hidden * (hidden // heads) * 2 * (heads + pairs)
    return sizes["num_hidden_layers"] * (attention + 3 * hidden * sizes["intermediate_size"])


def head_weights(sizes: Sizes) -> int:
    """Weights of the output projection, or of an embedding."""
    return sizes["vocab_size"] * sizes["hidden_size"]


def forward_operations(sizes: Sizes, rows: int, tokens: int, said: int) -> float:
    """Operations of one forward pass over rows of so many tokens each, of which `said` are projected."""
    attention = 2 * sizes["num_hidden_layers"] * sizes["hidden_size"] * tokens**2
    return rows * (2.0 * block_weights(sizes) * tokens + 2.0 * head_weights(sizes) * said + attention)


def cache_bytes(sizes: Sizes) -> int:
    """Of one token in a key-value cache of two bytes a number."""
    head = sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes["num_hidden_layers"] * 2 * sizes["num_key_value_heads"] * head * 2
