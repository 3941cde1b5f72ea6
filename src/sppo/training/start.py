"""What comes before the first step: warm start, the frozen reference, what is measured, and the critic's own start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sppo.errors import RunFolderError
from sppo.models.adapter_files import BASE_FOLDER, save_base
from sppo.models.adapters import based_on, training_base
from sppo.models.checks import adds_nothing
from sppo.runs import ranks
from sppo.runs.files import whole_folder
from sppo.training.loop import Parts, Run, evaluate, note_best, save
from sppo.training.prefit import prefit, spent
from sppo.training.record import Recorder, story
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
    _keep_base(run, parts)
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
    recorder.write(0, **measured.metrics(), **spent(run.state.prefit))
    save(run, parts, recorder)


def _warm_start(run: Run, parts: Parts, recorder: Recorder) -> None:
    warm = parts.warm_start
    assert warm is not None, "a run that begins has its demonstrations"

    def accuracy() -> float:
        parts.hand_over_weights()
        return evaluate(run, parts, recorder, "fine-tuning", final=False, quiet=True).accuracy

    for number, (phase, rows) in enumerate(zip(warm.phases, warm.demonstrations, strict=True), start=1):
        trained = training_base(parts.policy.model) if warm.trains_base else nullcontext()
        with recorder.timing("warm_start"), trained:
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


def keeps_base(folder: Path, policy: PreTrainedModel) -> bool:
    """Whether a run keeps the weights that adapters stand on, once, as no other folder has them."""
    return based_on(policy) == str(folder.absolute() / BASE_FOLDER)


def _keep_base(run: Run, parts: Parts) -> None:
    if keeps_base(run.folder.path, parts.policy.model):
        with whole_folder(run.folder.path / BASE_FOLDER) as temporary:
            save_base(parts.policy.model, temporary)


def _reference(run: Run, parts: Parts, load: Callable[[Path, torch.device], PreTrainedModel]) -> PreTrainedModel:
    """Returns the policy that training started from: a frozen copy, made at step 0 and read again on resuming.

    Where the policy has an adapter that began at zero, it is the policy itself, see `reference_of`: no second copy.
    """
    if run.checkpoint is None:
        run.state.reference_is_base = adds_nothing(parts.policy.model)
    if run.state.reference_is_base:
        return parts.policy.model
    folder = require_reference(run.folder.path, run.state.step)
    if run.checkpoint is None or not ranks.of_main(folder.is_dir()):
        with whole_folder(folder) as temporary:
            parts.policy.save_pretrained(temporary)
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
