"""V(prompt) by logistic regression on the policy's own hidden state at the last prompt token: no second model.

V = sigma(w norm(h) + b), h the last hidden state at the prompt's last token, norm its affine-free layer norm. That norm
is of each state by itself, so it has nothing to keep, and V of a prompt depends on that prompt and the policy alone; a
standardisation over prompts would have to follow the policy's drift with running means. States are read with the policy
as it is: those of a batch before its update, and kept until the probe has learnt from them.

Shapes: B sequences, N prompts, U distinct ones among them, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.value_loss import bce_value_loss
from sppo.batch import Batch, Credit, Estimates
from sppo.config import CriticConfig
from sppo.critics.critic import Metrics
from sppo.critics.learning import _ModelCritic
from sppo.critics.models import ScalarHead, distinct, last_states, state_width
from sppo.models.loading import arithmetic
from sppo.models.sharding import inside
from sppo.rollouts.encode import encode_many
from sppo.runs import ranks
from sppo.types import Prompt, TokenIds
from sppo.update.deal import DUMMY_PROMPT, dealt
from sppo.update.steps import StepGuard

PROBE_FILE = "probe_head.safetensors"


class ProbeSource(_ModelCritic[ScalarHead]):
    """V(prompt) by a linear head on the policy's states, which are no part of what it trains or saves."""

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: Tokenizer,
        config: CriticConfig,
        *,
        tokens_per_microbatch: int = 16384,
        rows: int = 1,
        guard: StepGuard | None = None,
    ) -> None:
        """Puts a head on the policy's states.

        Args:
            policy: read, never changed.
            tokenizer: of the policy.
            config: learning rate, mini-batches, epochs, prior.
            tokens_per_microbatch: padded tokens in one forward pass.
            rows: B when no sample is left out.
            guard: takes the optimiser steps.
        """
        self.policy = policy
        head = ScalarHead(PROBE_FILE)
        head.add_head(state_width(self._trunk))
        super().__init__(head.to(policy.device), config, rows=rows, guard=guard)
        self.tokenizer = tokenizer
        self.tokens_per_microbatch = tokens_per_microbatch
        self._read: tuple[Batch, Tensor] | None = None

    @property
    def probability(self) -> bool:
        """Always."""
        return True

    def values(self, batch: Batch) -> Tensor:
        """[B, 1]; the states that it reads are kept for `learn`."""
        first = self._start(batch)
        self._read = batch, self._batch_features(batch)
        return self._values(self._read[1]) if first is None else first

    def prompt_values(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, 1] V of prompts by the policy as it is now."""
        return self._values(self._features(encode_many(list(prompts), self.tokenizer)))

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """BCE of V(prompt) against R on the states that `values` read."""
        assert credit.value_targets is not None, "the algorithm gave the critic nothing to learn"
        assert self._read is not None, "states are read before they are learnt from"
        assert self._read[0] is batch, "the states are those of another batch"
        features, goals = self._read[1], credit.value_targets
        self._read = None

        def losses(rows: list[int]) -> Iterator[Tensor]:
            own = ranks.share(rows)
            targets = goals[own].to(features.device)
            weights = torch.full_like(targets, 1.0 / len(rows))
            yield bce_value_loss(self.model.head(features[own]), targets, weights)

        return self._learn(losses, len(batch), seed)

    @torch.no_grad()
    def _values(self, features: Tensor) -> Tensor:
        values: Tensor = self.model.head(features).sigmoid().cpu()
        return values

    @property
    def _trunk(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.policy.base_model)

    def _batch_features(self, batch: Batch) -> Tensor:
        return self._features([rollout.prompt_token_ids for rollout in batch.rollouts])

    @torch.no_grad()
    def _features(self, encoded: Sequence[TokenIds]) -> Tensor:
        """[B, H] float32 normalised states at the last token of each prompt; equal prompts are read once."""
        token_rows, inverse = distinct(encoded)
        states = torch.zeros(len(token_rows), self.model.head.in_features, device=self.policy.device)
        for part in dealt([len(row) for row in token_rows], self.tokens_per_microbatch):
            with arithmetic(self.policy):
                read = inside(self.policy, last_states, self._trunk, [token_rows[r] for r in part] or [DUMMY_PROMPT])
            if part:
                states[part] = read.float()
        ranks.sum_over_ranks(states)
        return functional.layer_norm(states, states.shape[1:])[inverse.to(states.device)]
