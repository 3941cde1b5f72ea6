"""The critic itself: V against solve rates of many samples, early, midway and at the end, and what any critic could do.

Each checkpoint's policy answers each of N pool prompts and N held-out ones n times, as in training; V of these prompts
is held against the solve rates by the measures of `sppo calibrate`. Beside the run's own V stand, of the pool:

- offline: a critic of the same size and text, fitted for many epochs to the solve rates of other pool prompts; the
  number of epochs is the best on a fifth of them;
- by difficulty: the mean solve rate of other prompts of the same label.

Of each: Pearson, Spearman, Brier excess over the oracle (the Brier score less that of a perfect V, which the samples'
own noise leaves), ECE, and bias, the mean of V less that of the solve rates.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sppo.commands.calibrate import measure
from sppo.config import Config
from sppo.critics.fusion import BeliefCritic
from sppo.runs.files import read_json, write_json
from sppo.training.build import build
from sppo.training.given import Given
from sppo.training.loop import Parts
from sppo.types import Prompt
from value_parts import plan
from value_parts.experiment import job_of
from value_parts.registered import cap_of, read_tuned, settings_of
from value_parts.running import Job

FIRST, SECOND = 640, 2560
"""Responses after which V is measured, beside the end."""
EPOCHS = 40
"""Most of the offline critic."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rated:
    """A prompt and the rewards of its samples."""

    prompt: Prompt
    rewards: list[float]

    @property
    def rate(self) -> float:
        return fmean(self.rewards)


def measure_critics(arguments: argparse.Namespace, run: Callable[[Sequence[Job]], list[str]], tell: Tell) -> None:
    """Trains with checkpoints, measures three of them, and writes critic.json and its table."""
    tuned = read_tuned(arguments.tuned)
    jobs = {
        (cell, method, seed): _job(cell, method, seed, tuned, arguments.output)
        for seed in arguments.seeds
        for cell in arguments.cells
        for method in arguments.methods
    }
    run(list(jobs.values()))
    rows = []
    for (cell, method, seed), job in jobs.items():
        for when, checkpoint in checkpoints_of(job).items():
            file = job.folder / f"critic_{when}.json"
            found = read_json(file)
            asked = [arguments.prompts, arguments.samples, arguments.fit_prompts]
            if found is None or found["asked"] != asked:
                found = {"asked": asked, "measures": measure_checkpoint(job.config, checkpoint, arguments)}
                write_json(file, found)
            for critic, measures in found["measures"].items():
                rows.append({"cell": cell, "method": method, "seed": seed, "when": when, "critic": critic, **measures})
                tell(f"{cell}, {method}, seed {seed}, {when}, {critic}: {_shown(measures)}")
    write_json(arguments.output / "critic.json", {"rows": rows})
    tell(table(rows))


