"""v(prompt) by discounted counts of the prompt's own past (SPO).

D, how far the policy has moved since a prompt was last answered, is the mean abs log-ratio over that prompt's last
response (SPO, arXiv 2509.13232). Here it is over the response's first 1,024 tokens, the same mean over a part of it: so
a prompt costs at most 8 KiB (17,000 prompts 140 MB, where responses of 8,192 tokens would be 1.1 GB), and D at most a
forward pass over so many tokens instead of one over the whole response. A beginning, as any other part would have to be
read from there. Responses up to 1,024 tokens are kept whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sppo.algorithms.options import SpoOptions
from sppo.algorithms.spo import retention
from sppo.batch import Batch, Credit, Estimates
from sppo.config import OptimizerConfig
from sppo.critics.belief import Floats
from sppo.critics.critic import Metrics
from sppo.critics.outcomes import Keys, OutcomeStore, digests
from sppo.models.packing import TokenRow
from sppo.runs import ranks
from sppo.types import Beliefs, Prompt, TokenIds
from sppo.update.deal import DUMMY_ROW, dealt
from sppo.update.logprobs import row_logprobs

DRIFT_TOKENS = 1024
"""Tokens of a response's beginning that D is measured on."""
LAST_FILE = "last_responses.safetensors"
COUNTS_FILE = "outcomes.safetensors"
UNKNOWN = 0.5
"""Successes, and failures, of a prompt without an outcome."""


class _Beginning(NamedTuple):
    """The first tokens of a response, 8 bytes each; the prompt's come with the batch that answers it again."""

    token_ids: TokenIds
    """[n]; where the policy didn't write the token, ~id, a negative number."""
    logprobs: NDArray[np.float32]
    """[n], nats, of the policy that sampled it."""

    @classmethod
    def of(cls, token_ids: ArrayLike, logprobs: Tensor, mask: ArrayLike = True) -> _Beginning:
        """Copies what it keeps of a response, whose log-probabilities may be padded: [T] and more."""
        ids = np.asarray(token_ids, np.int32)
        kept = np.where(mask, ids, ~ids)[:DRIFT_TOKENS].copy()
        return cls(kept, logprobs[: len(kept)].numpy().copy())

    def after(self, prompt: TokenIds) -> TokenRow:
        """The row that it makes with its prompt."""
        written = self.token_ids >= 0
        return TokenRow(prompt, np.where(written, self.token_ids, ~self.token_ids), written)


