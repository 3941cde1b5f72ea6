"""`sppo calibrate`: a run's V(prompt) held against the solve rate of many samples (the SPPO paper's section 5.2).

    RUN/calibration/CHECKPOINT/settings.json     what the samples depend on
    RUN/calibration/CHECKPOINT/prompts.jsonl     one line a prompt: V, and the reward of every sample
    RUN/calibration/CHECKPOINT/result.json       the measures
    RUN/calibration/CHECKPOINT/calibration.png   the picture (drawn by `sppo.report.calibration`)

The samples are drawn as in training, since their solve rate is what V learns. A line of prompts.jsonl is written when
its prompt is done, and each sample has a seed of its own, so a calibration that was stopped goes on where it was, with
the numbers of one that was not.

Two kinds of measures: of prompts, V against the solve rate, and of responses, V against each response's R. A solve
rate of n samples is uncertain, so even a perfect V has a Brier score above 0 and a correlation below 1 against it;
`reachable` is what it would have, and `corrected` estimates the measure against the true solve rates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppo.algorithms.table import get_algorithm
from sppo.config import Config
from sppo.config.verification import ProcessOptions
from sppo.errors import ConfigError, RunFolderError, TrainingError
from sppo.evaluation import calibration
from sppo.evaluation.benchmarking import weights_digest
from sppo.rollouts.sample import sample
from sppo.runs.checkpoint import require_checkpoint
from sppo.runs.files import read_json, write_json
from sppo.runs.lock import lock
from sppo.runs.progress import NoProgress, Progress
from sppo.runs.records import JsonLines
from sppo.runs.seeds import row_seeds
from sppo.training.build import Parts, build
from sppo.training.given import Given, require_data
from sppo.types import Prompt

_AUROC_PARTS = 8


def calibrate(
    path: str,
    config: Config,
    *,
    prompts: int = 200,
    samples_per_prompt: int = 64,
    checkpoint: str = "last",
    anew: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Samples and grades responses to held-out prompts of a run, and holds V of its critic against them.

    Args:
        path: a run folder.
        config: the run's own, as `sppo.config.evaluation.evaluation_config` reads it.
        prompts: how many of the held-out prompts, drawn at random; all where the run has fewer.
        samples_per_prompt: n, at least 2.
        checkpoint: "best", "last" or "step_N".
        anew: throw away what an earlier calibration with other settings left.
        progress: told how far it is.

    Returns:
        What result.json holds; see `measure`.

    Raises:
        ConfigError: an algorithm whose critic gives prompts no value, or numbers that are too small.
        RunFolderError: no such checkpoint, an earlier calibration with other settings, or one that is running.
        TrainingError: no prompt got a reward.
    """
    progress = progress or NoProgress()
    run = Path(path).expanduser()
    _require_prompt_values(config)
    require_data(run, config.data, config.evaluation.data, training=True)
    if prompts < 1 or samples_per_prompt < 2:
        raise ConfigError(
            f"{prompts} prompts with {samples_per_prompt} samples each: take at least 1 prompt, and 2 samples, "
            "without which a solve rate's own noise cannot be told."
        )
    saved = require_checkpoint(run, checkpoint)
    # Steps are scored for training alone: their model need not be loaded.
    config = replace(config, verification=replace(config.verification, process=ProcessOptions()))
    config = _with_prompts(config, prompts)
    parts = build(config, Given(), saved)
    try:
        chosen, values, notes = _prompts(parts, prompts)
        for note in notes:
            progress.message(note)
        folder = run / "calibration" / saved.name
        with lock(folder, progress.message), parts.engine.awake():
            done = _open(folder, _settings(config, parts, saved, samples_per_prompt), anew=anew)
            records = _sample(config, parts, chosen, values, samples_per_prompt, folder, done, progress)
    finally:
        parts.engine.close()
    result = {
        "run": str(run),
        "checkpoint": saved.name,
        "algorithm": config.algorithm.name,
        "samples_per_prompt": samples_per_prompt,
        "notes": notes,
        **measure(records),
    }
    write_json(folder / "result.json", result)
    return result


def _require_prompt_values(config: Config) -> None:
    algorithm = get_algorithm(config.algorithm.name)
    if not algorithm.values_the_prompt:
        has = {
            None: "has no critic",
            "token": "values the states of a response, not prompts",
            "optimal": "has a V* above the solve rate, of the policy that training started from",
        }[algorithm.critic]
        raise ConfigError(
            f"The run was trained with {algorithm.name}, which {has}: there is no V(prompt) to hold against solve "
            "rates. Algorithms that have one: sppo, spo."
        )


def _with_prompts(config: Config, count: int) -> Config:
    """Lets evaluation data give more prompts than the run itself measured.

    Without such data the held-out prompts are those that training left out, and no others.
    """
    if config.evaluation.data is None:
        return config
    most = max(config.evaluation.prompts, count)
    return replace(config, evaluation=replace(config.evaluation, prompts=most))


