"""Whole steps of short responses, sampling included: SPPO with one response a prompt, GRPO with groups.

Both ask as many prompts and take as many optimiser steps, as the paper's comparison did; so GRPO samples and learns
from a group's size times the responses.
"""

from __future__ import annotations

from typing import Any

from gpu_parts.bench import Bench, Phases, gigabytes
from gpu_parts.step import learn
from sppo.config import Config
from sppo.training.loop import Parts

UPDATES = 2
"""Optimiser steps a step."""


def against_groups(bench: Bench) -> dict[str, Any]:
    """SPPO N=1 and GRPO at equal prompts."""
    ours, groups = sppo(bench), grpo(bench)
    return {
        "sppo": ours,
        "grpo": groups,
        "grpo_over_sppo": {name: groups[name] / ours[name] for name in ("seconds", "responses", "sampled_tokens")},
    }


def sppo(bench: Bench) -> dict[str, Any]:
    """One response to each prompt, with the small critic."""
    return _measure(bench, "sppo", 1)


def grpo(bench: Bench) -> dict[str, Any]:
    """A group of responses to each prompt."""
    return _measure(bench, "grpo", bench.scale.group)


def _measure(bench: Bench, algorithm: str, samples: int) -> dict[str, Any]:
    """Two steps, of which the second counts."""
    scale = bench.scale
    config = bench.config(
        scale.policy, algorithm=algorithm, prompts=scale.asked, samples=samples, prompt=scale.short_prompt,
        response=scale.short_response, updates=UPDATES, critic=scale.small,
    )  # fmt: skip
    bench.fresh()
    with bench.run(config, scale.policy) as parts:
        _step(bench, config, parts, 1)
        found = _step(bench, config, parts, 2)
    bench.whole[algorithm] = found
    bench.fresh()
    return found


def _step(bench: Bench, config: Config, parts: Parts, number: int) -> dict[str, Any]:
    phases, box = Phases(bench), []

    def step() -> None:
        collected = phases.time("sample", lambda: parts.collector.collect(number, parts.policy.version))
        batch = parts.collector.batch(collected)
        assert batch is not None, "every response has a reward"
        learn(phases, parts, batch, number)
        parts.collector.observe(collected, batch)
        phases.time("weights", parts.hand_over_weights)
        parts.critic.policy_moved()
        box.append(batch)

    seconds = bench.clock(step)
    (batch,) = box
    sampled = sum(rollout.completion.written for rollout in batch.rollouts)
    return {
        "seconds": seconds, "phases": phases.seconds, "prompts": config.prompts_per_step, "responses": len(batch),
        "sampled_tokens": sampled, "trained_tokens": sum(batch.lengths),
        "sampled_tokens_per_second": sampled / phases.seconds["sample"],
        "trained_tokens_per_second": sum(batch.lengths) / phases.seconds["policy"],
        "peak_gb": gigabytes(max(phases.peaks.values(), default=None)),
    }  # fmt: skip
