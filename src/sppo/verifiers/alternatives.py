"""Rows with several gold answers of which any is right: a response is held against one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from sppo.types import Submission, Verdict
from sppo.verifiers.tools import Tools
from sppo.verifiers.verifier import Verifier

_others = attrgetter("other_golds")


def any_of_golds(verifier: Verifier) -> Verifier:
    """Returns the verifier such that a response is right if any gold answer of its row takes it for right."""

    def grade(submissions: Sequence[Submission], tools: Tools) -> list[Verdict]:
        verdicts = verifier.grade(submissions, tools)
        others = list(map(_others, submissions))
        for place in range(max(map(len, filter(None, others)), default=0)):
            open_still = [
                index
                for index, given in enumerate(submissions)
                if place < len(given.other_golds) and verdicts[index].reward != 1.0
            ]
            asked = [replace(given, gold=given.other_golds[place]) for given in (submissions[i] for i in open_still)]
            for index, verdict in zip(open_still, verifier.grade(asked, tools), strict=True):
                # Not known of one answer is not known of all, unless another one is right.
                if verdict.reward == 1.0 or (verdict.error is not None and verdicts[index].error is None):
                    verdicts[index] = verdict
        return verdicts

    return replace(verifier, grade=grade)