def _prompts(parts: Parts, count: int) -> tuple[list[Prompt], list[float], list[str]]:
    """The prompts to sample, V of each, and notes: held-out ones, or, of a critic that counts, ones it has seen."""
    notes, stream = list(parts.notes), parts.collector.selection.stream
    known = _valued(parts, parts.held_out.prompts)
    if not known:
        # One epoch: every training prompt once.
        known = _valued(parts, stream.take(len(stream)))
        notes.append(
            "This critic has values only for prompts that it was trained on: these are such prompts, so the measures "
            "say nothing of new ones."
        )
    if not known:
        raise ConfigError(
            "The critic of this run has no value in [0, 1] for any prompt: it was trained on none yet, or learns by "
            "squared error, where V is no probability. Calibrate a later checkpoint, or a run whose critic learns by "
            "cross-entropy."
        )
    # Shuffled and cut, so that a call for more prompts finds those of an earlier call among them.
    order = sorted(known, key=lambda pair: pair[0].id)
    random.Random(0).shuffle(order)
    if len(order) < count:
        notes.append(f"{count} prompts asked for, but there are {len(order)}: all of them are taken")
    order = order[:count]
    return [prompt for prompt, _ in order], [value for _, value in order], notes


def _valued(parts: Parts, prompts: Sequence[Prompt]) -> list[tuple[Prompt, float]]:
    beliefs = parts.critic.beliefs(prompts) if prompts else None
    if beliefs is None:
        return []
    return [(prompt, value) for prompt, value in zip(prompts, beliefs.values, strict=True) if value is not None]


def _settings(config: Config, parts: Parts, saved: Path, samples_per_prompt: int) -> dict[str, Any]:
    sampling = asdict(parts.collector.sampling)
    sampling["stop_token_ids"] = sorted(sampling["stop_token_ids"])
    critic = weights_digest(str(saved / "critic")) if any((saved / "critic").glob("*.safetensors")) else None
    return {
        "policy": weights_digest(str(saved / "policy")),
        "critic": critic,
        "samples_per_prompt": samples_per_prompt,
        "seed": config.seed,
        "sampling": sampling,
        **parts.grader.describe((parts.held_out.prompts or parts.collector.selection.stream.take(1))[0]),
    }


def _open(folder: Path, settings: Mapping[str, Any], *, anew: bool) -> dict[str, dict[str, Any]]:
    """Notes the settings; returns the records by prompt id that an earlier call with the same ones left.

    Raises:
        RunFolderError: they were made with other settings.
    """
    file, records = folder / "settings.json", JsonLines(folder / "prompts.jsonl")
    before = read_json(file)
    if before is not None and before != settings and not anew:
        keys = sorted(before.keys() | settings.keys())
        changed = [
            f"{key}: {before.get(key)} -> {settings.get(key)}" for key in keys if before.get(key) != settings.get(key)
        ]
        raise RunFolderError(
            f"{folder} holds samples that were made otherwise ({'; '.join(changed)}). Give the same options, or "
            "--anew to throw them away."
        )
    found = {line["prompt_id"]: line for line in records.read()} if before == settings else {}
    records.replace(found.values())
    (folder / "result.json").unlink(missing_ok=True)
    write_json(file, settings)
    return found


