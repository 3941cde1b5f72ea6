"""What options promise of a model, tried on a few tokens when it is built.

transformers has some 200 architectures, and no table of which keep packed rows apart, compute alike in train mode, or
read as many tokens as their config says would stay true. So each model is asked: two ways that ought to give one result
are run and compared. Nothing is left behind: global generators are as before, and no gradient is kept.

Shapes: r rows, n tokens of a row, D values a token (logits or hidden states), V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from sppo.errors import ModelError, SppoError
from sppo.models.adapters import has_adapter, without_adapter
from sppo.models.loading import (
    arithmetic,
    context_length,
    embedded_tokens,
    first_line,
    float_attributes,
    trainable_parameters,
)
from sppo.models.packing import TokenRow, lay_out
from sppo.types import as_token_ids

Outputs = Callable[..., Tensor]
"""Model inputs by name -> [r, n, D]."""

_TOKENS = 12
"""Of a row: more than the short convolutions of hybrid models look back on, which are 4 wide."""
_SEEDS = 8
"""Forwards of a model that draws random numbers in train mode."""


def causal_outputs(model: nn.Module) -> Outputs:
    """The logits of a causal language model, as training runs it."""
    return lambda **inputs: model(**inputs, use_cache=False).logits


def trunk_outputs(trunk: PreTrainedModel) -> Outputs:
    """The last hidden states of a critic's trunk."""
    return lambda **inputs: trunk(**inputs).last_hidden_state


def probe_rows(model: Any, count: int) -> Tensor:
    """[count, n] token ids, other ones in each row; n is 12, or the model's context where that is shorter."""
    width = min(_TOKENS, context_length(model.config) or _TOKENS)
    ids = torch.arange(3, 3 + count * width, device=model.device).view(count, width)
    return ids % embedded_tokens(model)


def require_packing(model: PreTrainedModel) -> None:
    """Refuses a model in which rows that are laid end to end see each other (optimizer.layout packed).

    Raises:
        ModelError: two rows in one give other logits than each alone.
    """
    rows, outputs = probe_rows(model, 2), causal_outputs(model)
    why = f"optimizer.layout is packed, but {described(model)} can't read rows laid end to end"
    mend = "Set --optimizer.layout sorted."
    token_rows = [TokenRow(as_token_ids(row[:1].tolist()), as_token_ids(row[1:].tolist())) for row in rows]
    packed = lay_out(token_rows, "packed", model.device)
    with refusing(why, mend), torch.no_grad(), probing(model):
        alone = torch.stack([outputs(input_ids=row[None])[0] for row in rows])  # [2, n, V]
        together = outputs(**packed.inputs)[0].view_as(alone)
    # Nothing lies before the first row, so that it tells what rounding alone does.
    rounding, leak = (disagreement(ours, theirs) for ours, theirs in zip(together, alone, strict=True))
    if not agree(together, alone, model) or leak > max(30 * rounding, 1e-5):
        raise ModelError(
            f"{why}: a row sees the one before it, so that its log-probabilities would be wrong (logits differ by "
            f"{leak:.1e} of their spread). {mend}"
        )


def require_recomputation(model: PreTrainedModel, outputs: Outputs, key: str) -> None:
    """Refuses gradient checkpointing where train mode, which it needs, computes something else than eval mode.

    Noise that acts in training alone is switched off first.

    Args:
        model: with checkpointing enabled and in train mode, in which it is left.
        outputs: `causal_outputs` or `trunk_outputs` of it.
        key: the option that asked for checkpointing.

    Raises:
        ModelError: outputs or gradients differ, or can't be had.
    """
    ids = probe_rows(model, 2)
    mend = f"Set --{key} false."
    with refusing(f"{key} is on, but {described(model)} can't be trained so", mend), probing(model):
        model.eval()
        expected = _outputs_and_gradient(model, outputs, ids)
        _switch_noise_off(model, outputs, ids)
        model.train()
        for seed in range(_SEEDS):
            torch.manual_seed(seed)
            before = _generator_states()
            found = _outputs_and_gradient(model, outputs, ids)
            for ours, theirs in zip(found, expected, strict=True):
                if not agree(ours, theirs, model, most=1e-3):
                    raise ModelError(
                        f"{key} is on, which puts a model into train mode, and there {described(model)} computes "
                        f"something else than in eval mode, by chance or by design (outputs or gradients differ by "
                        f"{disagreement(ours, theirs):.1e} of their spread). {mend}"
                    )
            if all(map(torch.equal, before, _generator_states())):
                break  # It draws nothing, so a second forward would be the first again.


def readable_tokens(model: PreTrainedModel, outputs: Outputs, most: int) -> int:
    """Returns how long a row a model reads, up to `most` tokens: `most` itself, mostly.

    Fewer are tried only where `most` fail: some models read fewer than their max_position_embeddings, as RoBERTa does,
    whose positions are counted from behind that of the padding.
    """
    if _reads(model, outputs, most):
        return most
    readable, too_long = 0, most
    while too_long - readable > 1:
        middle = (readable + too_long) // 2
        if _reads(model, outputs, middle):
            readable = middle
        else:
            too_long = middle
    return readable


