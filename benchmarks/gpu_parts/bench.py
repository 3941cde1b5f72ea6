"""What the parts share: one device, its clocks and its memory, and runs that are built as `sppo train` builds them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import sppo.critics.models
from gpu_parts.sizes import Scale, Sizes, settings
from sppo.batch import Batch
from sppo.config import (
    AlgorithmConfig,
    Config,
    CriticConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    SelectionConfig,
)
from sppo.config.lora import LoraConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.tokenizers import character_tokenizer
from sppo.training.build import build, check
from sppo.training.collate import collate
from sppo.training.given import Given
from sppo.training.loop import Parts
from sppo.types import Completion, Prompt, Rollout, TokenIds, Verdict, as_token_ids

Result = TypeVar("Result")
GB = 1e9


@dataclass(frozen=True)
class Ceilings:
    """What the device can do."""

    bandwidth: float
    """Bytes read and written a second while a tensor is copied."""
    rate: float
    """Operations a second of a large product of bfloat16 matrices."""


class Bench:
    """One scale on one device."""

    def __init__(self, scale: Scale, device: torch.device, threads: int = 1) -> None:
        self.scale, self.device, self.threads = scale, device, threads
        self.on_gpu = device.type == "cuda"
        self.peaks: dict[str, tuple[Config, dict[str, float]]] = {}
        """By part: the run that was measured, and the most bytes that each of its phases held; empty on a CPU."""
        self.whole: dict[str, dict[str, Any]] = {}
        """Whole steps, by algorithm."""

    # Clocks and memory

    def clock(self, work: Callable[[], Any], repeats: int = 1) -> float:
        """Seconds of one call."""
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Gives back what earlier parts have left."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def held(self) -> float | None:
        """Bytes of tensors now; None on a CPU."""
        return float(torch.cuda.memory_allocated()) if self.on_gpu else None

    def peak(self) -> float | None:
        """Bytes of tensors at the most since `fresh` or `watch`; None on a CPU."""
        return float(torch.cuda.max_memory_allocated()) if self.on_gpu else None

    def watch(self) -> None:
        """Begins a new peak; memory that the allocator keeps stays, as it does in training."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured once, by whichever part asks first."""
        scale, device = self.scale, self.device
        source = torch.empty(scale.copied, dtype=torch.bfloat16, device=device).normal_()
        target = torch.empty_like(source)
        target.copy_(source)
        bandwidth = 4 * source.numel() / self.clock(lambda: target.copy_(source), 10)
        left, right = (torch.randn(scale.side, scale.side, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            left @ right
        return Ceilings(bandwidth, 2 * scale.side**3 / self.clock(lambda: left @ right, 10))

    # Runs

    def config(
        self,
        sizes: Sizes,
        *,
        algorithm: str,
        prompts: int,
        samples: int = 1,
        prompt: int,
        response: int,
        updates: int = 1,
        critic: Sizes | None = None,
        rank: int = 0,
        offload: bool = False,
        engine: str = "hf",
    ) -> Config:
        """The options of a run, at the settings of the published recipes where they don't ask for sizes.

        Args:
            sizes: of the policy.
            algorithm: by name.
            prompts: a step.
            samples: responses to each.
            prompt: most tokens of one.
            response: likewise.
            updates: mini-batches of a step.
            critic: sizes; None: a copy of the policy's backbone, where the algorithm has a critic.
            rank: of the policy's adapter; 0: none.
            offload: moments on the host while sampling.
            engine: by name.
        """
        size = prompts * samples // updates
        return Config(
            output="runs/benchmark",  # nothing is written there
            device="cuda" if self.on_gpu else "cpu",
            threads=self.threads,
            prompts_per_step=prompts,
            # On a CPU too, which would compute in float32 and leave the model whole: the code of a GPU is to run.
            model=ModelConfig(
                config=settings(sizes),
                tokenizer="characters",
                precision="bf16",
                gradient_checkpointing=True,
                lora=LoraConfig(rank=rank),
            ),
            critic=CriticConfig(
                config=None if critic is None else settings(critic), minibatch_size=size, gradient_checkpointing=True
            ),
            data=DataConfig(max_prompt_tokens=prompt),
            selection=SelectionConfig(name="uniform"),
            sampling=SamplingConfig(max_response_tokens=response, samples_per_prompt=samples, temperature=0.6),
            algorithm=AlgorithmConfig(name=algorithm),
            optimizer=OptimizerConfig(
                minibatch_size=size, tokens_per_microbatch=self.scale.tokens_per_microbatch, offload=offload
            ),
            engine=EngineConfig(name=engine, max_rows=4096),
            evaluation=EvaluationConfig(prompts=1),
        )

    def model(self, sizes: Sizes) -> PreTrainedModel:
        """Random weights, made where they are to be: on a CPU that takes minutes."""
        with self.device:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**settings(sizes)), dtype=torch.float32
            )
        return model

    @contextmanager
    def run(self, config: Config, sizes: Sizes) -> Iterator[Parts]:
        """Everything that a run of these options works with, made by the product's own builder; given back after."""
        texts = prompt_texts(config.prompts_per_step + 1, config.data.max_prompt_tokens)
        given = Given(
            model=self.model(sizes),
            tokenizer=character_tokenizer(ALPHABET),
            rows=[{"prompt": text} for text in texts[1:]],
            held_out_rows=[{"prompt": texts[0]}],
            reward_function=every_second,
        )
        with _trunks_on(self.device):
            parts = build(check(config, given), given)
        del given  # or it would hold the weights as they were before they were spread
        try:
            yield parts
        finally:
            parts.engine.close()

    def batch(self, config: Config, seed: int) -> Batch:
        """A step's rows of random tokens, all as long as they may be; every second one is right."""
        response, vocabulary = config.sampling.max_response_tokens, (config.model.config or {})["vocab_size"]
        generator = torch.Generator().manual_seed(seed)
        # What random weights say of any token, or the importance weights would be of other models than a sampler's.
        logprobs = np.full(response, -math.log(vocabulary), np.float32)

        def ids(count: int) -> TokenIds:
            return as_token_ids(torch.randint(3, vocabulary, (count,), generator=generator).numpy())

        rollouts = []
        for prompt in range(config.prompts_per_step):
            asked = ids(config.data.max_prompt_tokens)
            for _ in range(config.sampling.samples_per_prompt):
                said = Completion(ids(response), logprobs, "length")
                rollouts.append(Rollout(Prompt(str(prompt), str(prompt)), asked, said, ""))
        batch = collate(rollouts, [Verdict(float(row % 2)) for row in range(len(rollouts))])
        assert batch is not None
        return batch


