"""Tokens a second of an engine, against what the card's bandwidth allows.

`limit` is the time in which the weights that multiply and the key-value cache could be read once for each token.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from gpu_parts.bench import Bench, gigabytes
from gpu_parts.sizes import block_weights, cache_bytes, head_weights
from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.types import as_token_ids


def hf(bench: Bench) -> dict[str, Any]:
    """Engine hf."""
    return _sampling(bench, "hf")


def vllm(bench: Bench) -> dict[str, Any]:
    """Engine vllm, where it is installed and has a GPU: on a CPU it would take minutes to start."""
    if not bench.on_gpu:
        return {"left_out": "measured on a GPU alone"}
    if importlib.util.find_spec("vllm") is None:
        return {"left_out": "vllm is not installed"}
    return _sampling(bench, "vllm")


def _sampling(bench: Bench, name: str) -> dict[str, Any]:
    scale = bench.scale
    bandwidth = bench.ceilings.bandwidth
    longest = max(length for _, length in scale.sampled)
    config = bench.config(
        scale.policy, algorithm="grpo", prompts=1, samples=2, prompt=longest, response=scale.new + 1, engine=name
    )
    found = []
    with bench.run(config, scale.policy) as parts:
        built = gigabytes(bench.peak())
        parts.hand_over_weights()
        with parts.engine.awake():
            for rows, length in scale.sampled:
                found.append(_case(bench, parts.engine, rows, length, bandwidth))
    return {"engine": name, "build_peak_gb": built, "cases": found}


def _case(bench: Bench, engine: Engine, rows: int, length: int, bandwidth: float) -> dict[str, Any]:
    """Rows that share a prompt, which is read once, so that the steps are what is measured."""
    scale, sizes = bench.scale, bench.scale.policy
    prompts = [as_token_ids(torch.randint(3, sizes["vocab_size"], (length,)).numpy())] * rows

    def sample(tokens: int) -> None:
        sampling = SamplingParameters(max_tokens=tokens, temperature=0.6)
        said = engine.generate(prompts, sampling, seeds=range(rows))
        assert sum(map(len, said)) == rows * tokens, "nothing ends a response here"

    bench.watch()
    sample(1)
    first = bench.clock(lambda: sample(1))
    # Not less than nothing, which the noise of a tiny model's may be.
    step = max(bench.clock(lambda: sample(1 + scale.new)) - first, 1e-6) / scale.new
    read = 2 * (block_weights(sizes) + head_weights(sizes)) + rows * (length + scale.new / 2) * cache_bytes(sizes)
    limit = read / bandwidth
    return {
        "rows": rows, "prompt": length, "first_token_seconds": first, "token_ms": 1e3 * step, "limit_ms": 1e3 * limit,
        "tokens_per_second": rows / step, "limit_tokens_per_second": rows / limit, "share_of_limit": limit / step,
        "peak_gb": gigabytes(bench.peak()),
    }  # fmt: skip
