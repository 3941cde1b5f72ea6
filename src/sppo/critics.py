"""The critics as the loop sees them: values before the update, one update a step, whole in a checkpoint.

Three kinds: a model that values prompts (SPPO), a model that values every token (PPO), and counts of each prompt's own
past (SPO). Shapes: B sequences, T response tokens, U distinct prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms import Algorithm
from sppo.algorithms.masked import masked_mean
from sppo.algorithms.spo import SolveTracker
from sppo.algorithms.value_loss import bce_value_loss, clipped_value_loss, squared_value_loss
from sppo.batch import Batch, Credit, Estimates, Options, microbatches
from sppo.config import CriticConfig, OptimizerConfig
from sppo.distributed import sum_over_ranks
from sppo.models.chat import encode_many
from sppo.models.critic import Model, PromptCritic, TokenCritic, distinct
from sppo.types import Prompt
from sppo.update import StepGuard, make_optimizer, mean_of_finite, minibatches, row_logprobs, token_rows

Metrics = dict[str, float]


class Critic(Protocol):
    """What the loop asks of a critic."""

    optimizers: Mapping[str, torch.optim.Optimizer]
    """"critic" where it is a model."""

    def values(self, batch: Batch) -> Tensor:
        """V [B, 1] or [B, T] before this step's update, no gradient, on the CPU."""

    def prompt_values(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """V of each prompt, for calibration; None where this critic can't tell."""

    def unseen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts that the critic must first be started on."""

    def start(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Starts the critic on an unseen prompt from offline rewards."""

    def set_prior(self, solve_rate: float) -> None:
        """Starts V at the solve rate of the first batch."""

    def update(
        self, batch: Batch, before: Estimates, credit: Credit, *, expected_rows: int, seed: int, guard: StepGuard
    ) -> Metrics:
        """One step's learning; returns its metrics."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the critic into a checkpoint."""


class _ModelCritic(Generic[Model]):
    """What both critics that are models share."""

    def __init__(self, model: Model, config: CriticConfig) -> None:
        self.model = model
        self.config = config
        self.adam = make_optimizer(model, config.learning_rate, config.weight_decay)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"critic": self.adam}

    def unseen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """None: a model has a value for every prompt."""
        return []

    def start(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Never called, as no prompt is unseen."""
        raise AssertionError("a model needs no start")

    def set_prior(self, solve_rate: float) -> None:
        """V of everything becomes the solve rate, or the mean reward where V is no probability."""
        if self.model.probability:
            self.model.set_prior(solve_rate)
        else:
            self.model.set_bias(solve_rate)

    def save_pretrained(self, folder: Path) -> None:
        """Writes trunk, tokenizer and head."""
        self.model.save_pretrained(folder)

    def _learn(
        self,
        losses: Callable[[list[int]], Iterator[Tensor]],
        total: int,
        expected_rows: int,
        seed: int,
        guard: StepGuard,
    ) -> Metrics:
        """One optimiser step a mini-batch; `losses` yields the loss of each micro-batch of some rows."""
        sums: list[float] = []
        norms: list[float] = []
        for rows in minibatches(total, expected_rows, self.config.minibatch_size, self.config.epochs, seed):
            loss = 0.0
            for part_loss in losses(rows):
                part_loss.backward()
                loss += float(part_loss.detach())
            norms.append(guard.step("critic", self.adam, self.model, loss, self.config.max_grad_norm))
            sums.append(loss)
        return {"critic/loss": mean_of_finite(sums), "critic/grad_norm": mean_of_finite(norms)}


class PromptModelCritic(_ModelCritic[PromptCritic]):
    """V(prompt) by a model that reads the prompt's text (SPPO)."""

    def __init__(self, model: PromptCritic, config: CriticConfig, policy_tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, config)
        # Then the rollouts' prompt ids are the ones that this critic would make.
        self.reads_policy_ids = model.tokenizer is policy_tokenizer

    def values(self, batch: Batch) -> Tensor:
        """[B, 1] probabilities; of a critic that learns by squares, rewards."""
        return self.model.row_values(self._token_rows(batch))

    def _token_rows(self, batch: Batch) -> list[tuple[int, ...]]:
        if self.reads_policy_ids:
            return [rollout.prompt_token_ids for rollout in batch.rollouts]
        return encode_many(batch.prompts, self.model.tokenizer)

    def prompt_values(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """V of each prompt where it is a probability; None of a critic that learns by squares."""
        if not self.model.probability:
            return [None] * len(prompts)
        return list(self.model.values(prompts).flatten().tolist())

    def update(
        self, batch: Batch, before: Estimates, credit: Credit, *, expected_rows: int, seed: int, guard: StepGuard
    ) -> Metrics:
        """BCE or squared error of V(prompt) against R; equal prompts are computed once."""
        assert credit.value_targets is not None, "the algorithm gave the critic nothing to learn"
        goals = credit.value_targets
        loss = bce_value_loss if self.model.probability else squared_value_loss
        prompts, inverse = distinct(self._token_rows(batch))

        def losses(rows: list[int]) -> Iterator[Tensor]:
            used, local = inverse[rows].unique(return_inverse=True)  # [U], [b]
            targets = goals[rows]
            weights = torch.full_like(targets, 1.0 / float(sum_over_ranks(torch.tensor(float(len(rows))))))
            for part in microbatches([len(prompts[u]) for u in used.tolist()], self.model.tokens_per_microbatch):
                logits = self.model.logits([prompts[u] for u in used[part].tolist()])  # [U', 1]
                place = torch.full((len(used),), -1)
                place[part] = torch.arange(len(part))
                members = place[local] >= 0
                chosen = logits[place[local][members].to(logits.device)]
                yield loss(chosen, targets[members].to(logits.device), weights[members].to(logits.device))

        return self._learn(losses, len(batch), expected_rows, seed, guard)


class TokenModelCritic(_ModelCritic[TokenCritic]):
    """V before every response token by a model that reads the policy's token ids (PPO)."""

    def __init__(
        self, model: TokenCritic, config: CriticConfig, *, probability: bool, value_clip: float | None
    ) -> None:
        """Wraps the model.

        Args:
            model: trunk and head.
            config: learning rate, mini-batches, epochs.
            probability: V is a sigmoid and learns by cross-entropy; else V is the output and learns by squares.
            value_clip: width of the value clip of the squared loss.
        """
        super().__init__(model, config)
        model.probability = probability
        self.value_clip = value_clip

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """[B, T], 0 outside the responses."""
        raw = torch.zeros_like(batch.sampler_logprobs)
        for rows in microbatches(batch.lengths, self.model.tokens_per_microbatch):
            raw[rows] = self._outputs(batch, rows).cpu()
        return torch.where(batch.mask, raw.sigmoid() if self.model.probability else raw, 0.0)

    def prompt_values(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """None: V belongs to states of a response."""
        return [None] * len(prompts)

    def update(
        self, batch: Batch, before: Estimates, credit: Credit, *, expected_rows: int, seed: int, guard: StepGuard
    ) -> Metrics:
        """The value loss, token mean over each mini-batch."""
        assert credit.value_targets is not None, "the algorithm gave the critic nothing to learn"
        assert before.values is not None, "values are read before they are updated"
        values, targets, lengths = before.values, credit.value_targets, batch.lengths

        def losses(rows: list[int]) -> Iterator[Tensor]:
            tokens = float(sum_over_ranks(batch.mask[rows].sum().float()))
            for part in microbatches([lengths[row] for row in rows], self.model.tokens_per_microbatch):
                yield self._loss(batch, values, targets, [rows[index] for index in part], tokens)

        metrics = self._learn(losses, len(batch), expected_rows, seed, guard)
        gap = (targets - values).abs()
        return {
            **metrics,
            "critic/value_mean": masked_mean(values, batch.mask),
            "critic/error_mean": masked_mean(gap, batch.mask),
        }

    def _outputs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        return self.model.response_values(token_rows(batch, rows), batch.mask.shape[1])

    def _loss(self, batch: Batch, old: Tensor, targets: Tensor, rows: Sequence[int], tokens: float) -> Tensor:
        outputs = self._outputs(batch, rows)
        weights = (batch.mask[rows].float() / tokens).to(outputs.device)
        aims = targets[rows].to(outputs.device)
        if self.model.probability:
            return bce_value_loss(outputs, aims, weights)
        assert self.value_clip is not None, "the squared loss has a value clip"
        return clipped_value_loss(outputs, old[rows].to(outputs.device), aims, weights, self.value_clip)


@dataclass
class TrackerCritic:
    """v(prompt) by discounted counts of the prompt's own past (SPO)."""

    policy: PreTrainedModel
    """Read, to tell how far it has moved since a prompt was last answered."""
    options: Options
    optimizer: OptimizerConfig
    temperature: float
    tracker: SolveTracker = field(default_factory=SolveTracker)
    last: dict[str, tuple[list[int], list[int], list[float]]] = field(default_factory=dict)
    """Prompt ids, response ids and log-probabilities of each prompt's last response."""
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)

    def values(self, batch: Batch) -> Tensor:
        """[B, 1] probabilities."""
        return torch.tensor([[self.tracker.counts[prompt.id].value] for prompt in batch.prompts])

    def prompt_values(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """v of prompts that were trained on; None for others, such as held-out ones."""
        seen = self.tracker.counts
        return [seen[prompt.id].value if prompt.id in seen else None for prompt in prompts]

    def unseen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Distinct prompts without counts."""
        new = {prompt.id: prompt for prompt in prompts if prompt.id not in self.tracker.counts}
        return list(new.values())

    def start(self, prompt: Prompt, rewards: Sequence[float]) -> None:
        """Begins a prompt's counts."""
        self.tracker.start(prompt.id, rewards)

    def set_prior(self, solve_rate: float) -> None:
        """Nothing to set: every prompt starts from samples of its own."""

    def update(
        self, batch: Batch, before: Estimates, credit: Credit, *, expected_rows: int, seed: int, guard: StepGuard
    ) -> Metrics:
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
                drift[known[part[index]]] = float(moved)
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


def value_clip_of(algorithm: Algorithm, options: Options) -> float | None:
    """Width of the value clip, for algorithms whose critic learns by squares."""
    return options["value_clip"] if algorithm.value_loss == "squared" else None
