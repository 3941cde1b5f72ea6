"""The default engine: samples from the trainer's own Hugging Face module, on whatever device it lives.

It calls the model's own forward, so any causal language model with a key-value cache works, and nothing is copied when
the weights change. What makes it faster than `model.generate` where lengths differ: rows that have finished leave the
batch and the cache, the cache is written in place instead of concatenated, equal prompts are read once, and a step
keeps no books beyond two writes.

Shapes: N rows of a chunk still in the batch, W width of its left-padded prompts, S response tokens so far,
V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sppo.errors import ModelError
from sppo.models.checks import agree, causal_outputs, described, disagreement, probe_rows, probing
from sppo.models.loading import arithmetic, context_length, first_line
from sppo.models.sharding import whole_weights
from sppo.rollouts.engines.cache import RoomyCache
from sppo.rollouts.engines.draw import draw, row_uniforms
from sppo.rollouts.engines.engine import SamplingParameters, require_finite, require_room
from sppo.types import Completion, FinishReason, TokenIds, as_token_ids

# A drop moves no more rows than it drops, so it pays early. Measured on one CPU core where lengths varied widely: 1/4
# took 1.15 times as long as 1/16, and 1/32 was no better.
_DROP_FRACTION = 1 / 16
_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""What a model's forward calls its cache: since transformers 5.24, and before it, for attention and for states."""


