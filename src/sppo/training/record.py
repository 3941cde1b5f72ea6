"""What a run writes down: metrics of a step, the record of every response, the summary at the end.

The recorder is told what happened, and keeps clocks, counters and metrics, so that the loop doesn't.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from sppo.algorithms.algorithm import Algorithm
from sppo.batch import Batch, Credit, Estimates
from sppo.data.gain import CHOOSE_FROM, HARDEST_FROM
from sppo.evaluation.calibration import add_reliability, calibration_metrics, regression_metrics, reliability_rows
from sppo.evaluation.held_out import Evaluation
from sppo.runs import alarms
from sppo.runs.checkpoint import TrainingState
from sppo.runs.folder import RunFolder, read_metrics
from sppo.runs.progress import Progress
from sppo.runs.sinks import Sinks
from sppo.runs.versions import versions
from sppo.training.collect import Collected
from sppo.types import Rollout, Verdict
from sppo.verifiers.grading import Grader, grading_metrics

Metrics = dict[str, float]


class Recorder:
    """Clocks, counters, metrics and messages of one run."""

    def __init__(self, folder: RunFolder, progress: Progress, state: TrainingState, algorithm: Algorithm) -> None:
        self.folder = folder
        self.progress = progress
        self.state = state
        self.algorithm = algorithm
        self.sinks: Sinks | None = None
        """Other places for the metrics, once the run folder is there."""
        self.newest: Metrics = {}
        """The last line that was written."""
        self._since = self._step_began = self._mark = time.perf_counter()
        self._metrics: Metrics = {}
        self._lines: deque[Mapping[str, Any]] | None = None
        """The last steps' lines, for alarms."""

    # Clocks

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Adds the block's wall-clock seconds to the phase."""
        began = time.perf_counter()
        yield
        self._add_seconds(phase, time.perf_counter() - began)

    def count_time(self) -> None:
        """Brings the run's total seconds up to now."""
        now = time.perf_counter()
        self._add_seconds("total", now - self._since)
        self._since = now

    def _add_seconds(self, phase: str, seconds: float) -> None:
        self.state.seconds[phase] = self.state.seconds.get(phase, 0.0) + seconds

    # A step

    def begin(self) -> None:
        """Starts the clock of a step."""
        self._step_began = self._mark = time.perf_counter()
        self._metrics = {}

    def note(self, phase: str, *metrics: Metrics) -> None:
        """Ends a phase of the step, which began when the last one ended, and takes in its metrics."""
        now = time.perf_counter()
        self._add_seconds(phase, now - self._mark)
        self._metrics[f"time/{phase}"] = now - self._mark
        self._mark = now
        self.add(*metrics)

    def add(self, *metrics: Metrics) -> None:
        """Takes in metrics of the present step."""
        for some in metrics:
            self._metrics |= some

    def collected(self, collected: Collected, batch: Batch | None) -> None:
        """Notes the rollout phase, with choosing and grading as phases of their own, and counts what was generated."""
        self.note("rollout", response_metrics(collected.rollouts), grading_metrics(collected.verdicts))
        self.add(source_metrics(collected.rollouts, collected.verdicts), reward_spread(collected.verdicts))
        for phase, seconds in [*collected.seconds.items(), ("rollout", -sum(collected.seconds.values()))]:
            self._add_seconds(phase, seconds)
            self._metrics[f"time/{phase}"] = self._metrics.get(f"time/{phase}", 0.0) + seconds
        if collected.discarded_groups:
            self._metrics["sampling/discarded_groups"] = collected.discarded_groups
        self.count(collected, batch)

    def count(self, collected: Collected, batch: Batch | None) -> None:
        """Counts what was generated and left out, and looks at the reasons of the first verdicts."""
        self._watch_reasons(collected)
        self.state.responses += len(collected.rollouts) + collected.extra_responses
        self.state.tokens_sampled += collected.extra_tokens
        self.state.tokens_sampled += sum(rollout.completion.written for rollout in collected.rollouts)
        self.state.left_out += len(collected.verdicts) - (0 if batch is None else len(batch))

    def idle(self, step: int, why: str) -> None:
        """Counts a step that had nothing to train the policy on, and says why."""
        self.state.idle_steps += 1
        self.message(f"Step {step} had no response to train on. {why}")

    def credited(self, batch: Batch, before: Estimates, credit: Credit) -> None:
        """Takes in what the algorithm made of the step's rewards."""
        self.add(credit_metrics(batch, before, credit, self.algorithm))
        if before.values is not None and self.algorithm.values_the_prompt and self.algorithm.needs_unit_rewards:
            seen = reliability_rows(before.values[:, 0], batch.rewards)
            self.state.reliability = add_reliability(self.state.reliability, seen)

    def end(self, step: int) -> None:
        """Ends the step proper: its evaluation, if one is due, and its checkpoint are not counted in time/step."""
        took = time.perf_counter() - self._step_began
        self._metrics |= {
            "time/step": took,
            "throughput/tokens_per_second": self._metrics["response/tokens"] / took,
        }
        self.state.step = step

    def write(self, step: int, **metrics: float) -> None:
        """Writes the step's line of metrics, and shows it."""
        if step:
            metrics = {
                "tokens/total": self.state.tokens_sampled,
                "responses/total": self.state.responses,
                "update/skipped_steps": self.state.skipped_optimizer_steps,
                **({"update/idle_steps": self.state.idle_steps} if self.state.idle_steps else {}),
                **metrics,
            }
        self.add(metrics)
        # A number that doesn't exist, such as the gradient norm of a skipped step, is left out: JSON has no NaN.
        self.newest = {name: value for name, value in self._metrics.items() if math.isfinite(value)}
        line = {"step": step, **self.newest}
        self._watch_reward(line)
        self.folder.append_metrics(line)
        if self.sinks is not None:
            self.sinks.log(line)

    # Alarms

    def _watch_reasons(self, collected: Collected) -> None:
        """Says once where all of the run's first responses are judged alike."""
        seen = self.state.alarms.get("reasons")
        if seen is None and self.state.step:
            return  # A run of an earlier version goes on: its first responses are gone.
        graded = [(r, v) for r, v in zip(collected.rollouts, collected.verdicts, strict=True) if v.reward is not None]
        seen = alarms.count_reasons(seen or {}, (verdict.reason for _, verdict in graded))
        self.state.alarms["reasons"] = seen
        reason = alarms.same_reason(seen)
        if reason is not None and graded:
            rollout, verdict = graded[0]
            said = alarms.say_same_reason(reason, verdict.reward or 0.0, rollout.text, rollout.prompt.gold)
            self._alarm("same reason", said)

    def _watch_reward(self, line: Mapping[str, Any]) -> None:
        """Says once where the reward doesn't vary from step to step."""
        if self._lines is None:
            self._lines = deque(read_metrics(self.folder.path), alarms.FLAT_STEPS)
        self._lines.append(line)
        flat = alarms.flat_reward(list(self._lines))
        if flat is not None:
            self._alarm("flat reward", alarms.say_flat_reward(flat))

    def _alarm(self, name: str, text: str) -> None:
        said = self.state.alarms.setdefault("said", {})
        if name not in said:
            said[name] = self.state.step
            self.message(text)

    # Messages

    def message(self, text: str) -> None:
        """A line to keep."""
        self.progress.message(text)

    def close(self) -> None:
        """Ends sinks and display."""
        if self.sinks is not None:
            self.sinks.close()
        self.progress.close()


