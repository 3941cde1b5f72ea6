"""The loop: sample, grade, estimate, assign credit, update the critic, update the policy, record.

Each value is complete when it is made and nothing flows back. Every random choice of a step has a seed of its own, so
a run that was killed and resumed takes exactly the steps that it would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.algorithm import Algorithm
from sppo.batch import Batch, Outcomes
from sppo.config import OptimizerConfig, SftPhase
from sppo.critics.critic import Critic
from sppo.errors import SppoError, TrainingError
from sppo.evaluation.held_out import Evaluation, HeldOut
from sppo.models.adapter_files import saved_bytes
from sppo.models.loading import frozen_names
from sppo.models.packing import TokenRow
from sppo.rollouts.engines.engine import Engine
from sppo.runs import ranks
from sppo.runs.checkpoint import Saving, TrainingState, find_checkpoint, save_checkpoint
from sppo.runs.folder import RunFolder, read_metrics
from sppo.runs.progress import Clock, StopRequest
from sppo.runs.seeds import derive_seed
from sppo.training.collect import Collected, Collector, require_unit_rewards
from sppo.training.record import Recorder, response_records, selection_summary, summarise
from sppo.update.learner import PolicyLearner
from sppo.update.moments import stage_moments
from sppo.update.schedule import Curve, follow
from sppo.update.steps import MOMENT_BYTES
from sppo.verifiers.grading import Grader


@dataclass(frozen=True)
class Schedule:
    """What is due when, in steps; 0 is never, but for the last step, which is always measured and saved."""

    steps: int
    evaluate_every: int
    save_every: int
    keep: int
    """Newest checkpoints kept."""
    record_every: int
    """Between records of responses."""
    prefit: int
    """Responses that the critic learns from before the policy moves."""
    samples: int
    """Responses to each held-out prompt during training."""
    final_samples: int
    """The same before and after it."""

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        return step == self.steps or _due(step, self.save_every)

    def measures(self, step: int) -> bool:
        """Whether an evaluation is due: checkpoints are always measured, so that the best is among them."""
        return self.saves(step) or _due(step, self.evaluate_every)


@dataclass(frozen=True)
class WarmStart:
    """Supervised phases before training, and their encoded demonstrations."""

    phases: tuple[SftPhase, ...]
    demonstrations: tuple[list[TokenRow], ...]
    betas: tuple[float, float]
    """AdamW's decay rates of the two moments."""
    optimizer: OptimizerConfig
    trains_base: bool = False
    """Whether they train all weights of a policy with an adapter, as of a model made new, which has nothing to adapt
    yet."""


