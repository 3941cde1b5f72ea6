"""The two ways to lay rows of prompt and response out for a forward pass. Both need no attention mask.

sorted: each row padded on the right. Under a causal mask no real token sees the padding after it, so the mask can be
left out, and attention takes its fast path.
packed: all rows end to end in one, positions restarting at 0. transformers reads the borders from the positions, but
*only* with use_cache=False and without an attention mask; given a mask of ones, rows leak into each other silently.
This file is the one place that knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TokenRow = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and response ids of one row."""


@dataclass(frozen=True)
class Layout:
    """Rows as model inputs, and where each response token is predicted."""

    inputs: dict[str, Tensor]
    """input_ids [r, S] or [1, sum of lengths], with position_ids where packed."""
    sources: Tensor
    """[N] index into the flattened hidden states: the position before each response token."""
    targets: Tensor
    """[N] the response token ids."""
    rows: Tensor
    """[N] row of each response token."""
    columns: Tensor
    """[N] its place in the response."""


def lay_out(rows: Sequence[TokenRow], layout: Literal["sorted", "packed"], device: torch.device) -> Layout:
    """Lays r rows out; see the module's header for the two layouts."""
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    width = max(lengths)
    starts = (
        [sum(lengths[:row]) for row in range(len(rows))]
        if layout == "packed"
        else [r * width for r in range(len(rows))]
    )
    sequences = [torch.tensor([*prompt, *response]) for prompt, response in rows]
    if layout == "packed":
        inputs = {
            "input_ids": torch.cat(sequences)[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        }
    else:
        inputs = {"input_ids": torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)}
    columns = [torch.arange(len(response)) for _, response in rows]
    sources = [
        column + (start + len(prompt) - 1) for column, start, (prompt, _) in zip(columns, starts, rows, strict=True)
    ]
    return Layout(
        inputs={name: tensor.to(device) for name, tensor in inputs.items()},
        sources=torch.cat(sources).to(device),
        targets=torch.tensor([token for _, response in rows for token in response]).to(device),
        rows=torch.cat([torch.full_like(column, row) for row, column in enumerate(columns)]).to(device),
        columns=torch.cat(columns).to(device),
    )
