"""Metrics of a step, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sppo.algorithms.table import ALGORITHMS
from sppo.batch import Credit, Estimates
from sppo.training.collate import LengthRules, collate
from sppo.training.record import credit_metrics
from sppo.types import Verdict
from tests.conftest import make_rollout


@pytest.mark.parametrize("advantages", [[[1.0], [9.0], [0.0]], [[1.0, 1.0], [9.0, 9.0], [0.0, 7.0]]])
def test_advantages_are_measured_on_what_is_trained_on(advantages):
    # The second response was cut at the limit and is masked; the third has one token, and padding.
    rollouts = [make_rollout(name, [5], [7] * length) for name, length in (("a", 2), ("b", 2), ("c", 1))]
    rollouts[1] = replace(rollouts[1], completion=replace(rollouts[1].completion, finish_reason="length"))
    batch = collate(rollouts, [Verdict(1.0)] * 3, rules=LengthRules("mask", 2))
    found = credit_metrics(
        batch, Estimates(batch.sampler_logprobs), Credit(torch.tensor(advantages)), ALGORITHMS["rloo"]
    )
    by_token = len(advantages[0]) == 2
    assert found["advantage/mean"] == pytest.approx(2 / 3 if by_token else 0.5)
    assert found["advantage/std"] == pytest.approx(2**0.5 / 3 if by_token else 0.5)
