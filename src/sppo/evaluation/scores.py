"""What graded responses amount to: avg@n, pass@k, maj@k of a benchmark, with intervals, and an average over benchmarks.

avg@n is the mean over problems of each problem's mean reward; pass@k and maj@k are in statistics.py. A sample whose
verifier failed is neither right nor wrong: it is left out of its problem, and counted. Where that leaves a problem with
fewer than k samples, pass@k and maj@k leave the problem out. One that itself made the verification fail is wrong.

P problems, n samples a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sppo.errors import TrainingError
from sppo.evaluation.statistics import (
    Interval,
    Spread,
    majority_at_k,
    mean_spread,
    mean_variances,
    pass_at_k,
    pass_variance,
    powers_of_two,
    sampling_spread,
    total_spread,
)


@dataclass(frozen=True)
class Response:
    """What counts of one graded response."""

    problem: str
    sample: int
    """Number among the problem's samples, from 0."""
    reward: float | None
    """None where the verifier failed, or a reward function left the sample out."""
    extracted: str | None = None
    """The answer, as the verifier normalised it; samples of a problem that agree on it vote together."""
    finished: bool = True
    tokens: int = 0
    error: str | None = None
    """What the verification failed with."""
    caused_by: str = ""
    """Whose doing that is: the response's, which counts as wrong, or the verifier's."""

    @property
    def right(self) -> bool:
        """Whether the reward is the whole one."""
        return self.reward is not None and self.reward >= 1


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, and how exactly it is known."""

    value: float
    problems: int
    """P, those that the mean is over."""
    stderr: float | None
    """Total standard error: other problems of this kind, other samples. None for a single problem."""
    interval: Interval | None
    """95% interval that belongs to it."""
    sampling_stderr: float | None
    """Standard error of the sampling alone, the problems being fixed. None where it can't be told, as from 1 sample."""
    sampling_interval: Interval | None
    """95% interval that belongs to it."""

    def in_words(self) -> str:
        """Returns "43.3% (28.0 to 58.7)", with the total 95% interval."""
        value = f"{100 * self.value:.1f}%"
        inside = self.interval
        return value if inside is None else f"{value} ({100 * inside.low:.1f} to {100 * inside.high:.1f})"


