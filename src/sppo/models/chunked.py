"""Log-probabilities and losses of tokens, a few hundred at a time, from hidden states and the output projection.

Where a loss is given token by token, each chunk's gradient is made with its logits; else the logits are made anew in
the backward pass instead of kept.

Shapes: N response tokens laid end to end, n of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W^T + b)[target], a chunk of tokens at a time; entropy on the side.

    The backward pass makes each chunk's logits anew: four matrix products where keeping [N, V] would take three.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        buffers = _Buffers(hidden, weight, bias, temperature, chunk)
        for part in _chunks(len(targets), chunk):
            logs, probabilities = buffers.softmax(hidden[part])
            logprobs[part], entropy[part] = _read(logs, probabilities, targets[part])
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        buffers = _Buffers(hidden, weight, bias, ctx.temperature, ctx.chunk)
        grads = _Gradients(hidden, weight, bias, ctx.needs_input_grad, ctx.temperature)
        for part in _chunks(len(targets), ctx.chunk):
            logs, probabilities = buffers.softmax(hidden[part])
            of_logprobs, of_entropy = (None if given is None else given[part] for given in gradients)
            upstream = _logit_gradient(logs, probabilities, targets[part], entropy[part], of_logprobs, of_entropy)
            grads.add(part, upstream, buffers.projection)
        return *grads.finished(), None, None, None


class _ChunkedLoss(torch.autograd.Function):
    """Sum of the tokens' losses, a chunk at a time, with its gradient made in the forward pass.

    As each token's loss depends on its own log-probability and entropy alone, the logits of a chunk are made once:
    three matrix products, as many as keeping [N, V] would take.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        token_loss: Callable[[Tensor, Tensor, slice], Tensor],
    ) -> Tensor:
        buffers = _Buffers(hidden, weight, bias, temperature, chunk)
        grads = _Gradients(hidden, weight, bias, ctx.needs_input_grad, temperature)
        total = torch.zeros((), device=hidden.device)
        for part in _chunks(len(targets), chunk):
            logs, probabilities = buffers.softmax(hidden[part])
            said = _read(logs, probabilities, targets[part])
            with torch.enable_grad():
                given = (said[0].requires_grad_(), said[1].requires_grad_())
                loss = token_loss(*given, part)
                of_logprobs, of_entropy = torch.autograd.grad(loss, given, allow_unused=True)
            total += loss.detach()
            upstream = _logit_gradient(logs, probabilities, targets[part], said[1].detach(), of_logprobs, of_entropy)
            grads.add(part, upstream, buffers.projection)
        ctx.gradients = grads.finished()
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.gradients = ctx.gradients, None
        assert made is not None, "the loss gives its gradient once"
        # In place, and kept nowhere else: the projection's gradient may be the largest tensor of all.
        scaled = (None if gradient is None else gradient.mul_(gradients[0]) for gradient in made)
        return *scaled, None, None, None, None


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


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_loss: Callable[[Tensor, Tensor, slice], Tensor],
    *,
    temperature: float,
    chunk: int,
) -> Tensor:
    """The sum of `token_loss(log-probabilities [n], entropies [n], which tokens)` over chunks, with gradient.

    Arguments as for `chunked_logprobs`; each token's loss must depend on its own two numbers alone.
    """
    loss: Tensor = _ChunkedLoss.apply(hidden, weight, bias, targets, temperature, chunk, token_loss)
    return loss


class _Buffers:
    """Room for the [chunk, V] tensors, used again by each chunk: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk: int) -> None:
        self.projection = weight.to(hidden.dtype)
        self._bias, self._temperature = bias, temperature
        rows = min(chunk, len(hidden))
        self._product = torch.empty(rows, len(weight), dtype=torch.float32, device=hidden.device)
        self._spare = torch.empty_like(self._product)
        # bfloat16 numbers multiplied and added up in float32: rounded to bfloat16, large logits are off by .2 nats.
        self._on_gpu = hidden.device.type == "cuda" and hidden.dtype != torch.float32
        self._wide = self.projection if self._on_gpu else self.projection.float()

    def softmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and probabilities of the whole vocabulary, [n, V] float32; overwritten by the next call."""
        logits = self._product[: len(hidden)]
        if self._on_gpu:
            torch.mm(hidden, self._wide.T, out_dtype=torch.float32, out=logits)
        else:
            torch.mm(hidden.float(), self._wide.T, out=logits)
        if self._bias is not None:
            logits += self._bias.float()
        if self._temperature != 1.0:
            logits /= self._temperature
        # By hand, as logsumexp would take another [n, V] and the exponential twice.
        logits -= logits.amax(dim=-1, keepdim=True)
        probabilities = torch.exp(logits, out=self._spare[: len(logits)])
        total = probabilities.sum(dim=-1, keepdim=True)
        return logits.sub_(total.log()), probabilities.div_(total)


class _Gradients:
    """Gradients of hidden states, projection and bias, each where it is wanted, added up chunk by chunk."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool], temperature: float
    ) -> None:
        self._given, self._weight_dtype, self._temperature = hidden, weight.dtype, temperature
        self._hidden = torch.empty_like(hidden) if wanted[0] else None
        self._weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        self._bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None

    def add(self, part: slice, of_logits: Tensor, projection: Tensor) -> None:
        """Takes in one chunk's gradient of the logits over the temperature [n, V]; overwrites it."""
        hidden = self._given[part]
        gradient = of_logits.div_(self._temperature) if self._temperature != 1.0 else of_logits
        gradient = gradient.to(hidden.dtype)
        if self._hidden is not None:
            torch.mm(gradient, projection, out=self._hidden[part])
        if self._weight is not None and hidden.dtype == torch.float32:
            # In place: a [V, H] product of its own for each chunk costs more than small chunks save.
            self._weight.addmm_(gradient.T, hidden)
        elif self._weight is not None:
            self._weight += gradient.T @ hidden
        if self._bias is not None:
            self._bias += gradient.sum(dim=0)

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three, in the weights' own precision."""
        weight = None if self._weight is None else self._weight.to(self._weight_dtype)
        return self._hidden, weight, self._bias


def _read(logs: Tensor, probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy, [n] each."""
    logprobs = logs.gather(1, targets[:, None]).squeeze(1)
    # A batched product of rows with rows needs no third [n, V]. Autocast would round both sides, and the result.
    with torch.autocast(logs.device.type, enabled=False):
        return logprobs, -torch.bmm(probabilities[:, None], logs[:, :, None]).flatten()


def _logit_gradient(
    logs: Tensor,
    probabilities: Tensor,
    targets: Tensor,
    entropy: Tensor,
    of_logprobs: Tensor | None,
    of_entropy: Tensor | None,
) -> Tensor:
    """[n, V] gradient with respect to the logits, given those of log-probabilities and entropies, [n] each.

    `logs` and `probabilities` are of the whole vocabulary [n, V] and are overwritten; the entropies [n] are theirs.
    d log p(y) / d z = onehot(y) - p;   d H / d z = -p (log p + H)
    """
    if of_entropy is None:
        gradient = probabilities.mul_(0.0 if of_logprobs is None else -of_logprobs[:, None])
    else:
        gradient = logs.add_(entropy[:, None]).mul_(-of_entropy[:, None])
        if of_logprobs is not None:
            gradient -= of_logprobs[:, None]
        gradient *= probabilities
    if of_logprobs is not None:
        gradient.scatter_add_(1, targets[:, None], of_logprobs[:, None])
    return gradient


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]