class HFEngine:
    """Batched sampling with a key-value cache from any Hugging Face causal language model.

    A row's randomness is a function of (its seed, token position) alone, so the responses don't depend on `max_rows`
    but for rounding inside the model.
    """

    def __init__(self, model: nn.Module, max_rows: int = 512) -> None:
        """Shares `model` with the trainer.

        Args:
            model: the policy; sampled from in eval mode, and left in the mode it was found in.
            max_rows: rows decoded at one time; bounds the memory of the key-value cache.

        Raises:
            ModelError: the model's forward takes no key-value cache, or gives other logits with it than without.
        """
        assert max_rows >= 1, f"max_rows is {max_rows}"
        # peft's wrapper takes **kwargs; the names that count are those of the model inside.
        base: Any = model
        if hasattr(model, "get_base_model"):
            base = base.get_base_model()
        self._accepts = frozenset(inspect.signature(base.forward).parameters)
        config = getattr(model, "config", None)
        cache_argument = next((name for name in _CACHE_ARGUMENTS if name in self._accepts), None)
        if config is None or cache_argument is None or getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{type(base).__name__} is no causal language model with a key-value cache (its forward takes neither "
                f"{' nor '.join(_CACHE_ARGUMENTS)}, or it is an encoder-decoder), so engine 'hf' cannot sample from "
                "it. Use a decoder-only model such as Qwen2, Llama, Mistral, Gemma or GPT-2."
            )
        self._cache_argument = cache_argument
        self._model = model
        self._config = config
        self._max_rows = max_rows
        self._version = 0
        self._gathered: contextlib.ExitStack | None = None
        # A forward without position_ids counts positions for itself, and would count the padding.
        self._may_pad = "position_ids" in self._accepts and self._cache_trouble(padding=4) is None
        trouble = None if self._may_pad else self._cache_trouble(padding=0)
        if trouble:
            raise ModelError(
                f"Engine 'hf' can't sample from {described(base)}: {trouble}. Use a model of another type, such as "
                "Qwen2, Llama, Mistral, Gemma or GPT-2."
            )

    @property
    def version(self) -> int:
        """Version of the weights that `generate` samples from."""
        return self._version

    def load_weights(self, model: nn.Module, version: int) -> None:
        """Samples from `model` itself from now on, of the same architecture; the module it had is left as it is."""
        if self._gathered is not None:
            self._gathered.close()
            self._gathered.enter_context(whole_weights(model))
        self._model = model
        self._version = version

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Weights that are spread over ranks are whole meanwhile, so that each rank samples by itself."""
        with contextlib.ExitStack() as self._gathered:
            self._gathered.enter_context(whole_weights(self._model))
            yield
        self._gathered = None

    def close(self) -> None:
        """Nothing to release: the model is the trainer's, and the cache lives for one call."""

    def generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, *, seeds: Sequence[int]
    ) -> list[Completion]:
        """Samples one response to each row of token ids.

        The log-probabilities are those of the distribution sampled from, after temperature, top_k and top_p. At
        temperature 0 that distribution is a point, so those of the model's own softmax (temperature 1) are given.

        Args:
            prompts: rows of token ids, none empty.
            sampling: length, distribution and stop ids.
            seeds: one a row, any integers; with the position it fixes each of the row's draws.

        Returns:
            One completion a row, in the rows' order.

        Raises:
            ConfigError: the longest prompt and max_tokens together exceed the model's context.
            ModelError: an empty prompt, or logits that are not finite.
        """
        assert len(seeds) == len(prompts), f"{len(seeds)} seeds for {len(prompts)} rows"
        context = context_length(self._config)
        require_room(prompts, sampling.max_tokens, context, "of the model's context (max_position_embeddings)")
        # Neighbours of equal length need no padding, equal neighbours are read once; the largest chunk comes first, so
        # that a lack of memory shows at once.
        order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row].tolist()))
        completions: dict[int, Completion] = {}
        # One context around the whole call, so that the bfloat16 copies of the weights are made once.
        with torch.no_grad(), _eval_mode(self._model), arithmetic(self._model), _decoding_attention(self._device):
            for rows in self._chunks(order, prompts):
                own = [seeds[row] for row in rows]
                sampled = self._sample_chunk([prompts[row] for row in rows], sampling, own)
                require_finite(sampled, rows)
                completions.update(zip(rows, sampled, strict=True))
        return [completions[row] for row in range(len(prompts))]

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _chunks(self, order: list[int], prompts: Sequence[TokenIds]) -> Iterator[list[int]]:
        chunk: list[int] = []
        for row in order:
            padded = bool(chunk) and len(prompts[row]) != len(prompts[chunk[0]])
            if len(chunk) == self._max_rows or (padded and not self._may_pad):
                yield chunk
                chunk = []
            chunk.append(row)
        if chunk:
            yield chunk

    @torch.no_grad()
    def _cache_trouble(self, padding: int) -> str | None:
        """What is wrong with sampling token by token, tried on three short rows; None where nothing is.

        Logits of rows that begin together, of which one is dropped on the way, against those of each row in one
        forward without a cache, which is how training reads them.

        Args:
            padding: tokens by which the second row's prompt is shorter.
        """
        try:
            with _eval_mode(self._model), probing(self._model):
                return self._compare_with_one_forward(padding)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model's own code may raise anything
            return f"its forward with a cache fails ({first_line(error)})"

    def _compare_with_one_forward(self, padding: int) -> str | None:
        steps, outputs = 4, causal_outputs(self._model)
        first, second = probe_rows(self._model, 2)
        rows = [first, second[padding:], torch.cat([first[:-steps], second[:steps]])]  # the last begins as the first
        whole = [outputs(input_ids=row[None])[0, -steps - 1 :] for row in rows]  # [steps + 1, V] each
        alive = [0, 1, 2]
        found, batch = self._prefill([as_token_ids(row[:-steps].tolist()) for row in rows], steps)
        for step in range(steps + 1):
            expected = torch.stack([whole[row][step] for row in alive])
            if not agree(found, expected, self._model):
                differ = disagreement(found, expected)
                return f"with a cache it gives other logits than in one forward (by {differ:.1e} of their spread)"
            if step == 1:
                alive = [alive[row] for row in batch.drop(torch.tensor([True, False, False], device=self._device))]
            if step < steps:
                chosen = torch.stack([rows[row][step - steps] for row in alive])
                found = self._step(chosen, batch)
        return None

    def _sample_chunk(
        self, prompts: list[TokenIds], sampling: SamplingParameters, seeds: list[int]
    ) -> list[Completion]:
        device, count = self._device, len(prompts)
        logits, batch = self._prefill(prompts, sampling.max_tokens)
        uniforms = row_uniforms(seeds, sampling.max_tokens, device)  # [max_tokens, count]
        token_ids = torch.zeros(sampling.max_tokens, count, dtype=torch.long, device=device)
        logprobs = torch.zeros(sampling.max_tokens, count, device=device)
        is_stop = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)  # [V]
        is_stop[[i for i in sampling.stop_token_ids if i < len(is_stop)]] = True
        slots = torch.arange(count, device=device)  # [N] the column of each row still in the batch
        finished = torch.zeros(count, dtype=torch.bool, device=device)  # [N]
        for step in range(sampling.max_tokens):
            chosen, chosen_logprobs = draw(logits, uniforms[step, slots], sampling)
            # A finished row writes on past its stop token until it is dropped; `_completions` cuts that off.
            token_ids[step, slots] = chosen
            logprobs[step, slots] = chosen_logprobs
            finished |= is_stop[chosen]
            done = int(finished.sum())
            if done == len(slots) or step + 1 == sampling.max_tokens:
                break
            if done >= _DROP_FRACTION * len(slots):
                kept = batch.drop(finished)
                slots, chosen, finished = slots[kept], chosen[kept], torch.zeros_like(finished[: len(kept)])
            logits = self._step(chosen, batch)
        return _completions(token_ids[: step + 1], logprobs[: step + 1], is_stop, self._version)

    def _prefill(self, prompts: list[TokenIds], max_tokens: int) -> tuple[Tensor, _LiveBatch]:
        """Reads each different prompt once. Returns logits [N, V] of the first response token, and the batch."""
        device = self._device
        read = {prompt.tobytes(): prompt for prompt in prompts}
        place = {key: row for row, key in enumerate(read)}
        distinct = list(read.values())
        width = max(map(len, distinct))
        padded = np.zeros((len(distinct), width), np.int64)
        for row, prompt in zip(padded, distinct, strict=True):
            row[width - len(prompt) :] = prompt
        input_ids = torch.from_numpy(padded).to(device)  # [distinct, W]
        lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)
        positions = torch.arange(width, device=device) - (width - lengths)[:, None]
        mask = positions >= 0 if bool((lengths < width).any()) else None
        cache = RoomyCache(self._config, most_tokens=width + max_tokens)
        logits = self._forward(input_ids, positions.clamp(min=0), mask, cache)
        batch = _LiveBatch(cache, lengths, mask)
        if len(distinct) < len(prompts):
            expand = torch.tensor([place[prompt.tobytes()] for prompt in prompts], device=device)
            batch.expand(expand)
            logits = logits[expand]
        return logits, batch

    def _step(self, chosen: Tensor, batch: _LiveBatch) -> Tensor:
        batch.make_room()
        logits = self._forward(chosen[:, None], batch.positions[:, None], batch.mask, batch.cache)
        batch.positions = batch.positions + 1
        return logits

    def _forward(self, input_ids: Tensor, positions: Tensor, mask: Tensor | None, cache: RoomyCache) -> Tensor:
        """Returns the logits [N, V] after the last column of `input_ids`."""
        arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, self._cache_argument: cache}
        if "position_ids" in self._accepts:
            arguments["position_ids"] = positions
        if "logits_to_keep" in self._accepts:
            arguments["logits_to_keep"] = 1
        logits: Tensor = self._model(**arguments, use_cache=True, return_dict=True).logits
        return logits[:, -1]


