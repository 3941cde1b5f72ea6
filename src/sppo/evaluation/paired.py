"""Two models on the same problems: the paired difference a problem, its interval, and a test. No torch.

Problems differ far more from one another than two models on one problem do, so the difference of two accuracies is
known much better than either, but only where it is taken problem by problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sppo.errors import DataError
from sppo.evaluation.scores import Estimate, Response, make_estimate, rewards_of
from sppo.evaluation.statistics import (
    Spread,
    mean_spread,
    mean_variances,
    sampling_spread,
    sign_flip_p_value,
    total_spread,
)


@dataclass(frozen=True)
class PairedDifference:
    """A against B on one benchmark, or on all of them."""

    a: float
    """avg@n of A."""
    b: float
    """avg@n of B."""
    difference: Estimate
    """A - B; its intervals come from the problems' differences."""
    p_value: float
    """Two-sided, of `sign_flip_p_value`: how often chance alone makes a difference as large."""
    a_better: int
    """Problems that A solves more often."""
    b_better: int
    equal: int


@dataclass(frozen=True)
class Comparison:
    """A against B on every benchmark that both have."""

    a: str
    b: str
    benchmarks: Mapping[str, PairedDifference]
    average: PairedDifference | None
    """Of the benchmarks, each counting the same; None for a single one."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


Graded = Mapping[str, Sequence[Response]]
"""Problem -> its responses."""


@dataclass(frozen=True)
class _Pairs:
    """Both models' samples of the problems that both have a reward on."""

    a: list[list[float]]
    b: list[list[float]]

    @property
    def differences(self) -> list[float]:
        # Rounded, so that 3/10 of n = 10 and 6/20 of n = 20 are equal.
        return [round(_mean(a) - _mean(b), 12) for a, b in zip(self.a, self.b, strict=True)]

    def spreads(self) -> tuple[Spread | None, Spread | None]:
        variances = [x + y for x, y in zip(mean_variances(self.a), mean_variances(self.b), strict=True)]
        samples = [min(len(x), len(y)) for x, y in zip(self.a, self.b, strict=True)]
        return total_spread(self.differences, low=-1.0), sampling_spread(variances, samples)


def compare(a: str, b: str, of_a: Mapping[str, Graded], of_b: Mapping[str, Graded]) -> Comparison:
    """Compares two models problem by problem.

    Args:
        a: what to call the first model; `b` the second.
        of_a: {benchmark: {problem: responses}} of the first; `of_b` of the second. Benchmarks that only one of them
            has are left out and noted.

    Raises:
        DataError: no benchmark in common, or other problems under the same benchmark's name.
    """
    common = [name for name in of_a if name in of_b]
    if not common:
        raise DataError(f"{a} has {_listed(of_a)}, {b} has {_listed(of_b)}: there is no benchmark in common.")
    notes = [
        f"{name}: left out, as only {owner} has it"
        for owner, own, other in ((a, of_a, of_b), (b, of_b, of_a))
        for name in own
        if name not in other
    ]
    pairs = {}
    for name in common:
        pairs[name] = _pair(name, a, b, of_a[name], of_b[name])
        missing = len(of_a[name]) - len(pairs[name].a)
        if missing:
            notes.append(f"{name}: {missing} problems left out, as the verifier failed on all samples of a model")
    differences = {name: _difference([own]) for name, own in pairs.items()}
    together = _difference(list(pairs.values())) if len(pairs) > 1 else None
    return Comparison(a, b, differences, together, tuple(notes))


def _pair(name: str, a: str, b: str, of_a: Graded, of_b: Graded) -> _Pairs:
    if set(of_a) != set(of_b):
        only_a, only_b = sorted(set(of_a) - set(of_b)), sorted(set(of_b) - set(of_a))
        raise DataError(
            f"{name}: {a} and {b} were not measured on the same problems, so they can't be paired: "
            f"{len(only_a)} only in {a}{_first(only_a)}, {len(only_b)} only in {b}{_first(only_b)}. "
            "Evaluate both on the same file, with the same --limit."
        )
    rewards = [(rewards_of(of_a[problem]), rewards_of(of_b[problem])) for problem in of_a]
    kept = [(x, y) for x, y in rewards if x and y]
    if not kept:
        raise DataError(f"{name}: no problem has a reward of both {a} and {b}.")
    return _Pairs([x for x, _ in kept], [y for _, y in kept])


def _difference(parts: Sequence[_Pairs]) -> PairedDifference:
    """The difference on one benchmark, or the unweighted mean over several."""
    differences = [difference for part in parts for difference in part.differences]
    weights = [1 / (len(parts) * len(part.a)) for part in parts for _ in part.a]
    value = sum(difference * weight for difference, weight in zip(differences, weights, strict=True))
    spreads = [part.spreads() for part in parts]
    total, sampling = (
        (each[0] if len(parts) == 1 else mean_spread(each))
        for each in ([pair[place] for pair in spreads] for place in (0, 1))
    )
    return PairedDifference(
        a=_mean([_mean([_mean(own) for own in part.a]) for part in parts]),
        b=_mean([_mean([_mean(own) for own in part.b]) for part in parts]),
        difference=make_estimate(value, len(differences), total, sampling, low=-1.0),
        p_value=sign_flip_p_value(differences, weights),
        a_better=sum(difference > 0 for difference in differences),
        b_better=sum(difference < 0 for difference in differences),
        equal=sum(difference == 0 for difference in differences),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _listed(benchmarks: Mapping[str, Any]) -> str:
    return ", ".join(benchmarks) or "no benchmark"


def _first(problems: Sequence[str]) -> str:
    return f" (the first: {problems[0]!r})" if problems else ""
