"""Held-out accuracy: n samples a prompt, error bars clustered by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.critics.critic import Critic
from sppo.errors import TrainingError
from sppo.evaluation.calibration import bias, brier, expected_calibration_error, pearson, reliability_rows, spearman
from sppo.evaluation.scores import natural
from sppo.evaluation.statistics import total_spread
from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.rollouts.sample import sample
from sppo.runs.seeds import row_seeds
from sppo.types import EvaluationRecord, Prompt
from sppo.verifiers.grading import Grader


@dataclass(frozen=True)
class Evaluation:
    """Samples and verdicts of every held-out prompt."""

    records: tuple[EvaluationRecord, ...]

    @property
    def solve_rates(self) -> list[float]:
        """One for each prompt that has a verdict which is no error."""
        return [record.solve_rate for record in self.records if record.solve_rate is not None]

    @property
    def accuracy(self) -> float:
        """Mean solve rate over prompts; the mean reward where rewards are more than right or wrong, see `measure`."""
        return _mean(self.solve_rates)

    @property
    def measure(self) -> str:
        """What `accuracy` is: "accuracy" where every reward is 0 or 1, else "mean reward"."""
        rewards = {verdict.reward for record in self.records for verdict in record.verdicts}
        return "accuracy" if rewards <= {0.0, 1.0, None} else "mean reward"

    @property
    def accuracy_stderr(self) -> float | None:
        """Standard error of the accuracy, clustered by prompt, as samples of one prompt are not independent.

        None for a single prompt, which says nothing of the spread between prompts.
        """
        return _stderr(self.solve_rates)

    @property
    def error_share(self) -> float:
        """Share of responses whose verifier failed; they are left out of the accuracy."""
        return self._share_of_errors("verifier", "")

    @property
    def response_error_share(self) -> float:
        """Share of responses that made their verification fail; they count as wrong."""
        return self._share_of_errors("response")

    def _share_of_errors(self, *causes: str) -> float:
        verdicts = [verdict for record in self.records for verdict in record.verdicts]
        return _mean([float(verdict.error is not None and verdict.caused_by in causes) for verdict in verdicts])

    def metrics(self) -> dict[str, float]:
        """The numbers of one evaluation, by metric name."""
        rollouts = [rollout for record in self.records for rollout in record.rollouts]
        stderr = self.accuracy_stderr
        return {
            "eval/accuracy": self.accuracy,
            **({} if stderr is None else {"eval/accuracy_stderr": stderr}),
            "eval/error_share": self.error_share,
            "eval/response_error_share": self.response_error_share,
            "eval/clipped_share": _mean([float(not rollout.finished) for rollout in rollouts]),
            "eval/length_mean": _mean([rollout.completion.written for rollout in rollouts]),
            **{f"eval/source/{name}": _mean(rates) for name, rates in self._by_source().items()},
        }

    def _by_source(self) -> dict[str, list[float]]:
        """Solve rates by data set, where there are several."""
        groups: dict[str, list[float]] = {}
        for record in self.records:
            if record.prompt.source and record.solve_rate is not None:
                groups.setdefault(record.prompt.source, []).append(record.solve_rate)
        return groups

    def by_difficulty(self) -> dict[str, dict[str, float | None]]:
        """Accuracy, its standard error and the number of prompts for each difficulty label, in the labels' order."""
        groups: dict[str, list[float]] = {}
        for record in self.records:
            if record.prompt.difficulty is not None and record.solve_rate is not None:
                groups.setdefault(record.prompt.difficulty, []).append(record.solve_rate)
        return {
            label: {"accuracy": _mean(groups[label]), "stderr": _stderr(groups[label]), "prompts": len(groups[label])}
            for label in sorted(groups, key=natural)
        }

    def calibration(self) -> dict[str, Any]:
        """The critic's V against solve rates: measures and reliability bins; empty without a critic."""
        pairs = [(r.value, r.solve_rate) for r in self.records if r.value is not None and r.solve_rate is not None]
        if not pairs:
            return {}
        values, rates = [v for v, _ in pairs], [r for _, r in pairs]
        measures = {
            "pearson": pearson(values, rates),
            "spearman": spearman(values, rates),
            "brier": brier(values, rates),
            "ece": expected_calibration_error(values, rates),
            "bias": bias(values, rates),
        }
        known = {name: value if math.isfinite(value) else None for name, value in measures.items()}
        return {"critic": known, "calibration": reliability_rows(values, rates)}

    def examples(self, count: int = 3) -> list[dict[str, Any]]:
        """The first response to `count` prompts spread over the difficulties."""
        ordered = sorted(self.records, key=lambda record: natural(record.prompt.difficulty or ""))
        places = [int((number + 0.5) * len(ordered) / count) for number in range(min(count, len(ordered)))]
        return [
            {
                "id": ordered[place].prompt.id,
                "prompt": ordered[place].prompt.text,
                "gold": ordered[place].prompt.gold,
                "response": ordered[place].rollouts[0].text,
                "reward": ordered[place].verdicts[0].reward,
            }
            for place in places
        ]


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts, and what they are measured with."""

    prompts: Sequence[Prompt]
    engine: Engine
    tokenizer: Tokenizer
    grader: Grader
    sampling: SamplingParameters
    seed: int
    """Of the run; every evaluation samples with the same seeds."""
    critic: Critic | None = None
    """Its V is held against solve rates."""

    def evaluate(self, samples_per_prompt: int, version: int) -> Evaluation:
        """Samples and grades n responses to each prompt, of this version of the policy.

        Raises:
            TrainingError: the verifier failed on every response.
        """
        with self.engine.awake():
            rollouts = sample(
                self.engine,
                self.prompts,
                self.tokenizer,
                self.sampling,
                samples_per_prompt=samples_per_prompt,
                seeds=row_seeds(self.seed, "evaluation", range(len(self.prompts) * samples_per_prompt)),
                version=version,
            )
        verdicts = self.grader.grade(rollouts, evaluation=True)
        if all(verdict.reward is None for verdict in verdicts):
            why = verdicts[0].error or verdicts[0].reason
            raise TrainingError(f"None of the {len(verdicts)} held-out responses has a reward. The first: {why}.")
        beliefs = None if self.critic is None else self.critic.beliefs(self.prompts)
        values = [None] * len(self.prompts) if beliefs is None else beliefs.values
        n = samples_per_prompt
        return Evaluation(
            tuple(
                EvaluationRecord(prompt, rollouts[i * n : (i + 1) * n], verdicts[i * n : (i + 1) * n], values[i])
                for i, prompt in enumerate(self.prompts)
            )
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _stderr(values: Sequence[float]) -> float | None:
    spread = total_spread(values)
    return None if spread is None else spread.stderr
