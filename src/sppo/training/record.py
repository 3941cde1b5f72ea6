"""What a run writes down: metrics of a step, the audit record of every response, the summary at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sppo.algorithms.table import Algorithm
from sppo.batch import Batch, Credit, Estimates
from sppo.config import Config
from sppo.evaluation.calibration import calibration_metrics, regression_metrics
from sppo.evaluation.held_out import Evaluation
from sppo.runs.checkpoint import TrainingState
from sppo.runs.versions import versions
from sppo.types import Rollout, Verdict
from sppo.verifiers.grading import Grader


def audit_records(
    step: int,
    rollouts: Sequence[Rollout],
    verdicts: Sequence[Verdict],
    batch: Batch,
    before: Estimates,
    credit: Credit,
    grader: Grader,
) -> Iterator[dict[str, Any]]:
    """Yields one line of rollouts.jsonl for each response; V and A are null for those left out."""
    place = {id(rollout): row for row, rollout in enumerate(batch.rollouts)}
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        row = place.get(id(rollout))
        prompt = rollout.prompt
        yield {
            "step": step,
            "policy_version": rollout.policy_version,
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "gold": prompt.gold,
            "response": rollout.text,
            "prompt_token_ids": rollout.prompt_token_ids,
            "response_token_ids": rollout.completion.token_ids,
            "finish_reason": rollout.completion.finish_reason,
            **_judgement(row, batch, before, credit),
            **asdict(verdict),
            **grader.describe(prompt),
        }


def _judgement(row: int | None, batch: Batch, before: Estimates, credit: Credit) -> dict[str, Any]:
    """V and A of a response; of PPO, V and A at the first token, and V before every token."""
    if row is None:
        return {"value": None, "advantage": None}
    said: dict[str, Any] = {"value": None, "advantage": float(credit.advantages[row, 0])}
    if before.values is not None:
        said["value"] = float(before.values[row, 0])
        if before.values.shape[1] > 1:
            said["token_values"] = [round(value, 4) for value in before.values[row][batch.mask[row]].tolist()]
    return said


def response_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Lengths in tokens, and the share that was cut at the limit."""
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    return {
        "response/tokens": sum(lengths),
        "response/length_mean": sum(lengths) / len(lengths),
        "response/length_max": max(lengths),
        "response/clipped_share": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
    }


def credit_metrics(batch: Batch, before: Estimates, credit: Credit, algorithm: Algorithm) -> dict[str, float]:
    """Advantages, and how well V predicts this batch, before its update."""
    by_token = credit.advantages.shape == batch.mask.shape
    given = credit.advantages[batch.mask] if by_token else credit.advantages  # padding has no advantage
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


def summarise(config: Config, state: TrainingState, measured: Evaluation) -> dict[str, Any]:
    """Returns what summary.json holds: accuracy before and after, calibration, seconds, tokens, versions."""
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
        "skipped_optimizer_steps": state.skipped_optimizer_steps,
        "steps": state.step,
        "prompts": len(measured.records),
        "best": {"step": state.best_step, "accuracy": state.best_accuracy},
        "seed": config.seed,
        "algorithm": config.algorithm.name,
        "output": config.output,
        "versions": versions(),
    }
