"""Log-probabilities at a large vocabulary: chunks of tokens (`sppo.models.logprobs`) against all logits at once.

    python benchmarks/logprobs.py --json logprobs.json

Forward and backward of the response tokens' log-probabilities under an output projection [V, H], float32 on the CPU,
with gradients for hidden states and projection (checked to be equal). The full way is
`(hidden @ weight.T).log_softmax(-1).gather(...)`.

Extra peak memory is the process's high-water mark (ru_maxrss) over that with the inputs alone; each way runs in a
process of its own. It is measured twice: with a projection that trains, whose gradient of the projection's own size
both ways must return, and with a frozen one, which leaves what the ways themselves need. Seconds are of a training
projection, medians of rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import machine, medians, parse, parser, peak_bytes, print_machine, take_turns, write_json
from torch import Tensor

from sppo.models.chunked import chunked_logprobs, chunked_loss

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, H], weight [V, H], targets [N], gradient [N] of each log-probability) -> scalar loss."""


def full(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    return ((hidden @ weight.T).log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1) * upstream).sum()


def ways(chunks: list[int]) -> dict[str, Way]:
    def any_loss(chunk: int) -> Way:
        def way(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
            said, _ = chunked_logprobs(hidden, weight, None, targets, temperature=1.0, chunk=chunk)
            return (said * upstream).sum()

        return way

    def token_loss(chunk: int) -> Way:
        def way(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
            def loss(logprobs: Tensor, entropy: Tensor, part: slice) -> Tensor:
                return (logprobs * upstream[part]).sum()

            return chunked_loss(hidden, weight, None, targets, loss, temperature=1.0, chunk=chunk)

        return way

    named: dict[str, Way] = {"full": full}
    for chunk in chunks:
        named |= {f"token loss, {chunk}": token_loss(chunk), f"any loss, {chunk}": any_loss(chunk)}
    return named


def make_inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [N, H], weight [V, H], targets [N], and the gradient [N] that comes from the loss."""
    torch.manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.hidden).requires_grad_()
    weight = torch.empty(arguments.vocabulary, arguments.hidden).normal_(std=0.05).requires_grad_()
    targets = torch.randint(arguments.vocabulary, (arguments.tokens,))
    return hidden, weight, targets, torch.randn(arguments.tokens) / arguments.tokens


def run(way: Way, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, upstream = inputs
    hidden.grad = weight.grad = None
    way(hidden, weight, targets, upstream).backward()


def extra_memory(arguments: argparse.Namespace) -> int:
    """Bytes, in this process, which must run nothing else before."""
    # The matrix product's own buffers are made at its first call, whatever the way.
    torch.randn(512, 512) @ torch.randn(512, 512)
    inputs = make_inputs(arguments)
    inputs[1].requires_grad_(not arguments.frozen)
    before = peak_bytes()
    run(ways(arguments.chunks)[arguments.measure_memory], inputs)
    return peak_bytes() - before


def extra_memory_apart(name: str, frozen: bool, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--measure-memory", name, "--chunks", *map(str, arguments.chunks)]
    command += ["--frozen"] if frozen else []
    for key in ("vocabulary", "hidden", "tokens", "threads"):
        command += [f"--{key}", str(getattr(arguments, key))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def require_equal_gradients(named: dict[str, Way], inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """On a corner of the problem, as keeping two whole gradients would take the memory that is at stake."""
    hidden, weight, targets, upstream = inputs
    small = (hidden[:96].detach().requires_grad_(), weight[:4096].detach().requires_grad_(), targets[:96] % 4096)
    found = {}
    for name, way in named.items():
        run(way, (*small, upstream[:96]))
        assert small[0].grad is not None, "a gradient for the hidden states"
        assert small[1].grad is not None, "a gradient for the projection"
        found[name] = torch.cat([small[0].grad.flatten(), small[1].grad.flatten()])
    for name, gradient in found.items():
        gap = float((gradient - found["full"]).norm() / found["full"].norm())
        assert gap < 1e-5, f"the gradient of {name} is off by {gap:.1e} of its norm"


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    named = ways(arguments.chunks)
    memory = {name: extra_memory_apart(name, False, arguments) for name in named}
    frozen = {name: extra_memory_apart(name, True, arguments) for name in named}
    inputs = make_inputs(arguments)
    require_equal_gradients(named, inputs)
    runs = {name: (lambda _, way=way: run(way, inputs)) for name, way in named.items()}
    seconds = take_turns(runs, arguments.repeats)
    median = medians(seconds)
    return [
        {
            "way": name,
            "extra_peak_bytes": memory[name],
            "extra_peak_bytes_frozen": frozen[name],
            "memory_ratio": memory["full"] / memory[name],
            "memory_ratio_frozen": frozen["full"] / frozen[name],
            "seconds": seconds[name],
            "median_seconds": median[name],
            "time_ratio": median[name] / median["full"],
        }
        for name in named
    ]


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--vocabulary", type=int, default=152_000, help="V (default: %(default)s)")
    options.add_argument("--hidden", type=int, default=896, help="H (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=4096, help="N response tokens (default: %(default)s)")
    options.add_argument(
        "--chunks", type=int, nargs="+", default=[128, 256], help="tokens a chunk (default: 128, and sppo's 256)"
    )
    options.add_argument("--measure-memory", help=argparse.SUPPRESS)
    options.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    arguments = parse(options)
    if arguments.measure_memory:
        print(extra_memory(arguments))
        return
    described = machine(arguments.threads)
    print_machine(described)
    print(f"{'way':<18}{'extra MB':>10}{'less':>8}{'frozen MB':>11}{'less':>8}{'seconds':>9}{'time':>8}")
    results = compare(arguments)
    for result in results:
        print(
            f"{result['way']:<18}{result['extra_peak_bytes'] / 1e6:>10.0f}{result['memory_ratio']:>7.1f}x"
            f"{result['extra_peak_bytes_frozen'] / 1e6:>11.0f}{result['memory_ratio_frozen']:>7.1f}x"
            f"{result['median_seconds']:>9.2f}{result['time_ratio']:>7.2f}x"
        )
    sizes = {key: getattr(arguments, key) for key in ("vocabulary", "hidden", "tokens")}
    write_json(arguments.json, described, [{**sizes, **result} for result in results])


if __name__ == "__main__":
    main()
