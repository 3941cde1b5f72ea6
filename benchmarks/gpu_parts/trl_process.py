"""TRL's side of `trl.py`: two steps of its GRPOTrainer on random weights; prints seconds and memory as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from vs_trl import grpo_options

from gpu_parts.bench import every_second
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer

STEPS = 2


class Clock(TrainerCallback):
    """Seconds of each step, which is several optimiser steps."""

    def __init__(self, updates: int) -> None:
        self.updates, self.seconds, self.began = updates, list[float](), 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates == 0:
            now = _now()
            self.seconds.append(now - self.began)
            self.began = now
            if torch.cuda.is_available() and state.global_step == self.updates:
                torch.cuda.reset_peak_memory_stats()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def two_steps(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """Trains, and says what it took."""
    device = torch.device("cuda" if asked["on_gpu"] else "cpu")
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**asked["model"]), dtype=torch.float32)
    clock, updates, rows = Clock(asked["updates"]), asked["updates"], asked["rows_at_once"]
    parts = len(asked["prompts"]) * asked["samples"] // rows
    config = GRPOConfig(
        **grpo_options(folder),
        use_cpu=not asked["on_gpu"],
        bf16=asked["on_gpu"],
        activation_checkpointing=True,  # once named gradient_checkpointing
        per_device_train_batch_size=rows,
        steps_per_generation=parts,
        gradient_accumulation_steps=parts // updates,
        num_generations=asked["samples"],
        max_completion_length=asked["response"],
        temperature=0.6,
        learning_rate=1e-6,
        weight_decay=0.01,
        max_steps=STEPS * updates,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=every_second,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in asked["prompts"]]),
        processing_class=character_tokenizer(ALPHABET),
        callbacks=[clock],
    )
    assert trainer.generation_config.use_cache, "TRL would generate without a cache"
    trainer.train()
    peak = round(torch.cuda.max_memory_allocated() / 1e9, 3) if asked["on_gpu"] else None
    return {"step_seconds": clock.seconds, "rows_at_once": rows, "peak_gb": peak}


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    # Whatever a library prints must not mix with the result.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(two_steps(asked, folder)), file=output, flush=True)


if __name__ == "__main__":
    main()