@dataclass
class TrackerCritic:
    """v(prompt) by discounted counts of the prompt's own past (SPO)."""

    policy: PreTrainedModel
    """Read, to tell how far it has moved since a prompt was last answered."""
    options: SpoOptions
    optimizer: OptimizerConfig
    temperature: float
    counts: OutcomeStore = field(default_factory=OutcomeStore)
    """alpha and beta of each prompt, by its id."""
    last: dict[str, _Beginning] = field(default_factory=dict)
    """Of each prompt's last response, by the prompt's id."""
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)

    def values(self, batch: Batch) -> Tensor:
        """[B, 1] probabilities."""
        alpha, beta, _ = self._counts(batch.prompts)
        return torch.from_numpy(alpha / (alpha + beta)).float()[:, None]

    def beliefs(self, prompts: Sequence[Prompt]) -> Beliefs:
        """v of prompts that were trained on; unknown of others, such as held-out ones."""
        alpha, beta, known = self._counts(prompts)
        return Beliefs(np.where(known, alpha / (alpha + beta), np.nan), np.where(known, alpha + beta, 0.0))

    def lacking(self, prompts: Sequence[Prompt]) -> list[int]:
        """The offline samples, of prompts without counts."""
        missing: list[bool] = (self.counts.find(_keys(prompts)) < 0).tolist()
        return [self.options.offline_samples if lacks else 0 for lacks in missing]

    def observe(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Begins a prompt's counts; without any reward, at one half of a success and of a failure."""
        (row,) = self.counts.add(_keys([prompt]))
        solved = sum(rewards) if rewards else UNKNOWN
        self.counts.alpha[row], self.counts.beta[row] = solved, (len(rewards) or 2 * UNKNOWN) - solved

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """Takes the outcomes in, each discounted by how far the policy has moved on the prompt's last response."""
        drift = self._drift(batch)
        keys = _keys(batch.prompts)
        for prompt, found in zip(batch.prompts, self.counts.find(keys), strict=True):
            if found < 0:
                self.observe(prompt, [])
        for row, (rollout, place) in enumerate(zip(batch.rollouts, self.counts.find(keys), strict=True)):
            rho, reward = retention(drift[rollout.prompt.id], self.options), float(batch.rewards[row])
            self.counts.alpha[place] = rho * self.counts.alpha[place] + reward
            self.counts.beta[place] = rho * self.counts.beta[place] + 1 - reward
            # Not the sampler's log-probabilities: with top_p or top_k those are of another distribution.
            said = rollout.completion
            self.last[rollout.prompt.id] = _Beginning.of(said.token_ids, before.old_logprobs[row], said.mask)
        return {"critic/drift_mean": sum(drift.values()) / len(drift), "critic/prompts": len(self.counts)}

    def _counts(self, prompts: Sequence[Prompt]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """[n] successes and failures, and whether there were any; one half each where not."""
        rows = self.counts.find(_keys(prompts))
        known = rows >= 0
        alpha, beta = np.full(len(rows), UNKNOWN), np.full(len(rows), UNKNOWN)
        alpha[known], beta[known] = self.counts.alpha[rows[known], 0], self.counts.beta[rows[known], 0]
        return alpha, beta, known

    @torch.no_grad()
    def _drift(self, batch: Batch) -> dict[str, float]:
        """D of each prompt in the batch, nats a token; 0 for one that was never answered before."""
        prompts = {rollout.prompt.id: rollout.prompt_token_ids for rollout in batch.rollouts}
        drift = dict.fromkeys(prompts, 0.0)
        known = [prompt_id for prompt_id in prompts if prompt_id in self.last]
        rows = [self.last[name].after(prompts[name]) for name in known]
        moved = torch.zeros(len(rows))
        for part in dealt([row.tokens for row in rows], self.optimizer.tokens_per_microbatch, self.optimizer.layout):
            members = [rows[index] for index in part] or [DUMMY_ROW]
            width = max(len(row.response) for row in members)
            now = row_logprobs(self.policy, members, width, self.optimizer, self.temperature).logprobs.cpu()
            for row, index in enumerate(part):
                old = torch.from_numpy(self.last[known[index]].logprobs)
                written = torch.from_numpy(members[row].columns)
                moved[index] = (now[row, written] - old[written]).abs().mean()
        # Log-probabilities that are not finite say nothing of how far: as far as can be, so that the counts, unlike
        # the policy, stay what they were.
        far = ranks.sum_over_ranks(moved.nan_to_num(math.inf, math.inf)).tolist()
        return drift | dict(zip(known, far, strict=True))

    def policy_moved(self) -> None:
        """Nothing: how far it has moved is measured where a prompt comes again."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes counts, and the beginnings of the last responses end to end."""
        folder.mkdir()
        (folder / "tracker.json").write_text(json.dumps({"last": list(self.last)}), encoding="utf-8")
        save_file(self.counts.arrays(), folder / COUNTS_FILE)
        kept = [_Beginning.of([], torch.empty(0)), *self.last.values()]
        arrays = {
            "lengths": np.array([len(beginning.token_ids) for beginning in kept[1:]], dtype=np.int32),
            "token_ids": np.concatenate([beginning.token_ids for beginning in kept]),
            "logprobs": np.concatenate([beginning.logprobs for beginning in kept]),
        }
        save_file(arrays, folder / LAST_FILE)

    def load(self, folder: Path) -> None:
        """Reads what `save_pretrained` wrote, or what versions 0.1.0 and 0.2.0 did."""
        state = json.loads((folder / "tracker.json").read_text(encoding="utf-8"))
        if "counts" in state:  # up to version 0.2.0: {prompt id: [alpha, beta]}
            rows = self.counts.add(digests(state["counts"]))
            self.counts.alpha[rows, 0] = [alpha for alpha, _ in state["counts"].values()]
            self.counts.beta[rows, 0] = [beta for _, beta in state["counts"].values()]
        else:
            self.counts.load(load_file(folder / COUNTS_FILE))
        if isinstance(state["last"], dict):  # version 0.1.0: prompt ids, response ids, log-probabilities
            self.last = {name: _Beginning.of(row[1], torch.tensor(row[2])) for name, row in state["last"].items()}
            return
        arrays = load_file(folder / LAST_FILE)
        ends = arrays["lengths"].cumsum()
        self.last = {
            name: _Beginning(arrays["token_ids"][start:end].copy(), arrays["logprobs"][start:end].copy())
            for name, start, end in zip(state["last"], ends - arrays["lengths"], ends, strict=True)
        }


def _keys(prompts: Sequence[Prompt]) -> Keys:
    """Of the ids, not of the content: SPO's published counts are a row's."""
    return digests(prompt.id for prompt in prompts)