@dataclass
class _LiveBatch:
    """What the rows still in the batch carry from step to step; all of it is reordered together."""

    cache: RoomyCache
    positions: Tensor
    """[N] position of the next token of each row."""
    mask: Tensor | None
    """[N, W + S] False at left padding; None where no row has any (attention is faster without)."""

    def expand(self, source: Tensor) -> None:
        """Makes row i a copy of row source[i]; source is [N]."""
        self.cache.select_rows(source)
        self.positions = self.positions[source]
        self.mask = None if self.mask is None else self.mask[source]

    def make_room(self) -> None:
        """Adds the column of the next token to the mask."""
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, 1), value=True)

    def drop(self, finished: Tensor) -> Tensor:
        """Drops finished rows [N]. Returns which old row each new row is, [N after].

        Rows from the end move into the gaps, so that a drop copies no more rows than it drops.
        """
        alive = (~finished).nonzero().squeeze(1)
        kept = torch.arange(len(alive), device=alive.device)
        gaps = finished[: len(alive)].nonzero().squeeze(1)
        movers = alive[alive >= len(alive)]
        kept[gaps] = movers
        self.cache.drop_rows(kept, movers, gaps)
        self.positions = self.positions[kept]
        if self.mask is not None:
            mask = self.mask[kept]
            self.mask = None if bool(mask.all()) else mask
        return kept


def _completions(token_ids: Tensor, logprobs: Tensor, is_stop: Tensor, version: int) -> list[Completion]:
    """Cuts each row of [S, N] after its first stop token; is_stop is [V], version the policy's."""
    stops = is_stop[token_ids]
    ended = stops.any(dim=0)
    lengths = torch.where(ended, stops.int().argmax(dim=0) + 1, len(token_ids))
    ids_by_row, logprobs_by_row = token_ids.T.int().cpu().numpy(), logprobs.T.cpu().numpy()
    completions = []
    for row, (length, stopped) in enumerate(zip(lengths.tolist(), ended.tolist(), strict=True)):
        # Copies: a view would keep the whole chunk in memory.
        own_ids, own_logprobs = ids_by_row[row, :length].copy(), logprobs_by_row[row, :length].copy()
        reason: FinishReason = "stop" if stopped else "length"
        completions.append(Completion(own_ids, own_logprobs, reason, versions=np.array(version)))
    return completions


def _decoding_attention(device: torch.device) -> AbstractContextManager[Any]:
    """Any kernel of attention but cuDNN's, which makes a new plan for each length of the cache.

    On an H100 that takes 1.6 ms a layer and token, more than all the rest of a step.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; in train mode, gradient checkpointing would silently switch the cache off."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