def response_records(
    step: int,
    collected: Collected,
    batch: Batch | None,
    before: Estimates | None,
    credit: Credit | None,
    grader: Grader,
) -> Iterator[dict[str, Any]]:
    """Yields the record of each response; V and A are null for those left out.

    response_mask is true on tokens that the policy wrote; null where it wrote them all. policy_version is how many
    optimiser steps the oldest weights that sampled had been through, those of fine-tuning included.
    """
    place = {} if batch is None else {id(rollout): row for row, rollout in enumerate(batch.rollouts)}
    for rollout, verdict in zip(collected.rollouts, collected.verdicts, strict=True):
        row = place.get(id(rollout))
        prompt = rollout.prompt
        yield {
            "step": step,
            "policy_version": rollout.policy_version,
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "gold": prompt.gold,
            **({"other_golds": list(prompt.other_golds)} if prompt.other_golds else {}),
            "response": rollout.text,
            "prompt_token_ids": rollout.prompt_token_ids.tolist(),
            "response_token_ids": rollout.completion.token_ids.tolist(),
            "response_mask": None if rollout.completion.mask.all() else rollout.completion.mask.tolist(),
            "finish_reason": rollout.completion.finish_reason,
            **_judgement(row, batch, before, credit),
            **asdict(verdict),
            **grader.describe(prompt),
        }


def _judgement(row: int | None, batch: Batch | None, before: Estimates | None, credit: Credit | None) -> dict[str, Any]:
    """V and A of a response; of PPO, V and A at the first token that the policy wrote, and V before each of these."""
    if row is None or batch is None or before is None or credit is None:
        return {"value": None, "advantage": None}
    own = batch.mask[row]
    said: dict[str, Any] = {"value": None, "advantage": _known(credit.advantages.expand_as(batch.mask)[row][own][0])}
    if before.values is not None:
        values = before.values.expand_as(batch.mask)[row][own].tolist()
        said["value"] = _known(values[0])
        if before.values.shape[1] > 1:
            said["token_values"] = [_known(value, 4) for value in values]
    return said


def _known(value: Tensor | float, digits: int | None = None) -> float | None:
    """A number for JSON, which has no nan: None where it is not finite."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return number if digits is None else round(number, digits)


def source_metrics(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> Metrics:
    """The mean reward of each data set's responses, of a run that has several."""
    rewards: dict[str, list[float]] = {}
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if rollout.prompt.source and verdict.reward is not None:
            rewards.setdefault(rollout.prompt.source, []).append(verdict.reward)
    return {f"reward/source/{name}": sum(known) / len(known) for name, known in rewards.items()}


