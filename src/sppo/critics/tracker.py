"""v(prompt) by discounted counts of the prompt's own past (SPO)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo.algorithms.options import SpoOptions
from sppo.algorithms.spo import SolveTracker
from sppo.batch import Batch, Credit, Estimates, microbatches
from sppo.config import OptimizerConfig
from sppo.critics.critic import Metrics
from sppo.types import Prompt
from sppo.update.logprobs import row_logprobs


@dataclass
class TrackerCritic:
    """v(prompt) by discounted counts of the prompt's own past (SPO)."""

    policy: PreTrainedModel
    """Read, to tell how far it has moved since a prompt was last answered."""
    options: SpoOptions
    optimizer: OptimizerConfig
    temperature: float
    tracker: SolveTracker = field(default_factory=SolveTracker)
    last: dict[str, tuple[list[int], list[int], list[float]]] = field(default_factory=dict)
    """Prompt ids, response ids and log-probabilities of each prompt's last response."""
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)

    def values(self, batch: Batch) -> Tensor:
        """[B, 1] probabilities."""
        return torch.tensor([[self.tracker.value(prompt.id)] for prompt in batch.prompts])

    def prompt_values(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """v of prompts that were trained on; None for others, such as held-out ones."""
        seen = self.tracker.counts
        return [seen[prompt.id].value if prompt.id in seen else None for prompt in prompts]

    def lacking(self, prompts: Sequence[Prompt]) -> list[int]:
        """The offline samples, of prompts without counts."""
        wanted = self.options.offline_samples
        return [0 if prompt.id in self.tracker.counts else wanted for prompt in prompts]

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Begins a prompt's counts."""
        self.tracker.start(prompt.id, rewards)

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """Takes the outcomes in, each discounted by how far the policy has moved on the prompt's last response."""
        drift = self._drift(batch)
        for row, rollout in enumerate(batch.rollouts):
            self.tracker.update(rollout.prompt.id, float(batch.rewards[row]), drift[rollout.prompt.id], self.options)
            # Not the sampler's log-probabilities: with top_p or top_k those are of another distribution.
            old = before.old_logprobs[row][batch.mask[row]].tolist()
            self.last[rollout.prompt.id] = (list(rollout.prompt_token_ids), list(rollout.completion.token_ids), old)
        return {"critic/drift_mean": sum(drift.values()) / len(drift), "critic/prompts": len(self.tracker.counts)}

    @torch.no_grad()
    def _drift(self, batch: Batch) -> dict[str, float]:
        """D of each prompt in the batch, nats a token; 0 for one that was never answered before."""
        drift = dict.fromkeys((prompt.id for prompt in batch.prompts), 0.0)
        known = [prompt_id for prompt_id in drift if prompt_id in self.last]
        lengths = [len(self.last[name][0]) + len(self.last[name][1]) for name in known]
        for part in microbatches(lengths, self.optimizer.tokens_per_microbatch, self.optimizer.layout):
            rows = [self.last[known[index]] for index in part]
            width = max(len(response) for _, response, _ in rows)
            pairs = [(prompt, response) for prompt, response, _ in rows]
            now = row_logprobs(self.policy, pairs, width, self.optimizer, self.temperature).logprobs.cpu()
            for index, (_, response, old) in enumerate(rows):
                moved = (now[index, : len(response)] - torch.tensor(old)).abs().mean()
                # Log-probabilities that are not finite say nothing of how far: as far as can be, so that the counts,
                # unlike the policy, stay what they were.
                drift[known[part[index]]] = float(moved) if bool(moved.isfinite()) else math.inf
        return drift

    def save_pretrained(self, folder: Path) -> None:
        """Writes counts and last responses."""
        folder.mkdir()
        state = {"counts": self.tracker.state_dict(), "last": self.last}
        (folder / "tracker.json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Reads what `save_pretrained` wrote."""
        state = json.loads((folder / "tracker.json").read_text(encoding="utf-8"))
        self.tracker.load_state_dict(state["counts"])
        self.last = {name: (row[0], row[1], row[2]) for name, row in state["last"].items()}
