"""Configs of other versions: what they lack, what is no more, and what a resumed run may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sppo import __version__
from sppo.config import Config, DataConfig, ModelConfig, SelectionConfig, SftConfig, SftPhase, to_dict
from sppo.config.compatibility import RESUMABLE_CHANGES, config_differences, read_config, written, written_config
from sppo.config.evaluation import evaluation_config
from sppo.config.gone import GONE
from sppo.config.keys import find, options
from sppo.config.recipes import load_recipe, to_yaml
from sppo.errors import ConfigError, RunFolderError
from sppo.runs.folder import require_resumable
from tests.conftest import begun

GOOD = Config(model=ModelConfig(path="some/model"))
THEN = {
    "steps": 60, "prompts_per_step": 512, "critic.minibatch_size": 256, "critic.epochs": 1,
    "optimizer.learning_rate": 3e-4, "optimizer.learning_rate_warmup": 0, "evaluation.every": 5, "checkpoint.every": 20,
}  # fmt: skip
"""What the demo was trained with in the first version, where it is something else now."""
FIRST = Path(__file__).parent / "config_0_1_0.yaml"
"""What sppo 0.1.0 wrote for its demo of PPO."""


def test_what_a_config_lacks_is_at_its_default():
    config = replace(GOOD, data=DataConfig(options={"prompts": 5}), sft=SftConfig([SftPhase(steps=3)]))
    plain = to_dict(config)
    del plain["sampling"]["top_k"], plain["engine"], plain["sft"]["phases"][0]["steps"]
    plain["critic"]["depth"] = 2
    plain["evaluation"]["data"] = {"task": "gsm8k", "shuffle": True}
    said = written(plain)
    assert said.left_out == {"critic.depth": 2, "evaluation.data.shuffle": True}
    assert said.config == replace(
        config,
        sft=SftConfig([SftPhase()]),
        evaluation=replace(config.evaluation, data=DataConfig(task="gsm8k")),
    )
    assert config_differences(said, config)[:2] == [
        "critic.depth: no longer an option",
        "evaluation.data.shuffle: no longer an option",
    ]


def test_no_options_are_no_difference():
    one, other = written(to_dict(GOOD)), replace(GOOD, data=DataConfig(options={"prompts": 5}))
    assert config_differences(one, other) == ["data.options.prompts: null -> 5"]
    assert config_differences(one, GOOD) == []


def test_steps_may_differ_unless_a_curriculum_goes_by_them():
    for name, found in ((None, []), ("top", []), ("curriculum", ["steps: 5 -> 6"])):
        config = replace(GOOD, steps=5, selection=SelectionConfig(name=name))
        assert config_differences(written(to_dict(config)), replace(config, steps=6)) == found


def test_a_config_that_cannot_be_read(tmp_path):
    for text, said in (
        ("a: [", "is not YAML"),
        ("- a", "holds \\['a'\\], but options are a mapping"),
        ("", "holds no options"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(RunFolderError, match=said):
            read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("steps: many")
    with pytest.raises(RunFolderError, match=r"config.yaml can't be used: steps is 'many', but must be a whole number"):
        written_config(tmp_path)


def test_every_option_of_the_first_version_is_one_still_or_is_known_to_be_gone():
    said = written(yaml.safe_load(FIRST.read_text(encoding="utf-8")))
    assert said.version == "0.1.0"
    assert set(said.left_out) == {
        "critic.max_grad_norm", "critic.warmup_steps", "data.overlong_prompts", "evaluation.data.overlong_prompts",
        "algorithm.dynamic_sampling_rounds", "optimizer.betas", "optimizer.logprob_chunk_tokens",
        "optimizer.max_skipped_steps", "verification.memory_limit_mb",
        *(f"verification.code.{name}" for name in
          ("runtime_floor", "runtime_repeats", "processes", "disk_mb", "output_kb")),
        "verification.reward_model.max_input_tokens", "verification.reward_model.tokens_per_microbatch",
        "verification.process.tokens_per_microbatch", "sft.weight_decay", "sft.max_grad_norm",
        "sft.phases.0.schedule", "sft.phases.0.check_every", "sft.phases.1.schedule", "sft.phases.1.check_every",
    }  # fmt: skip
    # What holds now is what held then, but for what changes no step.
    assert said.notes() == [
        "optimizer.logprob_chunk_tokens is no option of this version, and is ignored. It follows from the vocabulary "
        "and the device now."
    ]
    assert said.config == load_recipe("demo_ppo", {**THEN, "verification.workers": 2, "model.attention": "sdpa"})


def test_a_run_of_the_first_version_is_evaluated_but_not_resumed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(FIRST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "checkpoints" / "step_0").mkdir(parents=True)
    (folder / "checkpoints" / "step_0" / "state.json").write_text('{"step": 0}', encoding="utf-8")
    config, notes = evaluation_config(str(folder))
    assert config == load_recipe("demo_ppo", {**THEN, "verification.workers": 2, "model.attention": "sdpa"})
    assert len(notes) == 1
    here = load_recipe("demo_ppo", {**THEN, "output": folder})
    assert config_differences(written_config(folder), here) == []
    assert config_differences(written_config(folder), replace(here, seed=1)) == ["seed: 0 -> 1"]
    with pytest.raises(RunFolderError, match=r"step_0 was written by sppo 0\.1\.0"):
        require_resumable(folder, to_dict(here))


def test_a_run_of_another_version_says_so_where_its_options_differ(tmp_path):
    begun(tmp_path / "run", to_dict(GOOD), step=0)
    require_resumable(tmp_path / "run", to_dict(GOOD))
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(__version__, "9.1"), encoding="utf-8")
    with pytest.raises(RunFolderError, match=rf"was made by sppo 9\.1 \(this is {__version__}\) with another .*: seed"):
        require_resumable(tmp_path / "run", to_dict(replace(GOOD, seed=1)))


def test_a_value_that_does_not_hold_any_more_stands_in_the_way_of_resuming():
    plain = to_dict(GOOD)
    plain["optimizer"]["betas"] = [0.9, 0.95]
    plain["verification"]["memory_limit_mb"] = 700
    plain["critic"]["max_grad_norm"] = 1.0
    other = replace(GOOD, optimizer=replace(GOOD.optimizer, max_grad_norm=0.5))
    assert config_differences(written(plain), GOOD) == [
        "optimizer.betas: [0.9, 0.95], but it is no longer an option. It is always [0.9, 0.999] now."
    ]
    assert config_differences(written(plain), other) == [
        "critic.max_grad_norm: 1.0, but it is no longer an option. optimizer.max_grad_norm is for policy and critic "
        "alike.",
        "optimizer.betas: [0.9, 0.95], but it is no longer an option. It is always [0.9, 0.999] now.",
        "optimizer.max_grad_norm: 1.0 -> 0.5",
    ]


def test_an_option_that_went_is_refused_with_what_holds_instead(tmp_path):
    for overrides in (["--optimizer.betas", "0.9,0.999"], {"optimizer.betas": [0.9, 0.95]}):
        with pytest.raises(
            ConfigError, match=r"optimizer\.betas is no longer an option\. It is always \[0\.9, 0\.999\]"
        ):
            load_recipe("demo", overrides)
    with pytest.raises(ConfigError, match=r"sft\.phases\.1\.check_every is no longer an option"):
        load_recipe("demo", ["--sft.phases.1.check_every=5"])
    with pytest.raises(ConfigError, match=r"evaluation\.data\.overlong_prompts is no longer .*data\.bad_rows"):
        load_recipe("demo", {"evaluation.data.overlong_prompts": "refuse"})
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: demo\noptimizer: {betas: [0.9, 0.95], max_skipped_steps: 3}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"optimizer\.betas is no .* optimizer\.max_skipped_steps is no longer"):
        load_recipe(recipe)


def test_an_old_recipe_in_which_two_options_differ_that_are_one_now_is_refused(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: demo\noptimizer: {max_grad_norm: 0.5}\ncritic: {max_grad_norm: 1.0}\n")
    with pytest.raises(ConfigError, match=r"critic\.max_grad_norm is no longer an option\. optimizer\.max_grad_norm"):
        load_recipe(recipe)
    recipe.write_text("extends: demo\noptimizer: {max_grad_norm: 0.5}\ncritic: {max_grad_norm: 0.5}\n")
    assert load_recipe(recipe) == load_recipe("demo", {"optimizer.max_grad_norm": 0.5})


def test_a_recipe_that_the_first_version_printed_runs_on(tmp_path):
    old = yaml.safe_load(FIRST.read_text(encoding="utf-8"))
    del old["optimizer"]["logprob_chunk_tokens"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(old), encoding="utf-8")
    assert load_recipe(
        tmp_path / "mine.yaml",
        {"verification.workers": None, "algorithm.kl_estimator": None, "model.attention": None},
    ) == load_recipe("demo_ppo", THEN)


def test_what_is_gone_is_gone_and_what_it_follows_is_there():
    for key, went in GONE.items():
        assert find(Config, key) is None
        assert went.follows is None or find(Config, went.follows) is not None
        assert went.instead.endswith(".")
    assert all(any(option.key.startswith(name) for option in options(Config).values()) for name in RESUMABLE_CHANGES)


def test_a_config_says_which_version_wrote_it(tmp_path):
    assert yaml.safe_load(to_yaml(GOOD))["sppo_version"] == __version__
    begun(tmp_path / "run", to_dict(replace(GOOD, output=str(tmp_path / "run"))))
    said = written_config(tmp_path / "run")
    assert (said.version, said.left_out) == (__version__, {})
    assert load_recipe(tmp_path / "run" / "config.yaml") == said.config


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_run_of_a_version_that_chose_no_prompts_goes_on_without_choosing(version):
    plain = to_dict(GOOD)
    del plain["selection"]
    said = written({**plain, "sppo_version": version})
    assert said.config.selection.name == "uniform"
    assert config_differences(said, GOOD) == ["selection.name: 'uniform' -> null"]
    assert written({**plain, "sppo_version": __version__}).config.selection.name is None
