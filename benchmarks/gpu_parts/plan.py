"""Memory as `--dry-run` foretells it, against what was measured."""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoModelForCausalLM

from gpu_parts.bench import Bench, gigabytes
from sppo.commands import plan as dry_run
from sppo.commands.memory import memory
from sppo.config import Config
from sppo.models.loading import load_model_config
from sppo.training.build import algorithm_of


def against_measured(bench: Bench) -> dict[str, Any]:
    """Of each run that was measured before in the same command."""
    if not bench.peaks:
        return {"left_out": "no step was measured before it: add --parts step_small step_same lora_7b"}
    found = []
    for name, (config, peak) in bench.peaks.items():
        planned = planned_bytes(config)
        row: dict[str, Any] = {"part": name, "planned_gb": gigabytes(planned), "measured_gb": gigabytes(peak)}
        if peak is not None:
            row |= {"measured_over_planned": peak / planned, "within_10_percent": abs(peak / planned - 1) <= 0.1}
        found.append(row)
    return {"runs": found}


def planned_bytes(config: Config) -> float:
    """What the plan says of a run's peak."""
    algorithm = algorithm_of(config)
    architecture = load_model_config(config.model)
    vocabulary = architecture.get_text_config().vocab_size
    policy = dry_run._counted(architecture, AutoModelForCausalLM, config.model.lora, "model")
    critic = dry_run._critic(config, architecture, vocabulary) if algorithm.critic == "prompt" else None
    # >>> The one call of the plan: where it moves or gives numbers instead of lines, this is what to change.
    lines = dict(memory(config, algorithm, policy, critic, (), config.evaluation.prompts))
    # <<<
    said = re.match(r"([\d.]+) (GB|MB)", lines["memory: estimate"])
    assert said is not None, f"the plan says {lines['memory: estimate']!r}"
    return float(said[1]) * (1e9 if said[2] == "GB" else 1e6)
