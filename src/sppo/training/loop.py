"""The loop: sample, grade, estimate, assign credit, update the critic, update the policy, record.

Each value is complete when it is made and nothing flows back. Every random choice of a step has a seed of its own, so
a run that was killed and resumed takes exactly the steps that it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sppo.algorithms.table import assign_credit, get_algorithm, needs_reference, resolve_loss, resolve_options
from sppo.batch import Batch, Credit, Estimates
from sppo.config import Config
from sppo.errors import ConfigError, TrainingError
from sppo.evaluation.calibration import add_reliability, reliability_rows
from sppo.evaluation.held_out import Evaluation, evaluate
from sppo.runs.checkpoint import TrainingState, count_checkpoints, save_checkpoint
from sppo.runs.folder import RunFolder
from sppo.runs.progress import NoProgress, Progress, StopRequest
from sppo.runs.seeds import derive_seed
from sppo.runs.sinks import Sinks
from sppo.training.build import Given, Parts, build, check, load_reference, restore, resume_point
from sppo.training.collect import Collected, batch_of, collect, require_unit_rewards
from sppo.training.record import audit_records, credit_metrics, response_metrics, story, summarise
from sppo.update.estimate import estimate
from sppo.update.policy import update_policy
from sppo.update.sft import fine_tune_phase
from sppo.update.steps import StepGuard
from sppo.verifiers.grading import grading_metrics

Metrics = dict[str, float]


def train(
    config: Config, given: Given | None = None, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains a model: warm start where the config has one, then `config.steps` steps.

    Args:
        config: all options.
        given: models, rows or a reward function that a Python program hands over.
        resume: go on from the last checkpoint in `config.output`.
        progress: told how far it is.

    Returns:
        The summary that summary.json holds.

    Raises:
        SppoError: bad options, data or models before any long work; or training that cannot go on.
        KeyboardInterrupt: after a Ctrl-C, once the step's checkpoint is saved.
    """
    training = _Training(config, given or Given(), resume, progress or NoProgress())
    with training.closing(), enough_memory():
        training.start()
        if training.state.step >= config.steps:
            training.progress.message(
                f"The run is at step {training.state.step} of {config.steps} already; more --steps go on from there."
            )
        with StopRequest(training.progress) as stop:
            training.progress.phase("training", config.steps)
            training.progress.update(training.state.step, training.newest)
            for step in range(training.state.step + 1, config.steps + 1):
                training.take_step(step, stop)
        return training.finish()


def fine_tune(
    config: Config, given: Given | None = None, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs the supervised phases alone and saves the model as the run's checkpoint step_0.

    Arguments, result and exceptions as for `train`.
    """
    training = _Training(config, given or Given(), resume, progress or NoProgress(), fine_tuning=True)
    with training.closing(), enough_memory():
        training.start()
        return training.finish()


@contextmanager
def enough_memory() -> Iterator[None]:
    """Says what to change where the GPU's memory runs out.

    Raises:
        TrainingError: it did.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The GPU's memory is full: {str(error).splitlines()[0]} Lower optimizer.tokens_per_microbatch (updates), "
            "engine.max_rows (sampling) or optimizer.logprob_chunk_tokens, or set model.gradient_checkpointing; none "
            "of them changes the result. Then go on with --resume."
        ) from error


