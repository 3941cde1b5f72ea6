"""`sppo calibrate`: a run's V(prompt) held against the solve rate of many samples (the SPPO paper's section 5.2).

    RUN/calibration/CHECKPOINT/settings.json     what the samples depend on
    RUN/calibration/CHECKPOINT/prompts.jsonl     one line a prompt: V, and the reward of every sample
    RUN/calibration/CHECKPOINT/pool.jsonl        the same of prompts that were trained on, where the critic has history
    RUN/calibration/CHECKPOINT/result.json       the measures
    RUN/calibration/CHECKPOINT/calibration.png   the picture (drawn by `sppo.report.calibration`)

The samples are drawn as in training, since their solve rate is what V learns. A line of prompts.jsonl is written when
its prompt is done, and each sample has a seed of its own, so a calibration that was stopped goes on where it was, with
the numbers of one that was not.

Two kinds of measures: of prompts, V against the solve rate, and of responses, V against each response's R. A solve
rate of n samples is uncertain, so even a perfect V has a Brier score above 0 and a correlation below 1 against it;
`reachable` is what it would have, and `corrected` estimates the measure against the true solve rates.

History knows nothing of held-out prompts. So where a critic has it, prompts of the pool with outcomes are sampled too,
and V of their text alone is held against the same solve rates as the belief, which counts those outcomes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sppo.config import Config
from sppo.config.verification import ProcessOptions
from sppo.critics.critic import Critic
from sppo.critics.fusion import BeliefCritic
from sppo.errors import ConfigError, RunFolderError
from sppo.evaluation.benchmarking import weights_digest
from sppo.evaluation.sampled import measure, with_and_without_history
from sppo.rollouts.sample import sample
from sppo.runs import ranks
from sppo.runs.checkpoint import require_checkpoint
from sppo.runs.files import read_json, write_json
from sppo.runs.lock import lock
from sppo.runs.progress import NoProgress, Progress
from sppo.runs.records import JsonLines
from sppo.runs.seeds import row_seeds
from sppo.training.build import algorithm_of, build
from sppo.training.given import Given, require_data
from sppo.training.loop import Parts
from sppo.types import Prompt

Said = tuple[Prompt, dict[str, float]]
"""A prompt, and what the critic says of it, by the key that its record has it under."""


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
    """Samples and grades responses to prompts of a run, and holds V of its critic against them.

    Args:
        path: a run folder.
        config: the run's own, as `sppo.config.evaluation.evaluation_config` reads it.
        prompts: how many of the held-out prompts, drawn at random; all where the run has fewer. As many again of the
            pool where the critic has history.
        samples_per_prompt: n, at least 2.
        checkpoint: "best", "last" or "step_N".
        anew: throw away what an earlier calibration with other settings left.
        progress: told how far it is.

    Returns:
        What result.json holds: see `measure`; and where the critic has history `pool`, as
        `with_and_without_history` returns it.

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
        chosen, notes = _prompts(parts, prompts)
        remembered, more = _remembered(parts, prompts)
        notes += more
        for note in notes:
            progress.message(note)
        folder = run / "calibration" / saved.name
        with lock(folder, progress.message), parts.engine.awake():
            if ranks.is_main():
                _open(folder, _settings(config, parts, saved, samples_per_prompt), anew=anew)
            ranks.wait()
            n = samples_per_prompt
            records = _sample(config, parts, chosen, n, folder / "prompts.jsonl", progress)
            pool = _sample(config, parts, remembered, n, folder / "pool.jsonl", progress) if remembered else []
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
    if pool:
        result["pool"] = with_and_without_history(pool)
    write_json(folder / "result.json", result)
    return result


def _require_prompt_values(config: Config) -> None:
    algorithm = algorithm_of(config)
    if not algorithm.values_the_prompt:
        has = {
            None: "has no critic",
            "token": "values the states of a response, not prompts",
            "optimal": "has a V* above the solve rate, of the policy that training started from",
        }[algorithm.critic]
        raise ConfigError(
            f"The run was trained with {algorithm.name}, which {has}: there is no V(prompt) to hold against solve "
            "rates. Runs that have one: of sppo and spo, and of others that chose prompts (selection.name)."
        )


def _with_prompts(config: Config, count: int) -> Config:
    """Lets evaluation data give more prompts than the run itself measured.

    Without such data the held-out prompts are those that training left out, and no others.
    """
    if config.evaluation.data is None:
        return config
    most = max(config.evaluation.prompts, count)
    return replace(config, evaluation=replace(config.evaluation, prompts=most))