def response_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """Lengths in tokens of the policy's own, and the share cut at the limit; means of nothing are missing."""
    if not rollouts:
        return {"response/tokens": 0}
    lengths = [rollout.completion.written for rollout in rollouts]
    return {
        "response/tokens": sum(lengths),
        "response/length_mean": sum(lengths) / len(lengths),
        "response/length_max": max(lengths),
        "response/clipped_share": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
    }


def reward_spread(verdicts: Sequence[Verdict]) -> Metrics:
    """reward/std over the responses that have a reward: exactly 0 where all are the same."""
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    return {"reward/std": statistics.pstdev(rewards)} if rewards else {}


def credit_metrics(batch: Batch, before: Estimates, credit: Credit, algorithm: Algorithm) -> Metrics:
    """Advantages, and how well V predicts this batch, before its update."""
    by_token = credit.advantages.shape == batch.mask.shape
    # Neither padding nor a response that is no part of the loss has an advantage.
    given = credit.advantages[batch.loss_mask if by_token else batch.trained]
    metrics = {}
    if len(given):
        metrics = {"advantage/mean": float(given.mean()), "advantage/std": float(given.std(correction=0))}
    if before.values is not None and algorithm.values_the_prompt:
        values, rewards = before.values.flatten().tolist(), batch.rewards.tolist()
        metrics["critic/value_mean"] = sum(values) / len(values)
        measure = calibration_metrics if algorithm.needs_unit_rewards else regression_metrics
        metrics |= {f"critic/{name}": value for name, value in measure(values, rewards).items()}
    return metrics


def story(when: str, measured: Evaluation) -> dict[str, Any]:
    """The summary's keys of one evaluation, `when` being "before" or "after"."""
    return {
        "measure": measured.measure,
        f"accuracy_{when}": measured.accuracy,
        f"accuracy_{when}_stderr": measured.accuracy_stderr,
        f"accuracy_{when}_by_difficulty": measured.by_difficulty(),
        "examples": measured.examples(),
    }


def summarise(state: TrainingState, measured: Evaluation, **names: Any) -> dict[str, Any]:
    """Returns what summary.json holds: accuracy before and after, calibration, seconds, tokens, versions, and `names`.

    Args:
        state: counters and what was measured before training.
        measured: after training.
        **names: what the run is called by: seed, algorithm, output.
    """
    after = story("after", measured)
    examples = [
        {
            "prompt": old["prompt"],
            "gold": old["gold"],
            "before": old["response"],
            "before_reward": old["reward"],
            "after": new["response"],
            "after_reward": new["reward"],
        }
        for old, new in zip(state.before["examples"], after["examples"], strict=True)
    ]
    return {
        **state.before,
        **after,
        **measured.calibration(),
        "calibration_in_training": state.reliability,
        "examples": examples,
        "seconds": {name: round(value, 3) for name, value in state.seconds.items()},
        "tokens": {"sampled": state.tokens_sampled, "trained": state.tokens_trained},
        "responses": state.responses,
        "responses_left_out": state.left_out,
        "idle_steps": state.idle_steps,
        "skipped_optimizer_steps": state.skipped_optimizer_steps,
        "steps": state.step,
        "prompts": len(measured.records),
        "best": {"step": state.best_step, "accuracy": state.best_accuracy},
        **names,
        "versions": versions(),
    }


def selection_summary(lines: Sequence[Mapping[str, Any]], rule: str) -> dict[str, Any]:
    """What the summary says of the choice of prompts, from the lines of metrics.jsonl; empty where there was none.

    `selection` holds the rule, steps, and steps_chosen of them that asked for chosen prompts; of the last ten of those
    (of all, where there are none) the mean reward of chosen prompts and of those nobody chose (control_reward), the
    candidates judged for each prompt, and dead_share; the last gain, and for rule auto auto_from, the gains from which
    it chooses, and chooses hardest.
    """
    steps = [line for line in lines if "selection/control_share" in line]
    if not steps:
        return {}
    chosen = [line for line in steps if line["selection/control_share"] < 1]
    found: dict[str, Any] = {"rule": rule, "steps": len(steps), "steps_chosen": len(chosen)}
    if rule == "auto":
        found["auto_from"] = {"chooses": CHOOSE_FROM, "hardest": HARDEST_FROM}
    recent = (chosen or steps)[-10:]
    # Each step's rewards count by the prompts that they are of.
    shares = [line["selection/control_share"] for line in recent]
    of_chosen, alike = [1 - share for share in shares], [1.0] * len(recent)
    for name, key, weights in (
        ("reward", "selection/chosen_reward", of_chosen),
        ("control_reward", "selection/control_reward", shares),
        ("candidates", "selection/candidates", alike),
        ("dead_share", "selection/dead_share", alike),
    ):
        known = [(line[key], weight) for line, weight in zip(recent, weights, strict=True) if key in line]
        if known:
            found[name] = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
    gains = [line["selection/gain"] for line in steps if "selection/gain" in line]
    return {"selection": {**found, "gain": gains[-1]} if gains else found}
