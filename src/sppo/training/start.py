"""What comes before the first step: warm start, the frozen reference, what is measured, and the critic's own start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sppo.batch import Credit, Estimates, Outcomes
from sppo.errors import RunFolderError, TrainingError
from sppo.runs.files import read_json, whole_folder
from sppo.training.loop import Parts, Run, evaluate, note_best, save
from sppo.training.record import Recorder, response_records, story
from sppo.update.sft import fine_tune_phase


def begin(run: Run, parts: Parts, recorder: Recorder) -> None:
    """Warm start, evaluation and pre-fit of what training starts from; or says from where it goes on."""
    if run.checkpoint is not None:
        recorder.message(f"Going on from {run.checkpoint}.")
        if parts.load_reference is not None and not run.fine_tuning:
            parts.policy.reference = _reference(run, parts, parts.load_reference)
        return
    try:
        _start(run, parts, recorder)
    except KeyboardInterrupt:
        recorder.message("Stopped before the first checkpoint: the same command starts over.")
        raise


def _start(run: Run, parts: Parts, recorder: Recorder) -> None:
    if run.fine_tuning:
        run.state.before = story("before", evaluate(run, parts, recorder, "before", final=True))
    _warm_start(run, parts, recorder)
    if parts.load_reference is not None and not run.fine_tuning:
        parts.policy.reference = _reference(run, parts, parts.load_reference)
    when = "after fine-tuning" if run.fine_tuning else "before"
    measured = evaluate(run, parts, recorder, when, final=True)
    if run.fine_tuning:
        run.final = measured
    else:
        run.state.before = story("before", measured)
        prefit(run, parts, recorder)
    note_best(run.state, measured.accuracy)
    recorder.write(0, **measured.metrics(), **_spent(run.state.prefit))
    save(run, parts, recorder)


def _warm_start(run: Run, parts: Parts, recorder: Recorder) -> None:
    warm = parts.warm_start
    assert warm is not None, "a run that begins has its demonstrations"

    def accuracy() -> float:
        parts.hand_over_weights()
        return evaluate(run, parts, recorder, "fine-tuning", final=False, quiet=True).accuracy

    for number, (phase, rows) in enumerate(zip(warm.phases, warm.demonstrations, strict=True), start=1):
        with recorder.timing("warm_start"):
            recorder.progress.phase(f"fine-tuning {number}: {phase.demonstrations}", phase.steps)
            result = fine_tune_phase(
                parts.policy.model,
                rows,
                phase,
                betas=warm.betas,
                optimizer=warm.optimizer,
                seed=run.seed_of("fine-tuning", number),
                progress=recorder.progress,
                guard=parts.policy.guard,
                check=accuracy,
            )
            parts.hand_over_weights()
        recorder.message(
            f"Fine-tuning {number} ({phase.demonstrations}): {result.steps} steps, loss {result.loss:.3f}."
        )


def prefit(run: Run, parts: Parts, recorder: Recorder) -> None:
    """Lets critic, history and choice learn from responses of the starting policy, which rests.

    They are taken in batches as large as a step's. All are counted and recorded, as those of step 0.

    Raises:
        TrainingError: none of them has a reward.
    """
    samples, most = run.schedule.prefit, parts.collector.prompts * parts.collector.samples
    if not samples:
        return
    recorder.progress.phase("pre-fit of the critic", samples, "responses")
    records: list[dict[str, Any]] = []
    responses, tokens = run.state.responses, run.state.tokens_sampled
    with recorder.timing("prefit"):
        for number, start in enumerate(range(0, samples, most), start=1):
            collected = parts.collector.collect_apart(number, min(most, samples - start), parts.policy.version)
            batch = parts.collector.batch(collected)
            recorder.count(collected, batch)
            estimates = credit = None
            if batch is not None:
                values = parts.critic.values(batch)
                estimates = Estimates(batch.sampler_logprobs, values)
                credit = Credit(torch.zeros(len(batch), 1), batch.rewards[:, None])
                if not parts.algorithm.values_the_prompt:
                    # A critic of tokens learns what the algorithm makes of its own values and the policy's.
                    estimates, _ = parts.policy.estimate(batch, values)
                    credit = parts.algorithm.assign_credit(Outcomes.of(batch, estimates))
                parts.collector.observe(collected, batch)
                parts.critic.learn(batch, estimates, credit, seed=run.seed_of("prefit", number))
            records += response_records(0, collected, batch, estimates, credit, parts.grader)
            recorder.progress.update(start + len(collected.rollouts), {})
    if all(record["reward"] is None for record in records):
        raise TrainingError(f"None of the {samples} responses of critic.prefit has a reward: look at the verifier.")
    run.state.prefit = {
        "responses": run.state.responses - responses,
        "tokens": run.state.tokens_sampled - tokens,
        "seconds": round(run.state.seconds["prefit"], 3),
    }
    run.folder.write_records(0, records)


def _spent(made: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of step 0 on what came before the first step; none where nothing did."""
    if not made:
        return {}
    return {
        "responses/total": made["responses"],
        "tokens/total": made["tokens"],
        "time/prefit": made.get("seconds", 0.0),
    }


def read_prefit(folder: Path) -> dict[str, Any]:
    """Returns the responses, tokens and seconds that the critic in a folder of `sppo prefit` has cost.

    Raises:
        RunFolderError: there is none.
    """
    state = read_json(prefit_checkpoint(folder) / "state.json")
    made: dict[str, Any] = (state or {}).get("prefit") or {}
    if not made:
        raise RunFolderError(
            f"critic.prefit.path is {folder}, which holds no critic that was fitted beforehand. Make one with "
            f"sppo prefit RECIPE --critic.prefit.samples 512 --output {folder}."
        )
    return made


def prefit_checkpoint(folder: Path) -> Path:
    """Where a run keeps what it started from: the only checkpoint of `sppo prefit`."""
    return folder / "checkpoints" / "step_0"


def _reference(run: Run, parts: Parts, load: Callable[[Path, torch.device], PreTrainedModel]) -> PreTrainedModel:
    """Returns a frozen copy of the policy that training started from; made at step 0, read again on resuming."""
    folder = require_reference(run.folder.path, run.state.step)
    if not folder.is_dir():
        with whole_folder(folder) as temporary:
            parts.policy.model.save_pretrained(temporary)
    return load(folder, parts.policy.model.device)


def require_reference(folder: Path, step: int) -> Path:
    """Returns where a run keeps the policy that it started from; it is made at step 0.

    Raises:
        RunFolderError: the run is past step 0 and its reference is gone.
    """
    reference = folder / "reference"
    if step and not reference.is_dir():
        raise RunFolderError(
            f"{reference} is missing: the policy that the run started from, which a KL term, the joint ratio or "
            f"A*-PO needs. Copy the policy folder of checkpoint step_0 there if it was kept, or start a new run."
        )
    return reference
