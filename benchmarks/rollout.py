"""Sampling speed: engine "hf" against transformers' own cached `model.generate`, on one machine and in one run.

    python benchmarks/rollout.py --json rollout.json

Both sample from the same randomly initialised Qwen2 with the same settings (temperature 1, no top-k or top-p, the same
stop id and length limit, the prompts left-padded for `generate`, its cache on). A bias on the stop token's logit makes
the lengths geometric with a set mean. The two take turns, after one untimed round each; medians are reported.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common import machine, medians, parse, parser, print_machine, take_turns, write_json
from transformers import Qwen2Config, Qwen2ForCausalLM

from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.runs.seeds import row_seeds
from sppo.types import TokenIds, as_token_ids

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


def sample_ours(engine: HFEngine, prompts: list[TokenIds], setting: Setting, seed: int) -> list[int]:
    sampling = SamplingParameters(max_tokens=setting.max_tokens, stop_token_ids=frozenset({STOP}))
    return [
        len(completion)
        for completion in engine.generate(prompts, sampling, seeds=row_seeds(seed, "sampling", range(len(prompts))))
    ]


def sample_generate(model: Qwen2ForCausalLM, prompts: list[TokenIds], setting: Setting, seed: int) -> list[int]:
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    input_ids = torch.tensor([[PAD] * (width - len(p)) + p.tolist() for p in prompts], device=device)
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
        as_token_ids([generator.randrange(2, VOCABULARY) for _ in range(generator.randint(8, 24))])
        for _ in range(setting.rows)
    ]
    engine = HFEngine(model)
    lengths: dict[str, list[int]] = {"sppo": [], "generate": []}
    contenders: dict[str, Callable[[int], None]] = {
        "sppo": lambda seed: lengths["sppo"].extend(sample_ours(engine, prompts, setting, seed)),
        "generate": lambda seed: lengths["generate"].extend(sample_generate(model, prompts, setting, seed)),
    }
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        seconds = take_turns(contenders, repeats)
    median = medians(seconds)
    return {
        "setting": asdict(setting),
        "seconds": seconds,
        "median_seconds": median,
        "mean_response_tokens": {name: statistics.mean(values) for name, values in lengths.items()},
        "speedup": median["generate"] / median["sppo"],
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parse(options)
    described = machine(arguments.threads, arguments.device)
    print_machine(described)
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
    write_json(arguments.json, described, results)


if __name__ == "__main__":
    main()
