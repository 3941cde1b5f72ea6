"""Log-probabilities of a batch's responses under a model, in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.batch import Batch
from sppo.config import OptimizerConfig
from sppo.models.logprobs import TokenLogprobs, response_logprobs
from sppo.models.packing import TokenRow
from sppo.models.sharding import let_go
from sppo.runs import ranks
from sppo.update.deal import DUMMY_ROW, dealt


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
    """[B, T] log-probabilities of the whole batch, on the CPU of every rank; 0 outside the mask."""
    result = torch.zeros_like(batch.sampler_logprobs)
    for rows in dealt(batch.lengths, optimizer.tokens_per_microbatch, optimizer.layout):
        members = token_rows(batch, rows) or [DUMMY_ROW]
        said = row_logprobs(model, members, batch.mask.shape[1], optimizer, temperature)
        if rows:
            result[rows] = said.logprobs.cpu()
    let_go(model)
    return ranks.sum_over_ranks(result)
