"""Which prompts a step asks: those that come next, or of some candidates those of which a critic expects most.

With R in {0, 1} and A = R - p, a prompt's expected squared advantage is p (1 - p): a prompt that is solved always or
never teaches nothing, and in real pools most are of that kind. So candidates are judged by a critic's beliefs before a
token is generated, and of P prompts a step

    control   f P   the next ones of a walk of their own, whatever is believed of them
    chosen    the others, by a rule, from the next C = min(candidates * P, pool) prompts of the epoch's order

The control group makes what choosing gains measurable, and lets no prompt starve: each is asked at least once in
pool / (f P) steps. Chosen or not, a candidate comes again with the next epoch. No prompt comes twice in a step, unless
P exceeds the pool, when there is nothing to choose. (Uniform alone is the plain walk, an epoch after the other, and may
end one and begin the next in the same step.)

Rule auto takes the top of as many candidates as the gain speaks for: of P where it speaks for none, which is no choice.

The objective is then the mean solve rate of the prompts that were chosen, not of the pool: advantages are unbiased for
each prompt, as the choice looks at nothing of the response, but no weights take the pool's distribution back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sppo.data.gain import Gain
from sppo.data.stream import PromptStream
from sppo.types import Beliefs, Prompt

Metrics = dict[str, float]
Believe = Callable[[Sequence[Prompt]], Beliefs | None]
"""What the critic thinks of some prompts."""
UNKNOWN = (0.5, 1.0)
"""Mean and worth of a prompt of which a critic knows nothing."""
FLOOR = 0.02
"""Added to the weights of rule sqrt, so that a prompt believed dead may still be drawn."""
DEAD = 0.05
"""A prompt counts as dead where its solve rate is believed to be below this, or above 1 less this."""


@dataclass(frozen=True)
class Chosen:
    """The P prompts of a step, or of a round of its sampling."""

    prompts: list[Prompt]
    control: NDArray[np.bool_]
    """[P] drawn whatever was believed of them."""
    beliefs: Beliefs | None = None
    """[P] of the prompts, before any of their responses; None where nobody asked."""
    judged: Beliefs | None = None
    """[C] of all prompts that the critic was asked of for the step, these among them."""
    informed: bool = True
    """Whether the critic knew anything of a prompt: a gain can't be told from beliefs that are none."""


class Selection(Protocol):
    """What the loop asks of a choice of prompts."""

    stream: PromptStream
    """The epoch's order, with its cursor."""

    def take(self, step: int, count: int, believe: Believe) -> Chosen:
        """The next prompts of a step."""

    def take_next(self, count: int, believe: Believe) -> Chosen:
        """The next prompts of the epoch's order, whatever is believed of them."""

    def observe(self, chosen: Chosen, places: NDArray[np.int64], rewards: NDArray[np.float64]) -> Metrics:
        """Takes in what came of them: [B] which prompt each response answers, and its reward. Returns metrics."""

    def state_dict(self) -> dict[str, Any]:
        """Cursors and what was observed; plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Moves to a saved state; raises RunFolderError where it is of other prompts, or broken."""


@dataclass
class UniformSelection:
    """The prompts that come next."""

    stream: PromptStream

    def take(self, step: int, count: int, believe: Believe) -> Chosen:
        """The next prompts; asks for no beliefs."""
        return self.take_next(count, believe)

    def take_next(self, count: int, believe: Believe) -> Chosen:
        """The same."""
        return Chosen(self.stream.take(count), np.ones(count, np.bool_))

    def observe(self, chosen: Chosen, places: NDArray[np.int64], rewards: NDArray[np.float64]) -> Metrics:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Moves to a saved cursor."""
        self.stream.load_state_dict(state)


def top(beliefs: Beliefs, count: int, rng: random.Random, progress: float) -> NDArray[np.int64]:
    """The candidates with the largest expected squared advantage, earlier ones first where equal."""
    return np.argsort(-beliefs.spread, kind="stable")[:count]


def sqrt(beliefs: Beliefs, count: int, rng: random.Random, progress: float) -> NDArray[np.int64]:
    """Drawn without putting back, with weights of the square root of the expected squared advantage, and a floor.

    A prompt's keys log(u) / weight, u uniform in (0, 1], of which the largest are taken, draw just so (Efraimidis and
    Spirakis 2006).
    """
    weights = np.sqrt(beliefs.spread) + FLOOR
    keys = np.log([1.0 - rng.random() for _ in range(len(weights))]) / weights
    return np.argsort(-keys, kind="stable")[:count]


def curriculum(beliefs: Beliefs, count: int, rng: random.Random, progress: float) -> NDArray[np.int64]:
    """From the easiest candidates at the start of a run to the hardest at its end."""
    order = np.argsort(-beliefs.mean, kind="stable")
    start = round(progress * (len(order) - count))
    return order[start : start + count]


def control_of(count: int, uniform_share: float) -> int:
    """The size of the control group of a step's prompts: at least one, so that no prompt starves."""
    return max(round(uniform_share * count), 1)