@dataclass(frozen=True)
class Parts:
    """Everything the loop works with."""

    algorithm: Algorithm
    tokenizer: Tokenizer
    policy: PolicyLearner
    critic: Critic
    optimizers: Mapping[str, torch.optim.Optimizer]
    """AdamW by name: "policy", and "critic" where it is a model."""
    curves: Mapping[str, Curve]
    """The learning rate of each."""
    engine: Engine
    grader: Grader
    collector: Collector
    held_out: HeldOut
    warm_start: WarmStart | None
    """None where a checkpoint is past it."""
    load_reference: Callable[[Path, torch.device], PreTrainedModel] | None
    """Reads a frozen policy from a folder; None where the algorithm needs no reference."""
    notes: tuple[str, ...]
    """What the loaders left out, for people."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Hub name of model or data set -> the commit that was read."""
    expected_memory: Callable[[int], str] | None = None
    """Says of the bytes that the first step has held at most on a GPU how many were planned; None on a CPU."""

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: the weights that it holds, and AdamW's two moments of those that are trained."""
        trained = {
            name: [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for name, optimizer in self.optimizers.items()
        }
        critics = sum(p.numel() * p.element_size() for name, some in trained.items() if name != "policy" for p in some)
        moments = sum(p.numel() * MOMENT_BYTES[p.dtype] for some in trained.values() for p in some)
        return saved_bytes(self.policy.model) + critics + int(moments)

    def hand_over_weights(self) -> None:
        """Lets the engine sample from the policy as it is now."""
        self.engine.load_weights(self.policy.model, self.policy.version)


@dataclass(frozen=True)
class AtRest:
    """What brings a run back to the end of a step, as long as neither weights nor what learns from outcomes moved."""

    step: int
    stream: dict[str, Any]
    """Of the choice of prompts."""


@dataclass
class Run:
    """One run of the program on one run folder."""

    folder: RunFolder
    state: TrainingState
    schedule: Schedule
    seed: int
    checkpoint: Path | None
    """To go on from."""
    clock: Clock
    """Of this process."""
    fine_tuning: bool = False
    """Whether the supervised phases alone are run."""
    final: Evaluation | None = None
    """The last step's evaluation."""
    saving: Saving | None = None
    """The newest checkpoint, which may be being written."""
    at_rest: AtRest | None = None
    """What the last finished step left, while nothing but the choice of prompts has moved since; else None."""

    def remaining_steps(self) -> range:
        """The steps that are still to be taken."""
        return range(self.state.step + 1, self.schedule.steps + 1)

    def settle(self) -> None:
        """Returns once the newest checkpoint is there.

        Raises:
            TrainingError: it could not be written.
        """
        if self.saving is not None:
            self.saving.wait()
            self.clock.save_took(self.saving.seconds)

    @contextmanager
    def settled_if_it_fails(self) -> Iterator[None]:
        """Waits for the newest checkpoint where the block ends by an exception, as a run that ends well does itself."""
        try:
            yield
        except BaseException:
            with suppress(SppoError):  # the block's own is the one that counts
                self.settle()
            raise

    def seed_of(self, purpose: str, step: int = 0) -> int:
        """The seed of one random choice."""
        return derive_seed(self.seed, purpose, step)


def train(run: Run, parts: Parts, recorder: Recorder) -> None:
    """Takes the remaining steps.

    Raises:
        SppoError: training that cannot go on.
        KeyboardInterrupt: after a Ctrl-C, once the step's checkpoint is saved.
    """
    with StopRequest(recorder.progress) as stop, saved_if_it_fails(run, parts, recorder):
        recorder.progress.phase("training", run.schedule.steps)
        recorder.progress.update(run.state.step, recorder.newest)
        first = run.state.step + 1
        run.clock.begin()
        for step in run.remaining_steps():
            recorder.begin()
            run.at_rest = AtRest(step - 1, parts.collector.selection.state_dict())
            recorder.add(follow(parts.curves, parts.optimizers, step))
            collected = parts.collector.collect(step, parts.policy.version)  # P * G responses, and their verdicts
            batch = parts.collector.batch(collected)  # B of them, those with a reward; None where none has one
            run.at_rest = None  # until the step has ended
            recorder.collected(collected, batch)
            idle = note_if_idle(run, parts, recorder, step, collected, batch)

            estimates = credit = None
            if batch is not None:
                values = parts.critic.values(batch)  # before it learns from their rewards
                recorder.note("value")
                estimates, gaps = parts.policy.estimate(batch, values)
                recorder.note("estimate", gaps)
                credit = parts.algorithm.assign_credit(Outcomes.of(batch, estimates))
                recorder.credited(batch, estimates, credit)

                recorder.add(parts.collector.observe(collected, batch))
                recorder.note("critic", parts.critic.learn(batch, estimates, credit, seed=run.seed_of("critic", step)))
                if not idle:
                    run.state.tokens_trained += sum(batch.lengths)
                    moved = parts.policy.update(batch, estimates, credit, seed=run.seed_of("policy", step))
                    recorder.note("policy", moved)
                    parts.hand_over_weights()
                    parts.critic.policy_moved()

            if _due(step, run.schedule.record_every):
                records = response_records(step, collected, batch, estimates, credit, parts.grader)
                run.folder.write_records(step, records)
            recorder.end(step)
            if parts.expected_memory is not None and step == first:
                recorder.message(parts.expected_memory(torch.cuda.max_memory_allocated()))
            evaluate_and_save_if_due(run, parts, recorder, step, stop)
            if run.saving is not None:
                run.saving.check()


@contextmanager
def saved_if_it_fails(run: Run, parts: Parts, recorder: Recorder) -> Iterator[None]:
    """Saves the last finished step where the next one fails while it samples or grades; of one rank alone.

    Of several ranks the others don't know that one has failed, and a checkpoint takes all.
    """
    try:
        yield
    except Exception:
        rest = run.at_rest
        newest = find_checkpoint(run.folder.path)
        if rest is not None and ranks.world_size() == 1 and (newest is None or newest.name != f"step_{rest.step}"):
            with suppress(SppoError):  # the first failure is the one to tell
                parts.collector.selection.load_state_dict(rest.stream)
                save(run, parts, recorder)
                run.settle()
                recorder.message(f"Saved step {rest.step}, the last that was finished. --resume goes on from there.")
        raise


def note_if_idle(
    run: Run, parts: Parts, recorder: Recorder, step: int, collected: Collected, batch: Batch | None
) -> bool:
    """Whether the step has no response that the policy can be trained on, which is counted and said.

    Raises:
        TrainingError: too many steps in a row had none.
    """
    idle = batch is None or not bool(batch.trained.any())
    guard = parts.policy.guard
    in_a_row = guard.count_idle(idle)
    if not idle:
        return False
    why = parts.collector.why_idle(collected)
    if in_a_row >= guard.max_skipped:
        raise TrainingError(
            f"Steps {step - in_a_row + 1} to {step} had no response to train on. {why} A new run starts from this "
            f"one's weights with --model.path {run.folder.checkpoints / 'last' / 'policy'}."
        )
    recorder.idle(step, why)
    return True


def evaluate_and_save_if_due(run: Run, parts: Parts, recorder: Recorder, step: int, stop: StopRequest) -> None:
    """Evaluates, records and saves, each where it is due; stops where that was asked for."""
    last = step == run.schedule.steps
    if run.schedule.measures(step):
        measured = evaluate(run, parts, recorder, f"step {step}", final=last)
        run.final = measured if last else None
        recorder.add(measured.metrics())
        if run.schedule.saves(step):
            note_best(run.state, measured.accuracy)
    run.state.skipped_optimizer_steps = parts.policy.guard.skipped_total
    recorder.write(step)
    recorder.progress.phase("training", run.schedule.steps)
    recorder.progress.update(step, recorder.newest)
    run.clock.step_ended()
    over = ranks.of_main(run.clock.is_over)
    stopping = ranks.any_rank(stop.requested or over) and not last
    if run.schedule.saves(step) or stopping or ranks.of_main(run.clock.save_is_due):
        save(run, parts, recorder)
    if stopping:
        run.settle()
        why = "max_hours leaves no time for another step. " if over else ""
        recorder.message(f"{why}Saved step {step}. Go on with the same command and --resume.")
        raise KeyboardInterrupt


def finish(run: Run, parts: Parts, recorder: Recorder, **names: Any) -> dict[str, Any]:
    """The last evaluation, and the summary, which is written and returned; `names` go into it."""
    run.settle()
    measured = run.final or evaluate(run, parts, recorder, "after", final=True)
    recorder.count_time()
    summary = summarise(run.state, measured, **names) | selection_summary(
        read_metrics(run.folder.path), parts.algorithm.selection
    )
    run.folder.write_summary(summary)
    return summary


def evaluate(
    run: Run, parts: Parts, recorder: Recorder, purpose: str, *, final: bool, quiet: bool = False
) -> Evaluation:
    """Measures held-out accuracy.

    Raises:
        RewardError: rewards outside [0, 1], where the critic is a probability.
    """
    if final and not quiet:
        recorder.progress.phase(f"evaluation: {purpose}", None)
    with recorder.timing("evaluate"):
        samples = run.schedule.final_samples if final else run.schedule.samples
        measured = parts.held_out.evaluate(samples, parts.policy.version)
    if parts.algorithm.needs_unit_rewards:
        for record in measured.records:
            only_chooses = not parts.algorithm.critic_is_baseline
            require_unit_rewards(record.rollouts, record.verdicts, only_chooses=only_chooses)
    return measured


def save(run: Run, parts: Parts, recorder: Recorder) -> None:
    """Writes a checkpoint of the present state, of which the largest part is written beside the next steps."""
    recorder.count_time()
    guard = parts.policy.guard
    run.state.stream = parts.collector.selection.state_dict()
    run.state.skipped_optimizer_steps = guard.skipped_total
    run.state.skipped_in_a_row = dict(guard.skipped_in_a_row)
    run.state.optimizer_steps = dict(guard.taken)
    run.state.frozen = frozen_names(parts.policy.model)
    with recorder.timing("checkpoint"):
        run.settle()
        run.clock.save_began()
        run.saving = save_checkpoint(
            run.folder.checkpoints,
            run.state,
            policy=parts.policy,
            tokenizer=parts.tokenizer,
            critic=parts.critic,
            write_optimizers=stage_moments(parts.optimizers),
            keep=run.schedule.keep,
        )


def note_best(state: TrainingState, accuracy: float) -> None:
    """Remembers the step of the best accuracy that a checkpoint is saved of."""
    if state.best_accuracy is None or accuracy > state.best_accuracy:
        state.best_accuracy, state.best_step = accuracy, state.step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
