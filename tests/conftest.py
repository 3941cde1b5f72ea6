"""Tiny real models and hand-made rollouts that many tests share."""

from __future__ import annotations

import os
import signal

# Before torch starts its threads: tiny operations are slowed down many times over by threads that spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

import sppo
from sppo.config import Config
from sppo.config.recipes import load_recipe
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.files import write_json
from sppo.runs.folder import RunFolder, read_metrics
from sppo.types import Completion, Prompt, Rollout, Verdict
from sppo.verifiers.sandbox import BACKENDS, Backend, open_sandbox
from sppo.verifiers.sandbox.run import probe

# A script that starts the tests in its background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def code_sandbox() -> None:
    """Skips a module's tests where programs can't be confined."""
    try:
        open_sandbox()
    except ConfigError as refusal:
        pytest.skip(str(refusal))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer(ALPHABET)


@pytest.fixture
def policy() -> PreTrainedModel:
    return tiny_qwen2()


def tiny_qwen2(vocab_size: int = 40, seed: int = 0, **settings: object) -> PreTrainedModel:
    """A random Qwen2 with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = Qwen2Config(vocab_size=vocab_size, **{**sizes, **settings})  # type: ignore[arg-type]
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def make_rollout(
    prompt_id: str,
    prompt_ids: list[int],
    response_ids: list[int],
    logprobs: list[float] | None = None,
    text: str = "1+1=",
) -> Rollout:
    completion = Completion(tuple(response_ids), tuple(logprobs or [-1.0] * len(response_ids)), "stop")
    return Rollout(Prompt(prompt_id, text, gold="2"), tuple(prompt_ids), completion, "2")


def make_rollouts(count: int = 8, seed: int = 0) -> tuple[list[Rollout], list[Verdict]]:
    """Rows of different lengths with random ids, log-probabilities and 0/1 rewards."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    rollouts, verdicts = [], []
    for row in range(count):
        prompt_length, response_length = integers(2, 9, 1)[0], integers(1, 14, 1)[0]
        logprobs = (-3 * torch.rand(response_length, generator=generator)).tolist()
        text = "".join(str(digit) for digit in integers(0, 10, prompt_length))
        rollouts.append(
            make_rollout(f"p{row}", integers(2, 40, prompt_length), integers(2, 40, response_length), logprobs, text)
        )
        verdicts.append(Verdict(float(integers(0, 2, 1)[0])))
    return rollouts, verdicts


def tiny_config(output: Path, **overrides: object) -> Config:
    """The demo's recipe, small enough for a second: no warm start, 3 steps of 16 prompts."""
    small: dict[str, object] = {
        "output": str(output),
        "steps": 3,
        "prompts_per_step": 16,
        "model.config.hidden_size": 16,
        "model.config.intermediate_size": 32,
        "critic.config.hidden_size": 16,
        "critic.minibatch_size": 8,
        "critic.epochs": 1,
        "optimizer.minibatch_size": 8,
        "optimizer.learning_rate": 3e-4,
        "optimizer.learning_rate_warmup": 0,
        "sampling.max_response_tokens": 8,
        "data.options": {"prompts": 200},
        "evaluation.prompts": 20,
        "evaluation.every": 2,
        "evaluation.final_samples_per_prompt": 2,
        "checkpoint.every": 1,
        "checkpoint.keep": 2,
        "sft.phases": [],
    }
    return load_recipe("demo", {**small, **{name.replace("__", "."): value for name, value in overrides.items()}})


def begun(
    path: Path, options: Mapping[str, Any], step: int | None = None, version: str | None = sppo.__version__
) -> RunFolder:
    """A run that has begun, and has a checkpoint of `step` where one is named."""
    with RunFolder.open(path, options) as folder:
        folder.begin()
    if step is not None:
        checkpoint = folder.checkpoints / f"step_{step}"
        checkpoint.mkdir()
        write_json(checkpoint / "state.json", {"step": step} if version is None else {"sppo": version, "step": step})
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """{path: content} of all files below a folder; of locks, only that they are there."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): b"" if path.name == ".lock" else path.read_bytes() for path in paths}


HELD_OUT = "7-3="
"""What runs of `train_on` are measured on."""


def train_on(
    texts: Sequence[str], output: Path, reward: Callable[..., list[float | None]], **options: Any
) -> list[dict[str, float]]:
    """A short run of a tiny model on prompts of these texts, copies and all, each step in one mini-batch.

    Returns:
        The metrics of each step.
    """
    rows = int(options.get("prompts_per_step", 8)) * int(options.get("sampling__samples_per_prompt", 1))
    settings = {
        "steps": 1, "prompts_per_step": 8, "optimizer__minibatch_size": rows, "critic__minibatch_size": rows,
        "sampling__max_response_tokens": 8, "data__max_prompt_tokens": 8, "evaluation__final_samples_per_prompt": 1,
        "checkpoint__every": 1, "threads": 1, "device": "cpu",
    }  # fmt: skip
    sppo.train(
        model=tiny_qwen2(initializer_range=0.05), tokenizer=character_tokenizer(ALPHABET), reward=reward,
        rows=[{"prompt": text} for text in texts], held_out_rows=[{"prompt": HELD_OUT}], output=str(output),
        **{**settings, **options},
    )  # fmt: skip
    return read_metrics(output)[1:]


@pytest.fixture(params=["bubblewrap", "landlock"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each way to confine a program that this machine has."""
    found = BACKENDS[request.param]
    reason = found.unavailable() or probe(found)
    if reason:
        pytest.skip(f"{found.name}: {reason}")
    return found
