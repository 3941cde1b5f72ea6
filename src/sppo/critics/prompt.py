"""V(prompt) by a model that reads the prompt's text (SPPO).

Shapes: B sequences, N prompts, U distinct prompts among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.value_loss import bce_value_loss, squared_value_loss
from sppo.batch import Batch, Credit, Estimates
from sppo.config import CriticConfig
from sppo.critics.critic import Metrics
from sppo.critics.learning import _ModelCritic
from sppo.critics.models import PromptCritic, distinct
from sppo.rollouts.encode import encode_many
from sppo.types import Prompt, TokenIds
from sppo.update.deal import DUMMY_PROMPT, dealt
from sppo.update.steps import StepGuard


class PromptModelCritic(_ModelCritic[PromptCritic]):
    """V(prompt) by a model that reads the prompt's text (SPPO): the source that `fusion.py` makes a belief of."""

    def __init__(
        self,
        model: PromptCritic,
        config: CriticConfig,
        policy_tokenizer: Tokenizer | None = None,
        *,
        rows: int = 1,
        guard: StepGuard | None = None,
        name: str = "critic",
    ) -> None:
        super().__init__(model, config, rows=rows, guard=guard, name=name)
        # Then the rollouts' prompt ids are the ones that this critic would make.
        self.reads_policy_ids = model.tokenizer is policy_tokenizer
        # What a choice of prompts has read before a step: those that it takes aren't read again.
        self._read: tuple[Sequence[Prompt], Tensor] | None = None

    def values(self, batch: Batch) -> Tensor:
        """[B, 1] probabilities; of a critic that learns by squares, rewards."""
        first = self._start(batch)
        if first is not None:
            return first
        known = self._known(batch.prompts)
        return self.model.row_values(self._token_rows(batch)) if known is None else known

    def _known(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """[B, 1] V of these very prompts by the same weights; None where it wasn't read of all of them."""
        if self._read is None:
            return None
        asked, values = self._read
        place = {id(prompt): row for row, prompt in enumerate(asked)}
        rows = [place.get(id(prompt), -1) for prompt in prompts]
        return None if -1 in rows else values[rows]

    def _token_rows(self, batch: Batch) -> list[TokenIds]:
        if self.reads_policy_ids:
            return [rollout.prompt_token_ids for rollout in batch.rollouts]
        return encode_many(batch.prompts, self.model.tokenizer)

    @property
    def probability(self) -> bool:
        """Whether V is a probability; not of a critic that learns by squares."""
        return self.model.probability

    def prompt_values(self, prompts: Sequence[Prompt]) -> Tensor:
        """[N, 1] V of prompts, whatever batch they are in."""
        values = self.model.values(prompts)
        self._read = (prompts, values)
        return values

    def learn(self, batch: Batch, before: Estimates, credit: Credit, *, seed: int) -> Metrics:
        """BCE or squared error of V(prompt) against R; equal prompts are computed once."""
        assert credit.value_targets is not None, "the algorithm gave the critic nothing to learn"
        self._read = None
        goals = credit.value_targets
        loss = bce_value_loss if self.model.probability else squared_value_loss
        prompts, inverse = distinct(self._token_rows(batch))

        def losses(rows: list[int]) -> Iterator[Tensor]:
            used, local = inverse[rows].unique(return_inverse=True)  # [U], [b]
            targets = goals[rows]
            weights = torch.full_like(targets, 1.0 / len(rows))
            for part in dealt([len(prompts[u]) for u in used.tolist()], self.model.tokens_per_microbatch):
                if not part:
                    yield self.model.logits([DUMMY_PROMPT]).sum() * 0.0
                    continue
                logits = self.model.logits([prompts[u] for u in used[part].tolist()])  # [U', 1]
                place = torch.full((len(used),), -1)
                place[part] = torch.arange(len(part))
                members = place[local] >= 0
                chosen = logits[place[local][members].to(logits.device)]
                yield loss(chosen, targets[members].to(logits.device), weights[members].to(logits.device))

        return self._learn(losses, len(batch), seed)