def _sample(
    config: Config,
    parts: Parts,
    prompts: Sequence[Prompt],
    values: Sequence[float],
    samples: int,
    folder: Path,
    done: Mapping[str, dict[str, Any]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Samples what is missing, as many prompts at a time as the engine takes; returns the records in order."""
    pairs = list(zip(prompts, values, strict=True))
    left = [pair for pair in pairs if pair[0].id not in done]
    found = dict(done)
    progress.phase(f"calibration: {samples} samples a prompt", len(pairs), "prompts")
    at_once = max(1, config.engine.max_rows // samples)
    for start in range(0, len(left), at_once):
        part = left[start : start + at_once]
        new = _records(config, parts, part, samples)
        JsonLines(folder / "prompts.jsonl").append(new)
        found.update({record["prompt_id"]: record for record in new})
        rates = [record["solve_rate"] for record in found.values() if record["solve_rate"] is not None]
        progress.update(
            len(pairs) - len(left) + start + len(part), {"solve_rate": sum(rates) / len(rates)} if rates else {}
        )
    return [found[prompt.id] for prompt in prompts]


def _records(config: Config, parts: Parts, pairs: Sequence[tuple[Prompt, float]], samples: int) -> list[dict[str, Any]]:
    prompts = [prompt for prompt, _ in pairs]
    # By id, so that a call for more prompts, or one that goes on, gives each prompt the same responses.
    each = [row_seeds(config.seed, f"calibration {prompt.id}", range(samples)) for prompt in prompts]
    rollouts = sample(
        parts.engine,
        prompts,
        parts.tokenizer,
        parts.collector.sampling,
        samples_per_prompt=samples,
        seeds=[seed for seeds in each for seed in seeds],
        version=parts.policy.version,
    )
    verdicts = parts.grader.grade(rollouts)
    records = []
    for number, (prompt, value) in enumerate(pairs):
        own = slice(number * samples, (number + 1) * samples)
        rewards = [verdict.reward for verdict in verdicts[own]]
        graded = [reward for reward in rewards if reward is not None]
        strange = next((reward for reward in graded if not 0 <= reward <= 1), None)
        if strange is not None:
            raise ConfigError(f"Prompt {prompt.id!r} got reward {strange}: V is held against rewards in [0, 1] only.")
        records.append(
            {
                "prompt_id": prompt.id,
                "prompt": prompt.text,
                "difficulty": prompt.difficulty,
                "value": value,
                "solve_rate": sum(graded) / len(graded) if graded else None,
                "rewards": rewards,
                "errors": sum(verdict.error is not None for verdict in verdicts[own]),
                "clipped": sum(not rollout.finished for rollout in rollouts[own]),
                "length_mean": sum(rollout.completion.written for rollout in rollouts[own]) / samples,
            }
        )
    return records


def measure(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the measures of V on the records of prompts.jsonl.

    Returns:
        prompts, responses and left_out (prompts without a reward); mean_value and mean_solve_rate; `of_prompts` with
        pearson, spearman, brier and ece, `of_responses` with brier and auroc: each {value, low, high} with a 95%
        bootstrap interval over prompts, and where they can be told `reachable`, what a perfect V would have, and
        `corrected`, an estimate of the measure against the true solve rates. None where something is undefined. Last
        `reliability`, bins of V.

    Raises:
        TrainingError: no prompt has a reward.
    """
    graded = [[float(r) for r in record["rewards"] if r is not None] for record in records]
    kept = [(float(record["value"]), rewards) for record, rewards in zip(records, graded, strict=True) if rewards]
    if not kept:
        raise TrainingError(f"None of the {len(records)} prompts has a response with a reward.")
    rewards = [of_prompt for _, of_prompt in kept]
    v = np.array([value for value, _ in kept])
    p = np.array([np.mean(of_prompt) for of_prompt in rewards])
    q = np.array([np.mean(np.square(of_prompt)) for of_prompt in rewards])
    n = np.array([len(of_prompt) for of_prompt in rewards], dtype=np.float64)
    noise, reach = calibration.sampling_noise(rewards), calibration.reachable_pearson(rewards)
    pearson, brier = _with_interval(calibration.pearson, v, p), _with_interval(calibration.brier, v, p)
    single = _with_interval(_response_brier, v, p, q, n)
    if pearson["value"] is not None and reach > 0:
        # A ratio of two estimates, so it may come out a little above what is possible.
        pearson |= {"reachable": reach, "corrected": max(-1.0, min(1.0, pearson["value"] / reach))}
    if math.isfinite(noise):
        brier |= {"reachable": noise, "corrected": brier["value"] - noise}
        variances = np.array([np.var(of_prompt, ddof=1) for of_prompt in rewards])
        single["reachable"] = float((variances * n).sum() / n.sum())
    area = _with_interval(calibration.auroc, v, p, n)
    area["reachable"] = _reachable_auroc(rewards)
    return {
        "prompt_ids": [record["prompt_id"] for record in records],
        "prompts": len(kept),
        "responses": int(n.sum()),
        "left_out": len(records) - len(kept),
        "mean_value": float(v.mean()),
        "mean_solve_rate": float(p.mean()),
        "of_prompts": {
            "pearson": pearson,
            "spearman": _with_interval(calibration.spearman, v, p),
            "brier": brier,
            "ece": _with_interval(calibration.expected_calibration_error, v, p),
        },
        "of_responses": {"brier": single, "auroc": area},
        "reliability": calibration.reliability_rows(v, p),
    }


def _with_interval(of: Any, *columns: Any) -> dict[str, Any]:
    value = of(*columns)
    low, high = calibration.bootstrap_interval(of, *columns) or (None, None)
    return {"value": value if math.isfinite(value) else None, "low": low, "high": high}


def _response_brier(v: Any, p: Any, q: Any, n: Any) -> float:
    """Mean of (V - R)^2 over responses, from each prompt's mean R, mean R^2 and number of responses."""
    return float((n * (v * v - 2 * v * p + q)).sum() / n.sum())


def _reachable_auroc(rewards: Sequence[Sequence[float]]) -> float | None:
    """AUROC of solve rates for responses that are no part of them: a little less than the true rates would have.

    Each of 8 parts of the samples is judged by the solve rates in the other 7; a response in its own rate would make
    it too good.
    """
    parts = min(_AUROC_PARTS, *(len(of_prompt) for of_prompt in rewards))
    if parts < 2:
        return None
    areas = []
    for part in range(parts):
        judged = [of_prompt[part::parts] for of_prompt in rewards]
        rates = [
            (sum(of_prompt) - sum(own)) / (len(of_prompt) - len(own))
            for of_prompt, own in zip(rewards, judged, strict=True)
        ]
        outcomes = [float(np.mean(own)) for own in judged]
        areas.append(calibration.auroc(rates, outcomes, [len(own) for own in judged]))
    known = [area for area in areas if math.isfinite(area)]
    return sum(known) / len(known) if known else None
