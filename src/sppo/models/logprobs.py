"""Log-probabilities of response tokens without ever holding [B, T, V].

The backbone runs once over a micro-batch; the output projection runs over a few hundred tokens at a time, see
`chunked.py`. The exception are architectures that scale or cap their logits after the projection (Gemma 2,
Cohere, Granite) and heads that are more than a projection: for these the model's own forward is used, and the
micro-batch's logits are whole.

Shapes: r rows, S padded row length, N response tokens of the micro-batch laid end to end, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.errors import ModelError
from sppo.models.chunked import chunked_logprobs, chunked_loss
from sppo.models.loading import arithmetic, embedded_tokens
from sppo.models.packing import Layout, TokenRow, lay_out
from sppo.models.precision import Precision
from sppo.models.sharding import inside, shard
from sppo.runs import ranks

LayoutName = Literal["sorted", "packed"]
TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(log-probabilities [n], entropies [n], row [n] and column [n] of each token) -> the tokens' summed loss."""


class TokenLogprobs(NamedTuple):
    """What a forward pass says of the response tokens within the rows' masks."""

    logprobs: Tensor
    """[r, T] float32, nats; 0 outside the masks."""
    entropy: Tensor
    """[r, T] float32, nats, with gradient; 0 outside the masks."""


def response_logprobs(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    *,
    width: int,
    temperature: float = 1.0,
    chunk: int | None = None,
    layout: LayoutName = "sorted",
) -> TokenLogprobs:
    """Runs the model on one micro-batch and returns what it says of each response token within the rows' masks.

    Args:
        model: a causal LM.
        rows: r prompts and responses.
        width: T of the result.
        temperature: divides the logits, as at sampling.
        chunk: tokens whose logits exist at one time; default: `chunk_tokens`.
        layout: rows padded on the right, or laid end to end in one row.

    Returns:
        [r, T] log-probabilities (with gradient, where grad is on) and entropies.
    """
    device = next(model.parameters()).device
    arranged = lay_out(rows, layout, device)
    apart = projects_apart(model)  # before autocast, which would round both sides of the comparison

    def read() -> TokenLogprobs:
        if apart:
            hidden, weight, bias = _before_projection(model, arranged)
            size = chunk or chunk_tokens(len(weight), device)
            said = chunked_logprobs(hidden, weight, bias, arranged.targets, temperature=temperature, chunk=size)
        else:
            said = _whole_logprobs(model, arranged, temperature)
        return TokenLogprobs(*(_spread(flat, arranged, len(rows), width) for flat in said))

    with arithmetic(model):
        return inside(model, read)


def response_loss(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    token_loss: TokenLoss,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    layout: LayoutName = "sorted",
) -> Tensor:
    """Runs the model on one micro-batch and returns the sum of its tokens' losses, with gradient.

    The same as a loss of `response_logprobs`, with a quarter fewer products of the vocabulary's size. Only for losses
    in which each token's term depends on its own log-probability and entropy alone.

    Args:
        model: a causal LM.
        rows: r prompts and responses.
        token_loss: called for a few response tokens at a time, each token once.
        temperature: divides the logits, as at sampling.
        chunk: tokens whose logits exist at one time; default: `chunk_tokens`.
        layout: rows padded on the right, or laid end to end in one row.
    """
    device = next(model.parameters()).device
    arranged = lay_out(rows, layout, device)
    apart = projects_apart(model)

    def loss_of(logprobs: Tensor, entropy: Tensor, part: slice) -> Tensor:
        return token_loss(logprobs, entropy, arranged.rows[part], arranged.columns[part])

    def lose() -> Tensor:
        if not apart:
            return loss_of(*_whole_logprobs(model, arranged, temperature), slice(None))
        hidden, weight, bias = _before_projection(model, arranged)
        size = chunk or chunk_tokens(len(weight), device)
        return chunked_loss(hidden, weight, bias, arranged.targets, loss_of, temperature=temperature, chunk=size)

    with arithmetic(model):
        return inside(model, lose)


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits are made at one time: as many as come to 2^25 numbers on a CPU, to 2^28 on a GPU.

    With a vocabulary of 150,000 these are 220 and 1,790 tokens: enough for products that run at full speed, and little
    beside the rest of a micro-batch. Another number changes memory and speed, and the result by rounding.
    """
    return max((2**25 if device.type == "cpu" else 2**28) // vocabulary, 1)


def _before_projection(model: PreTrainedModel, arranged: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
    """Last hidden states [N, H] that predict the response tokens, and the output projection and its bias."""
    hidden = _backbone(model)(**arranged.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    chosen = hidden[arranged.sources]
    if torch.is_autocast_enabled(chosen.device.type):
        # The last norm may leave float32, whose matrix products would cost the backward pass dearly.
        chosen = chosen.to(torch.get_autocast_dtype(chosen.device.type))
    head = model.get_output_embeddings()
    return chosen, head.weight, getattr(head, "bias", None)


def _spread(flat: Tensor, arranged: Layout, rows: int, width: int) -> Tensor:
    """[N] -> [r, T], zeros elsewhere."""
    target = torch.zeros(rows, width, dtype=flat.dtype, device=flat.device)
    return target.index_put((arranged.rows, arranged.columns), flat)


def _whole_logprobs(model: PreTrainedModel, arranged: Layout, temperature: float) -> tuple[Tensor, Tensor]:
    logits = model(**arranged.inputs, use_cache=False).logits.flatten(0, 1)[arranged.sources].float()
    logprobs = (logits / temperature).log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, arranged.targets[:, None]).squeeze(1), entropy


def _backbone(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix)


def projects_apart(model: PreTrainedModel) -> bool:
    """Whether logits = output projection of the backbone's last hidden state and nothing else.

    Some architectures scale or cap their logits after the projection. Rather than keeping a list of them, the two
    ways are compared once on a few tokens; where they differ, the model's own forward is used, whole.
    """
    known: bool | None = getattr(model, "_sppo_projects_apart", None)
    if known is None:
        known = _compare_projection(model)
        model._sppo_projects_apart = known  # type: ignore[assignment]
    return known


def shard_policy(model: PreTrainedModel, precision: Precision) -> None:
    """`shard` of a causal LM, once it is known how its logits are made: that can't be tried afterwards.

    Raises:
        ModelError: weights in 4 bits, which can't be spread over ranks.
    """
    projects_apart(model)
    if getattr(model, "is_quantized", False):
        if ranks.world_size() > 1:
            raise ModelError(
                f"The policy's weights are held in 4 bits, which can't be spread over {ranks.world_size()} ranks. Set "
                "model.lora.quantize to none, or run in one process."
            )
        return
    shard(model, precision)


@torch.no_grad()
def _compare_projection(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or not head.weight.is_floating_point():
        return False
    if not hasattr(model, model.base_model_prefix):
        return False
    ids = torch.arange(8, device=head.weight.device)[None] % embedded_tokens(model)
    # Made large, so that a cap shows that small logits would not reach.
    enlarge = head.register_forward_hook(lambda module, inputs, output: output * 1000)
    try:
        expected = model(input_ids=ids, use_cache=False).logits
    finally:
        enlarge.remove()
    hidden = _backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    # By the weights and not by calling the head, which may be a subclass that adds to them, such as an adapter.
    ours = torch.nn.functional.linear(hidden, head.weight, head.bias) * 1000
    return expected.shape == ours.shape and torch.allclose(expected.float(), ours.float(), rtol=1e-3, atol=1e-3)
