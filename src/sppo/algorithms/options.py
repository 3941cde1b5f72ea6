"""Each algorithm's own options, set as algorithm.options.NAME. No torch: help and checks of options read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from sppo.config.ranges import NotNegative, Positive, Section, Share

PositiveOrInfinite = Annotated[float, Field(gt=0, allow_inf_nan=True)]


@dataclass(frozen=True)
class NoOptions(Section):
    """An algorithm without options of its own."""


@dataclass(frozen=True)
class SppoOptions(Section):
    """What SPPO makes likelier."""

    objective: Literal["solve_rate", "log_likelihood", "pass_at_k"] = "solve_rate"
    """What is maximised over prompts: the mean of the solve rate p, of log p, or of pass@k = 1 - (1 - p)^k."""
    k: Annotated[int, Field(ge=1, le=1024)] = 8
    """Responses of pass_at_k, one of which has to be right."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Solve rate below which log_likelihood weighs a prompt no more: its weights are at most 1 / floor."""


@dataclass(frozen=True)
class GaeOptions(Section):
    """Generalised advantage estimation."""

    gamma: Share = 1.0
    """Discount of what comes a token later."""
    gae_lambda: Share = 1.0
    """Weight of estimates that reach a token further: 1 trusts the rewards alone, 0 the next value alone."""


@dataclass(frozen=True)
class PpoOptions(GaeOptions):
    """PPO with a critic that learns by squares."""

    value_clip: PositiveOrInfinite = 0.5
    """How far a new value may move from the old one before its loss stops falling; .inf: any distance."""


@dataclass(frozen=True)
class SpoOptions(Section):
    """SPO's counts of each prompt's past."""

    half_life: PositiveOrInfinite = 0.06
    """Mean change of log-probability, in nats a token, at which past outcomes count half."""
    rho_min: Share = 0.875
    """Least weight that past outcomes keep from one response to the next."""
    rho_max: Share = 0.96
    """Greatest weight that past outcomes keep from one response to the next."""
    offline_samples: Annotated[int, Field(ge=0, le=1000, strict=False)] = 8
    """Responses sampled for a new prompt's first counts; 0: half a success and half a failure."""


@dataclass(frozen=True)
class AstarPoOptions(Section):
    """A*-PO's regression on R - V*."""

    beta_value: Positive = 0.5
    """beta_1 of V*, in rewards: near 0 V* is the greatest of the offline rewards, at large values their mean."""
    beta: Positive = 1e-3
    """beta_2, reward a nat of a response's log-ratio: how strongly the policy is held to what training started from."""
    offline_samples: Annotated[int, Field(ge=1, le=1000, strict=False)] = 8
    """Responses of the policy that training started from, sampled for a new prompt's V*."""


@dataclass(frozen=True)
class JointOptions(Section):
    """Options of any algorithm with ratio joint."""

    joint_band: NotNegative = 0.0
    """c of the band abs(sum of log-ratios) <= c sqrt(length), in nats, instead of the clip range; 0: the clip range."""


ALGORITHM_OPTIONS: dict[str, type[Section]] = {
    "sppo": SppoOptions,
    "ppo": PpoOptions,
    "ppo_bce": GaeOptions,
    "grpo": NoOptions,
    "dr_grpo": NoOptions,
    "dapo": NoOptions,
    "rloo": NoOptions,
    "remax": NoOptions,
    "reinforce_pp": NoOptions,
    "gspo": NoOptions,
    "cispo": NoOptions,
    "spo": SpoOptions,
    "astar_po": AstarPoOptions,
}
"""The options of each algorithm; the algorithms themselves are in table.py, in the same order."""
