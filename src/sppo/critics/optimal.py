"""V*(prompt) from a few outcomes of the policy that training started from (A*-PO); it never changes afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sppo.algorithms.astar_po import optimal_value
from sppo.algorithms.options import AstarPoOptions
from sppo.batch import Batch, Credit, Estimates
from sppo.critics.critic import Metrics
from sppo.types import Prompt

_FILE = "optimal_values.json"


@dataclass
class OptimalValueCritic:
    """V* of every prompt drawn so far."""

    options: AstarPoOptions
    optimal: dict[str, float] = field(default_factory=dict)
    """V* by the prompt's id."""
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)

    def values(self, batch: Batch) -> Tensor:
        """V* [B, 1], in the rewards' units; the mean of all where none of a prompt's samples has a reward."""
        known = self.optimal.values()
        unknown = sum(known) / len(known) if known else 0.0
        return torch.tensor([[self.optimal.get(prompt.id, unknown)] for prompt in batch.prompts])

    def beliefs(self, prompts: Sequence[Prompt]) -> None:
        """None: V* lies above the solve rate, and it is the starting policy's."""

    def lacking(self, prompts: Sequence[Prompt]) -> list[int]:
        """The offline samples, of prompts without a V*."""
        return [0 if prompt.id in self.optimal else self.options.offline_samples for prompt in prompts]

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Makes V* of what there is; of nothing none, so that the prompt is sampled anew when it is drawn again."""
        if rewards:
            self.optimal[prompt.id] = optimal_value(rewards, self.options.beta_value)

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """Nothing: the outcomes of the policy under training are no part of V*."""
        assert before.values is not None, "V* was read before"
        return {"critic/optimal_value_mean": float(before.values.mean()), "critic/prompts": len(self.optimal)}

    def policy_moved(self) -> None:
        """Nothing: V* is of the starting policy."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes V* of every prompt."""
        folder.mkdir()
        (folder / _FILE).write_text(json.dumps(self.optimal), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Reads what `save_pretrained` wrote."""
        self.optimal = json.loads((folder / _FILE).read_text(encoding="utf-8"))
