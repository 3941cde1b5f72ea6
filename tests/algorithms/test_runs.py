"""Each algorithm in whole runs: its reward rises, it resumes to the same bits, and impossible pairs are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sppo.algorithms.options import ALGORITHM_OPTIONS, PpoOptions, SpoOptions
from sppo.algorithms.table import ALGORITHMS, settle_algorithm
from sppo.commands.train import train
from sppo.config import AlgorithmConfig, Config, ModelConfig, SamplingConfig
from sppo.errors import ConfigError, ModelError, RunFolderError
from sppo.runs.folder import read_metrics
from sppo.runs.progress import NoProgress
from sppo.training.build import check
from sppo.training.given import Given
from tests.conftest import files_of, tiny_config
from tests.training.test_loop import train_on_rows

GROUPS = {"prompts_per_step": 8, "sampling__samples_per_prompt": 4}
RISING = {
    "sppo": {},
    "ppo": {},
    "ppo_bce": {},
    "grpo": GROUPS,
    "dr_grpo": GROUPS,
    "dapo": GROUPS,
    "rloo": GROUPS,
    # A greedy response that already is all threes leaves nothing but negative advantages, which teach slowly: so the
    # policy needs bigger steps to get past that point within a few seconds.
    "remax": {"steps": 25, "optimizer__learning_rate": 1e-2},
    "reinforce_pp": {},
    # The published clip of 3e-4 is for a learning rate of 1e-6: at 5e-3 the first of a step's two mini-batches would
    # move every ratio out of it, and the second would have no gradient left.
    "gspo": {**GROUPS, "algorithm__clip_low": 0.2, "algorithm__clip_high": 0.2},
    "cispo": GROUPS,
    "spo": {},
    # 96 prompts, whose V* is that of a policy that writes hardly a three.
    "astar_po": {},
}
SHORT = {
    "evaluation__every": 0, "checkpoint__every": 0, "evaluation__prompts": 4, "evaluation__final_samples_per_prompt": 1,
}  # fmt: skip


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_runs_below_cover_the_table():
    assert set(RISING) == set(ALGORITHMS)


@pytest.mark.parametrize("name", RISING)
def test_the_reward_rises(tmp_path, name):
    settings = {"steps": 18, "optimizer__learning_rate": 5e-3, "critic__learning_rate": 5e-3, **SHORT, **RISING[name]}
    train_on_rows(tmp_path / "run", algorithm__name=name, **settings)
    rewards = [line["reward/mean"] for line in read_metrics(tmp_path / "run")[1:]]
    assert mean(rewards[:3]) < 0.1
    assert mean(rewards[-3:]) > 0.25


# Resumption


def has_a_three(prompts, completions, **columns):
    return [float("3" in completion) for completion in completions]


RESUMED = {
    "ppo": {"algorithm__name": "ppo", "critic__prefit__samples": 8},
    "spo": {"algorithm__name": "spo", "algorithm__options": {"offline_samples": 2}, "evaluation__prompts": 92},
    "remax": {"algorithm__name": "remax"},
    # 92 prompts in steps of 8: each step samples new ones from the reference, which resuming must find again.
    "astar_po": {"algorithm__name": "astar_po", "algorithm__options": {"offline_samples": 3, "beta": 0.1}},
    # Two samples of a 0/1 reward are often alike, so that steps take several rounds from the stream.
    "dapo": {"algorithm__name": "dapo", "sampling__samples_per_prompt": 2},
    "kl in the loss": {"algorithm__name": "rloo", "sampling__samples_per_prompt": 2, "algorithm__kl_coefficient": 0.1},
    "kl in the reward": {
        "algorithm__name": "reinforce_pp", "algorithm__kl_coefficient": 0.1, "algorithm__kl_place": "reward",
        "algorithm__kl_estimator": "k1",
    },
    "joint ratio": {"algorithm__name": "sppo", "algorithm__ratio": "joint"},
}  # fmt: skip


@pytest.mark.parametrize("kind", RESUMED)
def test_two_steps_and_two_more_are_four(tmp_path, kind):
    settings = {
        "prompts_per_step": 8, "optimizer__minibatch_size": 4, "critic__minibatch_size": 4, **SHORT,
        "optimizer__learning_rate": 5e-3, "critic__learning_rate": 5e-3, **RESUMED[kind],
    }  # fmt: skip
    whole = train_on_rows(tmp_path / "whole", has_a_three, steps=4, **settings)
    train_on_rows(tmp_path / "parts", has_a_three, steps=2, **settings)
    parts = train_on_rows(tmp_path / "parts", has_a_three, steps=4, resume=True, **settings)
    last = [tmp_path / run / "checkpoints" / "last" for run in ("whole", "parts")]
    weights = sorted(path.relative_to(last[0]) for path in last[0].rglob("*/*.safetensors"))
    assert len(weights) == {"ppo": 4, "joint ratio": 4, "spo": 4}.get(kind, 2)  # moments, and what each has
    for name in weights:
        left, right = (load_file(folder / name) for folder in last)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    if kind in ("spo", "astar_po"):
        kept = {"spo": "tracker.json", "astar_po": "optimal_values.json"}[kind]
        left, right = ((folder / "critic" / kept).read_text() for folder in last)
        assert left == right
    for key in ("responses", "tokens", "accuracy_after", "responses_left_out"):
        assert parts[key] == whole[key], key
    lines = [read_metrics(tmp_path / run)[1:] for run in ("whole", "parts")]
    same = [[{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "eval/"))} for line in run]
            for run in lines]  # fmt: skip
    assert same[0] == same[1]
    if kind.startswith(("kl", "joint", "astar")):
        distances = [line["policy/kl_to_reference"] for line in lines[1]]
        assert distances[0] < 1e-9
        assert min(distances[2:]) > 1e-5  # a reference made anew on resuming would be at no distance


def test_a_reference_is_kept_only_where_something_reads_it(tmp_path):
    train_on_rows(tmp_path / "without", steps=1, **SHORT)
    train_on_rows(tmp_path / "with", steps=1, algorithm__kl_coefficient=0.1, **SHORT)
    assert not (tmp_path / "without" / "reference").exists()
    assert (tmp_path / "with" / "reference").is_dir()
    for ratio, coefficient, needed in (("token", 0.0, False), ("joint", 0.0, True), ("token", 0.1, True)):
        config = AlgorithmConfig(ratio=ratio, kl_coefficient=coefficient)  # type: ignore[arg-type]
        assert settle_algorithm(config, 1).needs_reference == needed


def test_a_kl_term_holds_the_policy_near_its_start(tmp_path):
    distances = []
    for coefficient in (1e-9, 3.0):
        folder = tmp_path / f"{coefficient}"
        train_on_rows(
            folder, steps=10, optimizer__learning_rate=5e-3, algorithm__name="rloo", **GROUPS, **SHORT,
            algorithm__kl_coefficient=coefficient,
        )  # fmt: skip
        distances.append(read_metrics(folder)[-1]["policy/kl_to_reference"])
    assert distances[1] < 0.5 * distances[0]


def test_an_entropy_bonus_keeps_the_policy_undecided(tmp_path):
    entropies = []
    for coefficient in (0.0, 1.0):
        folder = tmp_path / f"{coefficient}"
        train_on_rows(
            folder, steps=15, optimizer__learning_rate=5e-3, algorithm__name="rloo", **GROUPS, **SHORT,
            algorithm__entropy_coefficient=coefficient,
        )  # fmt: skip
        entropies.append(read_metrics(folder)[-1]["policy/entropy"])
    assert entropies[1] > entropies[0] + 0.3


@pytest.mark.parametrize("truncated", ["mask", "drop"])
def test_responses_cut_at_the_limit_are_no_part_of_the_loss(tmp_path, truncated):
    train_on_rows(tmp_path / "run", steps=1, algorithm__name="dr_grpo", algorithm__truncated=truncated, **GROUPS,
                  **SHORT, sampling__max_response_tokens=30)  # fmt: skip
    (line,) = read_metrics(tmp_path / "run")[1:]
    assert 0 < line["response/clipped_share"] < 1
    assert line["policy/grad_norm"] > 0


def test_a_run_that_samples_from_a_part_of_the_vocabulary_says_once_what_that_switches_off(tmp_path):
    said = []

    class Listens(NoProgress):
        def message(self, text):
            said.append(text)

    train(
        tiny_config(tmp_path / "run", steps=2, sampling__top_p=0.7, algorithm__old_logprobs="trainer"),
        progress=Listens(),
    )
    assert len([text for text in said if "sampler/logprob_gap_* are not measured" in text]) == 1
    for line in read_metrics(tmp_path / "run")[1:]:
        assert not [name for name in line if name.startswith("sampler/")]


# Refusals


def checked(samples: int = 1, **algorithm) -> Config:
    config = Config(
        model=ModelConfig(path="x"), algorithm=AlgorithmConfig(**algorithm),
        sampling=SamplingConfig(samples_per_prompt=samples),
    )  # fmt: skip
    return check(replace(config, prompts_per_step=256 // samples), Given())


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if ALGORITHMS[name].min_samples > 1])
def test_a_group_of_one_is_refused_and_never_becomes_the_bare_reward(name):
    with pytest.raises(ConfigError, match=rf"{name} compares the samples of .*samples_per_prompt is 1: .* or use sppo"):
        checked(name=name)
    checked(name=name, samples=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sppo", "dynamic_sampling": True}, "dynamic_sampling drops .* a single sample always is"),
        ({"name": "sppo", "overlong_penalty_tokens": 8}, r"overlong_penalty_tokens .* must stay in \[0, 1\]"),
        ({"name": "ppo_bce", "overlong_penalty_tokens": 8}, r"ppo_bce's critic predicts a probability"),
        ({"name": "spo", "overlong_penalty_tokens": 8}, r"use algorithm\.truncated"),
        ({"name": "sppo", "kl_coefficient": 0.1, "kl_place": "reward"}, r"Set algorithm\.kl_place to loss"),
        ({"name": "spo", "kl_coefficient": 0.1, "kl_place": "reward"}, r"Set algorithm\.kl_place to loss"),
        ({"name": "grpo", "samples": 8, "kl_coefficient": 0.1, "kl_estimator": "k1"},
         r"kl_estimator is k1 and .*kl_place is loss, .* mean .* is 0.* Set algorithm\.kl_estimator to k2 or k3"),
        ({"name": "ppo", "kl_coefficient": 0.1, "kl_estimator": "k3", "kl_place": "reward"},
         r"kl_estimator is k3 and .*kl_place is reward, .* vanishes.* Set algorithm\.kl_estimator to k1"),
        ({"name": "rloo", "samples": 8, "kl_coefficient": 0.1, "kl_estimator": "k2", "kl_place": "reward"},
         r"kl_estimator is k2 and .*kl_place is reward"),
        *[({"name": name, "ratio": ratio}, rf"ratio is {ratio}, which all .* {name} gives each token")
          for name in ("ppo", "ppo_bce", "reinforce_pp") for ratio in ("sequence", "joint")],
        *[({"name": "astar_po", key: value}, rf"algorithm\.{key} bounds a ratio, but astar_po .* Leave it out")
          for key, value in (("clip_low", 0.2), ("clip_high", 0.2), ("dual_clip", 3.0))],
        ({"name": "astar_po", "ratio": "joint", "options": {"joint_band": 1.0}}, r"options\.joint_band bounds a ratio"),
        *[({"name": "astar_po", "ratio": ratio}, rf"ratio is {ratio}, but astar_po regresses the whole response's")
          for ratio in ("token", "sequence")],
        *[({"name": "astar_po", "aggregation": cut}, rf"aggregation is {cut}, but astar_po is a mean over responses")
          for cut in ("token_mean", "sequence_sum")],
        ({"name": "astar_po", "whitening": "sequence"}, r"whitening is sequence, but astar_po .* set it to none"),
        *[({"name": "astar_po", "kl_coefficient": 0.1, "kl_place": place}, r"kl_coefficient is 0\.1, .* raise beta")
          for place in ("loss", "reward")],
        ({"name": "cispo", "samples": 8, "dual_clip": 3.0}, r"dual_clip .* cispo's weights are clipped already"),
        ({"name": "cispo", "samples": 8, "ratio": "sequence"}, r"algorithm\.ratio is sequence, but cispo"),
        ({"name": "cispo", "samples": 8, "ratio": "joint"}, r"algorithm\.ratio is joint, but cispo"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_mean_what_they_say_are_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        checked(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "ppo", "overlong_penalty_tokens": 8},
        {"name": "ppo", "kl_coefficient": 0.1, "kl_place": "reward"},
        {"name": "ppo_bce", "kl_coefficient": 0.1, "kl_place": "reward"},
        {"name": "sppo", "kl_coefficient": 0.1},
        {"name": "sppo", "kl_coefficient": 0.1, "kl_estimator": "k2"},
        {"name": "sppo", "kl_estimator": "k1"},  # nor an estimate to make
        {"name": "reinforce_pp", "kl_coefficient": 0.1, "kl_place": "reward", "kl_estimator": "k1"},
        {"name": "sppo", "kl_place": "reward"},  # without a coefficient there is no penalty to place
        {"name": "spo", "ratio": "joint", "options": {"joint_band": 1.0}},
        {"name": "dapo", "samples": 8, "overlong_penalty_tokens": 8},
        {"name": "rloo", "samples": 8, "dynamic_sampling": True},
        {"name": "gspo", "samples": 8, "dual_clip": 3.0},
        {"name": "sppo", "ratio": "sequence"},
        {"name": "astar_po", "ratio": "joint", "aggregation": "sequence_mean", "whitening": "none"},
        {"name": "astar_po", "samples": 8, "overlong_penalty_tokens": 8, "entropy_coefficient": 0.1},
    ],
)
def test_their_neighbours_that_do_mean_something_are_not(options):
    checked(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ppo", "options": {"lambda": 1.0}},
         r"algorithm\.options\.lambda is no option of ppo, which accepts: gamma \(default 1\): Discount .* "
         r"gae_lambda \(default 1\): .* value_clip \(default 0\.5\): .*\."),
        ({"name": "ppo_bce", "options": {"value_clip": 0.5}}, r"which accepts: gamma \(.* gae_lambda[^_]*$"),
        ({"name": "spo", "options": {"halflife": 1.0}},
         r"half_life \(default 0\.06\): .* rho_min \(default 0\.875\): .* rho_max \(default 0\.96\): .* offline"),
        ({"name": "rloo", "samples": 4, "options": {"gamma": 1.0}}, r"no option of rloo, which accepts: none\."),
        ({"name": "rloo", "samples": 4, "options": {"joint_band": 1.0}}, r"accepts: none\."),
        ({"name": "sppo", "ratio": "joint", "options": {"band": 1.0}},
         r"accepts: objective .* joint_band \(default 0\): c of .*\."),
    ],
)  # fmt: skip
def test_an_unknown_option_is_refused_with_those_accepted(options, message):
    with pytest.raises(ConfigError, match=message):
        checked(**options)


@pytest.mark.parametrize("name", ["ppo", "ppo_bce"])
def test_a_token_critic_with_a_tokenizer_of_its_own_is_refused(tmp_path, name):
    with pytest.raises(ModelError, match=r"critic\.tokenizer is other, but a token critic reads the policy's own"):
        train_on_rows(tmp_path / "run", algorithm__name=name, critic__tokenizer="other")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo", {"gamma": 5.0}, r"algorithm\.options\.gamma is 5\.0, but must be in \[0, 1\]"),
        ("ppo_bce", {"gae_lambda": float("nan")}, r"algorithm\.options\.gae_lambda is nan"),
        ("ppo", {"value_clip": -1.0}, r"algorithm\.options\.value_clip is -1"),
        ("spo", {"half_life": 0.0}, r"algorithm\.options\.half_life is 0"),
        ("spo", {"rho_min": 0.97}, r"rho_min is 0\.97, more than rho_max, 0\.96"),
        ("spo", {"offline_samples": -1}, r"algorithm\.options\.offline_samples is -1"),
        ("spo", {"offline_samples": 2.5}, r"offline_samples is 2\.5, but must be a whole number"),
        ("astar_po", {"offline_samples": 0}, r"algorithm\.options\.offline_samples is 0"),
        ("astar_po", {"beta": 0.0}, r"algorithm\.options\.beta is 0"),
        ("astar_po", {"beta_value": -0.5}, r"algorithm\.options\.beta_value is -0\.5"),
    ],
)
def test_an_option_out_of_its_range_is_refused_before_any_work(name, options, message):
    with pytest.raises(ConfigError, match=message):
        checked(name=name, options=options)


SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("trunk", "error", "message"),
    [
        ({"model_type": "bert", **SMALL}, ModelError, "bert, reads a response in both directions"),
        ({"model_type": "llama", "max_position_embeddings": 6, **SMALL}, ConfigError, "the critic was made for 6"),
    ],
)
def test_a_trunk_that_cannot_value_tokens_is_refused(tmp_path, trunk, error, message):
    with pytest.raises(error, match=message):
        train_on_rows(tmp_path / "run", algorithm__name="ppo", critic__config=trunk)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_reference_was_lost_does_not_take_another(tmp_path):
    settings = {"algorithm__name": "reinforce_pp", "algorithm__kl_coefficient": 0.1, **SHORT}
    train_on_rows(tmp_path / "run", steps=1, **settings)
    shutil.rmtree(tmp_path / "run" / "reference")
    before = files_of(tmp_path)
    with pytest.raises(RunFolderError, match=r"reference is missing: the policy that the run started from"):
        train_on_rows(tmp_path / "run", steps=2, resume=True, **settings)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["ppo", "ppo_bce"])
def test_responses_of_one_token_are_not_taken_for_values_of_prompts(tmp_path, name):
    # PPO's values may leave [0, 1], which calibration of a prompt critic cannot take.
    train_on_rows(tmp_path / "run", steps=4, algorithm__name=name, sampling__max_response_tokens=1,
                  critic__learning_rate=0.5, **SHORT)  # fmt: skip
    last = read_metrics(tmp_path / "run")[-1]
    assert "critic/brier" not in last
    assert "critic/value_mean" in last


def test_what_the_config_says_stands_over_the_published_loss_and_options():
    dapo = ALGORITHMS["dapo"]
    assert settle_algorithm(AlgorithmConfig(name="dapo"), 8) == dapo
    said = AlgorithmConfig(name="dapo", clip_high=0.3, aggregation="sequence_mean", whitening="token")
    changed = settle_algorithm(said, 8).loss
    assert (changed.clip_low, changed.clip_high) == (0.2, 0.3)
    assert (changed.aggregation, changed.whitening) == ("sequence_mean", "token")
    # In the reward, the penalty must not be counted in the loss again.
    for place, weight in (("reward", 0.0), ("loss", 0.1)):
        config = AlgorithmConfig(name="dapo", kl_coefficient=0.1, kl_place=place)  # type: ignore[arg-type]
        assert settle_algorithm(config, 8).loss.kl_coefficient == weight
    joint = AlgorithmConfig(ratio="joint", options={"joint_band": 0.5})
    assert settle_algorithm(joint, 1).loss.joint_band == 0.5
    assert settle_algorithm(replace(joint, options={}), 1).loss.joint_band is None
    ppo = settle_algorithm(AlgorithmConfig(name="ppo", options={"gae_lambda": 0.95}), 1)
    assert ppo.options == PpoOptions(gamma=1.0, gae_lambda=0.95, value_clip=0.5)


def test_the_table_and_the_options_name_the_same_algorithms():
    assert list(ALGORITHMS) == list(ALGORITHM_OPTIONS)
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.options == ALGORITHM_OPTIONS[name]()
        assert settle_algorithm(AlgorithmConfig(name=name), 8) == algorithm


def test_astar_pos_own_beta_becomes_that_of_its_loss():
    said = AlgorithmConfig(name="astar_po", options={"beta": 0.02})
    assert settle_algorithm(said, 1).loss == replace(ALGORITHMS["astar_po"].loss, regression_beta=0.02)


def test_whole_numbers_of_earlier_configs_were_written_with_a_point():
    spo = settle_algorithm(AlgorithmConfig(name="spo", options={"offline_samples": 3.0}), 1)
    assert spo.options == SpoOptions(offline_samples=3)
    unclipped = settle_algorithm(AlgorithmConfig(name="ppo", options={"value_clip": float("inf")}), 1)
    assert unclipped.options == PpoOptions(value_clip=float("inf"))
