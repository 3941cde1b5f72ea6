"""What one GPU does in training, part by part, and how far that is from what the card can do.

    python benchmarks/gpu.py --json gpu.json                        # everything; about 5 minutes on an H100
    python benchmarks/gpu.py --parts step_small step_same plan
    python benchmarks/gpu.py --tiny                                 # the same code with tiny models, on a CPU too

Random weights of the published sizes; nothing is downloaded. Runs are built as `sppo train` builds them, so that what
is measured is what users run. Needs torch, transformers and this package. A part that fails is reported, with its
traceback on the standard error, and the others go on; results are written after each part. Numbers are seconds, GB
(1e9 bytes) and shares of 1, unless their name says otherwise; mfu is against the card's measured matrix rate, by the
formula in gpu_parts/sizes.py.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import machine, parse, parser, print_machine, write_json
from gpu_parts import offload, plan, profile, sampling, step, trl, whole
from gpu_parts.bench import Bench, gigabytes
from gpu_parts.sizes import FULL, TINY


@dataclass(frozen=True)
class Part:
    """One line of the table."""

    measure: Callable[[Bench], dict[str, Any]]
    seconds: float
    """What it takes on an H100, estimated: it isn't begun where less is left."""


def ceilings(bench: Bench) -> dict[str, Any]:
    """Copies and bfloat16 matrix products of this card, which the other parts are held against."""
    found = bench.ceilings
    return {"terabytes_per_second": found.bandwidth / 1e12, "teraflops": found.rate / 1e12}


# In the order of what is wanted most, should the time not be enough; the plan after what it is held against.
PARTS: dict[str, Part] = {
    "ceilings": Part(ceilings, 5),
    "step_small": Part(step.small_critic, 25),
    "step_same": Part(step.same_critic, 30),
    "lora_7b": Part(step.lora, 35),
    "plan": Part(plan.against_measured, 5),
    "profile": Part(profile.kernels, 25),
    "sampling": Part(sampling.hf, 30),
    "sppo_grpo": Part(whole.against_groups, 65),
    "offload": Part(offload.moments, 35),
    "sampling_vllm": Part(sampling.vllm, 90),
    "trl": Part(trl.against, 70),
}


def run_parts(parts: Mapping[str, Part], bench: Bench, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields what each part has found, why it failed, or why it was left out.

    Args:
        parts: by name.
        bench: device and scale.
        seconds: that all of them may take.
    """
    began = time.perf_counter()
    for name, part in parts.items():
        left = seconds - (time.perf_counter() - began)
        if left < part.seconds:
            yield {"part": name, "left_out": f"takes about {part.seconds:.0f} s, and {left:.0f} s are left"}
            continue
        bench.fresh()
        started = time.perf_counter()
        try:
            found = part.measure(bench)
        except Exception as error:  # whatever it is, the others still count
            found = failure(error)
        bench.fresh()  # out of the exception's reach, whose frames hold what the part had
        # More than a little here would be in the way of the next part.
        left_behind = {} if bench.held() is None else {"left_behind_gb": gigabytes(bench.held())}
        yield {"part": name, "took_seconds": time.perf_counter() - started, **left_behind, **found}


def failure(error: Exception) -> dict[str, Any]:
    """Says what failed and where."""
    traceback.print_exception(error)
    places = [f"{place.filename}:{place.lineno} {place.name}" for place in traceback.extract_tb(error.__traceback__)]
    return {"failed": traceback.format_exception_only(error)[-1].strip(), "where": places[-4:]}


def main() -> None:
    options = parser(__doc__, repeats=None)
    options.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="(default: all)")
    options.add_argument("--seconds", type=float, default=360, help="for all parts together (default: %(default)s)")
    options.add_argument("--tiny", action="store_true", help="tiny models, also without a GPU")
    arguments = parse(options)
    if not (arguments.tiny or torch.cuda.is_available()):
        options.error("torch sees no GPU here; --tiny runs the same code on a CPU.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    described = machine(arguments.threads, device.type)
    if device.type == "cuda":
        described |= {"cuda": torch.version.cuda, "card_gb": gigabytes(step.card_bytes())}
    print_machine(described)
    chosen = {name: part for name, part in PARTS.items() if name in arguments.parts}
    results: list[dict[str, Any]] = []
    bench = Bench(TINY if arguments.tiny else FULL, device, arguments.threads)
    for found in run_parts(chosen, bench, arguments.seconds):
        results.append(found)
        print(found, flush=True)
        write_json(arguments.json, described, results)
    sys.exit(report(results))


def report(results: Sequence[Mapping[str, Any]]) -> int:
    """Says which parts failed or were left out; returns the exit status."""
    for word in ("failed", "left_out"):
        named = [f"{found['part']} ({found[word]})" for found in results if word in found]
        if named:
            print(f"{word.replace('_', ' ')}: {', '.join(named)}", flush=True)
    return int(any("failed" in found for found in results))


if __name__ == "__main__":
    main()
