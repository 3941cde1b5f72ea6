"""The critic of prompts: what one or two models make of the text, recalibrated and fused with history where asked for.

    V of the text (mean of the members) -> recalibrated on other prompts' outcomes -> fused with the prompt's own past

The source of V is switched by itself (a model, a probe, two models, a running mean), and so is each of the two stages.
With none of them on, V is the source's, bit for bit. The two stages' own files say why they stand in this order.

Choice of prompts reads beliefs before a step has outcomes, so there V of the text is as the source says it.

Shapes: B sequences, N prompts, M members of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sppo.batch import Batch, Credit, Estimates
from sppo.critics.belief import PRIOR_WORTH, Floats
from sppo.critics.critic import Metrics
from sppo.critics.history import History
from sppo.critics.outcomes import prompt_keys
from sppo.critics.recalibration import recalibrated
from sppo.errors import ModelError
from sppo.types import Beliefs, Prompt

HISTORY_FILE = "history.safetensors"


class Source(Protocol):
    """Where V of a prompt's text comes from."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By name; none where nothing is learnt by gradients."""

    @property
    def probability(self) -> bool:
        """Whether V is a probability of solving."""

    @property
    def started(self) -> bool:
        """Whether V says anything yet: not before the first batch, where no prior is given."""

    def values(self, batch: Batch) -> Tensor:
        """[B, M] V of each member before this step's learning, no gradient, on the CPU."""

    def prompt_values(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, M] V of prompts, likewise."""

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """One step's learning from `credit.value_targets` [B, 1]."""

    def policy_moved(self) -> None:
        """The policy was updated."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes it into a folder, which may be there already."""


@dataclass(frozen=True)
class _Reading:
    """What was said of a batch before its learning."""

    batch: Batch
    members: Tensor
    """[B, M] V of the text by each member."""
    text: Floats
    """[B] their mean, recalibrated where asked for."""
    limits: Floats
    """[B] the most that it is worth."""
    beliefs: Beliefs
    """[B]."""


