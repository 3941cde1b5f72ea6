"""What the first steps tell of a run that trains on a reward which means nothing.

Small functions of what a run writes down: of the reasons of its first verdicts, and of its lines of metrics. Each alarm
is raised once in a run's life, `TrainingState.alarms` remembers it, and whoever shows the run decides where it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FIRST = 64
"""Graded responses whose reasons are looked at."""
FLAT_STEPS = 10
"""Steps in a row without any other reward."""

_ADVICE = {
    "no final answer": "Do the prompts ask for an answer in a form that the verifier reads? If not, ask for it with "
    "data.instruction; verification.extraction says which forms count",
    "no boxed answer": "Ask for a box with data.instruction, or set verification.extraction to wide",
    "no <answer>": "Ask for <answer> tags with data.instruction, or set verification.extraction to wide",
    "no # mark": "The verifier final_answer reads what follows a #: ask for it with data.instruction, or set "
    "data.verifier to math",
    "no block of Python code": "Ask for a block of Python code with data.instruction",
    "is not closed": "Responses end before their answer does: raise sampling.max_response_tokens",
    "cut off": "Responses end before their answer does: raise sampling.max_response_tokens",
    "no letter": "The gold answers are no letters of choices: name another column in data.answer_column",
    "not equal": "Either the prompts are too hard, or right answers are held against something else than they should "
    "be: compare the two",
    "equal": "The prompts are too easy to learn from",
}
"""Part of a reason -> what to do; the first that fits counts."""


def count_reasons(seen: Mapping[str, int], reasons: Iterable[str]) -> dict[str, int]:
    """Adds reasons of verdicts to those seen so far, up to the first FIRST of a run."""
    counts = dict(seen)
    missing = FIRST - sum(counts.values())
    for reason in list(reasons)[: max(missing, 0)]:
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def same_reason(seen: Mapping[str, int]) -> str | None:
    """The one reason of the first FIRST verdicts; None where there are several, too few yet, or none is given."""
    if len(seen) == 1 and sum(seen.values()) >= FIRST:
        return next(iter(seen)) or None
    return None


def say_same_reason(reason: str, reward: float, response: str, gold: str | None) -> str:
    """What to tell of it, with one of the responses."""
    advice = next((text for part, text in _ADVICE.items() if part in reason), "Look whether that is as it should be")
    against = "" if gold is None else f", held against the gold answer {_short(gold, 80)!r}"
    return (
        f"All of the first {FIRST} responses got reward {reward:g} for the same reason: {reason}. {advice}. "
        f"One of them{against}: {_short(response, 400)}"
    )


def flat_reward(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The reward that every response of the last FLAT_STEPS steps got; None where they differ or are fewer.

    Args:
        lines: of metrics.jsonl, in order; the last ones are enough.
    """
    last = [line for line in lines if "reward/mean" in line][-FLAT_STEPS:]
    if len(last) < FLAT_STEPS or any(line.get("reward/std", 1.0) > 0 for line in last):
        return None
    means = [float(line["reward/mean"]) for line in last]
    return means[0] if max(means) - min(means) < 1e-9 else None


def say_flat_reward(reward: float) -> str:
    """What to tell of it."""
    if reward >= 1:
        advice = "The prompts are too easy to learn from: choose harder ones"
    else:
        advice = (
            "Read some responses and their reasons in the run's folder rollouts/. If right ones get it too, the gold "
            "answers or the verifier are at fault, which sppo audit and --dry-run show; else choose easier prompts, or "
            "begin with a model that solves some"
        )
    return (
        f"The reward has not varied in the last {FLAT_STEPS} steps: it was {reward:g} for every response, from which "
        f"nothing can be learned. {advice}."
    )


def _short(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most // 2]} … {flat[-most // 2 :]}"
