"""`sppo train`, `sppo sft` and `sppo prefit`: a run from its options to its summary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sppo.config import Config
from sppo.errors import ConfigError, TrainingError
from sppo.runs.progress import NoProgress, Progress
from sppo.training import loop, start
from sppo.training.build import open_run
from sppo.training.given import Given


def train(
    config: Config, given: Given | None = None, *, resume: bool | str = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains a model: warm start where the config has one, then `config.steps` steps.

    Args:
        config: all options.
        given: models, rows or a reward function that a Python program hands over.
        resume: go on from the last checkpoint in `config.output`, or from the one of this name, such as "step_5": what
            came after it is made anew then, and later checkpoints are set aside.
        progress: told how far it is.

    Returns:
        The summary that summary.json holds.

    Raises:
        SppoError: bad options, data or models before any long work; or training that cannot go on.
        KeyboardInterrupt: after a Ctrl-C, once the step's checkpoint is saved.
    """
    return _run(config, given, resume, progress)


def fine_tune(
    config: Config, given: Given | None = None, *, resume: bool | str = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs the supervised phases alone and saves the model as the run's checkpoint step_0.

    Arguments, result and exceptions as for `train`.
    """
    if not config.sft.phases:
        raise ConfigError("sft.phases is empty, so that there is nothing to fine-tune on: give it a phase or more.")
    return _run(config, given, resume, progress, fine_tuning=True)


def prefit(
    config: Config, given: Given | None = None, *, resume: bool | str = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Fits the critic to responses of the starting policy and saves both as checkpoint step_0, for several runs.

    They take the critic up with critic.prefit.path. Arguments, result and exceptions as for `train`.
    """
    if not config.critic.prefit.samples:
        raise ConfigError(
            "critic.prefit.samples is 0, so that there is nothing to fit the critic to: set it to the number of "
            "responses to sample, such as 512."
        )
    return _run(config, given, resume, progress, steps=False)


def _run(
    config: Config,
    given: Given | None,
    resume: bool | str,
    progress: Progress | None,
    *,
    fine_tuning: bool = False,
    steps: bool = True,
) -> dict[str, Any]:
    opened = open_run(
        config, given or Given(), resume=resume, progress=progress or NoProgress(), fine_tuning=fine_tuning
    )
    with enough_memory(), opened as (run, parts, recorder):
        start.begin(run, parts, recorder)
        if steps and not fine_tuning:
            if not run.remaining_steps():
                recorder.message(
                    f"The run is at step {run.state.step} of {config.steps} already; more --steps go on from there."
                )
            loop.train(run, parts, recorder)
        names = {"seed": config.seed, "algorithm": config.algorithm.name, "output": config.output}
        return loop.finish(run, parts, recorder, **names)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Says what to change where a GPU's or the machine's memory runs out.

    Raises:
        TrainingError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        # What torch raises on a CPU has no class of its own.
        if not on_gpu and not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        said = next(iter(str(error).splitlines()), "") or "Python could not allocate more."
        raise TrainingError(
            f"{'The GPU' if on_gpu else 'This machine'}'s memory is full: {said} Lower "
            "optimizer.tokens_per_microbatch (updates), engine.max_rows (sampling), or set "
            "model.gradient_checkpointing; none of them changes the result. Then go on with --resume."
        ) from error
