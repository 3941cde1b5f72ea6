"""The prompt critic's share of a step of the demo, and what it is made of.

    python benchmarks/critic.py --json critic.json

Runs the demo from a warm start for a few steps, as `sppo demo` does, and divides the seconds in which the critic reads
values and learns by those of the whole step, step by step; the median is reported. Then it times the parts apart:
turning 512 prompts into token ids, reading values, and one step's updates.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import demo_config, machine, medians, parse, parser, print_machine, take_turns, warm_start, write_json

from sppo.batch import microbatches
from sppo.commands.train import train
from sppo.config import Config
from sppo.critics.models import PromptCritic, make_value_model
from sppo.data.tasks import load_prompts
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.models.loading import load_policy, load_tokenizer
from sppo.rollouts.encode import encode_many
from sppo.runs.folder import read_metrics
from sppo.training.given import Given
from sppo.types import Prompt


def step_shares(config: Config) -> list[dict[str, float]]:
    """The critic's seconds and the step's, for each step but the first, which warms up."""
    train(config, Given())
    return [
        {
            # With old_logprobs sampler the critic's values are all there is to estimate.
            "values": line["time/estimate"],
            "update": line["time/critic"],
            "step": line["time/step"],
            "share": (line["time/estimate"] + line["time/critic"]) / line["time/step"],
        }
        for line in read_metrics(Path(config.output))
        if line["step"] > 1
    ]


def learn(critic: PromptCritic, adam: torch.optim.Optimizer, prompts: list[Prompt], config: Config) -> None:
    """A step's updates by the shortest way; the loop's own can't be faster with this model."""
    rows = encode_many(prompts, critic.tokenizer)
    for places in torch.randperm(len(prompts)).split(config.critic.minibatch_size):
        members = [rows[place] for place in places.tolist()]
        for part in microbatches([len(row) for row in members], critic.tokens_per_microbatch):
            logits = critic.logits([members[row] for row in part])
            torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        adam.step()
        adam.zero_grad()


def parts(config: Config, repeats: int) -> dict[str, list[float]]:
    tokenizer = load_tokenizer(config.model, ALPHABET)
    policy = load_policy(config.model, tokenizer, torch.device("cpu"))
    critic = make_value_model(
        PromptCritic, config.critic, policy, tokenizer, tokens_per_microbatch=config.optimizer.tokens_per_microbatch
    )
    adam = torch.optim.AdamW(critic.parameters(), lr=config.critic.learning_rate)
    prompts = list(load_prompts(config.data, seed=0).prompts[: config.prompts_per_step])
    return take_turns(
        {
            "token ids": lambda _: encode_many(prompts, tokenizer),
            "values": lambda _: critic.values(prompts),
            "update": lambda _: learn(critic, adam, prompts, config),
        },
        repeats,
    )


def compare(policy: Path, repeats: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(
            steps=repeats + 1,
            output=f"{folder}/run",
            model__path=str(policy),
            model__config=None,
            model__tokenizer=None,
            sft__phases=[],
            evaluation__every=0,
            evaluation__final_samples_per_prompt=1,
            evaluation__prompts=8,
            checkpoint__every=0,
            threads=threads,
        )
        steps = step_shares(config)
    seconds = parts(demo_config(), repeats)
    return {
        "steps": steps,
        "median_share": statistics.median(step["share"] for step in steps),
        "median_step": {key: statistics.median(step[key] for step in steps) for key in ("values", "update", "step")},
        "parts_seconds": seconds,
        "parts_median_seconds": medians(seconds),
    }


def main() -> None:
    options = parser(__doc__, repeats=15)
    options.add_argument("--warm-start", type=Path, default=Path("runs/warm_start"), help="run folder; made if missing")
    arguments = parse(options)
    policy = warm_start(arguments.warm_start)
    described = machine(arguments.threads)
    print_machine(described)
    result = compare(policy, arguments.repeats, arguments.threads)
    step = result["median_step"]
    print(f"a step {step['step']:.3f} s: values {step['values']:.3f} s, critic's updates {step['update']:.3f} s")
    print(f"share of the critic: {result['median_share']:.1%}")
    apart = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in result["parts_median_seconds"].items())
    print(f"apart: {apart}")
    write_json(arguments.json, described, [result])


if __name__ == "__main__":
    main()
