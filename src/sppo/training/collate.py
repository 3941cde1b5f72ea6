"""From graded rollouts to a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from sppo.algorithms.shaping import potential_differences
from sppo.batch import Batch
from sppo.types import Rollout, StepScores, Verdict


@dataclass(frozen=True)
class LengthRules:
    """What becomes of responses that reach the length limit, or come near it."""

    truncated: Literal["keep", "mask", "drop"] = "keep"
    """Train on responses cut at the limit, keep them for baselines only, or leave them out."""
    longest: int = 0
    """The limit L_max, tokens."""
    penalty_tokens: int = 0
    """C of the soft overlong penalty, tokens before the limit; 0: none."""

    def penalty(self, rollout: Rollout) -> float:
        """DAPO's soft overlong penalty (arXiv 2503.14476): 0 up to L_max - C tokens, then down to -1 at L_max."""
        over = rollout.completion.written - (self.longest - self.penalty_tokens)
        return 0.0 if self.penalty_tokens == 0 or over <= 0 else -min(over / self.penalty_tokens, 1.0)


def collate(
    rollouts: Sequence[Rollout],
    verdicts: Sequence[Verdict],
    *,
    groups: Sequence[int] | None = None,
    greedy_rewards: Sequence[float] | None = None,
    rules: LengthRules | None = None,
    process_weight: float = 0.0,
) -> Batch | None:
    """Puts the rollouts that have a reward into tensors; those without one are left out.

    Args:
        rollouts: B' sampled responses.
        verdicts: B' verdicts.
        groups: B' numbers, equal for samples of one prompt; default: by the prompts' ids.
        greedy_rewards: B' rewards of greedy responses to the same prompts, nan where unknown.
        rules: what becomes of responses that reach or near the length limit; default: nothing.
        process_weight: of the verdicts' step scores, see `sppo.algorithms.shaping`; 0: they count for nothing.

    Returns:
        The batch; None where no rollout is left, see `why_nothing`.
    """
    assert len(rollouts) == len(verdicts), f"{len(rollouts)} rollouts but {len(verdicts)} verdicts"
    rules = rules or LengthRules()
    kept = [
        index
        for index, (rollout, verdict) in enumerate(zip(rollouts, verdicts, strict=True))
        if verdict.reward is not None and (rollout.finished or rules.truncated != "drop")
    ]
    if not kept:
        return None
    rows = [rollouts[index] for index in kept]
    number: dict[object, int] = {}
    keys = [rollouts[index].prompt.id if groups is None else groups[index] for index in kept]
    rewards = [float(verdicts[index].reward or 0.0) + rules.penalty(rollouts[index]) for index in kept]
    assert all(row.completion.written for row in rows), "a response without a token of the policy's own"
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    mask = pad([torch.tensor(row.completion.mask) for row in rows])
    logprobs = pad([torch.tensor(row.completion.logprobs) for row in rows])
    steps = [verdicts[index].step_scores or StepScores((), ()) for index in kept]
    return Batch(
        rollouts=tuple(rows),
        mask=mask,
        sampler_logprobs=torch.where(mask, logprobs, 0.0),
        rewards=torch.tensor(rewards, dtype=torch.float32),
        groups=torch.tensor([number.setdefault(key, len(number)) for key in keys]),
        trained=torch.tensor([row.finished or rules.truncated == "keep" for row in rows]),
        greedy_rewards=None if greedy_rewards is None else torch.tensor([greedy_rewards[index] for index in kept]),
        shaping=potential_differences([s.ends for s in steps], [s.scores for s in steps], mask, process_weight)
        if process_weight
        else None,
    )


def why_nothing(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], rules: LengthRules) -> str:
    """Says what became of responses of which none can be trained on, and what to change."""
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    judged = sum(verdict.reward is not None for verdict in verdicts)
    left_out = len(verdicts) - len(errors) - judged
    found, mend = [], []
    if judged:
        found.append(
            f"{judged} were cut at the limit of {rules.longest} tokens (algorithm.truncated: {rules.truncated})"
        )
        mend.append("raise sampling.max_response_tokens, or set algorithm.truncated to keep")
    if errors:
        found.append(f"verification failed on {len(errors)} (the first: {errors[0]!r})")
        mend.append("mend what the verifier says")
    if left_out:
        found.append(f"{left_out} were left out by the reward function")
        mend.append("see why it returns None")
    return f"Of {len(rollouts)} responses {', '.join(found)}. To mend it, {'; '.join(mend)}."
