"""Memory as it is planned before a run, and as `--dry-run` tells it, against what was measured, phase by phase."""

from __future__ import annotations

from typing import Any

from gpu_parts.bench import Bench, gigabytes
from sppo.config import Config
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.loading import load_model_config
from sppo.models.tokenizers import character_tokenizer
from sppo.training.build import algorithm_of
from sppo.training.build.fitting import planned_memory
from sppo.training.build.memory import Memory
from sppo.training.prompts import Prompts
from sppo.types import Prompt

PHASES = {"estimate": "estimate", "critic's update": "critic", "policy's update": "policy"}
"""The plan's name of each phase that is measured, and ours. What is sampled is shorter here than planned."""


def against_measured(bench: Bench) -> dict[str, Any]:
    """Of each run that was measured before in the same command."""
    if not bench.peaks:
        return {"left_out": "no step was measured before it: add --parts step_small step_same lora_7b"}
    found = []
    for name, (config, peaks) in bench.peaks.items():
        for phase in planned(bench, config).phases():
            if phase.name in PHASES:
                found.append({"part": name, **_row(phase.name, phase.bytes, peaks.get(PHASES[phase.name]))})
                found[-1] |= {"planned_of_gb": {what: gigabytes(size) for what, size in phase.parts.items()}}
    return {"runs": found}


def planned(bench: Bench, config: Config) -> Memory:
    """What the run is to hold of this device."""
    prompts = Prompts(training=(), held_out=(Prompt("0", "0"),), unseen=frozenset(), notes=())
    architecture = load_model_config(config.model)
    # >>> The one call of the plan: what is to change should it move.
    return planned_memory(
        config, algorithm_of(config), character_tokenizer(ALPHABET), architecture, prompts, bench.device
    )
    # <<<


def _row(phase: str, foreseen: int, peak: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"phase": phase, "planned_gb": gigabytes(foreseen), "measured_gb": gigabytes(peak)}
    if peak is not None:
        row |= {"measured_over_planned": peak / foreseen, "within_10_percent": abs(peak / foreseen - 1) <= 0.1}
    return row
