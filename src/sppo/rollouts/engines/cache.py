"""A key-value cache that is written in place and from which finished rows can be dropped.

Only layers of plain full attention differ from those of transformers; sliding windows and other kinds stay its own.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyCache(DynamicCache):
    """`DynamicCache` whose full-attention layers have room for tokens to come."""

    def __init__(self, config: PreTrainedConfig, most_tokens: int) -> None:
        """Makes an empty cache; `most_tokens` is the length that no row will exceed."""
        super().__init__(config=config)
        # By exact type: subclasses keep further state that ours would not know of.
        self.layers = [_RoomyLayer(most_tokens) if type(layer) is DynamicLayer else layer for layer in self.layers]

    def select_rows(self, rows: Tensor) -> None:
        """Makes row i a copy of row rows[i]; rows is [N], of any N."""
        self.reorder_cache(cast(torch.LongTensor, rows))

    def drop_rows(self, kept: Tensor, movers: Tensor, gaps: Tensor) -> None:
        """Keeps the rows `kept` [N after], of which all are in their place already but `movers`, which go to `gaps`."""
        for layer in self.layers:
            if isinstance(layer, _RoomyLayer) and layer.has_room:
                layer.move_rows(movers, gaps, len(kept))
            else:
                layer.reorder_cache(cast(torch.LongTensor, kept))


class _RoomyLayer(DynamicLayer):
    """A cache layer of full attention that writes new tokens into room left at its end.

    `keys` and `values` are views [N, heads, length, head_dim] of larger buffers. The base class would copy the whole
    cache for each token; this one does so only when the room is used up.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, most_tokens: int) -> None:
        super().__init__()
        self._most_tokens = most_tokens
        self._buffers: tuple[Tensor, Tensor] | None = None

    @property
    def has_room(self) -> bool:
        """Whether the buffers are this layer's own, with unused columns."""
        return self._buffers is not None and self._buffers[0].shape[2] > self.keys.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [N, heads, new, head_dim] states; returns those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        start, rows = self.keys.shape[2], self.keys.shape[0]
        end = start + key_states.shape[2]
        if self._buffers is None or end > self._buffers[0].shape[2]:
            capacity = max(end, min(self._most_tokens, end + max(128, end // 2)))
            self._buffers = (_with_capacity(self.keys, capacity), _with_capacity(self.values, capacity))
        self._buffers[0][:rows, :, start:end] = key_states
        self._buffers[1][:rows, :, start:end] = value_states
        self._show(rows, end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i a copy of row beam_idx[i], in new tensors without room."""
        super().reorder_cache(cast(torch.LongTensor, beam_idx))
        self._buffers = None

    def move_rows(self, movers: Tensor, gaps: Tensor, rows: int) -> None:
        """Copies rows `movers` to rows `gaps`, in place, and forgets all from row `rows` on."""
        for view in (self.keys, self.values):
            view.index_copy_(0, gaps, view.index_select(0, movers))
        self._show(rows, self.keys.shape[2])

    def _show(self, rows: int, length: int) -> None:
        assert self._buffers is not None
        keys, values = self._buffers
        self.keys, self.values = keys[:rows, :, :length], values[:rows, :, :length]


def _with_capacity(states: Tensor, capacity: int) -> Tensor:
    rows, heads, length, head_dim = states.shape
    buffer = states.new_empty(rows, heads, capacity, head_dim)
    buffer[:, :, :length] = states
    return buffer
