"""What vLLM is asked for and what it answers, the same in this process and on servers.

What vLLM does silently is checked here: responses that it cut, or that ended otherwise than was asked for; and, once an
engine is built, whether it computes what the policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.errors import ModelError, TrainingError
from sppo.models.checks import causal_outputs, described, probe_rows, probing
from sppo.models.loading import context_length
from sppo.models.sharding import let_go
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.vllm_options import require_temperature
from sppo.types import Completion, FinishReason, as_token_ids

_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Nats by which a token's log-probability may differ from the policy's in float32, by vLLM's precision. On a CPU with
float32 both were within 2e-5; a model that is computed otherwise is off by whole nats."""


def limit_of(model: PreTrainedModel, most: int) -> tuple[int, str]:
    """Longest sequence in tokens, where an engine has to hold `most`, and whose limit that is, for messages."""
    context = context_length(model.config)
    if context is not None and context <= most:
        return context, "of the model's context (max_position_embeddings)"
    return most, "that the engine was made for"


def row_parameters(sampling: SamplingParameters, seed: int, vocabulary: int) -> dict[str, Any]:
    """One row's parameters, as vLLM names them.

    Raises:
        ConfigError: vLLM has no such temperature.
    """
    require_temperature(sampling.temperature)
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": seed,
        "max_tokens": sampling.max_tokens,
        "stop_token_ids": sorted(token for token in sampling.stop_token_ids if token < vocabulary),
        "ignore_eos": True,  # what ends a response is among the stop ids
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


def completion_of(
    ids: list[int],
    logprobs: Sequence[float],
    named: list[int],
    reason: str | None,
    sampling: SamplingParameters,
    version: int,
) -> Completion:
    """A completion of what vLLM returned for one row, if that is what was asked for.

    Args:
        ids: that were sampled.
        logprobs: in nats.
        named: ids that the log-probabilities are of.
        reason: vLLM's word for why it ended.
        sampling: that was asked for.
        version: of the policy that was sampled from.

    Raises:
        TrainingError: it was cut short, or ended otherwise.
    """
    whole = {"stop": bool(ids) and ids[-1] in sampling.stop_token_ids, "length": len(ids) == sampling.max_tokens}
    if not whole.get(reason or "", False) or len(ids) > sampling.max_tokens or named != ids:
        raise TrainingError(
            f"vLLM returned a response of {len(ids)} tokens and {len(named)} log-probabilities that ended by "
            f"{reason!r}, where at most {sampling.max_tokens} tokens were asked for."
        )
    sampled = np.asarray(logprobs, np.float32)
    return Completion(as_token_ids(ids), sampled, cast(FinishReason, reason), versions=np.array(version))


@torch.no_grad()
def require_same(
    model: PreTrainedModel, generate: Callable[..., list[Completion]], limit: int, precision: torch.dtype, of_whom: str
) -> None:
    """Holds an engine's log-probabilities of a few sampled tokens against those of the policy's forward.

    Args:
        model: the policy.
        generate: the engine's method.
        limit: longest sequence, in tokens.
        precision: that the engine computes in.
        of_whom: what computes, for the message.

    Raises:
        ModelError: they differ by more than rounding.
    """
    width = min(8, limit - 1)
    prompts = [as_token_ids(row[:width].tolist()) for row in probe_rows(model, 4)]
    sampling = SamplingParameters(min(4, limit - width))
    completions = generate(prompts, sampling, seeds=range(len(prompts)))
    gaps = []
    with probing(model):
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt.tolist(), *completion.token_ids.tolist()]], device=model.device)
            logits: Tensor = causal_outputs(model)(input_ids=ids)[0, len(prompt) - 1 : -1]  # [T, V]
            said = logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1)
            gaps.append(float((said.cpu() - torch.tensor(completion.logprobs)).abs().max()))
    let_go(model)
    most = _ROUNDING[precision]
    if not max(gaps) <= most:
        raise ModelError(
            f"{of_whom} computes something else than {described(model)} does: log-probabilities of a few sampled "
            f"tokens differ by up to {max(gaps):.3g} nats, and rounding explains {most:g}. Use --engine.name hf."
        )
