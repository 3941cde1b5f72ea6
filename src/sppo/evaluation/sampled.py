"""Measures of V on prompts that were sampled many times: against solve rates, and against single responses.

A record a prompt, as `sppo calibrate` writes them: its V, and the reward of every sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sppo.errors import TrainingError
from sppo.evaluation import calibration

OF_PROMPTS = {
    "pearson": calibration.pearson,
    "spearman": calibration.spearman,
    "brier": calibration.brier,
    "ece": calibration.expected_calibration_error,
    "bias": calibration.bias,
}
"""Measures of V against solve rates, by name."""
_AUROC_PARTS = 8


def measure(records: Sequence[Mapping[str, Any]], value: str = "value") -> dict[str, Any]:
    """Returns the measures of V on sampled prompts.

    Args:
        records: of prompts, each with its rewards.
        value: key of V in them.

    Returns:
        prompts, responses and left_out (prompts without a reward); mean_value and mean_solve_rate; `of_prompts` with
        pearson, spearman, brier, ece and bias (mean V less the mean solve rate), `of_responses` with brier and auroc:
        each {value, low, high} with a 95% bootstrap interval over prompts, and where they can be told `reachable`, what
        a perfect V would have, and `corrected`, an estimate of the measure against the true solve rates. None where
        something is undefined. Last `reliability`, bins of V.

    Raises:
        TrainingError: no prompt has a reward.
    """
    graded = [[float(r) for r in record["rewards"] if r is not None] for record in records]
    kept = [(float(record[value]), rewards) for record, rewards in zip(records, graded, strict=True) if rewards]
    if not kept:
        raise TrainingError(f"None of the {len(records)} prompts has a response with a reward.")
    rewards = [of_prompt for _, of_prompt in kept]
    v = np.array([said for said, _ in kept])
    p = np.array([np.mean(of_prompt) for of_prompt in rewards])
    q = np.array([np.mean(np.square(of_prompt)) for of_prompt in rewards])
    n = np.array([len(of_prompt) for of_prompt in rewards], dtype=np.float64)
    noise, reach = calibration.sampling_noise(rewards), calibration.reachable_pearson(rewards)
    of_prompts = {name: _with_interval(of, v, p) for name, of in OF_PROMPTS.items()}
    pearson, brier = of_prompts["pearson"], of_prompts["brier"]
    single = _with_interval(_response_brier, v, p, q, n)
    if pearson["value"] is not None and reach > 0:
        # A ratio of two estimates, so it may come out a little above what is possible.
        pearson |= {"reachable": reach, "corrected": max(-1.0, min(1.0, pearson["value"] / reach))}
    if math.isfinite(noise):
        brier |= {"reachable": noise, "corrected": brier["value"] - noise}
        variances = np.array([np.var(of_prompt, ddof=1) for of_prompt in rewards])
        single["reachable"] = float((variances * n).sum() / n.sum())
    area = _with_interval(calibration.auroc, v, p, n)
    area["reachable"] = _reachable_auroc(rewards)
    return {
        "prompt_ids": [record["prompt_id"] for record in records],
        "prompts": len(kept),
        "responses": int(n.sum()),
        "left_out": len(records) - len(kept),
        "mean_value": float(v.mean()),
        "mean_solve_rate": float(p.mean()),
        "of_prompts": of_prompts,
        "of_responses": {"brier": single, "auroc": area},
        "reliability": calibration.reliability_rows(v, p),
    }


def with_and_without_history(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures of V of the `text` (text_value) and of the `belief` (value) of the same prompts, as `measure`.

    And the `difference` of each measure of prompts, belief less text, with an interval over prompts of its own.
    """
    kept = [record for record in records if record["solve_rate"] is not None]
    columns = [np.array([record[key] for record in kept]) for key in ("text_value", "value", "solve_rate")]

    def difference(of: Any) -> dict[str, Any]:
        return _with_interval(lambda text, belief, rates: of(belief, rates) - of(text, rates), *columns)

    return {
        "text": measure(records, "text_value"),
        "belief": measure(records),
        "difference": {name: difference(of) for name, of in OF_PROMPTS.items()},
    }


def _with_interval(of: Any, *columns: Any) -> dict[str, Any]:
    value = of(*columns)
    low, high = calibration.bootstrap_interval(of, *columns) or (None, None)
    return {"value": value if math.isfinite(value) else None, "low": low, "high": high}


def _response_brier(v: Any, p: Any, q: Any, n: Any) -> float:
    """Mean of (V - R)^2 over responses, from each prompt's mean R, mean R^2 and number of responses."""
    return float((n * (v * v - 2 * v * p + q)).sum() / n.sum())


def _reachable_auroc(rewards: Sequence[Sequence[float]]) -> float | None:
    """AUROC of solve rates for responses that are no part of them: a little less than the true rates would have.

    Each of 8 parts of the samples is judged by the solve rates in the other 7; a response in its own rate would make
    it too good.
    """
    parts = min(_AUROC_PARTS, *(len(of_prompt) for of_prompt in rewards))
    if parts < 2:
        return None
    areas = []
    for part in range(parts):
        judged = [of_prompt[part::parts] for of_prompt in rewards]
        rates = [
            (sum(of_prompt) - sum(own)) / (len(of_prompt) - len(own))
            for of_prompt, own in zip(rewards, judged, strict=True)
        ]
        outcomes = [float(np.mean(own)) for own in judged]
        areas.append(calibration.auroc(rates, outcomes, [len(own) for own in judged]))
    known = [area for area in areas if math.isfinite(area)]
    return sum(known) / len(known) if known else None
