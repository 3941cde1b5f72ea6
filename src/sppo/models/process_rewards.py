"""Process rewards in a run: graded responses in, the same with a score for each of their steps out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config.verification import ProcessOptions
from sppo.models.positions import tokens_at
from sppo.models.scoring import StepScorer
from sppo.runs import ranks
from sppo.types import Rollout, StepScores, Submission, Verdict
from sppo.verifiers.functions import load_function
from sppo.verifiers.reward_model import Exchange
from sppo.verifiers.steps import call_step_function, step_ends

ScoreSteps = Callable[[Sequence[Submission], Sequence[Sequence[int]]], "Sequence[list[float] | None]"]
"""(responses, place of the character after each step) -> a score for each step; None where it can't tell."""


@dataclass(frozen=True)
class ProcessRewards:
    """Scores the steps of responses."""

    options: ProcessOptions
    tokenizer: Tokenizer
    """The policy's: steps end at tokens of its own."""
    score: ScoreSteps

    def add(
        self, rollouts: Sequence[Rollout], submissions: Sequence[Submission], verdicts: Sequence[Verdict]
    ) -> list[Verdict]:
        """Returns the verdicts with step scores where there is a reward to add to.

        Raises:
            RewardError: the user's function raised, or returned something that is no list of scores.
        """
        rows = [index for index, verdict in enumerate(verdicts) if verdict.reward is not None]
        ends = [step_ends(rollouts[index].text, self.options) for index in rows]
        scores = self.score([submissions[index] for index in rows], ends) if rows else []
        judged = list(verdicts)
        for index, places, said in zip(rows, ends, scores, strict=True):
            if said is not None:
                rollout = rollouts[index]
                tokens = tokens_at(places, rollout.completion.token_ids.tolist(), rollout.text, self.tokenizer)
                judged[index] = replace(judged[index], step_scores=StepScores(tuple(tokens), tuple(said)))
        return judged


def load_process_rewards(
    options: ProcessOptions, tokenizer: Tokenizer, device: str, tokens_per_microbatch: int = 16384
) -> ProcessRewards | None:
    """Loads the function or model that scores steps; None where the options name none.

    Raises:
        SppoError: it can't be loaded.
    """
    if options.function is not None:
        function = load_function(options.function, "verification.process.function")
        return ProcessRewards(
            options,
            tokenizer,
            lambda given, ends: ranks.of_main(call_step_function(function, given, ends) if ranks.is_main() else []),
        )
    if options.model is None:
        return None
    scorer = StepScorer.load(options, device, tokens_per_microbatch)

    def by_model(given: Sequence[Submission], ends: Sequence[Sequence[int]]) -> Sequence[list[float] | None]:
        own = [Exchange(one.messages or one.prompt, one.sampled) for one in ranks.share(given)]
        return ranks.gather(list(scorer.scores(own, ranks.share(ends))))

    return ProcessRewards(options, tokenizer, by_model)