def has_positions(model: PreTrainedModel) -> bool:
    """Whether a model may have a table of positions: an embedding with as many rows as its config names positions."""
    rows = context_length(model.config)
    return any(isinstance(module, nn.Embedding) and module.num_embeddings == rows for module in model.modules())


def _reads(model: PreTrainedModel, outputs: Outputs, tokens: int) -> bool:
    """Whether a model reads a row of so many tokens."""
    # Some count positions by the tokens that aren't padding, which is 0 or 1 whatever the config says, or as it says.
    token = 3 if model.config.get_text_config().pad_token_id == 2 else 2
    ids = torch.full((1, tokens), token % embedded_tokens(model), device=model.device)
    try:
        with torch.no_grad(), undisturbed(), BoundedIndices(), arithmetic(model):
            outputs(input_ids=ids)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's own code may raise anything
        return False
    return True


class BoundedIndices(TorchDispatchMode):
    """Refuses an index past the end before a GPU does, which then would answer nothing more."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.embedding.default:
            _require_within(args[1], args[0].shape[0])
        elif func in (aten.gather.default, aten.index_select.default):
            _require_within(args[2], args[0].shape[args[1]])
        elif func is aten.index.Tensor:
            for size, index in zip(args[0].shape, args[1], strict=False):
                if index is not None and index.dtype is not torch.bool:
                    _require_within(index, size)
        return func(*args, **(kwargs or {}))


def _require_within(index: Tensor, size: int) -> None:
    if index.numel() and int(index.max()) >= size:
        raise IndexError(f"index {int(index.max())} where there are {size}")


def described(model: nn.Module) -> str:
    """The model's class and type, for messages."""
    return f"{type(model).__name__} (model_type {getattr(model.config, 'model_type', 'unknown')})"


def disagreement(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference of [..., D] at the token where it is largest, over `expected`'s deviation.

    Entries that stand for "never", such as logits of tokens that a model forbids, are left out.
    """
    usual = expected.abs() < 1e4
    ours, theirs = (torch.where(usual, values, 0.0).float() for values in (found, expected))
    scale = theirs.std(dim=-1).square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return float((ours - theirs).square().mean(dim=-1).sqrt().max() / scale)


def agree(found: Tensor, expected: Tensor, model: nn.Module, most: float = 0.01) -> bool:
    """Whether two computations gave the same but for rounding.

    Of 170 architectures with random weights in float32, right ones differed by less than 0.001. Flash attention and
    layers of 4 bits round to bfloat16, which may turn a router's choice.
    """
    return disagreement(found, expected) <= (0.5 if _rounds(model) else most)


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """float32 arithmetic where attention can do that, and global generators that are afterwards as before."""
    # The GPU's convolutions would round float32 to 10 bits otherwise.
    precision = arithmetic(model) if _uses_flash(model) else nullcontext()
    with undisturbed(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), precision:
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Global generators that are afterwards as before."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)


@contextmanager
def refusing(why: str, mend: str) -> Iterator[None]:
    """Turns whatever a model's own code raises, which may be anything, into a ModelError."""
    try:
        yield
    except (SppoError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{why}: {first_line(error)}. {mend}") from error


@torch.no_grad()
def adds_nothing(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter that leaves its outputs as they are, to the bit, as one does that begins."""
    if not has_adapter(model):
        return False
    rows, outputs = probe_rows(model, 2), causal_outputs(model)
    with probing(model):
        found = outputs(input_ids=rows)
        with without_adapter(model):
            return torch.equal(found, outputs(input_ids=rows))


def _rounds(model: nn.Module) -> bool:
    """Whether parts of the model compute in bfloat16 whatever is asked of them."""
    return _uses_flash(model) or bool(getattr(model, "is_quantized", False))


def _uses_flash(model: nn.Module) -> bool:
    return "flash" in str(getattr(model.config, "_attn_implementation", ""))


def _outputs_and_gradient(model: nn.Module, outputs: Outputs, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [r, n, D], and [1, P] the gradient of a weighted sum of them by all vectors among the weights.

    Norms and biases stand in every layer, so the backward pass runs through all of them, and their gradients are small.
    """
    given = outputs(input_ids=ids)
    weights = list(trainable_parameters(model))
    # Of an adapter two: while one of its matrices is zero, so is the other's gradient.
    chosen = [weight for weight in weights if weight.ndim == 1] or weights[:2]
    loss = (given.float() * torch.linspace(-1, 1, given.shape[-1], device=given.device)).sum()
    gradients = torch.autograd.grad(loss, chosen, allow_unused=True)
    return given.detach(), torch.cat([g.flatten() for g in gradients if g is not None])[None]


@torch.no_grad()
def _switch_noise_off(model: nn.Module, outputs: Outputs, ids: Tensor) -> None:
    """Sets noise, such as a router's, to 0 unless that changes what the model computes in eval mode."""
    noise = [(holder, name, value) for holder, name, value in float_attributes(model, "noise", "jitter") if value]
    if not noise:
        return
    before = outputs(input_ids=ids)
    for holder, name, _ in noise:
        setattr(holder, name, 0.0)
    if not torch.equal(outputs(input_ids=ids), before):
        for holder, name, value in noise:
            setattr(holder, name, value)


def _generator_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
