"""Drawing one token a row: which distribution, and which random numbers.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sppo.rollouts.engines.engine import SamplingParameters


def draw(logits: Tensor, uniforms: Tensor, sampling: SamplingParameters) -> tuple[Tensor, Tensor]:
    """Samples one token a row by inverting the cumulative distribution.

    Args:
        logits: [N, V], any float type; computed in float32.
        uniforms: [N] float32 in [0, 1); not read at temperature 0.
        sampling: temperature, top_k and top_p.

    Returns:
        Token ids [N] (int64), and their log-probabilities [N] in nats under the distribution sampled from (that of
        the plain softmax at temperature 0). A token without probability is never drawn.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        best, chosen = logits.max(dim=-1)
        return chosen, best - logits.logsumexp(dim=-1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    candidates = None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, candidates = logits.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        logits, candidates = logits.sort(dim=-1, descending=True)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        if candidates is None:
            probabilities, candidates = probabilities.sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        before[:, 0] = 0
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # The first entry *above* u * total: entries without probability equal the one before them, and are passed over.
    picked = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True).clamp(max=logits.shape[-1] - 1)
    if probabilities.is_cuda:
        # A parallel sum may not be monotone in its last bit, which could favour an entry without probability.
        picked = torch.where(probabilities.gather(1, picked) > 0, picked, probabilities.argmax(dim=-1, keepdim=True))
    logprobs = (probabilities.gather(1, picked) / total).log().squeeze(1)
    chosen = picked if candidates is None else candidates.gather(1, picked)
    return chosen.squeeze(1), logprobs


def row_uniforms(seeds: Sequence[int], positions: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) that are a function of (a row's seed, position) alone, the same on every device.

    Each row is a SplitMix64 stream (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")
    whose start is a mix of the seed, so that seeds in a row give streams that have nothing in common.

    Args:
        seeds: [N] any integers.
        positions: how many numbers each row gets.
        device: to make them on.

    Returns:
        [positions, N] float32, multiples of 2^-24.
    """
    start = _mix(torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device))
    steps = torch.arange(1, positions + 1, device=device)[:, None]
    return (_shift(_mix(start + steps * _signed(0x9E3779B97F4A7C15)), 40)).float() * 2.0**-24


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Right shift of int64 as if it were unsigned, which torch has no type for."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
