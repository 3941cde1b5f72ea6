"""Log-probabilities of response tokens without ever holding [B, T, V].

The backbone runs once over a micro-batch; the output projection runs over a few hundred tokens at a time, in the
forward and again in the backward pass, where the chunk's logits are made anew instead of kept. The exception are
architectures that scale or cap their logits after the projection (Gemma 2, Cohere, Granite): for these the model's own
forward is used, and the micro-batch's logits are whole.

Shapes: r rows, S padded row length, N response tokens of the micro-batch laid end to end, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.models.loading import arithmetic, embedded_tokens
from sppo.models.packing import Layout, lay_out


@dataclass(frozen=True)
class TokenLogprobs:
    """What a forward pass says of the response tokens."""

    logprobs: Tensor
    """[r, T] float32, nats; 0 outside the responses."""
    entropy: Tensor
    """[r, T] float32, nats, with gradient; 0 outside the responses."""


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W^T + b)[target], a chunk of tokens at a time; entropy on the side."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        projection = weight.to(hidden.dtype)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        for part in _chunks(len(targets), chunk):
            logits = _logits(hidden[part], projection, bias, temperature)
            normaliser = logits.logsumexp(dim=-1)
            logprobs[part] = logits.gather(1, targets[part, None]).squeeze(1) - normaliser
            probabilities = (logits - normaliser[:, None]).exp_()
            entropy[part] = normaliser - (probabilities * logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        projection = weight.to(hidden.dtype)
        of_logprobs, of_entropy = gradients
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        for part in _chunks(len(targets), ctx.chunk):
            logits = _logits(hidden[part], projection, bias, ctx.temperature)
            grad_logits = _logit_gradient(logits, targets[part], _part(of_logprobs, part), _part(of_entropy, part))
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ projection
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def chunked_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """log-probabilities and entropies of `targets` under softmax((hidden W^T + b) / temperature).

    Args:
        hidden: [N, H] last hidden states, with gradient.
        weight: [V, H] output projection, with gradient where it trains.
        bias: [V] or None.
        targets: [N] int64.
        temperature: of the sampling distribution.
        chunk: tokens whose [chunk, V] logits exist at one time.

    Returns:
        [N] log-probabilities and [N] entropies, float32, nats, both with gradient.
    """
    assert hidden.ndim == 2, f"hidden has shape {tuple(hidden.shape)}, not [N, H]"
    assert targets.shape == hidden.shape[:1], f"targets {tuple(targets.shape)} for hidden {tuple(hidden.shape)}"
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(hidden, weight, bias, targets, temperature, chunk)
    return result


def response_logprobs(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    width: int,
    temperature: float = 1.0,
    chunk: int = 256,
    layout: Literal["sorted", "packed"] = "sorted",
) -> TokenLogprobs:
    """Runs the model on one micro-batch and returns what it says of each response token.

    Args:
        model: a causal LM.
        rows: r pairs of prompt and response token ids.
        width: T of the result.
        temperature: divides the logits, as at sampling.
        chunk: tokens whose logits exist at one time.
        layout: rows padded on the right, or laid end to end in one row.

    Returns:
        [r, T] log-probabilities (with gradient, where grad is on) and entropies.
    """
    device = next(model.parameters()).device
    arranged = lay_out(rows, layout, device)
    apart = _project_apart(model)
    with arithmetic(device):
        if apart:
            hidden = _backbone(model)(**arranged.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            head = model.get_output_embeddings()
            chosen = hidden[arranged.sources]
            if torch.is_autocast_enabled(device.type):
                # The last norm may leave float32, whose matrix products would cost the backward pass dearly.
                chosen = chosen.to(torch.get_autocast_dtype(device.type))
            logprobs, entropy = chunked_logprobs(
                chosen,
                head.weight,
                getattr(head, "bias", None),
                arranged.targets,
                temperature=temperature,
                chunk=chunk,
            )
        else:
            logits = model(**arranged.inputs, use_cache=False).logits.flatten(0, 1)[arranged.sources].float()
            logprobs, entropy = _whole_logprobs(logits / temperature, arranged.targets)
    return TokenLogprobs(_spread(logprobs, arranged, len(rows), width), _spread(entropy, arranged, len(rows), width))


def _spread(flat: Tensor, arranged: Layout, rows: int, width: int) -> Tensor:
    """[N] -> [r, T], zeros elsewhere."""
    target = torch.zeros(rows, width, dtype=flat.dtype, device=flat.device)
    return target.index_put((arranged.rows, arranged.columns), flat)


def _whole_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy


def _backbone(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix)


def _project_apart(model: PreTrainedModel) -> bool:
    """Whether logits = output projection of the backbone's last hidden state and nothing else.

    Some architectures scale or cap their logits after the projection. Rather than keeping a list of them, the two
    ways are compared once on a few tokens; where they differ, the model's own forward is used, whole.
    """
    known: bool | None = getattr(model, "_sppo_projects_apart", None)
    if known is None:
        known = _compare_projection(model)
        model._sppo_projects_apart = known  # type: ignore[assignment]
    return known


@torch.no_grad()
def _compare_projection(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or not hasattr(model, model.base_model_prefix):
        return False
    ids = torch.arange(8, device=head.weight.device)[None] % embedded_tokens(model)
    # Made large, so that a cap shows that small logits would not reach.
    enlarge = head.register_forward_hook(lambda module, inputs, output: output * 1000)
    try:
        expected = model(input_ids=ids, use_cache=False).logits
        ours = head(_backbone(model)(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        enlarge.remove()
    return expected.shape == ours.shape and torch.allclose(expected.float(), ours.float(), rtol=1e-3, atol=1e-3)


def _logits(hidden: Tensor, projection: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """[n, V] float32."""
    logits = (hidden @ projection.T).float()
    if bias is not None:
        logits += bias.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _logit_gradient(logits: Tensor, targets: Tensor, of_logprobs: Tensor | None, of_entropy: Tensor | None) -> Tensor:
    """[n, V] gradient with respect to the logits, given those of log-probabilities and entropies, [n] each.

    d log p(y) / d z = onehot(y) - p;   d H / d z = -p (log p + H)
    """
    if of_entropy is None:
        gradient = logits.softmax(dim=-1).mul_(0.0 if of_logprobs is None else -of_logprobs[:, None])
    else:
        logs = logits.log_softmax(dim=-1)
        probabilities = logs.exp()
        entropy = -(probabilities * logs).sum(dim=-1, keepdim=True)
        gradient = -(logs + entropy) * of_entropy[:, None]
        if of_logprobs is not None:
            gradient -= of_logprobs[:, None]
        gradient *= probabilities
    if of_logprobs is not None:
        gradient.scatter_add_(1, targets[:, None], of_logprobs[:, None])
    return gradient


def _part(tensor: Tensor | None, part: slice) -> Tensor | None:
    return None if tensor is None else tensor[part]


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]
