"""A run folder with everything that a run needs, opened, and given back at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sppo.config import Config, to_dict
from sppo.config.compatibility import prefit_differences, written_config
from sppo.data.stream import fingerprint
from sppo.errors import RunFolderError
from sppo.models.adapter_files import base_bytes
from sppo.runs import ranks
from sppo.runs.checkpoint import (
    TrainingState,
    count_checkpoints,
    find_checkpoint,
    load_state,
    require_whole,
)
from sppo.runs.folder import RunFolder, checkpoint_of
from sppo.runs.generators import restore_random_state
from sppo.runs.progress import Clock, NoProgress, Progress
from sppo.runs.sinks import Sinks
from sppo.training.build.checks import algorithm_of, check, notes_on
from sppo.training.build.parts import build
from sppo.training.given import Given, require_again
from sppo.training.loop import Parts, Run, Schedule
from sppo.training.prefit import prefit_checkpoint, read_prefit, take_up_prefit
from sppo.training.record import Recorder
from sppo.training.start import keeps_base, require_reference
from sppo.update.estimate import sampler_notes
from sppo.update.moments import load_optimizers
from sppo.update.steps import StepGuard


@contextmanager
def open_run(
    config: Config, given: Given, *, resume: bool | str, progress: Progress, fine_tuning: bool = False
) -> Iterator[tuple[Run, Parts, Recorder]]:
    """Checks and loads everything, makes or opens the run folder, and gives processes and files back at the end.

    Args:
        config: all options.
        given: what a Python program handed over.
        resume: go on from the last checkpoint in `config.output`, or from the one of this name.
        progress: told how far it is.
        fine_tuning: only the supervised phases will run.

    Raises:
        SppoError: whatever is missing or doesn't fit together, before anything is written.
    """
    config = check(config, given)
    if not ranks.is_main():
        progress = NoProgress()
    if resume:
        require_again(Path(config.output), given)
    options, algorithm = to_dict(config), algorithm_of(config)
    limit = None if config.max_hours is None else 3600 * config.max_hours
    clock = Clock(60 * config.checkpoint.minutes, limit)
    with RunFolder.open(Path(config.output), options, resume=resume, tell=progress.message) as folder:
        checkpoint = find_checkpoint(folder.path, checkpoint_of(resume)) if resume else None
        if checkpoint is not None:
            require_whole(checkpoint)
        state = TrainingState() if checkpoint is None else load_state(checkpoint)
        if checkpoint is None and config.critic.prefit.path is not None:
            state.prefit = _made_for(Path(config.critic.prefit.path), config)
            state.responses, state.tokens_sampled = state.prefit["responses"], state.prefit["tokens"]
        if algorithm.needs_reference and not fine_tuning and not state.reference_is_base:
            require_reference(folder.path, state.step)
        guard = StepGuard(
            max_norm=config.optimizer.max_grad_norm,
            skipped_total=state.skipped_optimizer_steps,
            skipped_in_a_row=dict(state.skipped_in_a_row),
            taken=dict(state.optimizer_steps),
        )
        recorder = Recorder(folder, progress, state, algorithm)
        with recorder.timing("load"):
            parts = build(config, given, checkpoint, guard=guard, fine_tuning=fine_tuning)
            if checkpoint is not None:
                restore(parts, checkpoint, state)
            elif state.prefit:
                take_up_prefit(parts, prefit_checkpoint(Path(str(config.critic.prefit.path))))
        state.held_out = fingerprint(parts.held_out.prompts, 0)
        try:
            # The ones to keep, the best, and one that is being written.
            missing = max(config.checkpoint.keep + 2 - count_checkpoints(folder.path), 1)
            folder.require_space(parts.checkpoint_bytes * missing + (0 if checkpoint else _base_bytes(folder, parts)))
            after = -1 if checkpoint is None else state.step
            folder.begin(after)
            folder.note_revisions(parts.revisions)
            sinks = config.logging.sinks if ranks.is_main() else []
            recorder.sinks = Sinks.open(folder.path, sinks, config.logging.project, options, after)
            notes = [*parts.notes]
            if not fine_tuning:
                notes += notes_on(config, algorithm, len(parts.collector.selection.stream))
                notes += sampler_notes(config.algorithm, config.sampling)
            for note in notes:
                progress.message(note)
            run = Run(folder, state, _schedule(config, parts), config.seed, checkpoint, clock, fine_tuning)
            with run.settled_if_it_fails():
                yield run, parts, recorder
        finally:
            parts.engine.close()
            recorder.close()


def _made_for(folder: Path, config: Config) -> dict[str, Any]:
    """What the pre-fit in a folder has cost.

    Raises:
        RunFolderError: there is none, or it is of another kind of critic, or of other data or sampling.
    """
    made = read_prefit(folder)
    then = written_config(folder).config
    differences = prefit_differences(then, config)
    kinds = algorithm_of(then).critic, algorithm_of(config).critic
    if kinds[0] != kinds[1]:
        differences.insert(0, f"kind of critic: {kinds[0]} -> {kinds[1]}")
    if differences:
        raise RunFolderError(
            f"critic.prefit.path is {folder}, whose critic was fitted with other options: {'; '.join(differences)}. "
            "Give the same ones, or fit another with `sppo prefit`."
        )
    return made


def _base_bytes(folder: RunFolder, parts: Parts) -> int:
    """Size of what the run keeps once beside its checkpoints."""
    policy = parts.policy.model
    return base_bytes(policy) if keeps_base(folder.path, policy) else 0


def _schedule(config: Config, parts: Parts) -> Schedule:
    """What is due when."""
    return Schedule(
        steps=config.steps,
        evaluate_every=config.evaluation.every,
        save_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        record_every=config.logging.rollouts_every,
        prefit=config.critic.prefit.samples,
        samples=config.evaluation_samples(config.evaluation.samples_per_prompt),
        final_samples=config.evaluation_samples(config.evaluation.final_samples_per_prompt),
    )


def restore(parts: Parts, checkpoint: Path, state: TrainingState) -> None:
    """Puts optimisers, generators and the data cursor back to where the checkpoint was made.

    Raises:
        RunFolderError: other prompts, to train or to measure on, than those that the run was started with.
    """
    load_optimizers(parts.optimizers, checkpoint)
    parts.collector.selection.load_state_dict(state.stream)
    if state.held_out not in ("", fingerprint(parts.held_out.prompts, 0)):
        raise RunFolderError(
            "The held-out prompts are not those that the run was started with, so that its accuracies could not be "
            "compared. Resume with the same rows or file, or start a new run."
        )
    restore_random_state(checkpoint)
    parts.hand_over_weights()
