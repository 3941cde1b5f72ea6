"""What a policy update spends its time in: AdamW's share, and kernels by torch.profiler. What to mend first."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_parts.bench import Bench, Phases
from gpu_parts.step import learn
from sppo.batch import Outcomes

MOST = 15


def kernels(bench: Bench) -> dict[str, Any]:
    """Updates of one optimiser step on two long rows, after one that warms up: AdamW by itself, then kernels."""
    scale = bench.scale
    config = bench.config(
        scale.policy, algorithm="grpo", prompts=1, samples=2, prompt=scale.prompt, response=scale.response
    )
    with bench.run(config, scale.policy) as parts:
        learn(Phases(bench), parts, bench.batch(config, 0), 0)
        batch = bench.batch(config, 1)
        before, _ = parts.policy.estimate(batch, None)
        credit = parts.algorithm.assign_credit(Outcomes.of(batch, before))
        update = partial(parts.policy.update, batch, before, credit, seed=1)
        adam = OptimizerClock(bench, parts.policy.adam)
        plain = bench.clock(update)
        adam.stop()
        # Kernels alone on a GPU: the operators that start them would take longer to record than to run.
        with profile(activities=[ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]) as seen:
            seconds = bench.clock(update)
    return {
        "seconds": plain, "adam_seconds": adam.seconds, "adam_share": adam.seconds / plain,
        "profiled_seconds": seconds, **_table(seen, bench.on_gpu, seconds),
    }  # fmt: skip


class OptimizerClock:
    """Seconds that an optimiser's steps take, with all that was begun before them done."""

    def __init__(self, bench: Bench, optimizer: torch.optim.Optimizer) -> None:
        self.seconds, self._began = 0.0, 0.0

        def begin(*_: Any) -> None:
            bench.wait()
            self._began = time.perf_counter()

        def end(*_: Any) -> None:
            bench.wait()
            self.seconds += time.perf_counter() - self._began

        self._hooks = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)]

    def stop(self) -> None:
        """Takes no more part in steps."""
        for hook in self._hooks:
            hook.remove()


def _table(seen: Any, on_gpu: bool, seconds: float) -> dict[str, Any]:
    took = {}
    for event in seen.key_averages():
        kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
        # Ranges that somebody named, such as FSDP's, hold kernels that are counted by themselves.
        if event.device_type == kind and not getattr(event, "is_user_annotation", False):
            own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            took[event.key] = (own / 1e6, event.count)
    busy = sum(own for own, _ in took.values())
    longest = sorted(took.items(), key=lambda item: -item[1][0])[:MOST]
    return {
        "busy_share": busy / seconds,
        "kernels": [
            {"name": name[:160], "ms": 1e3 * own, "calls": calls, "share": own / busy} for name, (own, calls) in longest
        ],
    }
