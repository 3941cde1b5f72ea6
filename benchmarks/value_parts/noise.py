"""The gradient's noise scale at the warm start (McCandlish et al., arXiv 1812.06162).

tr(S) / |G|^2: the batch size at which a gradient's noise is as large as the gradient, in responses. It follows from the
mean squared norms at two batch sizes, b < B, as E|g_B|^2 = |G|^2 + tr(S) / B:

    |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b),    tr(S) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

The norms are those of ordinary steps with a learning rate of next to nothing. Prompts of one batch are drawn without
replacement from an epoch, which lowers |G|^2 by up to tr(S) over (prompts of the pool x samples of each).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from sppo.runs.files import write_json
from sppo.runs.folder import read_metrics
from value_parts import plan
from value_parts.configs import run_config
from value_parts.designs import Cell
from value_parts.running import Job

SMALL, LARGE = 32, 512
_RESPONSES = {SMALL: 64 * SMALL, LARGE: 16 * LARGE}
_NEXT_TO_NOTHING = 1e-12


def measure_noise(
    arguments: argparse.Namespace, run: Callable[[Sequence[Job]], list[str]], tell: Callable[[str], None]
) -> None:
    """Prints and writes the noise scale of each method in each cell."""
    jobs = {
        (cell, method, seed, batch): _job(plan.CELLS[cell], method, seed, batch, arguments)
        for seed in arguments.seeds
        for cell in arguments.cells
        for method in arguments.methods
        for batch in (SMALL, LARGE)
    }
    run(list(jobs.values()))
    results: dict[str, Any] = {}
    for cell in arguments.cells:
        for method in arguments.methods:
            norms = {
                batch: [norm for seed in arguments.seeds for norm in _norms(jobs[cell, method, seed, batch])]
                for batch in (SMALL, LARGE)
            }
            found = noise_scale(norms[SMALL], norms[LARGE], SMALL, LARGE)
            results.setdefault(cell, {})[method] = found
            parts = f"|G|^2 {found['gradient']:.3g}, tr(S) {found['noise']:.3g}"
            scale = "none" if found["scale"] is None else f"{found['scale']:.0f} responses"
            tell(f"{cell}, {method}: noise scale {scale} ({parts})")
    write_json(arguments.output / "noise.json", results)


def noise_scale(small: Sequence[float], large: Sequence[float], b: int, B: int) -> dict[str, float | None]:
    """|G|^2, tr(S) and their ratio from the gradient norms of batches of b and of B responses.

    The ratio is None where |G|^2 comes out negative: the noise is then larger than these batches can tell.
    """
    at_small, at_large = fmean(norm**2 for norm in small), fmean(norm**2 for norm in large)
    gradient = (B * at_large - b * at_small) / (B - b)
    noise = (at_small - at_large) / (1 / b - 1 / B)
    return {"gradient": gradient, "noise": noise, "scale": noise / gradient if gradient > 0 else None}


def _job(cell: Cell, method: str, seed: int, batch: int, arguments: argparse.Namespace) -> Job:
    settings = {"optimizer.learning_rate": _NEXT_TO_NOTHING, "critic.learning_rate": _NEXT_TO_NOTHING}
    config = run_config(
        replace(cell, batch=batch),
        plan.METHODS[method],
        seed,
        settings,
        _RESPONSES[batch],
        arguments.output,
        f"noise/{batch}",
    )
    config = replace(config, evaluation=replace(config.evaluation, every=0))
    return Job(config, _RESPONSES[batch], target=1.0)


def _norms(job: Job) -> list[float]:
    return [line["policy/grad_norm"] for line in read_metrics(job.folder) if "policy/grad_norm" in line]
