"""Sampling speed: engine "hf" against transformers' own cached `model.generate`, on one machine and in one run.

    python benchmarks/rollout.py --json rollout.json

Both sample from the same randomly initialised Qwen2 with the same settings (temperature 1, no top-k or top-p, the same
stop id and length limit, the prompts left-padded for `generate`, its cache on). A bias on the stop token's logit makes
the lengths geometric with a set mean. The two take turns, after one untimed round each; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM

from sppo.engines import SamplingParameters
from sppo.engines.hf import HFEngine

STOP, PAD, VOCABULARY = 1, 0, 40


@dataclass(frozen=True)
class Setting:
    name: str
    hidden: int
    layers: int
    heads: int
    mlp: int
    rows: int
    max_tokens: int
    stop_probability: float
    """At each token; without a length limit the mean length would be its inverse."""


SETTINGS = (
    Setting("short", hidden=64, layers=2, heads=4, mlp=192, rows=512, max_tokens=37, stop_probability=1 / 20),
    Setting("varied", hidden=256, layers=4, heads=4, mlp=768, rows=256, max_tokens=200, stop_probability=1 / 57),
)


def make_model(setting: Setting, device: str) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=setting.hidden,
        intermediate_size=setting.mlp,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.heads,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=STOP,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    head = torch.nn.Linear(setting.hidden, VOCABULARY)
    with torch.no_grad():
        # Other logits stay close to 0, so the odds of the stop token are exp(bias) / (V - 1).
        head.weight.copy_(model.lm_head.weight * 0.1)
        head.bias.zero_()
        odds = setting.stop_probability / (1 - setting.stop_probability)
        head.bias[STOP] = math.log(odds * (VOCABULARY - 1))
    model.lm_head = head
    return model.to(device)


def sample_ours(engine: HFEngine, prompts: list[list[int]], setting: Setting, seed: int) -> list[int]:
    sampling = SamplingParameters(max_tokens=setting.max_tokens, stop_token_ids=frozenset({STOP}))
    return [len(completion.token_ids) for completion in engine.generate(prompts, sampling, seed=seed)]


def sample_generate(model: Qwen2ForCausalLM, prompts: list[list[int]], setting: Setting, seed: int) -> list[int]:
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    input_ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    sequences = model.generate(
        input_ids,
        attention_mask=mask,
        max_new_tokens=setting.max_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        use_cache=True,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    responses = sequences[:, width:]
    stops = responses == STOP
    lengths = torch.where(stops.any(dim=1), stops.int().argmax(dim=1) + 1, responses.shape[1])
    return [int(length) for length in lengths]


def compare(setting: Setting, repeats: int, device: str) -> dict[str, Any]:
    model = make_model(setting, device)
    generator = random.Random(0)
    prompts = [
        [generator.randrange(2, VOCABULARY) for _ in range(generator.randint(8, 24))] for _ in range(setting.rows)
    ]
    engine = HFEngine(model)
    contenders: dict[str, Callable[[int], list[int]]] = {
        "sppo": lambda seed: sample_ours(engine, prompts, setting, seed),
        "generate": lambda seed: sample_generate(model, prompts, setting, seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    lengths: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        for repeat in range(repeats + 1):
            for name, sample in contenders.items():
                started = time.perf_counter()
                row_lengths = sample(repeat)
                elapsed = time.perf_counter() - started
                if repeat:
                    seconds[name].append(elapsed)
                    lengths[name].append(statistics.mean(row_lengths))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "setting": asdict(setting),
        "seconds": seconds,
        "median_seconds": medians,
        "mean_response_tokens": {name: statistics.mean(values) for name, values in lengths.items()},
        "speedup": medians["generate"] / medians["sppo"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each, at least 3 (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.repeats < 3:
        parser.error(f"--repeats is {arguments.repeats}, but a median wants at least 3.")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": arguments.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'setting':<10}{'rows':>6}{'tokens':>9}{'generate s':>12}{'sppo s':>9}{'speedup':>9}")
    results = []
    for setting in SETTINGS:
        result = compare(setting, arguments.repeats, arguments.device)
        results.append(result)
        median = result["median_seconds"]
        print(
            f"{setting.name:<10}{setting.rows:>6}{result['mean_response_tokens']['sppo']:>9.1f}"
            f"{median['generate']:>12.3f}{median['sppo']:>9.3f}{result['speedup']:>8.2f}x",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
