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
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sppo.types import TokenIds, TokenMask


class TokenRow(NamedTuple):
    """Prompt and response of one row, and of which response tokens a forward pass is to say something."""

    prompt: TokenIds
    response: TokenIds
    mask: TokenMask | None = None
    """[T] True on tokens that the policy wrote; the model reads the others too; None: it wrote all."""

    @property
    def tokens(self) -> int:
        """Of prompt and response together."""
        return len(self.prompt) + len(self.response)

    @property
    def columns(self) -> npt.NDArray[np.intp]:
        """[n] places in the response of the tokens within the mask."""
        return np.arange(len(self.response)) if self.mask is None else np.flatnonzero(self.mask)


@dataclass(frozen=True)
class Layout:
    """Rows as model inputs, and where each of the N response tokens within the rows' masks is predicted."""

    inputs: dict[str, Tensor]
    """input_ids [r, S] or [1, sum of lengths], with position_ids where packed."""
    sources: Tensor
    """[N] index into the flattened hidden states: the position before each token."""
    targets: Tensor
    """[N] their ids."""
    rows: Tensor
    """[N] row of each."""
    columns: Tensor
    """[N] its place in the response."""


def lay_out(rows: Sequence[TokenRow], layout: Literal["sorted", "packed"], device: torch.device) -> Layout:
    """Lays r rows out; see the module's header for the two layouts."""
    lengths = np.array([row.tokens for row in rows])
    if layout == "packed":
        starts = lengths.cumsum() - lengths
        inputs = {
            "input_ids": np.concatenate([part for row in rows for part in row[:2]])[None],
            "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
        }
    else:
        starts = np.arange(len(rows)) * lengths.max()
        inputs = {"input_ids": pad_right([np.concatenate(row[:2]) for row in rows])}
    columns = [row.columns for row in rows]
    sources = [column + start + len(row.prompt) - 1 for column, start, row in zip(columns, starts, rows, strict=True)]
    return Layout(
        inputs={name: _long(array, device) for name, array in inputs.items()},
        sources=_long(np.concatenate(sources), device),
        targets=_long(np.concatenate([row.response[own] for row, own in zip(rows, columns, strict=True)]), device),
        rows=_long(np.repeat(np.arange(len(rows)), [len(own) for own in columns]), device),
        columns=_long(np.concatenate(columns), device),
    )


def pad_right(rows: Sequence[TokenIds]) -> npt.NDArray[np.int64]:
    """[r, S] token ids, 0 after the end of each row."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


def _long(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False)).to(device)