class BeliefCritic:
    """V(prompt) as the loop sees it, over any source."""

    def __init__(self, source: Source, *, history: History | None = None, recalibrate: bool = False) -> None:
        """Puts the stages behind a source.

        Args:
            source: of V of the text.
            history: counts to fuse it with; None: V is that of the text.
            recalibrate: whether V is brought in line with each step's outcomes first.
        """
        assert source.probability or not (history or recalibrate), "only probabilities are recalibrated and fused"
        self.source = source
        self.history = history
        self.recalibrate = recalibrate
        self.optimizers: Mapping[str, torch.optim.Optimizer] = source.optimizers
        self._read: _Reading | None = None

    def values(self, batch: Batch) -> Tensor:
        """[B, 1] before this step's learning; no response's own outcome, nor one of its siblings', is in its V."""
        self._read = self._reading(batch)
        if self._plain(self._read):
            return self._read.members
        return torch.from_numpy(self._read.beliefs.mean).float()[:, None]

    def beliefs(self, prompts: Sequence[Prompt]) -> Beliefs | None:
        """How solvable prompts are; None of a critic that learns by squares."""
        if not self.source.probability:
            return None
        if not self.source.started:
            return Beliefs(np.full(len(prompts), np.nan), np.zeros(len(prompts)))
        members = self.source.prompt_values(prompts)
        return self._believe(prompts, _mean(members), worth_limits(members))

    def lacking(self, prompts: Sequence[Prompt]) -> list[int]:
        """Nothing: there is a value for every prompt."""
        return [0] * len(prompts)

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Never given any, as it lacks none."""
        raise AssertionError("this critic lacks no outcomes")

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """The source learns, from the rewards where the algorithm names no targets; then the outcomes are counted."""
        read = self._read if self._read is not None and self._read.batch is batch else self._reading(batch)
        self._read = None
        if credit.value_targets is None:
            credit = replace(credit, value_targets=batch.rewards[:, None])
        assert credit.value_targets is not None
        rewards = credit.value_targets[:, 0].double().numpy()
        metrics = self.source.learn(batch, before, credit, seed=seed)
        if not self._plain(read):
            error = float(((_mean(read.members) - rewards) ** 2).mean())
            metrics |= {"critic/brier_text": error, "critic/belief_worth_mean": float(read.beliefs.worth.mean())}
        if read.members.shape[1] > 1:
            metrics["critic/disagreement"] = float(read.members.std(dim=1, correction=0).mean())
        if self.history is not None:
            self.history.learn(prompt_keys(batch.prompts), read.text, read.limits, rewards)
            metrics |= {"critic/history_m": self.history.worth, "critic/history_gamma": self.history.discount}
        return metrics

    def policy_moved(self) -> None:
        """Outcomes that were counted get a step older."""
        self.source.policy_moved()
        if self.history is not None:
            self.history.policy_moved()

    def save_pretrained(self, folder: Path) -> None:
        """Writes the source, and history beside it."""
        self.source.save_pretrained(folder)
        if self.history is not None:
            save_file(self.history.arrays(), folder / HISTORY_FILE)

    def load_history(self, folder: Path) -> None:
        """Reads the history that `save_pretrained` wrote; the source is read when it is made.

        Raises:
            ModelError: that critic kept none.
        """
        if self.history is None:
            return
        if not (folder / HISTORY_FILE).is_file():
            raise ModelError(
                f"{folder} holds a critic without history, and critic.history is true. Set it to false, or make that "
                "critic with it."
            )
        self.history.load(load_file(folder / HISTORY_FILE))

    def without_history(self) -> BeliefCritic:
        """V of the text alone, by the same source."""
        return BeliefCritic(self.source, recalibrate=self.recalibrate)

    def remembers(self, prompts: Sequence[Prompt]) -> NDArray[np.bool_]:
        """[N] whether outcomes of the prompt are counted."""
        if self.history is None:
            return np.zeros(len(prompts), np.bool_)
        return self.history.store.find(prompt_keys(prompts)) >= 0

    def _plain(self, read: _Reading) -> bool:
        """Whether V is the source's own."""
        return self.history is None and not self.recalibrate and read.members.shape[1] == 1

    def _reading(self, batch: Batch) -> _Reading:
        members = self.source.values(batch)
        text, limits = _mean(members), worth_limits(members)
        if self.recalibrate:
            text = recalibrated(text, batch.rewards.double().numpy(), prompt_keys(batch.prompts))
        return _Reading(batch, members, text, limits, self._believe(batch.prompts, text, limits))

    def _believe(self, prompts: Sequence[Prompt], text: Floats, limits: Floats) -> Beliefs:
        if self.history is None:
            return Beliefs(text, np.minimum(limits, PRIOR_WORTH))
        return self.history.fuse(prompt_keys(prompts), text, limits)


def worth_limits(members: Tensor) -> Floats:
    """[N] the most that the mean V of the members is worth, as they disagree; inf where they don't.

    The half of a difference between two, squared, is what the part of their errors that they don't share adds to the
    variance of their mean, in expectation. A Beta of mean V has that variance at a worth of V (1 - V) / variance - 1.

    Args:
        members: [N, M] probabilities.
    """
    values = members.double().numpy()
    mean, variance = values.mean(axis=1), values.var(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        limits = mean * (1 - mean) / variance - 1
    # Members that agree at 0 or 1, and damaged ones, set no limit.
    return np.where(np.isfinite(limits), np.maximum(limits, 0.0), np.inf)


def _mean(members: Tensor) -> Floats:
    """[N] mean of probabilities, not of logits: that of a mixture of what the members believe; nan if damaged."""
    mean = members.double().mean(dim=1).numpy()
    return np.where(np.isfinite(mean), mean, np.nan)