def _job(cell: str, method: str, seed: int, tuned: dict[str, Any], results: Path) -> Job:
    batch = plan.CELLS[cell].batch
    settings = settings_of(tuned, method, batch) | {
        "checkpoint.every": max(1, FIRST // batch),
        "checkpoint.keep": 1000,
    }
    cap = cap_of(tuned, cell) or plan.LARGEST_CAP
    return job_of(cell, method, seed, settings, cap, results, "critics", keep_checkpoints=True)


def checkpoints_of(job: Job) -> dict[str, Path]:
    """The checkpoints after FIRST and SECOND responses, and the last one."""
    batch = job.config.sequences_per_step
    folders = {int(path.name.removeprefix("step_")): path for path in (job.folder / "checkpoints").glob("step_*")}
    wanted = {str(FIRST): FIRST // batch, str(SECOND): SECOND // batch, "end": max(folders)}
    return {when: folders[step] for when, step in wanted.items() if step in folders}


def measure_checkpoint(config: Config, checkpoint: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures by critic's name: of the run's V in the pool and held out, and of those fitted offline in the pool."""
    parts = build(config, Given(), checkpoint)
    try:
        stream = parts.collector.selection.stream
        pool = list({prompt.text: prompt for prompt in stream.take(len(stream))}.values())
        random.Random(0).shuffle(pool)
        pool = pool[: arguments.prompts + arguments.fit_prompts]
        rated = _rate(parts, pool, arguments.samples)
        held_out = _rate(parts, list(parts.held_out.prompts)[: arguments.prompts], arguments.samples)
        tested, others = rated[: arguments.prompts], rated[arguments.prompts :]
        predicted = {f"{name}, pool": (tested, values) for name, values in readings(parts, tested).items()}
        predicted |= {f"{name}, held out": (held_out, values) for name, values in readings(parts, held_out).items()}
        if others:
            predicted["offline, pool"] = (tested, offline_values(config, parts, others, tested))
            predicted["by difficulty, pool"] = (tested, difficulty_values(others, tested))
    finally:
        parts.engine.close()
    return {name: _measures(known, values) for name, (known, values) in predicted.items()}


def readings(parts: Parts, rated: Sequence[Rated]) -> dict[str, list[float | None]]:
    """What the run's critic says of the prompts, by name."""
    prompts = [each.prompt for each in rated]
    beliefs = parts.critic.beliefs(prompts)
    found = {} if beliefs is None else {"belief": beliefs.values}
    if isinstance(parts.critic, BeliefCritic) and parts.critic.history is not None:
        found["V of the text"] = parts.critic.source.prompt_values(prompts).double().mean(dim=1).tolist()
    return found


def _rate(parts: Parts, prompts: Sequence[Prompt], samples: int) -> list[Rated]:
    """Samples as in training; prompts whose verifier failed on all are left out."""
    from dataclasses import replace

    # The held-out prompts' own way of sampling and grading, with these prompts and training's temperature.
    way = replace(parts.held_out, prompts=list(prompts), sampling=parts.collector.sampling, critic=None)
    records = way.evaluate(samples, parts.policy.version).records
    graded = [(r.prompt, [v.reward for v in r.verdicts if v.reward is not None]) for r in records]
    return [Rated(prompt, rewards) for prompt, rewards in graded if rewards]


def offline_values(config: Config, parts: Parts, fitted_on: Sequence[Rated], tested: Sequence[Rated]) -> list[float]:
    """V of a critic of the recipe's size, fitted to the solve rates of other prompts.

    The number of epochs is where a fifth of them are predicted best; of that fit, not of one on all of them, V is read.
    """
    import torch

    from sppo.critics.models import PromptCritic, make_value_model
    from sppo.rollouts.encode import encode_many

    torch.manual_seed(0)
    model = make_value_model(
        PromptCritic, config.critic, parts.policy.model, parts.tokenizer,
        tokens_per_microbatch=config.optimizer.tokens_per_microbatch,
    )  # fmt: skip
    checked = len(fitted_on) // 5
    train, validation = fitted_on[checked:], fitted_on[:checked]
    rows = encode_many([each.prompt for each in train], model.tokenizer)
    rates = torch.tensor([each.rate for each in train])
    model.set_prior(min(max(float(rates.mean()), 0.01), 0.99))
    adam = torch.optim.AdamW(model.parameters(), lr=config.critic.learning_rate)
    best, values = float("inf"), [0.0] * len(tested)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(rows)).split(64):
            logits = model.logits([rows[place] for place in part.tolist()]).flatten()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, rates[part]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
        said = model.values([each.prompt for each in validation]).flatten().tolist()
        error = fmean((value - each.rate) ** 2 for value, each in zip(said, validation, strict=True))
        if error < best:
            best, values = error, model.values([each.prompt for each in tested]).flatten().tolist()
    return values


def difficulty_values(others: Sequence[Rated], tested: Sequence[Rated]) -> list[float]:
    """The mean solve rate of other prompts with the same label; of all others, where none has it."""
    by_label: dict[str | None, list[float]] = {}
    for each in others:
        by_label.setdefault(each.prompt.difficulty, []).append(each.rate)
    overall = fmean(each.rate for each in others)
    means = {label: fmean(rates) for label, rates in by_label.items()}
    return [means.get(each.prompt.difficulty, overall) for each in tested]


def _measures(rated: Sequence[Rated], values: Sequence[float | None]) -> dict[str, Any]:
    """Of the prompts that have a value."""
    records = [
        {"prompt_id": each.prompt.id, "value": value, "rewards": each.rewards}
        for each, value in zip(rated, values, strict=True)
        if value is not None
    ]
    if not records:
        return {"prompts": 0}
    found = measure(records)
    own = found["of_prompts"]
    return {
        "prompts": found["prompts"],
        "pearson": own["pearson"]["value"],
        "spearman": own["spearman"]["value"],
        "brier_excess": own["brier"].get("corrected"),
        "ece": own["ece"]["value"],
        "bias": found["mean_value"] - found["mean_solve_rate"],
        "solve_rate": found["mean_solve_rate"],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, in Markdown."""
    names = ("pearson", "spearman", "brier_excess", "ece", "bias", "solve_rate")
    lines = [f"| cell | method | after | critic | {' | '.join(names)} |", "|---|---|---|---|" + "---|" * len(names)]
    for key in dict.fromkeys((row["cell"], row["method"], row["when"], row["critic"]) for row in rows):
        mine = [row for row in rows if (row["cell"], row["method"], row["when"], row["critic"]) == key]
        means = []
        for name in names:
            known = [row[name] for row in mine if row.get(name) is not None]
            means.append(f"{fmean(known):.3f}" if known else "")
        lines.append(f"| {' | '.join([*key, *means])} |")
    return "\n".join(lines)


def _shown(measures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in measures.items() if isinstance(value, float))
