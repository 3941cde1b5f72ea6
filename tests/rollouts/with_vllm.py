"""What the tests of engine "vllm" share: models that vLLM takes on a CPU, rows, and the trainer's word on them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from sppo.config import EngineConfig
from sppo.models.logprobs import response_logprobs
from sppo.models.packing import TokenRow
from sppo.rollouts.engines import build_engine
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.runs.seeds import row_seeds
from sppo.types import Completion, TokenIds, as_token_ids

# Where `make test-vllm` runs them, a vLLM that isn't there fails them.
_missing = importlib.util.find_spec("vllm") is None and "SPPO_TEST_VLLM" not in os.environ
needs_vllm = [pytest.mark.vllm, pytest.mark.skipif(_missing, reason="needs vLLM: make test-vllm")]

CONTEXT = 512
SIZES = {"hidden_size": 64, "max_position_embeddings": CONTEXT}
"""Heads of 32, the narrowest that vLLM's attention on a CPU takes."""
LIMIT = 400
LONG = 300
"""Tokens of a prompt: more than two of the blocks of 128 that vLLM keeps keys and values by on a CPU."""
EXACT = 1e-4
"""Nats."""


def rows(*prompts: Sequence[int]) -> list[TokenIds]:
    return [as_token_ids(prompt) for prompt in prompts]


PROMPTS = rows([3, 4, 5], range(6, 14), [14], [3, 4, 5], [*range(15, 24), 5, 6])
LONG_PROMPTS = rows(*([2 + (7 * place + row) % 38 for place in range(LONG)] for row in range(4)))


def sampling(max_tokens: int = 20, **overrides: Any) -> SamplingParameters:
    return SamplingParameters(max_tokens=max_tokens, **{"stop_token_ids": frozenset({1, 2}), **overrides})


def sampled(engine: Any, prompts: list[TokenIds], how: SamplingParameters, seed: int = 0) -> list[Completion]:
    with engine.awake():
        return engine.generate(prompts, how, seeds=row_seeds(seed, "test", range(len(prompts))))


def engine_of(model: PreTrainedModel, **settings: Any) -> Any:
    return build_engine(model, EngineConfig(name="vllm", **settings), max_tokens=LIMIT, memory_share=0.5)


def gap(model: PreTrainedModel, prompts: list[TokenIds], completions: list[Completion], temperature: float) -> float:
    """The largest difference, in nats, from what the trainer says of the responses without top_k and top_p."""
    token_rows = [TokenRow(p, completion.token_ids) for p, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, completions))
    with torch.no_grad():
        said = response_logprobs(model, token_rows, width=width, temperature=temperature).logprobs.cpu().numpy()
    pairs = zip(said, completions, strict=True)
    return max(float(np.abs(own[: len(completion)] - completion.logprobs).max()) for own, completion in pairs)


def moved(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """The model after an update that nobody could miss."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator).to(weight.device)
    return model
