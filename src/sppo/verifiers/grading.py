"""Grading: rollouts in, one verdict each out, by the prompts' verifiers or by the user's reward function."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sppo.errors import ConfigError, VerifierError
from sppo.runs import ranks
from sppo.types import Prompt, Rollout, Submission, Verdict
from sppo.verifiers.functions import RewardFunction, call_reward_function, function_name, require_ground_truth
from sppo.verifiers.table import get_verifier, verifiers_behind
from sppo.verifiers.tools import Tools


class Grader:
    """Grades a step's rollouts.

    Args:
        reward_function: the user's, called once a batch; default: each prompt's own verifier.
        tools: what verifiers run with; default: their default options.
        prompt_opens_thinking: the chat template ends in an open `<think>`, so that a response without `</think>`
            never left its thinking block. Only verifiers are told; a reward function sees the response as it is.
    """

    def __init__(
        self,
        reward_function: RewardFunction | None = None,
        tools: Tools | None = None,
        prompt_opens_thinking: bool = False,
    ):
        self.reward_function = reward_function
        self.tools = tools or Tools()
        self.prompt_opens_thinking = prompt_opens_thinking
        self.watch = ErrorWatch(self.tools.options.max_error_share)

    def describe(self, prompt: Prompt) -> dict[str, str]:
        """Who grades responses to this prompt, for the response records: name and version."""
        if self.reward_function is not None:
            return {"verifier": f"reward function {function_name(self.reward_function)}", "verifier_version": ""}
        own, *parts = verifiers_behind(prompt.verifier, self.tools)
        version = get_verifier(own).version
        if parts:
            version += f" ({', '.join(f'{part} {get_verifier(part).version}' for part in parts)})"
        return {"verifier": own, "verifier_version": version}

    def prepare(self, prompts: Iterable[Prompt]) -> None:
        """Loads and checks what the verifiers of these prompts need, before long work.

        Raises:
            SppoError: one of them can't work.
        """
        if self.reward_function is not None:
            return require_ground_truth(self.reward_function, prompts)
        for name in dict.fromkeys(prompt.verifier for prompt in prompts):
            verifier = get_verifier(name)
            verifier.check(self.tools.options)
            verifier.prepare(self.tools)

    def grade(self, rollouts: Sequence[Rollout], *, evaluation: bool = False) -> list[Verdict]:
        """Returns one verdict a rollout, in order; each rank grades its share of them, and every rank gets all.

        Args:
            rollouts: the responses.
            evaluation: a verification that the response made fail counts as wrong, reward 0; in training it is left
                out, as nobody knows what the response was worth.

        Raises:
            RewardError: if the reward function raised or returned something that is no list of rewards.
            ConfigError: if a prompt names an unknown verifier, or lacks the gold answer that it needs.
            VerifierError: verifiers failed on too many of the latest responses.
        """
        submissions = [self.submission(rollout) for rollout in rollouts]
        if self.reward_function is not None:
            # It is called once a batch, with all of it, as one that compares responses has to be.
            return ranks.of_main(call_reward_function(self.reward_function, submissions) if ranks.is_main() else [])
        names = [rollout.prompt.verifier for rollout in rollouts]
        for name, given in zip(names, submissions, strict=True):
            self._require_gold(name, given)
        verdicts = ranks.gather(self._judge(ranks.share(names), ranks.share(submissions)))
        if evaluation:
            verdicts = [replace(v, reward=0.0) if v.caused_by == "response" else v for v in verdicts]
        self.watch.note(names, verdicts)
        return verdicts

    def _judge(self, names: Sequence[str], submissions: Sequence[Submission]) -> list[Verdict]:
        """A verdict on each, by the verifier of that name."""
        by_verifier: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            by_verifier.setdefault(name, []).append(index)
        verdicts: dict[int, Verdict] = {}
        for name, indices in by_verifier.items():
            judged = get_verifier(name).judge([submissions[index] for index in indices], self.tools)
            verdicts.update(zip(indices, judged, strict=True))
        return [verdicts[index] for index in range(len(submissions))]

    def submission(self, rollout: Rollout) -> Submission:
        """The rollout as verifiers and reward functions are given it."""
        prompt, opening = rollout.prompt, ""
        if self.prompt_opens_thinking and not rollout.text.lstrip().startswith("<think>"):
            opening = "<think>"
        return Submission(
            opening + rollout.text,
            prompt.gold,
            rollout.finished,
            tokens=rollout.completion.written,
            prompt=prompt.text,
            columns=prompt.columns,
            messages=() if isinstance(prompt.content, str) else prompt.content,
            prompt_id=prompt.id,
            other_golds=prompt.other_golds,
            opening=opening,
        )

    def _require_gold(self, name: str, given: Submission) -> None:
        if given.gold is None:
            needing = [part for part in verifiers_behind(name, self.tools) if get_verifier(part).needs_gold]
            if needing:
                raise ConfigError(
                    f"Prompt {given.prompt_id!r} has no gold answer, which the verifier {needing[0]!r} needs: "
                    "name the column in data.answer_column, or set data.reward to your own reward function."
                )


_ENOUGH = 100


class ErrorWatch:
    """Stops a run whose verifiers fail too often, whoever causes it.

    An error leaves its sample out. A few do no harm; many would train on a biased rest, or on nothing, without a sign.
    The share is that of the latest call, together with those before it as long as they are fewer than 100 responses.

    Args:
        limit: greatest share of errors, 0 to 1.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self._calls: deque[list[tuple[str, Verdict]]] = deque()

    def note(self, verifiers: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Takes in one call's verdicts and the verifiers that gave them.

        Raises:
            VerifierError: more errors than the limit allows; says whose, which and what to do.
        """
        self._calls.append(list(zip(verifiers, verdicts, strict=True)))
        while sum(map(len, self._calls)) - len(self._calls[0]) >= _ENOUGH:
            self._calls.popleft()
        latest = [pair for call in self._calls for pair in call]
        failed = [(name, verdict.error) for name, verdict in latest if verdict.error is not None]
        if len(latest) >= _ENOUGH and len(failed) > self.limit * len(latest):
            raise VerifierError(self._message(latest, failed))

    def _message(self, latest: Sequence[tuple[str, Verdict]], failed: Sequence[tuple[str, str]]) -> str:
        asked = Counter(name for name, _ in latest)
        whose = ", ".join(f"{name} {count} of {asked[name]}" for name, count in Counter(n for n, _ in failed).items())
        errors = Counter(error for _, error in failed)
        shown = "; ".join(f"{error!r}" + (f" ({n} times)" if n > 1 else "") for error, n in errors.most_common(3))
        return (
            f"Verification failed on {len(failed)} of the latest {len(latest)} responses "
            f"({len(failed) / len(latest):.0%}; {whose}), and verification.max_error_share allows {self.limit:g}: "
            f"{shown}. These are errors, not wrong answers: the responses would be left out, and training would see "
            "a biased rest. Mend what the messages name (for timeouts raise verification.time_limit or lower "
            "verification.workers), or raise verification.max_error_share. A training run then goes on from its last "
            "checkpoint with --resume."
        )


def grading_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Returns reward/mean over the samples that have a reward, and the shares that failed or were left out, of all.

    reward/error_share is the verifier's doing, reward/response_error_share the responses'; reward/timeout_share is the
    part of both that ran out of time. reward/part/NAME is the mean of one part of a composite reward, over the
    responses for which it was asked. A mean of nothing is missing.
    """
    if not verdicts:
        return {}
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    errors = [verdict for verdict in verdicts if verdict.error is not None]
    caused = sum(verdict.caused_by == "response" for verdict in errors)
    metrics = {
        "reward/error_share": (len(errors) - caused) / len(verdicts),
        "reward/response_error_share": caused / len(verdicts),
        "reward/timeout_share": sum("timed out" in str(verdict.error) for verdict in errors) / len(verdicts),
        "reward/left_out_share": (len(verdicts) - len(rewards) - len(errors)) / len(verdicts),
    }
    if rewards:
        metrics = {"reward/mean": sum(rewards) / len(rewards), **metrics}
    parts: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, reward in verdict.parts.items():
            if reward is not None:
                parts.setdefault(name, []).append(reward)
    metrics |= {f"reward/part/{name}": sum(known) / len(known) for name, known in parts.items()}
    steps = [verdict.step_scores.scores for verdict in verdicts if verdict.step_scores is not None]
    if steps:
        metrics["reward/steps_mean"] = sum(map(len, steps)) / len(steps)
        scores = [score for said in steps for score in said]
        if scores:
            metrics["reward/step_score_mean"] = sum(scores) / len(scores)
    return metrics
