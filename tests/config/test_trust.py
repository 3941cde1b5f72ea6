"""What makes code run or takes a guard away counts where a person says it, whatever a file says."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import sppo
from sppo.cli import main
from sppo.commands import runner
from sppo.config import Config, to_dict
from sppo.config.evaluation import benchmark_config, evaluation_config
from sppo.config.keys import options
from sppo.config.recipes import list_recipes, load_recipe, to_yaml
from sppo.config.trust import flags, requests
from sppo.errors import ConfigError
from sppo.runs.progress import NoProgress
from tests.conftest import tiny_config

GUARDED = {
    "model.trust_remote_code": True,
    "verification.reward_model.trust_remote_code": True,
    "verification.process.trust_remote_code": True,
    "verification.code.unsafe_code": True,
    "verification.code.packages": "theirs",
    "verification.process.function": "theirs.py:f",
    "data.reward": "theirs.py:f",
    "evaluation.data.reward": "theirs.py:f",
    "verification.composite.parts.0.reward": "theirs.py:f",
}
"""Every option that only a person may set, with a value."""


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> Path:
    """A folder with code that says so if it ever runs."""
    (tmp_path / "theirs.py").write_text("open('ran', 'w').close()\ndef f(completions):\n    return [0.0]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nested(key: str, value: object) -> dict:
    """{"a.0.b": value} as a recipe has it."""
    first, _, rest = key.partition(".")
    if not rest:
        return {first: value}
    second, _, more = rest.partition(".")
    return {first: [nested(more, value)] if second == "0" else nested(rest, value)}


def recipe_with(key: str, value: object, name: str = "theirs.yaml") -> str:
    Path(name).write_text(yaml.safe_dump({"extends": "demo", **nested(key, value)}))
    return name


def test_every_option_of_the_kind_is_guarded():
    marked = {key for key, option in options(Config).items() if option.only_a_person}
    assert marked == {key.replace(".0.", ".N.") for key in GUARDED}
    for key, option in options(Config).items():
        of_the_kind = re.search("trust|unsafe|:function", f"{key} {option.help}")
        assert bool(of_the_kind) == option.only_a_person, key


def test_no_built_in_recipe_asks_for_any():
    for name in list_recipes():
        assert not requests(load_recipe(name)), name


@pytest.mark.parametrize(("key", "value"), GUARDED.items())
def test_a_recipes_word_does_not_count_and_the_flag_to_repeat_is_named(key, value, theirs):
    recipe = recipe_with(key, value)
    flag = f"--{key} {'true' if value is True else value}"
    with pytest.raises(ConfigError, match=rf"^theirs\.yaml sets {re.escape(key)}, .* repeat {re.escape(flag)}\.$"):
        load_recipe(recipe)
    assert requests(load_recipe(recipe, shlex.split(flag))) == {key: value}
    assert requests(load_recipe(recipe, [f"{key}={'true' if value is True else value}"])) == {key: value}
    assert requests(load_recipe(recipe, {key: value})) == {key: value}
    # Said otherwise, it is off, and there is nothing to grant.
    assert not requests(load_recipe(recipe, {key: False if value is True else None, "steps": 3}))


@pytest.mark.parametrize(("key", "value"), GUARDED.items())
def test_nor_does_a_run_folders(key, value, theirs):
    config = load_recipe("demo", nested(key, value))
    Path("run").mkdir()
    Path("run/config.yaml").write_text(to_yaml(config))
    of_training = key.startswith("verification.process.")
    if of_training:  # which no evaluation needs
        assert not requests(evaluation_config("run")[0])
    else:
        with pytest.raises(ConfigError, match=rf"^run/config\.yaml sets {re.escape(key)}, .* --{re.escape(key)} "):
            evaluation_config("run")
        assert evaluation_config("run", None, {key: value})
    if of_training or key.endswith("reward"):  # nor benchmarks, which have their own verifiers
        assert not requests(benchmark_config("run")[0])
    else:
        with pytest.raises(ConfigError, match=rf"repeat --{re.escape(key)} (true|theirs)\.$"):
            benchmark_config("run")
        assert requests(benchmark_config("run", {key: value})[0]) == {key: value}
    with pytest.raises(ConfigError, match=rf"^run/config\.yaml sets {re.escape(key)}"):
        load_recipe("run/config.yaml")


def test_a_section_or_a_list_that_a_person_sets_is_theirs(theirs):
    key = "verification.composite.parts"
    recipe = recipe_with(f"{key}.0.reward", "theirs.py:f")
    with pytest.raises(ConfigError, match="repeat"):
        load_recipe(recipe, [f"--{key}.0.weight=2"])
    with pytest.raises(ConfigError, match="repeat"):
        load_recipe(recipe, {"verification": {"composite": {}}, "verification.composite": {}})
    assert load_recipe(recipe, [f"--{key}=[{{reward: 'mine.py:g'}}]"]).verification.composite.parts[0].reward
    assert load_recipe(recipe, {key: [{"reward": "mine.py:g"}]}).verification.composite.parts[0].reward == "mine.py:g"


def test_what_a_file_extends_is_a_file_too(theirs):
    recipe_with("data.reward", "theirs.py:f", "base.yaml")
    Path("mine.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(ConfigError, match=r"repeat --data\.reward theirs\.py:f\.$"):
        load_recipe("mine.yaml")


def test_several_requests_are_told_at_once_and_can_be_pasted(theirs):
    values = {"extends": "demo", **nested("data.reward", "a.py:f; touch ran"), "model": {"trust_remote_code": True}}
    Path("theirs.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load_recipe("theirs.yaml")
    assert str(caught.value).endswith("repeat --model.trust_remote_code true --data.reward 'a.py:f; touch ran'.")
    pasted = shlex.split(str(caught.value).rpartition("repeat ")[2].removesuffix("."))
    assert load_recipe("theirs.yaml", pasted).data.reward == "a.py:f; touch ran"


def test_a_program_may_say_it_in_a_config_of_its_own(theirs):
    config = replace(load_recipe("demo"), data=replace(load_recipe("demo").data, reward="theirs.py:f"))
    assert load_recipe(config, {"steps": 3}).data.reward == "theirs.py:f"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "theirs.yaml"], ["train", "theirs.yaml", "--dry-run"], ["train", "theirs.yaml", "--print_config"],
        ["sft", "theirs.yaml"], ["prefit", "theirs.yaml"], ["audit", "theirs.yaml"],
        ["compare", "theirs.yaml", "--algorithms", "sppo,grpo"], ["eval", "run"], ["eval", "run", "run"],
        ["eval", "some/model", "--recipe", "theirs.yaml"], ["calibrate", "run"],
        ["train", "run/config.yaml", "--output", "run", "--resume"],
    ],
)  # fmt: skip
def test_no_command_runs_or_asks(command, theirs, capsys, monkeypatch):
    recipe_with("data.reward", "theirs.py:f")
    Path("run/checkpoints").mkdir(parents=True)
    options = to_dict(tiny_config(theirs / "run"))
    options["data"]["reward"] = "theirs.py:f"
    Path("run/config.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    assert main(command) == 2
    assert "repeat --data.reward theirs.py:f." in capsys.readouterr().err
    assert not (theirs / "ran").exists()


def test_granted_it_runs(theirs, capsys):
    recipe_with("data.reward", "theirs.py:f")
    assert main(["train", "theirs.yaml", "--dry-run", "--data.reward", "theirs.py:f"]) == 0
    assert (theirs / "ran").exists()


def test_a_run_goes_on_with_what_is_said_again(theirs):
    from sppo.runs.folder import require_resumable

    said = {"data.reward": "theirs.py:f", "verification.code.unsafe_code": True}
    config = load_recipe(replace(tiny_config(theirs / "run"), steps=2), said)
    step = theirs / "run" / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "state.json").write_text(json.dumps({"sppo": sppo.__version__, "step": 1}))
    (theirs / "run" / "config.yaml").write_text(to_yaml(config))
    require_resumable(theirs / "run", to_dict(config))
    plain = replace(tiny_config(theirs / "run"), steps=2)
    with pytest.raises(ConfigError) as caught:
        require_resumable(theirs / "run", to_dict(plain))
    assert str(caught.value).endswith("repeat --data.reward theirs.py:f --verification.code.unsafe_code true.")


def test_a_function_handed_over_stands_in_the_place_of_a_files(theirs):
    recipe = recipe_with("data.reward", "theirs.py:f")
    with pytest.raises(ConfigError, match=r"repeat --data\.reward"):
        sppo.train(recipe, output=theirs / "mine", steps=1)
    with pytest.raises(ConfigError, match=r"nowhere\.py"):  # the person's, and never the file's
        sppo.train(recipe, output=theirs / "mine", steps=1, reward="nowhere.py:f")
    assert not (theirs / "ran").exists()


def test_the_runs_of_a_comparison_are_told_what_its_person_said(theirs, monkeypatch):
    told = []
    monkeypatch.setattr(runner, "run_process", lambda arguments, *_: told.append(arguments) or 0)
    config = load_recipe("demo", {"data.reward": "theirs.py:f", "model.trust_remote_code": True, "output": "runs/one"})
    assert runner.run_command("train", config, NoProgress()) is None
    (command, recipe, *granted) = told[0]
    assert command == "train"
    assert requests(load_recipe(recipe, granted)) == requests(config)
    with pytest.raises(ConfigError):
        load_recipe(recipe)


def test_flags_are_as_the_command_line_reads_them():
    assert flags({"a.b": True, "c": "x.py:f"}) == "--a.b true --c x.py:f"
    assert flags({"c": "my file.py:f"}) == "--c 'my file.py:f'"


def test_where_prompts_and_weights_go_is_for_a_person_to_say(theirs):
    options = {"addresses": ["http://else.where:8000"], "folder": "/else/where"}
    recipe = recipe_with("engine", {"name": "vllm-server", "options": options})
    with pytest.raises(ConfigError, match="which sends prompts, or writes the weights, elsewhere") as refused:
        load_recipe(recipe)
    granted = shlex.split(str(refused.value).partition("repeat ")[2].removesuffix("."))
    config = load_recipe(recipe, [f"{key}={value}" for key, value in zip(granted[::2], granted[1::2], strict=True)])
    assert config.engine.options == options