class _Training:
    """One run of the program on one run folder."""

    def __init__(
        self, config: Config, given: Given, resume: bool, progress: Progress, fine_tuning: bool = False
    ) -> None:
        self.config = config = check(config, given)
        self.loss_options = resolve_loss(get_algorithm(config.algorithm.name), config.algorithm)
        self.options = resolve_options(get_algorithm(config.algorithm.name), config.algorithm)
        self.reference: PreTrainedModel | None = None
        self.progress = progress
        self.fine_tuning = fine_tuning
        self.mark = time.perf_counter()
        self.final: Evaluation | None = None
        self.run = RunFolder.reopen(config) if resume else RunFolder.require_new(config)
        self.checkpoint = resume_point(config) if resume else None
        self.state = TrainingState()
        self.newest: Metrics = {}
        with self.timed("load"):
            self.parts: Parts = build(config, given, self.checkpoint, fine_tuning=fine_tuning)
        # The ones to keep, the best, and one that is being written.
        missing = max(config.checkpoint.keep + 2 - count_checkpoints(self.run.path), 1)
        self.run.require_space(_checkpoint_bytes(self.parts) * missing)
        if not resume:
            self.run = RunFolder.create(config)
        self.sinks = Sinks(config, self.run.path)
        self.guard = StepGuard(config.optimizer.max_skipped_steps)
        for note in self.parts.notes:
            progress.message(note)

    def start(self) -> None:
        """Restores the checkpoint, or warm-starts and evaluates what training starts from."""
        if self.checkpoint is not None:
            self._restore(self.checkpoint)
        else:
            self.run.forget_after(-1)
            try:
                self._begin()
            except KeyboardInterrupt:
                self.progress.message("Stopped before the first checkpoint: the same command starts over.")
                raise
        if needs_reference(self.parts.algorithm, self.config.algorithm) and not self.fine_tuning:
            self.reference = load_reference(self.config, self.parts, self.run.path / "reference", self.state.step)

    def _restore(self, checkpoint: Path) -> None:
        loaded = self.state.seconds.get("load", 0.0)
        self.state = restore(self.parts, checkpoint)
        self.state.seconds["load"] = self.state.seconds.get("load", 0.0) + loaded
        if self.config.steps < self.state.step:
            raise ConfigError(
                f"steps is {self.config.steps}, but the run is at step {self.state.step} already. Give as many or more."
            )
        self.guard.skipped_total = self.state.skipped_optimizer_steps
        self.guard.skipped_in_a_row = dict(self.state.skipped_in_a_row)
        self.parts.engine.load_weights(self.parts.policy, self.state.step)
        self.run.forget_after(self.state.step)
        self.progress.message(f"Going on from {checkpoint}.")

    def _begin(self) -> None:
        if self.fine_tuning:
            self.state.before = story("before", self._evaluate("before", final=True))
        self._warm_start()
        measured = self._evaluate("after fine-tuning" if self.fine_tuning else "before", final=True)
        if self.fine_tuning:
            self.final = measured
        else:
            self.state.before = story("before", measured)
        self._note_best(measured.accuracy)
        self._record({"step": 0, **measured.metrics()})
        self.save()

    def take_step(self, step: int, stop: StopRequest) -> None:
        """One step of the loop, and whatever is due after it. time/step is the step alone."""
        began = time.perf_counter()
        parts, config = self.parts, self.config
        metrics: Metrics = {}
        with self.timed("rollout", metrics):
            collected = collect(parts, config, step)
        metrics["time/grade"] = collected.grading_seconds
        metrics["time/rollout"] -= collected.grading_seconds
        self.state.seconds["rollout"] -= collected.grading_seconds
        self.state.seconds["grade"] = self.state.seconds.get("grade", 0.0) + collected.grading_seconds
        rollouts, verdicts = collected.rollouts, collected.verdicts  # B = P * G
        batch = batch_of(collected, config)
        with self.timed("estimate", metrics):
            self._set_prior(batch)
            values = None if parts.critic is None else parts.critic.values(batch)
            before, measures = estimate(
                batch,
                parts.policy,
                self.reference,
                values,
                config.algorithm,
                config.optimizer,
                config.sampling.temperature,
            )
        credit = assign_credit(parts.algorithm, batch, before, self.options)
        metrics |= measures | response_metrics(rollouts) | grading_metrics(verdicts)
        if collected.discarded_groups:
            metrics["sampling/discarded_groups"] = collected.discarded_groups
        metrics |= credit_metrics(batch, before, credit, parts.algorithm)
        metrics |= self._update_critic(step, batch, before, credit, metrics)
        metrics |= self._update_policy(step, batch, before, credit, metrics)
        parts.engine.load_weights(parts.policy, step)
        self._count(step, collected, batch, before)
        if _due(step, config.logging.rollouts_every):
            self.run.append_rollouts(audit_records(step, rollouts, verdicts, batch, before, credit, parts.grader))
        took = time.perf_counter() - began
        metrics |= {"time/step": took, "throughput/tokens_per_second": metrics["response/tokens"] / took}
        self._after_step(step, metrics, stop)

    def _after_step(self, step: int, metrics: Metrics, stop: StopRequest) -> None:
        """Evaluates, records and saves, each where it is due."""
        last = step == self.config.steps
        checkpoint_due = last or _due(step, self.config.checkpoint.every)
        if checkpoint_due or _due(step, self.config.evaluation.every):
            measured = self._evaluate(f"step {step}", final=last)
            self.final = measured if last else None
            metrics |= measured.metrics()
            if checkpoint_due:
                self._note_best(measured.accuracy)
        metrics |= {
            "tokens/total": self.state.tokens_sampled,
            "responses/total": self.state.responses,
            "update/skipped_steps": self.guard.skipped_total,
        }
        self._record({"step": step, **metrics})
        self.progress.phase("training", self.config.steps)
        self.progress.update(step, metrics)
        stopping = stop.requested and not last
        if checkpoint_due or stopping:
            self.save()
        if stopping:
            self.progress.message(f"Saved step {step}. Go on with the same command and --resume.")
            raise KeyboardInterrupt

    def finish(self) -> dict[str, Any]:
        """The last evaluation, and summary.json."""
        measured = self.final or self._evaluate("after", final=True)
        self._count_time()
        result = summarise(self.config, self.state, measured)
        self.run.write_summary(result)
        return result

    def save(self) -> None:
        """Writes a checkpoint of the present state."""
        self._count_time()
        self.state.stream = self.parts.stream.state_dict()
        self.state.skipped_optimizer_steps = self.guard.skipped_total
        self.state.skipped_in_a_row = dict(self.guard.skipped_in_a_row)
        with self.timed("checkpoint"):
            save_checkpoint(
                self.run.checkpoints,
                self.state,
                policy=self.parts.policy,
                tokenizer=self.parts.tokenizer,
                critic=self.parts.critic,
                optimizers=self.parts.optimizers,
                keep=self.config.checkpoint.keep,
            )

    @contextmanager
    def timed(self, phase: str, metrics: Metrics | None = None) -> Iterator[None]:
        """Adds the block's wall-clock seconds to the phase, and notes them as the step's "time/phase"."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.state.seconds[phase] = self.state.seconds.get(phase, 0.0) + took
        if metrics is not None:
            metrics[f"time/{phase}"] = took

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Gives back processes and files, however the run ends."""
        try:
            yield
        finally:
            self.parts.engine.close()
            self.sinks.close()
            self.progress.close()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.state.seconds["total"] = self.state.seconds.get("total", 0.0) + now - self.mark
        self.mark = now

    def _warm_start(self) -> None:
        parts, config = self.parts, self.config
        for number, (phase, rows) in enumerate(zip(config.sft.phases, parts.demonstrations, strict=True), start=1):
            with self.timed("warm_start"):
                self.progress.phase(f"fine-tuning {number}: {phase.demonstrations}", phase.steps)
                result = fine_tune_phase(
                    parts.policy,
                    rows,
                    phase,
                    sft=config.sft,
                    optimizer=config.optimizer,
                    seed=derive_seed(config.seed, "fine-tuning", number),
                    progress=self.progress,
                    guard=self.guard,
                    check=lambda: self._evaluate("fine-tuning", final=False, quiet=True).accuracy,
                )
            self.progress.message(
                f"Fine-tuning {number} ({phase.demonstrations}): {result.steps} steps, loss {result.loss:.3f}."
            )

    def _evaluate(self, purpose: str, *, final: bool, quiet: bool = False) -> Evaluation:
        config = self.config.evaluation
        if final and not quiet:
            self.progress.phase(f"evaluation: {purpose}", None)
        with self.timed("evaluate"):
            measured = evaluate(
                self.parts.held_out,
                self.parts.engine,
                self.parts.tokenizer,
                self.parts.grader,
                self.parts.evaluation_sampling,
                samples_per_prompt=config.final_samples_per_prompt if final else config.samples_per_prompt,
                seed=derive_seed(self.config.seed, "evaluation"),
                critic=self.parts.critic,
            )
        if self.parts.algorithm.needs_unit_rewards:
            for record in measured.records:
                require_unit_rewards(record.rollouts, record.verdicts)
        return measured

    def _set_prior(self, batch: Batch) -> None:
        if self.parts.critic is not None and not self.state.prior_is_set:
            prior = self.config.critic.prior
            self.parts.critic.set_prior(float(batch.rewards.mean()) if prior is None else prior)
            self.state.prior_is_set = True

    def _update_critic(self, step: int, batch: Batch, before: Estimates, credit: Credit, metrics: Metrics) -> Metrics:
        if self.parts.critic is None:
            return {}
        with self.timed("critic", metrics):
            return self.parts.critic.update(
                batch,
                before,
                credit,
                expected_rows=self.config.sequences_per_step,
                seed=derive_seed(self.config.seed, "critic", step),
                guard=self.guard,
            )

    def _update_policy(self, step: int, batch: Batch, before: Estimates, credit: Credit, metrics: Metrics) -> Metrics:
        if self.parts.critic is not None and step <= self.config.critic.warmup_steps:
            return {}
        self.state.tokens_trained += sum(batch.lengths)
        with self.timed("policy", metrics):
            return update_policy(
                self.parts.policy,
                self.parts.optimizers["policy"],
                batch,
                before,
                credit,
                loss_options=self.loss_options,
                optimizer=self.config.optimizer,
                sampling=self.config.sampling,
                expected_rows=self.config.sequences_per_step,
                seed=derive_seed(self.config.seed, "policy", step),
                guard=self.guard,
            )

    def _count(self, step: int, collected: Collected, batch: Batch, before: Estimates) -> None:
        self.state.step = step
        self.state.responses += len(collected.rollouts) + collected.extra_responses
        self.state.tokens_sampled += collected.extra_tokens
        self.state.tokens_sampled += sum(len(rollout.completion.token_ids) for rollout in collected.rollouts)
        self.state.left_out += len(collected.verdicts) - len(batch)
        algorithm = self.parts.algorithm
        if before.values is not None and algorithm.values_the_prompt and algorithm.needs_unit_rewards:
            seen = reliability_rows(before.values[:, 0], batch.rewards)
            self.state.reliability = add_reliability(self.state.reliability, seen)

    def _note_best(self, accuracy: float) -> None:
        if self.state.best_accuracy is None or accuracy > self.state.best_accuracy:
            self.state.best_accuracy, self.state.best_step = accuracy, self.state.step

    def _record(self, line: Mapping[str, Any]) -> None:
        # A number that doesn't exist, such as the gradient norm of a skipped step, is left out: JSON has no NaN.
        known = {name: value for name, value in line.items() if math.isfinite(value)}
        self.newest = {name: value for name, value in known.items() if name != "step"}
        self.run.append_metrics(known)
        self.sinks.log(known)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _checkpoint_bytes(parts: Parts) -> int:
    # Weights, and AdamW's two moments of each.
    groups = [group for optimizer in parts.optimizers.values() for group in optimizer.param_groups]
    return sum(p.numel() * p.element_size() * 3 for group in groups for p in group["params"])
