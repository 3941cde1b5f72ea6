"""Our GRPO against TRL's GRPOTrainer: the same sizes, prompts, groups, lengths, optimiser steps and micro-batches.

TRL runs in a process of its own, so that neither leaves the other without memory or with its settings. Both compute in
bfloat16 over float32 weights on a GPU, and both recompute activations.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_parts import whole
from gpu_parts.bench import Bench, prompt_texts
from gpu_parts.sizes import settings

LIMIT = 180
"""Seconds after which TRL's process is ended."""


def against(bench: Bench) -> dict[str, Any]:
    """Seconds of a whole step of each."""
    if importlib.util.find_spec("trl") is None:
        return {"left_out": "trl is not installed (benchmarks/requirements-trl.txt)"}
    ours = bench.whole.get("grpo") or whole.grpo(bench)
    scale = bench.scale
    asked = {
        "model": settings(scale.policy),
        "prompts": prompt_texts(scale.asked, scale.short_prompt),
        "samples": scale.group,
        "response": scale.short_response,
        "rows_at_once": rows_at_once(bench),
        "updates": whole.UPDATES,
        "on_gpu": bench.on_gpu,
        "threads": bench.threads,
    }
    theirs = _their_steps(asked)
    second = theirs["step_seconds"][1]
    return {"trl": theirs, "ours_seconds": ours["seconds"], "trl_over_ours": second / ours["seconds"]}


def rows_at_once(bench: Bench) -> int:
    """Rows of a micro-batch, as many as ours has, that divide an optimiser step."""
    scale = bench.scale
    most = scale.tokens_per_microbatch // (scale.short_prompt + scale.short_response)
    step = scale.asked * scale.group // whole.UPDATES
    return max(rows for rows in range(1, min(most, step) + 1) if step % rows == 0)


def _their_steps(asked: dict[str, Any]) -> dict[str, Any]:
    # The process finds what this one has found, whatever folder it was started in.
    path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    run = subprocess.run(
        # -P: without it, folders where it was started would pass for packages.
        [sys.executable, "-P", "-m", "gpu_parts.trl_process", json.dumps(asked)],
        capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"TRL's process ended with {run.returncode}: {' | '.join(run.stderr.splitlines()[-3:])}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found
