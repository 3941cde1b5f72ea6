"""Log-probabilities of a batch's responses under a model, in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.batch import Batch, microbatches
from sppo.config import OptimizerConfig
from sppo.models.logprobs import TokenLogprobs, response_logprobs
from sppo.models.packing import TokenRow


def token_rows(batch: Batch, rows: Sequence[int]) -> list[TokenRow]:
    """Prompt and response ids of some rows, and which response tokens the policy wrote."""
    chosen = [(batch.rollouts[row].prompt_token_ids, batch.rollouts[row].completion) for row in rows]
    return [TokenRow(prompt, completion.token_ids, completion.mask) for prompt, completion in chosen]


def row_logprobs(
    model: PreTrainedModel, rows: Sequence[TokenRow], width: int, optimizer: OptimizerConfig, temperature: float
) -> TokenLogprobs:
    """`response_logprobs` of one micro-batch, as the options say."""
    return response_logprobs(model, rows, width=width, temperature=temperature, layout=optimizer.layout)


@torch.no_grad()
def batch_logprobs(model: PreTrainedModel, batch: Batch, optimizer: OptimizerConfig, temperature: float) -> Tensor:
    """[B, T] log-probabilities of the whole batch, on the CPU; 0 outside the mask."""
    result = torch.zeros_like(batch.sampler_logprobs)
    for rows in microbatches(batch.lengths, optimizer.tokens_per_microbatch, optimizer.layout):
        said = row_logprobs(model, token_rows(batch, rows), batch.mask.shape[1], optimizer, temperature)
        result[rows] = said.logprobs.cpu()
    return result
