"""One step's responses, graded: sampled ones, and whatever else the algorithm's baseline needs.

Everything that is generated is counted, also greedy responses (ReMax), the outcomes that a critic lacks of a prompt
(SPO, A*-PO) and groups that dynamic sampling throws away (DAPO): a comparison by responses would be unfair otherwise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.algorithm import Algorithm
from sppo.batch import Batch
from sppo.critics.critic import Critic
from sppo.data.adaptive import responses
from sppo.data.selection import Chosen, Metrics, Selection, known
from sppo.errors import RewardError
from sppo.models.adapters import reference_of
from sppo.models.process_rewards import ProcessRewards
from sppo.rollouts.engines.engine import Engine, SamplingParameters
from sppo.rollouts.sample import sample
from sppo.runs.seeds import row_seeds
from sppo.training.collate import LengthRules, collate, why_nothing
from sppo.types import Prompt, Rollout, Verdict
from sppo.update.learner import PolicyLearner
from sppo.verifiers.grading import Grader

MAX_ROUNDS = 4
"""Most rounds of sampling in a step of dynamic sampling; the step goes on with the groups found by then."""
REFERENCE_VERSION = -1
"""Of the policy that training started from, while the engine has it; the policy under training counts from 0."""
Group = tuple[list[Rollout], list[Verdict]]
"""The G responses to one drawing of a prompt."""


@dataclass
class _Collecting:
    """One step's sampling, on its way."""

    step: int
    version: int
    """Of the policy that is sampled from."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By what isn't sampling."""

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Counts the block's time."""
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Collected:
    """B sampled responses with their verdicts; the G of one prompt stand together."""

    rounds: list[Chosen]
    """The prompts that were asked; more than one of it where dynamic sampling asked again."""
    rollouts: list[Rollout]
    verdicts: list[Verdict]
    groups: list[int]
    """[B] which drawing of a prompt each belongs to; a prompt drawn twice in a step makes two groups."""
    greedy_rewards: list[float] | None
    """[B] reward of the greedy response to the same prompt, nan where unknown; None where none was asked for."""
    extra_responses: int
    """Responses generated beside these."""
    extra_tokens: int
    discarded_groups: int
    """Groups that dynamic sampling threw away."""
    discarded_reward: float | None
    """Mean reward of the responses in them; None where none has one."""
    seconds: dict[str, float]
    """What other phases than sampling took."""


