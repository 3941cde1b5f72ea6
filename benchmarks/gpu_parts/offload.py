"""optimizer.offload: what a sampling phase takes more with it, and what room it makes."""

from __future__ import annotations

from typing import Any

from gpu_parts.bench import GB, Bench, Phases, gigabytes
from gpu_parts.step import learn
from sppo.training.loop import Parts
from sppo.training.offload import EngineWithRoom


def moments(bench: Bench) -> dict[str, Any]:
    """Seconds of waking the engine and putting it back to sleep, with moments on the host and without."""
    scale = bench.scale
    config = bench.config(
        scale.policy, algorithm="sppo", prompts=2, prompt=scale.short_prompt, response=scale.short_response,
        critic=scale.small, offload=True,
    )  # fmt: skip
    with bench.run(config, scale.policy) as parts:
        learn(Phases(bench), parts, bench.batch(config, 0), 0)  # makes the moments
        size = sum(
            value.numel() * value.element_size()
            for optimizer in parts.optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
        )
        assert isinstance(parts.engine, EngineWithRoom)
        awake = {"on": parts.engine.awake, "off": parts.engine.engine.awake}
        found: dict[str, Any] = {"moments_gb": size / GB}
        for name, wake in awake.items():
            for _ in range(2):  # the second counts
                found |= {f"{name}_{key}": value for key, value in _nap(bench, parts, wake).items()}
    if bench.on_gpu:  # elsewhere they are on the host as it is
        found["copied_gb_per_second"] = 2 * size / GB / (found["on_seconds"] - found["off_seconds"])
    return found


def _nap(bench: Bench, parts: Parts, wake: Any) -> dict[str, Any]:
    bench.fresh()
    inside: list[float | None] = []

    def run() -> None:
        with wake():
            bench.wait()
            inside.append(bench.held())

    return {"seconds": bench.clock(run), "awake_gb": gigabytes(inside[0])}