@dataclass(frozen=True)
class BenchmarkScores:
    """One model on one benchmark."""

    benchmark: str
    problems: int
    """P, all of them."""
    samples: int
    """n, asked of each problem."""
    accuracy: Estimate
    """avg@n."""
    pass_at: Mapping[int, Estimate]
    """pass@k by k, powers of two up to n."""
    majority_at: Mapping[int, Estimate]
    """maj@k by k; empty where answers can't be counted against each other, or are not known."""
    clipped_share: float
    """Share of responses cut at the length limit."""
    length_mean: float
    """Mean length of a response, in tokens."""
    no_answer_share: float
    """Share of responses in which the verifier found no answer."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """What the verifier failed with -> how often; these responses are left out of the scores."""
    response_errors: Mapping[str, int] = field(default_factory=dict)
    """What responses made verification fail with -> how often; these count as wrong."""
    left_out: int = 0
    """Responses that a reward function gave no reward."""
    by_difficulty: Mapping[str, Estimate] = field(default_factory=dict)
    """avg@n by the problems' difficulty, where the data says it."""
    spread: tuple[Spread | None, Spread | None] = (None, None)
    """Total and sampling spread of avg@n, for averages."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        del plain["spread"]
        return plain


def score(
    benchmark: str,
    responses: Mapping[str, Sequence[Response]],
    *,
    samples: int,
    votes: bool = True,
    difficulty: Mapping[str, str | None] | None = None,
) -> BenchmarkScores:
    """Scores a benchmark.

    Args:
        benchmark: its name.
        responses: the samples of each problem.
        samples: n, asked of each problem.
        votes: whether maj@k means something here.
        difficulty: label of each problem, where there is one.

    Raises:
        TrainingError: no response has a reward.
    """
    every = [response for group in responses.values() for response in group]
    graded = {
        problem: [response for response in group if response.reward is not None] for problem, group in responses.items()
    }
    graded = {problem: group for problem, group in graded.items() if group}
    errors, response_errors = (
        Counter(r.error for r in every if r.error is not None and (r.caused_by == "response") == caused)
        for caused in (False, True)
    )
    if not graded:
        why = f" The first error: {next(iter(errors))}." if errors else ""
        raise TrainingError(f"{benchmark}: none of the {len(every)} responses has a reward.{why}")
    accuracy, spread = _accuracy(list(graded.values()))
    # Without the answer behind a reward, as of most reward functions, the wrong ones could not outvote anybody.
    votes = votes and all(response.extracted is not None for response in every if response.right)
    labels = {problem: label for problem, label in (difficulty or {}).items() if label is not None}
    groups: dict[str, list[Sequence[Response]]] = {}
    for problem in sorted(graded, key=lambda problem: natural(labels.get(problem, ""))):
        if problem in labels:
            groups.setdefault(labels[problem], []).append(graded[problem])
    return BenchmarkScores(
        benchmark=benchmark,
        problems=len(responses),
        samples=samples,
        accuracy=accuracy,
        pass_at={k: e for k in powers_of_two(samples) if (e := _at_k(graded, k, _pass, _pass_variance))},
        majority_at={k: e for k in powers_of_two(samples) if votes and (e := _at_k(graded, k, _majority))},
        clipped_share=_share(not response.finished for response in every),
        length_mean=sum(response.tokens for response in every) / len(every),
        no_answer_share=_share(response.extracted is None and response.error is None for response in every),
        errors=dict(errors.most_common()),
        response_errors=dict(response_errors.most_common()),
        left_out=sum(response.reward is None and response.error is None for response in every),
        by_difficulty={label: _accuracy(group)[0] for label, group in groups.items()},
        spread=spread,
    )


@dataclass(frozen=True)
class EvaluationResult:
    """One model on its benchmarks: what `sppo eval` prints and writes to result.json."""

    model: str
    """Run and checkpoint, or the model's folder or hub name."""
    output: str
    """The evaluation's folder."""
    samples: int
    """n, asked of each problem."""
    sampling: Mapping[str, Any]
    """temperature, top_p, top_k and max_response_tokens."""
    benchmarks: Mapping[str, BenchmarkScores]
    left_out: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Benchmark -> row number -> why the row, as published, could not be used."""
    notes: tuple[str, ...] = ()
    """What is odd about the data."""

    @property
    def average(self) -> Estimate | None:
        """The unweighted mean of avg@n over benchmarks; None for fewer than two."""
        return average(list(self.benchmarks.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        mean = self.average
        return {
            "model": self.model,
            "output": self.output,
            "samples": self.samples,
            "sampling": dict(self.sampling),
            "average": None if mean is None else asdict(mean),
            "benchmarks": {name: scores.to_dict() for name, scores in self.benchmarks.items()},
            "left_out": {name: dict(rows) for name, rows in self.left_out.items()},
            "notes": list(self.notes),
        }


def average(scores: Sequence[BenchmarkScores]) -> Estimate | None:
    """The unweighted mean of avg@n over benchmarks, as papers report it; None for fewer than two."""
    if len(scores) < 2:
        return None
    total, sampling = (mean_spread([benchmark.spread[part] for benchmark in scores]) for part in (0, 1))
    value = sum(benchmark.accuracy.value for benchmark in scores) / len(scores)
    return make_estimate(value, sum(benchmark.accuracy.problems for benchmark in scores), total, sampling)


def make_estimate(
    value: float, problems: int, total: Spread | None, sampling: Spread | None, low: float = 0.0
) -> Estimate:
    """Puts a mean in [low, 1] and its spreads together.

    What is uncertain on the same problems is so on others: where few samples differ, and the sampling interval is wide
    for want of degrees of freedom, the total interval is no shorter.
    """
    wider = sampling if total and sampling and sampling.margin() > total.margin() else total
    return Estimate(
        value,
        problems,
        total.stderr if total else None,
        wider.interval(value, low) if wider else None,
        sampling.stderr if sampling else None,
        sampling.interval(value, low) if sampling else None,
    )


def rewards_of(group: Sequence[Response]) -> list[float]:
    """The rewards of a problem's samples that have one."""
    return [response.reward for response in group if response.reward is not None]


def natural(label: str) -> tuple[tuple[int, str], ...]:
    """Sorts "2 operations" before "10 operations"."""
    return tuple((int(word), "") if word.isdigit() else (0, word) for word in label.split())


def _accuracy(groups: Sequence[Sequence[Response]]) -> tuple[Estimate, tuple[Spread | None, Spread | None]]:
    rewards = [rewards_of(group) for group in groups]
    means = [sum(own) / len(own) for own in rewards]
    total = total_spread(means)
    sampling = sampling_spread(mean_variances(rewards), [len(own) for own in rewards])
    return make_estimate(sum(means) / len(means), len(means), total, sampling), (total, sampling)


def _at_k(
    graded: Mapping[str, Sequence[Response]],
    k: int,
    of_problem: Callable[[Sequence[Response], int], float],
    variance: Callable[[Sequence[Response], int], float] | None = None,
) -> Estimate | None:
    groups = [group for group in graded.values() if len(group) >= k]
    if not groups:
        return None
    values = [of_problem(group, k) for group in groups]
    sampling = None
    if variance is not None:
        sampling = sampling_spread([variance(group, k) for group in groups], [len(group) for group in groups], k)
    return make_estimate(sum(values) / len(values), len(values), total_spread(values), sampling)


def _pass(group: Sequence[Response], k: int) -> float:
    return pass_at_k(len(group), sum(response.right for response in group), k)


def _pass_variance(group: Sequence[Response], k: int) -> float:
    return pass_variance(len(group), sum(response.right for response in group), k)


def _majority(group: Sequence[Response], k: int) -> float:
    """All right answers equal the gold answer, so they vote together, however they are written."""
    wrong = Counter(response.extracted for response in group if not response.right and response.extracted is not None)
    right = sum(response.right for response in group)
    return majority_at_k(len(group), right, tuple(sorted(wrong.values(), reverse=True)), k)


def _share(flags: Any) -> float:
    listed = list(flags)
    return sum(listed) / len(listed)