@dataclass(frozen=True)
class Collector:
    """Samples and grades each step's responses."""

    selection: Selection
    engine: Engine
    tokenizer: Tokenizer
    grader: Grader
    process: ProcessRewards | None
    """Scores single steps of the responses, where asked for."""
    policy: PolicyLearner
    """Asked for its reference, where the critic's offline outcomes are of that."""
    critic: Critic
    algorithm: Algorithm
    sampling: SamplingParameters
    prompts: int
    """P."""
    samples: int
    """G."""
    second_responses: int
    """Of a step, second and third ones."""
    rules: LengthRules
    process_weight: float
    seed: int

    def collect(self, step: int, version: int) -> Collected:
        """Samples and grades one step's responses; none where dynamic sampling keeps no group.

        Args:
            step: of the run.
            version: of the policy, which the engine must have.
        """
        now = _Collecting(step, version)
        with self.engine.awake():
            rounds, kept, discarded = self._sample_groups(now)
            prompts = [group[0][0].prompt for group in kept]
            greedy, more = self._greedy_rewards(prompts, now)
            more += self._start_critic(prompts, now)
        extra = [rollout for group in discarded for rollout in group[0]] + more
        rollouts = [rollout for group in kept for rollout in group[0]]
        verdicts = [verdict for group in kept for verdict in group[1]]
        unused = [verdict.reward for group in discarded for verdict in group[1] if verdict.reward is not None]
        if self.process is not None:
            with now.timing("grade"):
                submissions = [self.grader.submission(rollout) for rollout in rollouts]
                verdicts = self.process.add(rollouts, submissions, verdicts)
        return Collected(
            rounds=rounds,
            rollouts=rollouts,
            verdicts=verdicts,
            groups=[index for index, group in enumerate(kept) for _ in group[0]],
            greedy_rewards=None
            if greedy is None
            else [reward for reward, group in zip(greedy, kept, strict=True) for _ in group[0]],
            extra_responses=len(extra),
            extra_tokens=sum(rollout.completion.written for rollout in extra),
            discarded_groups=len(discarded),
            discarded_reward=sum(unused) / len(unused) if unused else None,
            seconds=now.seconds,
        )

    def collect_apart(self, number: int, count: int, version: int) -> Collected:
        """Samples and grades one response to each of the next prompts, apart from any step.

        Args:
            number: of this collection, from 1.
            count: of prompts.
            version: of the policy, which the engine must have.
        """
        now = _Collecting(number, version)
        chosen = self.selection.take_next(count, self.critic.beliefs)
        with self.engine.awake():
            rollouts, verdicts = self._sample(chosen.prompts, self.sampling, 1, "prefit", now)
        return Collected([chosen], rollouts, verdicts, list(range(count)), None, 0, 0, 0, None, now.seconds)

    def observe(self, collected: Collected, batch: Batch) -> Metrics:
        """Tells the choice of prompts what came of them."""
        metrics: Metrics = {}
        prompts = batch.prompts
        for chosen in collected.rounds:
            place = {id(prompt): number for number, prompt in enumerate(chosen.prompts)}
            rows = [row for row, prompt in enumerate(prompts) if id(prompt) in place]
            places = np.array([place[id(prompts[row])] for row in rows], np.int64)
            metrics |= self.selection.observe(chosen, places, batch.rewards[rows].double().numpy())
        return metrics

    def batch(self, collected: Collected) -> Batch | None:
        """The responses that have a reward, as tensors; None where none has."""
        return collate(
            collected.rollouts,
            collected.verdicts,
            groups=collected.groups,
            greedy_rewards=collected.greedy_rewards,
            rules=self.rules,
            process_weight=self.process_weight,
        )

    def why_idle(self, collected: Collected) -> str:
        """Says why a step has no response that the policy can be trained on, and what to change."""
        if collected.rollouts:
            return why_nothing(collected.rollouts, collected.verdicts, self.rules)
        reward = collected.discarded_reward
        return (
            f"In {MAX_ROUNDS} rounds of dynamic sampling none of {collected.discarded_groups} groups had rewards that "
            f"differ (mean reward {'unknown' if reward is None else f'{reward:.3g}'}). To mend it, raise "
            "sampling.samples_per_prompt, or choose easier or harder prompts."
        )

    def _sample_groups(self, now: _Collecting) -> tuple[list[Chosen], list[Group], list[Group]]:
        """The prompts, groups of responses to train on, and groups that dynamic sampling threw away."""
        kept: list[Group] = []
        discarded: list[Group] = []
        rounds: list[Chosen] = []
        dynamic = self.algorithm.dynamic_sampling
        for number in range(MAX_ROUNDS if dynamic else 1):
            with now.timing("select"):
                chosen, counts = self._choose(now.step)
            rounds.append(chosen)
            rollouts, verdicts = self._sample(chosen.prompts, self.sampling, counts, f"sampling {number}", now)
            for start, end in pairwise(accumulate(counts, initial=0)):
                group = (rollouts[start:end], verdicts[start:end])
                usable = len(kept) < self.prompts and (not dynamic or _is_mixed(group[1]))
                (kept if usable else discarded).append(group)
            if len(kept) == self.prompts:
                break
        return rounds, kept, discarded

    def _choose(self, step: int) -> tuple[Chosen, list[int]]:
        """The prompts to ask, and how often each."""
        extra = self.second_responses
        chosen = self.selection.take(step, self.prompts - extra, self.critic.beliefs)
        if not extra:
            return chosen, [self.samples] * len(chosen.prompts)
        return chosen, responses(known(chosen.beliefs or self.critic.beliefs(chosen.prompts)), extra)

    def _sample(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParameters,
        samples_per_prompt: int | Sequence[int],
        purpose: str,
        now: _Collecting,
    ) -> tuple[list[Rollout], list[Verdict]]:
        counts = samples_per_prompt
        places = range(len(prompts) * counts if isinstance(counts, int) else sum(counts))
        rollouts = sample(
            self.engine,
            prompts,
            self.tokenizer,
            sampling,
            samples_per_prompt=counts,
            seeds=row_seeds(self.seed, purpose, places, now.step),
            version=now.version,
        )
        with now.timing("grade"):
            verdicts = self.grader.grade(rollouts)
        if self.algorithm.needs_unit_rewards:
            require_unit_rewards(rollouts, verdicts, only_chooses=not self.algorithm.critic_is_baseline)
        return rollouts, verdicts

    def _greedy_rewards(self, prompts: Sequence[Prompt], now: _Collecting) -> tuple[list[float] | None, list[Rollout]]:
        if not self.algorithm.greedy_baseline or not prompts:
            return None, []
        greedy = replace(self.sampling, temperature=0.0)
        rollouts, verdicts = self._sample(prompts, greedy, 1, "greedy", now)
        # The baseline is of the same reward as what it is taken from: with its overlong penalty.
        rewards = [
            math.nan if verdict.reward is None else verdict.reward + self.rules.penalty(rollout)
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]
        return rewards, rollouts

    def _start_critic(self, prompts: Sequence[Prompt], now: _Collecting) -> list[Rollout]:
        """Samples the outcomes that the critic lacks of these prompts, and shows them to it."""
        distinct = list({prompt.id: prompt for prompt in prompts}.values())
        lacking = self.critic.lacking(distinct)
        wanted = [(prompt, count) for prompt, count in zip(distinct, lacking, strict=True) if count]
        asked = [prompt for prompt, count in wanted for _ in range(count)]
        if not asked:
            return []
        with self._offline_policy(now):
            rollouts, verdicts = self._sample(asked, self.sampling, 1, "offline", now)
        judged = zip(rollouts, verdicts, strict=True)
        for prompt, count in wanted:
            some = [next(judged) for _ in range(count)]
            # V is of the same reward as what it is taken from: with its overlong penalty.
            rewards = [v.reward + self.rules.penalty(r) for r, v in some if v.reward is not None]
            self.critic.observe(prompt, rewards)
        return rollouts

    @contextmanager
    def _offline_policy(self, now: _Collecting) -> Iterator[None]:
        """Lets the engine sample from the policy that the critic wants outcomes of."""
        if not self.algorithm.offline_from_reference:
            yield
            return
        reference, version = self.policy.reference, now.version
        assert reference is not None, "the reference is read before the first step"
        try:
            with reference_of(self.policy.model, reference) as started_from:
                self.engine.load_weights(started_from, REFERENCE_VERSION)
                now.version = REFERENCE_VERSION
                yield
        finally:
            self.engine.load_weights(self.policy.model, version)
            now.version = version


def require_unit_rewards(
    rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], *, only_chooses: bool = False
) -> None:
    """Refuses rewards outside [0, 1], which a critic that is a probability cannot learn.

    Args:
        rollouts: responses.
        verdicts: of each.
        only_chooses: whether the critic serves the choice of prompts alone, for the way out.

    Raises:
        RewardError: names the first such sample and how to rescale.
    """
    if only_chooses:
        whose, instead = "what chooses the prompts", "or set selection.name to uniform"
    else:
        whose = "the critic"
        instead = (
            "or set critic.loss to mse, where the algorithm has a prompt critic; or use an algorithm without a critic, "
            "such as grpo"
        )
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if verdict.reward is not None and not 0 <= verdict.reward <= 1:
            raise RewardError(
                f"The reward of prompt {rollout.prompt.id!r} is {verdict.reward:g}, but {whose} predicts a "
                "probability, so rewards must lie in [0, 1]. Rescale them in the reward function, for example "
                f"(reward - lowest) / (highest - lowest); {instead}."
            )


def _is_mixed(verdicts: Sequence[Verdict]) -> bool:
    rewards = {verdict.reward for verdict in verdicts if verdict.reward is not None}
    return len(rewards) > 1