Rule = Callable[[Beliefs, int, random.Random, float], NDArray[np.int64]]
RULES: Mapping[str, Rule] = {"sqrt": sqrt, "top": top, "history": top, "curriculum": curriculum}
"""How candidates are chosen by what is believed of them; history is top by the prompts' past outcomes alone."""


@dataclass
class BeliefSelection:
    """A control group, and prompts chosen by a rule; or as hard as what was observed speaks for."""

    stream: PromptStream
    """Candidates, and all prompts where nothing is chosen."""
    control: PromptStream
    """The walk of the control group."""
    rule: str | None
    """A key of RULES; None: auto, top of as many candidates as the gain speaks for."""
    steps: int
    """Of the run; what a curriculum goes by."""
    seed: Callable[[int], int]
    """Of a step's draws."""
    uniform_share: float = 0.1
    """f."""
    candidates: int = 6
    """Candidates for each prompt of a step; for auto, at the most."""
    gain: Gain = field(default_factory=Gain)

    def take(self, step: int, count: int, believe: Believe) -> Chosen:
        """The control group, then what the rule takes of the candidates."""
        judged = min(round(self._candidates() * count), len(self.stream))
        controls = control_of(count, self.uniform_share)
        if count >= judged or count == controls:
            return self.take_next(count, believe)
        taken: set[int] = set()
        control = self.control.take_others(controls, taken)
        places = self.stream.take_others(judged - len(control), taken)
        asked, informed = _judged(believe(self.stream.at(control + places)))
        rng = random.Random(self.seed(step))
        rule = RULES[self.rule or "top"]
        picked = rule(asked[len(control) :], count - len(control), rng, min(step / self.steps, 1.0))
        chosen = control + [places[index] for index in picked]
        kept = np.concatenate([np.arange(len(control)), len(control) + picked])
        return Chosen(self.stream.at(chosen), np.arange(count) < len(control), asked[kept], asked, informed)

    def take_next(self, count: int, believe: Believe) -> Chosen:
        """A control group of all."""
        few = count > len(self.stream)
        prompts = self.stream.take(count) if few else self.stream.at(self.stream.take_others(count, set()))
        asked, informed = _judged(believe(prompts))
        return Chosen(prompts, np.ones(count, np.bool_), asked, asked, informed)

    def _candidates(self) -> float:
        """Candidates for each prompt of this step."""
        return self.candidates if self.rule else 1 + self.gain.hardness() * (self.candidates - 1)

    def observe(self, chosen: Chosen, places: NDArray[np.int64], rewards: NDArray[np.float64]) -> Metrics:
        """Holds the squared advantages of the best prompts against those of the control group."""
        beliefs, judged = chosen.beliefs, chosen.judged
        assert beliefs is not None, "what is believed of prompts is asked before they are"
        assert judged is not None
        answered, prompt = np.unique(places, return_inverse=True)
        squared = np.bincount(prompt, (rewards - beliefs.mean[places]) ** 2) / np.bincount(prompt)
        if chosen.informed:
            # Above the bar is the best one in `candidates` of those judged, and what is level with it.
            bar = np.sort(judged.spread)[-max(round(len(judged) / self.candidates), 1)]
            share = float((judged.spread >= bar).mean())
            self.gain.add(squared, chosen.control[answered], beliefs.spread[answered] >= bar, share)
        control = chosen.control[places]
        metrics = {
            "selection/control_share": float(chosen.control.mean()),
            "selection/candidates": len(judged) / len(beliefs),
            "selection/dead_share": float(((judged.mean < DEAD) | (judged.mean > 1 - DEAD)).mean()),
            **self.gain.metrics(),
        }
        for name, rows in (("control", control), ("chosen", ~control)):
            if rows.any():
                metrics[f"selection/{name}_reward"] = float(rewards[rows].mean())
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Both cursors, and what choosing gains."""
        return {
            **self.stream.state_dict(),
            "control": self.control.state_dict(),
            "gain": self.gain.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Moves to a saved state; a run that chose nothing before begins with its control group."""
        self.stream.load_state_dict(state)
        if "control" in state:
            self.control.load_state_dict(state["control"])
            self.gain.load_state_dict(state["gain"])


def _judged(beliefs: Beliefs | None) -> tuple[Beliefs, bool]:
    """The beliefs, none of them unknown, and whether there were any."""
    assert beliefs is not None, "choice of prompts needs a critic of prompts"
    return known(beliefs), bool(np.isfinite(beliefs.mean).any())


def known(beliefs: Beliefs | None) -> Beliefs:
    """The beliefs, with those of which a critic knows nothing at one half."""
    assert beliefs is not None, "choice of prompts and second responses need a critic of prompts"
    unknown = ~np.isfinite(beliefs.mean)
    mean, worth = UNKNOWN
    return Beliefs(np.where(unknown, mean, beliefs.mean), np.where(unknown, worth, beliefs.worth))
