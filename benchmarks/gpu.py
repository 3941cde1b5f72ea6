"""One step of SPPO on one GPU, by parts: what each takes, how far that is from what the card can do, and its memory.

    python benchmarks/gpu.py --json gpu.json            # a Qwen2 of 1.5B with random weights; about 4 minutes
    python benchmarks/gpu.py --tiny                     # the same code with a tiny model, on a CPU

ceilings: copies and bfloat16 matrix products of this card, which the other parts are held against.
sampling: engine hf, tokens at one time and seconds a token, for rows and lengths as in training; `floor` is the time
in which the weights and the key-value cache could be read once.
step: values, old log-probabilities, the critic's and the policy's update on rows of 8k tokens, with a critic of a
third of the size, and of the same size; `mfu` is the share of the matrix rate that the model's own arithmetic makes up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import machine, parse, parser, print_machine, write_json
from transformers import AutoConfig, AutoModel, PreTrainedModel

from sppo.algorithms.table import settle_algorithm
from sppo.batch import Outcomes
from sppo.config import AlgorithmConfig, CriticConfig, ModelConfig, OptimizerConfig, SamplingConfig
from sppo.critics.models import PromptCritic
from sppo.critics.prompt import PromptModelCritic
from sppo.models.loading import load_policy
from sppo.models.tokenizers import character_tokenizer
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.training.collate import collate
from sppo.types import Completion, Prompt, Rollout, TokenIds, Verdict, as_token_ids
from sppo.update.learner import PolicyLearner
from sppo.update.steps import StepGuard, make_optimizer

TOKENIZER = character_tokenizer("0123456789+-=#")


@dataclass(frozen=True)
class Scale:
    """Sizes of one measurement."""

    policy: dict[str, int]
    small: dict[str, int]
    """The small critic."""
    vocabulary: int
    prompt: int
    response: int
    rows: int
    """Of an update; in two mini-batches."""
    tokens_per_microbatch: int
    sampled: tuple[tuple[int, int], ...]
    """(rows, tokens of a prompt) of each sampling."""
    new: int
    """Tokens sampled of each row."""
    copied: int
    """Numbers copied, and side of the matrices multiplied, of the ceilings."""
    side: int


FULL = Scale(
    policy={"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "intermediate_size": 8960},
    small={"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
           "intermediate_size": 4864},
    vocabulary=151936, prompt=512, response=8192, rows=8, tokens_per_microbatch=16384,
    sampled=((1, 512), (64, 512), (256, 512), (64, 7936)), new=64, copied=2**30, side=8192,
)  # fmt: skip
TINY_MODEL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 128}  # fmt: skip
TINY = Scale(
    policy=TINY_MODEL, small=TINY_MODEL, vocabulary=512, prompt=8, response=24, rows=4, tokens_per_microbatch=64,
    sampled=((1, 8), (4, 8), (4, 24)), new=4, copied=2**20, side=256,
)  # fmt: skip


class Bench:
    """One scale on one device."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale, self.device = scale, device
        self.bandwidth, self.rate = 1.0, 1.0

    def clock(self, work: Callable[[], Any], repeats: int = 1) -> float:
        """Seconds of one call."""
        self._wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self._wait()
        return (time.perf_counter() - began) / repeats

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Forgets what earlier parts left in memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """GiB held at most since `fresh`."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.device.type == "cuda" else 0.0

    def settings(self, sizes: dict[str, int]) -> dict[str, Any]:
        rest = {"max_position_embeddings": 16384, "tie_word_embeddings": True, "eos_token_id": 1, "pad_token_id": 0}
        return {"model_type": "qwen2", "vocab_size": self.scale.vocabulary, **sizes, **rest}

    def policy(self, *, checkpointing: bool) -> PreTrainedModel:
        config = ModelConfig(
            config=self.settings(self.scale.policy), tokenizer="characters", gradient_checkpointing=checkpointing
        )
        with self.device:
            return load_policy(config, TOKENIZER, self.device)

    # Parts

    def ceilings(self) -> dict[str, Any]:
        source = torch.empty(self.scale.copied, dtype=torch.bfloat16, device=self.device).normal_()
        target = torch.empty_like(source)
        target.copy_(source)
        self.bandwidth = 4 * source.numel() / self.clock(lambda: target.copy_(source), 10)
        n = self.scale.side
        left, right = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            left @ right
        self.rate = 2 * n**3 / self.clock(lambda: left @ right, 10)
        return {"terabytes_per_second": self.bandwidth / 1e12, "teraflops": self.rate / 1e12}

    def sampling(self) -> dict[str, Any]:
        model = self.policy(checkpointing=False)
        engine = HFEngine(model, max_rows=4096)
        weights = 2 * sum(p.numel() for p in model.parameters())
        sizes, found = self.scale.policy, []
        head = sizes["hidden_size"] // sizes["num_attention_heads"]
        for rows, length in self.scale.sampled:
            self.fresh()
            prompts = [as_token_ids(torch.randint(3, self.scale.vocabulary, (length,)).numpy())] * rows

            def run(tokens: int, prompts: list[TokenIds] = prompts, rows: int = rows) -> None:
                engine.generate(prompts, SamplingParameters(max_tokens=tokens), seeds=range(len(prompts)))

            run(1)
            first = self.clock(lambda: run(1))
            step = (self.clock(lambda: run(1 + self.scale.new)) - first) / self.scale.new
            cache = rows * length * sizes["num_hidden_layers"] * 2 * sizes["num_key_value_heads"] * head * 2
            floor = (weights + cache) / self.bandwidth
            found.append(
                {"rows": rows, "prompt": length, "prefill_s": first, "step_ms": 1e3 * step, "floor_ms": 1e3 * floor,
                 "tokens_per_second": rows / step, "peak_gib": self.peak()}
            )  # fmt: skip
        return {"sampling": found}

    def step(self, critic_sizes: dict[str, int], *, checkpointing: bool = True) -> dict[str, Any]:
        scale, options = self.scale, self.optimizer()
        policy = self.policy(checkpointing=checkpointing)
        with self.device:
            trunk = AutoModel.from_config(AutoConfig.for_model(**self.settings(critic_sizes)), dtype=torch.float32)
        model = PromptCritic(
            trunk, TOKENIZER, tokens_per_microbatch=scale.tokens_per_microbatch, gradient_checkpointing=checkpointing
        ).to(self.device)
        critic = PromptModelCritic(
            model, CriticConfig(minibatch_size=options.minibatch_size), TOKENIZER, rows=scale.rows
        )
        section = AlgorithmConfig()
        algorithm = settle_algorithm(section, 1)
        learner = PolicyLearner(
            policy, make_optimizer(policy, 1e-6, 0.01), section, algorithm.loss, options,
            SamplingConfig(max_response_tokens=scale.response), scale.rows, StepGuard(),
        )  # fmt: skip
        seconds: dict[str, float] = {}
        peaks: dict[str, float] = {}

        def timed(phase: str, work: Callable[[], Any]) -> Any:
            self.fresh()
            result: list[Any] = []
            seconds[phase] = self.clock(lambda: result.append(work()))
            peaks[phase] = self.peak()
            return result[0]

        for seed in range(2):  # the first round makes AdamW's states and warms up
            batch = self.batch(seed)
            values = timed("values", lambda: critic.values(batch))  # noqa: B023
            before, _ = timed("estimate", lambda: learner.estimate(batch, values))  # noqa: B023
            credit = algorithm.assign_credit(Outcomes.of(batch, before))
            timed("critic", lambda: critic.learn(batch, before, credit, seed=0))  # noqa: B023
            metrics = timed("policy", lambda: learner.update(batch, before, credit, seed=0))  # noqa: B023
        length = scale.prompt + scale.response
        tokens = scale.rows * length
        sizes = scale.policy
        # Causal attention: half of 4 L H S^2.
        attention = scale.rows * 2 * sizes["num_hidden_layers"] * sizes["hidden_size"] * length**2
        forward = 2 * sum(p.numel() for p in policy.parameters()) * tokens + attention
        return {
            "critic_parameters": sum(p.numel() for p in model.parameters()), "checkpointing": checkpointing,
            "seconds": seconds, "peak_gib": peaks, "tokens_per_second": tokens / seconds["policy"],
            "estimate_mfu": forward / seconds["estimate"] / self.rate,
            "policy_mfu": 3 * forward / seconds["policy"] / self.rate, "metrics": metrics,
        }  # fmt: skip

    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            minibatch_size=self.scale.rows // 2, tokens_per_microbatch=self.scale.tokens_per_microbatch
        )

    def batch(self, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        rollouts, verdicts = [], []

        def ids(count: int) -> TokenIds:
            return as_token_ids(torch.randint(3, self.scale.vocabulary, (count,), generator=generator).numpy())

        for row in range(self.scale.rows):
            said = Completion(ids(self.scale.response), np.full(self.scale.response, -1.0, np.float32), "length")
            rollouts.append(Rollout(Prompt(str(row), "1+1="), ids(self.scale.prompt), said, "", 0))
            verdicts.append(Verdict(float(row % 2)))
        return collate(rollouts, verdicts)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tiny", action="store_true", help="a tiny model, also without a GPU")
    options.add_argument("--seconds", type=float, default=420, help="no part is begun later (default: %(default)s)")
    arguments = parse(options)
    if not (arguments.tiny or torch.cuda.is_available()):
        options.error("torch sees no GPU here; --tiny runs the same code on a CPU.")
    scale = TINY if arguments.tiny else FULL
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(scale, device)
    described = machine(arguments.threads, device.type)
    print_machine(described)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ceilings": bench.ceilings,
        "sampling": bench.sampling,
        "step, small critic": lambda: bench.step(scale.small),
        "step, critic of the same size": lambda: bench.step(scale.policy),
    }
    began, results = time.perf_counter(), []
    for name, part in parts.items():
        if time.perf_counter() - began > arguments.seconds:
            results.append({"part": name, "left_out": "no time"})
            continue
        bench.fresh()
        results.append({"part": name, **part()})
        print(results[-1], flush=True)
        write_json(arguments.json, described, results)


if __name__ == "__main__":
    main()
