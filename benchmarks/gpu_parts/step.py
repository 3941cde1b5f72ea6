"""Values, old log-probabilities, the critic's and the policy's update on long rows: seconds, MFU and memory.

MFU is the model's own arithmetic, as sizes.py counts it, over seconds and the card's measured matrix rate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gpu_parts.bench import GB, Bench, Phases, gigabytes
from gpu_parts.plan import planned
from gpu_parts.sizes import Sizes, forward_operations
from sppo.batch import Batch, Outcomes
from sppo.config import Config
from sppo.models.logprobs import chunk_tokens
from sppo.training.loop import Parts


def learn(phases: Phases, parts: Parts, batch: Batch, seed: int) -> dict[str, float]:
    """What the loop does with a batch, phase by phase; returns its metrics."""
    values = phases.time("values", lambda: parts.critic.values(batch))
    before, gaps = phases.time("estimate", lambda: parts.policy.estimate(batch, values))
    credit = parts.algorithm.assign_credit(Outcomes.of(batch, before))
    learnt = phases.time("critic", lambda: parts.critic.learn(batch, before, credit, seed=seed))
    moved = phases.time("policy", lambda: parts.policy.update(batch, before, credit, seed=seed))
    return {**gaps, **learnt, **moved}


def small_critic(bench: Bench) -> dict[str, Any]:
    """A step with a critic of a third of the policy's size."""
    return _sppo_step(bench, "step_small", bench.scale.small)


def same_critic(bench: Bench) -> dict[str, Any]:
    """A step with a critic that is a copy of the policy's backbone; and what the small one saves."""
    found = _sppo_step(bench, "step_same", None)
    if "step_small" in bench.peaks and bench.on_gpu:
        ours, smaller = (max(bench.peaks[name][1].values()) for name in ("step_same", "step_small"))
        found["points_of_the_card_saved_by_the_small_critic"] = 100 * (ours - smaller) / card_bytes()
    return found


def _sppo_step(bench: Bench, name: str, critic: Sizes | None) -> dict[str, Any]:
    scale = bench.scale
    config = bench.config(
        scale.policy, algorithm="sppo", prompts=scale.rows, prompt=scale.prompt, response=scale.response, updates=2,
        critic=critic,
    )  # fmt: skip
    return measure(bench, name, config, scale.policy, critic or scale.policy)


def lora(bench: Bench) -> dict[str, Any]:
    """Updates of a large policy by an adapter, without a critic; left out where the card is too small."""
    scale = bench.scale
    # GRPO, as it has no critic: two responses to one prompt.
    config = bench.config(
        scale.large, algorithm="grpo", prompts=1, samples=2, prompt=scale.prompt, response=scale.response,
        rank=scale.rank,
    )  # fmt: skip
    # Its largest phase is sampling, with a bfloat16 copy of all weights, which is made while the run is built too.
    needs = planned(bench, config).peak().bytes
    if bench.on_gpu:
        bench.fresh()
        free = torch.cuda.mem_get_info()[0]
        if needs > free:
            return {"left_out": f"needs about {needs / GB:.0f} GB, and {free / GB:.0f} GB are free"}
    return {"planned_peak_gb": gigabytes(needs), **measure(bench, "lora_7b", config, scale.large, None)}


def measure(bench: Bench, name: str, config: Config, sizes: Sizes, critic: Sizes | None) -> dict[str, Any]:
    """Two rounds on one run, of which the second counts: the first makes AdamW's moments.

    Args:
        bench: device and scale.
        name: of the part, for the plan.
        config: of the run.
        sizes: of the policy.
        critic: of the critic; None where there is none.
    """
    rate = bench.ceilings.rate
    bench.fresh()
    began = time.perf_counter()
    with bench.run(config, sizes) as parts:
        built, building = bench.peak(), time.perf_counter() - began
        first = _round(bench, config, parts, 0)[0]
        phases, metrics = _round(bench, config, parts, 1)
        reserved = float(torch.cuda.memory_reserved()) if bench.on_gpu else None
        counted = {"policy_parameters": sum(weight.numel() for weight in parts.policy.model.parameters())} | {
            f"{trained}_trained": sum(weight.numel() for group in optimizer.param_groups for weight in group["params"])
            for trained, optimizer in parts.optimizers.items()
        }
    # Of the second round, which has moments as a long run has, and of the building, where an adapter's run is largest.
    peak = None if built is None else max(built, *phases.peaks.values())
    bench.peaks[name] = (config, phases.peaks)
    work = _operations(config, sizes, critic)
    done = {name: seconds for name, seconds in phases.seconds.items() if name in work}
    return {
        **counted, "build_seconds": building, "build_peak_gb": gigabytes(built),
        "phases": {name: _of_phase(phases, name, work[name], rate) for name in done},
        "first_round_seconds": {name: first.seconds[name] for name in done},
        "critic_share": sum(done.get(name, 0.0) for name in ("values", "critic")) / sum(done.values()),
        "peak_gb": gigabytes(peak), "reserved_gb": gigabytes(reserved),
        "share_of_card": None if peak is None else peak / card_bytes(),
        "logprob_chunk_tokens": chunk_tokens(sizes["vocab_size"], bench.device),
        "metrics": metrics,
    }  # fmt: skip


def card_bytes() -> float:
    """Memory of the card."""
    return float(torch.cuda.get_device_properties(0).total_memory)


@dataclass(frozen=True)
class Work:
    """What a phase has to do."""

    operations: float
    tokens: int
    """That it reads."""


def _operations(config: Config, sizes: Sizes, critic: Sizes | None) -> Mapping[str, Work]:
    """By phase."""
    rows, prompt = config.sequences_per_step, config.data.max_prompt_tokens
    length, said = prompt + config.sampling.max_response_tokens, config.sampling.max_response_tokens
    forward = forward_operations(sizes, rows, length, said)
    found = {"estimate": Work(forward, rows * length)}
    found["policy"] = Work((2 if config.model.lora.rank else 3) * forward, rows * length)
    if critic is not None:
        reading = forward_operations(critic, config.prompts_per_step, prompt, 0)
        found["values"] = Work(reading, config.prompts_per_step * prompt)
        found["critic"] = Work(3 * reading, config.prompts_per_step * prompt)
    return found


def _of_phase(phases: Phases, name: str, work: Work, rate: float) -> dict[str, float | None]:
    seconds = phases.seconds[name]
    return {
        "seconds": seconds,
        "mfu": work.operations / seconds / rate,
        "teraflops": work.operations / seconds / 1e12,
        "tokens_per_second": work.tokens / seconds,
        "peak_gb": gigabytes(phases.peaks.get(name)),
    }


def _round(bench: Bench, config: Config, parts: Parts, seed: int) -> tuple[Phases, dict[str, float]]:
    phases = Phases(bench)
    return phases, learn(phases, parts, bench.batch(config, seed), seed)
