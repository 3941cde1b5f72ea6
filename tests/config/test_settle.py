from __future__ import annotations

from dataclasses import replace

import pytest

from sppo.config import AlgorithmConfig, Config, CriticConfig, ModelConfig, OptimizerConfig, SamplingConfig
from sppo.config.settle import check as validate
from sppo.errors import ConfigError
from sppo.training.build import check
from sppo.training.given import Given

GOOD = Config(model=ModelConfig(path="some/model"))


def test_the_defaults_are_valid():
    validate(GOOD)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(), "model.path is not set"),
        (
            replace(GOOD, sampling=SamplingConfig(max_response_tokens=0)),
            "sampling.max_response_tokens is 0, but must be",
        ),
        (replace(GOOD, sampling=SamplingConfig(temperature=0.0)), "sampling.temperature is 0.0, but must be greater"),
        (replace(GOOD, sampling=SamplingConfig(top_p=1.5)), r"sampling.top_p is 1.5, but must be in \(0, 1\]"),
        (replace(GOOD, steps=0), "steps is 0, but must be at least 1"),
        (
            replace(GOOD, prompts_per_step=100, optimizer=OptimizerConfig(minibatch_size=30)),
            r"optimizer.minibatch_size is 30, which does not divide a step's 100 sequences .* These would: 20, 25, 50",
        ),
        (
            replace(GOOD, optimizer=OptimizerConfig(tokens_per_microbatch=1000)),
            "tokens_per_microbatch is 1000, less than the longest sequence: .* Set it to at least 2048",
        ),
        (replace(GOOD, optimizer=OptimizerConfig(learning_rate=float("nan"))), "optimizer.learning_rate is nan"),
        (replace(GOOD, critic=CriticConfig(prior=1.0)), "critic.prior is 1.0, but must lie strictly between 0 and 1"),
        (
            replace(GOOD, algorithm=AlgorithmConfig(dual_clip=0.5)),
            "algorithm.dual_clip is 0.5, but must be greater than 1",
        ),
        (replace(GOOD, algorithm=AlgorithmConfig(importance_cap=0.0)), "algorithm.importance_cap is 0.0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_the_way_out(config, message):
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_mini_batches_of_the_critic_matter_where_there_is_one():
    uneven = replace(GOOD, critic=CriticConfig(minibatch_size=100))
    with pytest.raises(ConfigError, match=r"critic\.minibatch_size is 100, which does not divide"):
        check(uneven, Given())
    grouped = replace(uneven, sampling=SamplingConfig(samples_per_prompt=8), algorithm=AlgorithmConfig(name="grpo"))
    assert check(grouped, Given()) == grouped
