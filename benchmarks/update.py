"""Update speed: forward and backward of the clipped loss on the demo's batches, against the usual layout.

    python benchmarks/update.py --json update.json

Three ways through the same 512 sequences, in mini-batches of 128, with the same gradients (checked):
sorted: what `sppo.update` does by default. Micro-batches of rows of like length, padded on the right, no attention
mask, logits of response tokens alone.
packed: rows laid end to end (optimizer.layout packed).
usual: prompts padded on the left and responses on the right to the widest of the step, an attention mask, the logits
and entropies of every response position with its padding, one pass a mini-batch; as in TRL's GRPOTrainer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import demo_config, machine, medians, parse, parser, print_machine, take_turns, write_json
from torch import Tensor
from transformers import PreTrainedModel

from sppo.batch import microbatches
from sppo.config import OptimizerConfig
from sppo.data.tasks import demonstrations
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.loading import load_policy, load_tokenizer
from sppo.models.logprobs import TokenLoss, response_loss
from sppo.models.packing import TokenRow
from sppo.rollouts.encode import encode_demonstrations

ROWS, MINIBATCH = 512, 128


def clipped_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """The same loss for all: PPO's clipped surrogate, token mean over the mini-batch."""
    ratio = torch.where(mask, logprobs - old, 0.0).exp()
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(0.8, 1.2) * advantages)
    return (loss * mask).sum() / tokens


def token_loss(advantages: Tensor, tokens: int) -> TokenLoss:
    def loss(said: Tensor, entropy: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return clipped_loss(said, said.detach(), advantages[row, 0], torch.ones_like(said, dtype=torch.bool), tokens)

    return loss


def update_ours(
    model: PreTrainedModel, rows: Sequence[TokenRow], advantages: Tensor, optimizer: OptimizerConfig, layout: Any
) -> None:
    for start in range(0, len(rows), MINIBATCH):
        members, member_advantages = rows[start : start + MINIBATCH], advantages[start : start + MINIBATCH]
        tokens = sum(len(row.response) for row in members)
        lengths = [row.tokens for row in members]
        for part in microbatches(lengths, optimizer.tokens_per_microbatch, layout):
            loss = token_loss(member_advantages[part], tokens)
            chosen = [members[row] for row in part]
            response_loss(model, chosen, loss, layout=layout).backward()


def update_usual(model: PreTrainedModel, rows: Sequence[TokenRow], advantages: Tensor, pad: int) -> None:
    before = max(len(row.prompt) for row in rows)
    after = max(len(row.response) for row in rows)
    gaps = [(before - len(row.prompt), row.tokens, after - len(row.response)) for row in rows]
    ids = torch.tensor(
        [
            [pad] * left + [*row.prompt, *row.response] + [pad] * right
            for row, (left, _, right) in zip(rows, gaps, strict=True)
        ]
    )
    mask = torch.tensor([[0] * left + [1] * tokens + [0] * right for left, tokens, right in gaps])
    for start in range(0, len(rows), MINIBATCH):
        part = slice(start, start + MINIBATCH)
        logits = model(
            input_ids=ids[part], attention_mask=mask[part], use_cache=False, logits_to_keep=after + 1
        ).logits[:, :-1]
        targets, answered = ids[part, -after:], mask[part, -after:].bool()
        said = logits.log_softmax(dim=-1).gather(2, targets[:, :, None]).squeeze(2)
        with torch.no_grad():
            everything = logits.log_softmax(dim=-1)
            _ = -(everything.exp() * everything).sum(dim=-1)
        clipped_loss(said, said.detach(), advantages[part], answered, int(answered.sum())).backward()


def compare(kind: str, repeats: int) -> dict[str, Any]:
    config = demo_config()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(config.model, ALPHABET)
    model = load_policy(config.model, tokenizer, torch.device("cpu"))
    rows = encode_demonstrations(demonstrations(config.data, kind, 0), tokenizer)
    rows = random.Random(0).sample(rows, ROWS)
    advantages = torch.randn(ROWS, 1)
    contenders: dict[str, Callable[[int], None]] = {
        "sorted": lambda _: update_ours(model, rows, advantages, config.optimizer, "sorted"),
        "packed": lambda _: update_ours(model, rows, advantages, config.optimizer, "packed"),
        "usual": lambda _: update_usual(model, rows, advantages, int(tokenizer.pad_token_id)),
    }
    require_equal_gradients(model, contenders)
    # Gradients go on adding up, which costs all three the same.
    seconds = take_turns(contenders, repeats)
    median = medians(seconds)
    return {
        "responses": kind,
        "tokens": sum(row.tokens for row in rows),
        "padded_tokens_usual": ROWS * (max(len(row.prompt) for row in rows) + max(len(row.response) for row in rows)),
        "tokens_per_microbatch": config.optimizer.tokens_per_microbatch,
        "seconds": seconds,
        "median_seconds": median,
        "speedup": {name: median["usual"] / median[name] for name in ("sorted", "packed")},
    }


def require_equal_gradients(model: PreTrainedModel, contenders: dict[str, Callable[[int], None]]) -> None:
    found = {}
    for name, run in contenders.items():
        model.zero_grad()
        run(0)
        found[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for name, gradient in found.items():
        gap = float((gradient - found["usual"]).norm() / found["usual"].norm())
        assert gap < 1e-4, f"the gradient of {name} is off by {gap:.1e} of its norm"


def main() -> None:
    arguments = parse(parser(__doc__, repeats=7))
    described = machine(arguments.threads)
    print_machine(described)
    print(f"{'responses':<11}{'tokens':>8}{'usual s':>9}{'sorted s':>10}{'packed s':>10}{'sorted':>9}{'packed':>9}")
    results = []
    for kind in ("terse", "full"):
        result = compare(kind, arguments.repeats)
        results.append(result)
        median, speedup = result["median_seconds"], result["speedup"]
        print(
            f"{kind:<11}{result['tokens']:>8}{median['usual']:>9.3f}{median['sorted']:>10.3f}{median['packed']:>10.3f}"
            f"{speedup['sorted']:>8.2f}x{speedup['packed']:>8.2f}x",
            flush=True,
        )
    write_json(arguments.json, described, results)


if __name__ == "__main__":
    main()
