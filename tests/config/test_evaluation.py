"""Which options an evaluation runs with."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo.config.evaluation import benchmark_config, evaluation_config
from sppo.config.recipes import load_recipe, to_yaml
from sppo.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The config.yaml of a run of the demo, whose micro-batches are small and whose old log-probabilities sampled."""
    config = load_recipe("demo")
    assert (config.optimizer.tokens_per_microbatch, config.algorithm.old_logprobs) == (1200, "sampler")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize("overrides", [{"sampling.top_p": 0.9}, ["--sampling.max_response_tokens", "4096"]])
def test_rules_of_training_alone_hold_up_no_evaluation(run: str, overrides) -> None:
    config, notes = evaluation_config(run, None, overrides)
    assert notes == ()
    assert (config.sampling.top_p, config.sampling.max_response_tokens) in ((0.9, 37), (1.0, 4096))
    with pytest.raises(ConfigError):
        load_recipe("demo", overrides)


def test_benchmarks_are_sampled_as_published_with_the_runs_own_micro_batches(run: str) -> None:
    config, _ = benchmark_config(run)
    assert (config.sampling.max_response_tokens, config.evaluation.temperature) == (8192, 0.6)
    assert config.optimizer.tokens_per_microbatch == 1200
    with pytest.raises(ConfigError, match=r"--steps means nothing for benchmarks"):
        benchmark_config(run, {"steps": 5})


def test_ranges_hold_in_evaluations_too(run: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.temperature is -1, but must be 0 or more or null"):
        evaluation_config(run, None, ["--evaluation.temperature", "-1"])
