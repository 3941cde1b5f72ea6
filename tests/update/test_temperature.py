"""The temperature of sampling is that of every log-probability that training reads."""

from __future__ import annotations

import pytest

import sppo
from sppo.runs.folder import read_metrics
from tests.conftest import tiny_config


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_trainer_reads_log_probabilities_at_the_temperature_of_sampling(tmp_path, temperature):
    # One mini-batch: the policy is still the one that sampled, and the one that training started from.
    sppo.train(tiny_config(
        tmp_path, steps=1, optimizer__minibatch_size=16, sampling__temperature=temperature,
        algorithm__old_logprobs="trainer", algorithm__kl_coefficient=0.1,
    ))  # fmt: skip
    metrics = read_metrics(tmp_path)[1]
    for name in ("sampler/logprob_gap_max", "policy/approx_kl", "policy/kl_to_reference", "policy/clipfrac"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-4), name
    assert metrics["sampler/importance_weight_mean"] == pytest.approx(1.0, abs=1e-4)


def test_log_probabilities_of_the_sampler_are_compared_at_its_temperature(tmp_path):
    sppo.train(tiny_config(tmp_path, steps=1, optimizer__minibatch_size=16, sampling__temperature=0.5))
    assert read_metrics(tmp_path)[1]["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