def _prompts(parts: Parts, count: int) -> tuple[list[Said], list[str]]:
    """The prompts to sample, with V of each, and notes: held-out ones, or, of a critic that counts, seen ones."""
    notes, stream = list(parts.notes), parts.collector.selection.stream
    known = _valued(parts.critic, parts.held_out.prompts)
    if not known:
        # One epoch: every training prompt once.
        known = _valued(parts.critic, stream.take(len(stream)))
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
    if len(known) < count:
        notes.append(f"{count} prompts asked for, but there are {len(known)}: all of them are taken")
    order = _drawn([prompt for prompt, _ in known], count)
    values = _by_id(known)
    return [(prompt, {"value": values[prompt.id]}) for prompt in order], notes


def _remembered(parts: Parts, count: int) -> tuple[list[Said], list[str]]:
    """Prompts of the pool with outcomes in the critic's history, with the belief and V of the text alone; and notes."""
    critic, stream = parts.critic, parts.collector.selection.stream
    if not isinstance(critic, BeliefCritic) or critic.history is None:
        return [], []
    pool = stream.at(range(len(stream)))
    seen = [prompt for prompt, counted in zip(pool, critic.remembers(pool), strict=True) if counted]
    drawn = _drawn(seen, count)
    beliefs, texts = (_by_id(_valued(one, drawn)) for one in (critic, critic.without_history()))
    said = [
        (prompt, {"value": beliefs[prompt.id], "text_value": texts[prompt.id]})
        for prompt in drawn
        if prompt.id in beliefs and prompt.id in texts
    ]
    few = f"{count} prompts with a history asked for, but there are {len(seen)}: all of them are taken"
    return said, [few] if len(seen) < count else []


def _drawn(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Some of the prompts: shuffled and cut, so that a call for more finds those of an earlier call among them."""
    order = sorted(prompts, key=lambda prompt: prompt.id)
    random.Random(0).shuffle(order)
    return order[:count]


def _valued(critic: Critic, prompts: Sequence[Prompt]) -> list[tuple[Prompt, float]]:
    beliefs = critic.beliefs(prompts) if prompts else None
    if beliefs is None:
        return []
    return [(prompt, value) for prompt, value in zip(prompts, beliefs.values, strict=True) if value is not None]


def _by_id(valued: Sequence[tuple[Prompt, float]]) -> dict[str, float]:
    return {prompt.id: value for prompt, value in valued}


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


def _open(folder: Path, settings: Mapping[str, Any], *, anew: bool) -> None:
    """Notes the settings, and keeps what an earlier call with the same ones left.

    Raises:
        RunFolderError: they were made with other settings.
    """
    file = folder / "settings.json"
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
    if before != settings:
        for name in ("prompts.jsonl", "pool.jsonl"):
            (folder / name).unlink(missing_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    write_json(file, settings)


def _sample(
    config: Config, parts: Parts, said: Sequence[Said], samples: int, file: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Samples what is missing, as many prompts at a time as the engine takes; returns the records in order."""
    lines = JsonLines(file)
    found = {line["prompt_id"]: line for line in lines.read()}
    lines.replace(found.values())  # without a torn last line
    left = [(prompt, values) for prompt, values in said if prompt.id not in found]
    of = " of the pool" if file.stem == "pool" else ""
    progress.phase(f"calibration: {samples} samples a prompt{of}", len(said), "prompts")
    at_once = max(1, config.engine.max_rows // samples)
    for start in range(0, len(left), at_once):
        part = left[start : start + at_once]
        new = _records(config, parts, part, samples)
        lines.append(new)
        found.update({record["prompt_id"]: record for record in new})
        rates = [record["solve_rate"] for record in found.values() if record["solve_rate"] is not None]
        progress.update(
            len(said) - len(left) + start + len(part), {"solve_rate": sum(rates) / len(rates)} if rates else {}
        )
    return [found[prompt.id] for prompt, _ in said]


def _records(config: Config, parts: Parts, pairs: Sequence[Said], samples: int) -> list[dict[str, Any]]:
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
    for number, (prompt, values) in enumerate(pairs):
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
                **values,
                "solve_rate": sum(graded) / len(graded) if graded else None,
                "rewards": rewards,
                "errors": sum(verdict.error is not None for verdict in verdicts[own]),
                "clipped": sum(not rollout.finished for rollout in rollouts[own]),
                "length_mean": sum(rollout.completion.written for rollout in rollouts[own]) / samples,
            }
        )
    return records