@dataclass
class Phases:
    """Seconds and peaks of a step's phases."""

    bench: Bench
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    """Bytes; empty on a CPU."""

    def time(self, name: str, work: Callable[[], Result]) -> Result:
        """Runs a phase."""
        box: list[Result] = []
        self.bench.watch()
        self.seconds[name] = self.bench.clock(lambda: box.append(work()))
        peak = self.bench.peak()
        if peak is not None:
            self.peaks[name] = peak
        return box[0]


@contextmanager
def _trunks_on(device: torch.device) -> Iterator[None]:
    """Makes a critic's random trunk where it is to be: `build` makes it on the CPU and moves it, which takes long.

    Users load theirs from a folder, so that nothing of what is measured differs.
    """

    def from_config(*arguments: Any, **named: Any) -> PreTrainedModel:
        with device:
            trunk: PreTrainedModel = AutoModel.from_config(*arguments, **named)
        return trunk

    with patch.object(sppo.critics.models, "AutoModel", SimpleNamespace(from_config=from_config)):
        yield


def prompt_texts(count: int, tokens: int) -> list[str]:
    """Different texts of so many characters, each of which is a token."""
    generator = np.random.default_rng(0)
    return ["".join(map(str, generator.integers(0, 10, tokens))) for _ in range(count)]


def every_second(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward function: no answer of random weights is right, and groups need rewards that differ."""
    return [float(row % 2) for row in range(len(completions))]


def gigabytes(number: float | None) -> float | None:
    """As results show bytes."""
    return None if number is None else round(number / GB, 3)
