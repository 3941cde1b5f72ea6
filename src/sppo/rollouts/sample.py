"""Sampling: prompts in, rollouts out. Token ids are kept all the way; text is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import SamplingConfig
from sppo.rollouts.encode import encode_many
from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.runs import ranks
from sppo.types import Prompt, Rollout


def end_token_ids(tokenizer: Tokenizer, declared: Any, extra: Sequence[int]) -> frozenset[int]:
    """Every id that ends a response.

    Args:
        tokenizer: its end token is one.
        declared: what the model's generation config says: an id, a list of them, or None.
        extra: more of them.
    """
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(int(i) for i in [tokenizer.eos_token_id, *listed, *extra] if i is not None)


def sampling_parameters(
    sampling: SamplingConfig, tokenizer: Tokenizer, model: PreTrainedModel, temperature: float | None = None
) -> SamplingParameters:
    """Returns the engine's parameters; `temperature` overrides that of training."""
    return SamplingParameters(
        max_tokens=sampling.max_response_tokens,
        temperature=sampling.temperature if temperature is None else temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=end_token_ids(
            tokenizer, getattr(model.generation_config, "eos_token_id", None), sampling.stop_token_ids
        ),
    )


def longest_sequence(prompts: Sequence[Prompt], tokenizer: Tokenizer, max_response_tokens: int) -> int:
    """Tokens of the longest prompt with a response as long as it may get."""
    return max(map(len, encode_many(list(prompts), tokenizer))) + max_response_tokens


def sample(
    engine: Engine,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    parameters: SamplingParameters,
    *,
    samples_per_prompt: int | Sequence[int],
    seeds: Sequence[int],
    version: int,
) -> list[Rollout]:
    """Samples G responses to each of P prompts, or as many of each as are asked for, of an engine that is awake.

    Each rank samples its share of them, and every rank gets all.

    Args:
        engine: to sample with.
        prompts: P prompts.
        tokenizer: of the policy.
        parameters: length, distribution and stop ids.
        samples_per_prompt: G; or [P] numbers.
        seeds: B, one a response.
        version: of the policy to sample from; responses of an engine with other weights would be another policy's.

    Returns:
        B = P * G rollouts; those of one prompt stand together, in the prompts' order.
    """
    assert engine.version == version, f"the engine has version {engine.version} of the policy, asked for {version}"
    counts = [samples_per_prompt] * len(prompts) if isinstance(samples_per_prompt, int) else samples_per_prompt
    rows = list(zip(prompts, encode_many(list(prompts), tokenizer), counts, strict=True))
    repeated = [prompt for prompt, _, count in rows for _ in range(count)]
    encoded = [ids for _, ids, count in rows for _ in range(count)]
    completions = ranks.gather(engine.generate(ranks.share(encoded), parameters, seeds=ranks.share(seeds)))
    assert len(completions) == len(encoded), f"the engine returned {len(completions)} of {len(encoded)} responses"
    texts = tokenizer.batch_decode([c.token_ids.tolist() for c in completions], skip_special_tokens=True)
    return [
        Rollout(prompt, ids, completion, text)
        for prompt, ids, completion, text in zip(repeated, encoded, completions, texts, strict=True)
    ]
