"""One step's responses, graded: sampled ones, and whatever else the algorithm's baseline needs.

Everything that is generated is counted, also greedy responses (ReMax), a tracker's first samples (SPO) and groups that
dynamic sampling throws away (DAPO): a comparison by responses would be unfair otherwise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sppo.algorithms.table import resolve_options, uses_dynamic_sampling
from sppo.batch import Batch
from sppo.config import Config
from sppo.errors import RewardError, TrainingError
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.sample import sample
from sppo.runs.seeds import derive_seed
from sppo.training.build import Parts
from sppo.training.collate import LengthRules, collate
from sppo.types import Prompt, Rollout, Verdict

Group = tuple[list[Rollout], list[Verdict]]
"""The G responses to one drawing of a prompt."""


@dataclass
class Clock:
    """Adds up the time of one kind of work."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the block."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


@dataclass(frozen=True)
class Collected:
    """B sampled responses with their verdicts; the G of one prompt stand together."""

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
    grading_seconds: float


def collect(parts: Parts, config: Config, step: int) -> Collected:
    """Samples and grades one step's responses.

    Raises:
        TrainingError: dynamic sampling found no group that is neither all right nor all wrong.
    """
    clock = Clock()
    kept, discarded = _sample_groups(parts, config, step, clock)
    extra = [rollout for group in discarded for rollout in group[0]]
    rollouts = [rollout for group in kept for rollout in group[0]]
    verdicts = [verdict for group in kept for verdict in group[1]]
    if parts.process is not None:
        with clock.running():
            submissions = [parts.grader.submission(rollout) for rollout in rollouts]
            verdicts = parts.process.add(rollouts, submissions, verdicts)
    prompts = [group[0][0].prompt for group in kept]
    greedy, more = _greedy_rewards(parts, config, prompts, step, clock)
    extra += more + _start_critic(parts, config, prompts, step, clock)
    size = config.sampling.samples_per_prompt
    return Collected(
        rollouts=rollouts,
        verdicts=verdicts,
        groups=[index for index in range(len(kept)) for _ in range(size)],
        greedy_rewards=None if greedy is None else [reward for reward in greedy for _ in range(size)],
        extra_responses=len(extra),
        extra_tokens=sum(len(rollout.completion.token_ids) for rollout in extra),
        discarded_groups=len(discarded),
        grading_seconds=clock.seconds,
    )


def _sample_groups(parts: Parts, config: Config, step: int, clock: Clock) -> tuple[list[Group], list[Group]]:
    """Groups to train on, and groups that dynamic sampling threw away."""
    dynamic = uses_dynamic_sampling(parts.algorithm, config.algorithm)
    rounds = config.algorithm.dynamic_sampling_rounds if dynamic else 1
    wanted, size = config.prompts_per_step, config.sampling.samples_per_prompt
    kept: list[Group] = []
    discarded: list[Group] = []
    for number in range(rounds):
        prompts = parts.stream.take(wanted)
        purpose = f"sampling {number}"
        rollouts, verdicts = _sample(parts, config, prompts, parts.training_sampling, size, purpose, step, clock)
        for start in range(0, len(rollouts), size):
            group = (rollouts[start : start + size], verdicts[start : start + size])
            usable = len(kept) < wanted and (not dynamic or _is_mixed(group[1]))
            (kept if usable else discarded).append(group)
        if len(kept) == wanted:
            break
    if not kept:
        raise TrainingError(
            f"In {rounds} rounds of dynamic sampling all groups were all right or all wrong. Raise "
            "algorithm.dynamic_sampling_rounds or sampling.samples_per_prompt, or choose easier or harder prompts."
        )
    return kept, discarded


def batch_of(collected: Collected, config: Config) -> Batch:
    """The responses that have a reward, as tensors.

    Raises:
        TrainingError: none has.
    """
    process = config.verification.process
    return collate(
        collected.rollouts,
        collected.verdicts,
        groups=collected.groups,
        greedy_rewards=collected.greedy_rewards,
        rules=length_rules(config),
        process_weight=process.weight if process.used else 0.0,
    )


def length_rules(config: Config) -> LengthRules:
    """What becomes of responses at or near the length limit."""
    return LengthRules(
        config.algorithm.truncated, config.sampling.max_response_tokens, config.algorithm.overlong_penalty_tokens
    )


def require_unit_rewards(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> None:
    """Refuses rewards outside [0, 1], which a critic that is a probability cannot learn.

    Raises:
        RewardError: names the first such sample and how to rescale.
    """
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if verdict.reward is not None and not 0 <= verdict.reward <= 1:
            raise RewardError(
                f"The reward of prompt {rollout.prompt.id!r} is {verdict.reward:g}, but the critic predicts a "
                "probability, so rewards must lie in [0, 1]. Rescale them in the reward function, for example "
                "(reward - lowest) / (highest - lowest); or set critic.loss to mse, where the algorithm has a prompt "
                "critic; or use an algorithm without a critic, such as grpo."
            )


def _sample(
    parts: Parts,
    config: Config,
    prompts: Sequence[Prompt],
    sampling: SamplingParameters,
    samples_per_prompt: int,
    purpose: str,
    step: int,
    clock: Clock,
) -> tuple[list[Rollout], list[Verdict]]:
    rollouts = sample(
        parts.engine,
        prompts,
        parts.tokenizer,
        sampling,
        samples_per_prompt=samples_per_prompt,
        seed=derive_seed(config.seed, purpose, step),
    )
    with clock.running():
        verdicts = parts.grader.grade(rollouts)
    if parts.algorithm.needs_unit_rewards:
        require_unit_rewards(rollouts, verdicts)
    return rollouts, verdicts


def _is_mixed(verdicts: Sequence[Verdict]) -> bool:
    rewards = {verdict.reward for verdict in verdicts if verdict.reward is not None}
    return len(rewards) > 1


def _greedy_rewards(
    parts: Parts, config: Config, prompts: Sequence[Prompt], step: int, clock: Clock
) -> tuple[list[float] | None, list[Rollout]]:
    if not parts.algorithm.greedy_baseline:
        return None, []
    greedy = replace(parts.training_sampling, temperature=0.0)
    rollouts, verdicts = _sample(parts, config, prompts, greedy, 1, "greedy", step, clock)
    # The baseline is of the same reward as what it is taken from: with its overlong penalty.
    rules = length_rules(config)
    rewards = [
        math.nan if verdict.reward is None else verdict.reward + rules.penalty(rollout)
        for rollout, verdict in zip(rollouts, verdicts, strict=True)
    ]
    return rewards, rollouts


def _start_critic(parts: Parts, config: Config, prompts: Sequence[Prompt], step: int, clock: Clock) -> list[Rollout]:
    """Samples offline responses for prompts that the critic has never seen."""
    unseen = [] if parts.critic is None else parts.critic.unseen(prompts)
    if parts.critic is None or not unseen:
        return []
    count = int(resolve_options(parts.algorithm, config.algorithm)["offline_samples"])
    if count == 0:
        for prompt in unseen:
            parts.critic.start(prompt, [])
        return []
    rollouts, verdicts = _sample(parts, config, unseen, parts.training_sampling, count, "offline", step, clock)
    for index, prompt in enumerate(unseen):
        mine = verdicts[index * count : (index + 1) * count]
        parts.critic.start(prompt, [verdict.reward for verdict in mine if verdict.reward is not None])
    return rollouts
