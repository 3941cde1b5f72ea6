"""Recipes: the published numbers, the round trip through YAML, overrides, and what a mistake is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppo.config import Config
from sppo.config.compatibility import read_config
from sppo.config.keys import options
from sppo.config.parsing import _KNOWN_ELSEWHERE_AS
from sppo.config.recipes import list_recipes, load_recipe, to_yaml
from sppo.errors import ConfigError, RunFolderError

R1 = "deepseek-ai/DeepSeek-R1-Distill-Qwen-"


def test_every_recipe_is_listed_described_and_valid() -> None:
    recipes = list_recipes()
    assert [name for name in recipes if not name.startswith("demo_")] == [
        "demo",
        "quickstart_gsm8k",
        "r1_distill_1_5b_deepscaler",
        "r1_distill_7b_dapo",
        "r1_distill_7b_dapo_small_critic",
        "skills",
    ]
    for name, description in recipes.items():
        assert load_recipe(name)
        assert description


@pytest.mark.parametrize(
    ("name", "policy", "critic", "task", "steps", "prompts", "minibatch", "critic_rate", "decay", "max_prompt"),
    [
        ("r1_distill_1_5b_deepscaler", "1.5B", "1.5B", "deepscaler", 1000, 256, 128, 5e-6, 0.01, 1024),
        ("r1_distill_7b_dapo", "7B", "7B", "dapo_math", 200, 512, 32, 1e-5, 0.1, 2048),
        ("r1_distill_7b_dapo_small_critic", "7B", "1.5B", "dapo_math", 200, 512, 32, 1e-5, 0.1, 2048),
    ],
)
def test_published_settings(name, policy, critic, task, steps, prompts, minibatch, critic_rate, decay, max_prompt):
    """The table of settings in the SPPO paper, arXiv 2604.08865."""
    config = load_recipe(name)
    assert (config.model.path, config.critic.path) == (R1 + policy, R1 + critic)
    assert (config.data.task, config.data.max_prompt_tokens) == (task, max_prompt)
    assert (config.steps, config.prompts_per_step) == (steps, prompts)
    assert (config.optimizer.minibatch_size, config.critic.minibatch_size) == (minibatch, minibatch)
    assert (config.optimizer.learning_rate, config.critic.learning_rate) == (1e-6, critic_rate)
    assert (config.optimizer.weight_decay, config.critic.weight_decay) == (decay, decay)
    assert {(own.learning_rate_warmup, own.learning_rate_decay) for own in (config.optimizer, config.critic)} == {
        (0, "constant")
    }
    assert config.optimizer.max_grad_norm == 1.0
    assert (config.optimizer.epochs, config.critic.epochs) == (1, 1)
    sampling, algorithm = config.sampling, config.algorithm
    assert (sampling.max_response_tokens, sampling.samples_per_prompt) == (8192, 1)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 1.0, 0)
    assert (algorithm.name, algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip) == ("sppo", 0.2, 0.2, 3.0)
    assert (algorithm.old_logprobs, algorithm.importance_cap) == ("trainer", None)
    assert (config.critic.share, algorithm.options, algorithm.negative_share) == (1.0, {}, 1.0)
    assert config.evaluation.temperature == 0.6
    assert config.evaluation.data is not None
    assert config.evaluation.data.task == "math500"


@pytest.mark.parametrize("name", list_recipes())
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    config = load_recipe(name, {"seed": 7, "sampling.stop_token_ids": [3, 4]})
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    "overrides",
    [
        ["--steps", "5", "--model.config.hidden_size", "32", "--data.options.prompts", "100"],
        ["--steps=5", "--model.config.hidden_size=32", "--data.options.prompts=100"],
        ["steps=5", "model.config.hidden_size=32", "data.options.prompts=100"],
        {"steps": 5, "model.config.hidden_size": 32, "data": {"options": {"prompts": 100}}},
    ],
)
def test_overrides_reach_into_sections_and_option_dicts(overrides) -> None:
    config, plain = load_recipe("demo", overrides), load_recipe("demo")
    assert config.steps == 5
    assert config.data.options == {"prompts": 100}
    assert config.model.config == {**plain.model.config, "hidden_size": 32}  # type: ignore[dict-item]
    assert config.optimizer == plain.optimizer


def test_overrides_of_lists_sections_and_nulls() -> None:
    config = load_recipe(
        "demo",
        ["--sft.phases.1.steps", "9", "--sft.betas", "0.9,0.95", "--evaluation.data.split", "train"]
        + ["--critic.config", "null", "--output", "a=b: c", "--logging.sinks", "[tensorboard]"]
        + ["--model.gradient_checkpointing"],
    )
    untouched = load_recipe("demo").sft.phases[0]
    assert config.sft.phases[0] == untouched
    assert config.sft.phases[1].steps == 9
    assert config.sft.betas == (0.9, 0.95)
    assert config.evaluation.data is not None
    assert (config.evaluation.data.split, config.evaluation.data.task) == ("train", "chain_arithmetic")
    assert config.critic.config is None
    assert config.output == "a=b: c"
    assert config.logging.sinks == ["tensorboard"]
    assert config.model.gradient_checkpointing is True
    assert load_recipe("demo", ["--evaluation.data", "null"]).evaluation.data is None
    assert load_recipe("demo", ["--evaluation.data={task: gsm8k}"]).evaluation.data.task == "gsm8k"  # type: ignore[union-attr]
    assert load_recipe("demo", ["--sft.phases=[]"]).sft.phases == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "optimizer.learning_rat=1",
            "optimizer.learning_rat is not an option. Did you mean optimizer.learning_rate or ",
        ),
        ("lr=1", "lr is not an option. Did you mean optimizer.learning_rate or critic.learning_rate?"),
        ("n=4", "Did you mean sampling.samples_per_prompt?"),
        ("sampling.max_tokens=4", "Did you mean sampling.max_response_tokens?"),
        ("--output", "--output has no value: write --output VALUE."),
        ("--sft.betas", "--sft.betas has no value"),
        ("-steps", "'-steps' has a single dash: write --steps."),
        ("learning_rate=1", "Did you mean critic.learning_rate or optimizer.learning_rate?"),
        ("evaluation.data.limits=1", "Did you mean evaluation.data.limit?"),
        ("sft.phases.0.step=1", "sft.phases.0.step is not an option. Did you mean sft.phases.0.steps?"),
        ("sft.phases.2.steps=1", "'2' is no position in the list; there are 0 to 1"),
        ("sft.phases=[3]", "sft.phases.0 is 3, but must be a section of keys."),
        ("sft.phases=3", "sft.phases is 3, but must be a list of sections"),
        ("steps=many", "steps is 'many', but must be a whole number."),
        ("steps=2.5", "steps is 2.5, but must be a whole number."),
        ("steps=null", "steps is 'null', but must be a whole number."),
        ("steps=0", "steps is 0, but must be at least 1"),
        ("data.limit=x", "data.limit is 'x', but must be a whole number or null."),
        ("optimizer.layout=x", "optimizer.layout is 'x', but must be 'sorted' or 'packed'."),
        ("sft.betas=[1]", "sft.betas is [1], but must be a longer list."),
        ("sft.betas=[0.9,1]", "sft.betas.1 is 1, but must be less than 1.0."),
        ("logging.sinks=disk", "logging.sinks.0 is 'disk', but must be 'tensorboard', 'wandb' or 'trackio'."),
        ("sampling.top_p=1.5", "sampling.top_p is 1.5, but must be in (0, 1]."),
        ("threads=0", "threads is 0, but must be at least 1 or null."),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate is nan, but must be greater than 0."),
        ("critic.prior=.inf", "critic.prior is inf, but must be a finite number or null."),
        ("model.trust_remote_code=1", "model.trust_remote_code is 1, but must be true or false."),
        ("model=x", "model is 'x', but must be a section of keys, such as path, revision"),
        ("optimizer.minibatch_size=100", "does not divide a step's 128 sequences"),
    ],
)
def test_mistakes_name_the_key_and_the_value(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("demo", [override])
    assert said in str(error.value)


def test_an_empty_mapping_empties_options_and_leaves_sections_as_they_are() -> None:
    plain = load_recipe("demo")
    assert plain.evaluation.data is not None
    assert plain.evaluation.data.options == {"prompts": 512}
    emptied = load_recipe("demo", {"evaluation": {"data": {"options": {}}}})
    assert emptied.evaluation.data == replace(plain.evaluation.data, options={})
    assert replace(emptied, evaluation=plain.evaluation) == plain
    for overrides in ({"algorithm": {"options": {}}}, {"algorithm.options": {}}, ["--algorithm.options", "{}"]):
        spo = load_recipe("demo_spo", {"algorithm.options.half_life": 0.1})
        assert load_recipe(spo, overrides).algorithm.options == {}
    # Options of another algorithm are refused, so that one has to be able to drop them.
    assert load_recipe(spo, {"algorithm": {"name": "sppo", "options": {}}}).algorithm.name == "sppo"
    for section in ("sampling", "evaluation", "evaluation.data"):
        assert load_recipe("demo", {section: {}}) == plain
    assert load_recipe("demo", {"evaluation.data": None}).evaluation.data is None


def test_a_recipe_empties_the_options_of_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo\nevaluation: {data: {options: {}}}\n", encoding="utf-8")
    config = load_recipe(tmp_path / "mine.yaml")
    assert config.evaluation.data is not None
    assert config.evaluation.data.options == {}


def test_values_from_python_are_what_yaml_would_hold() -> None:
    config = load_recipe(
        "demo",
        {"steps": np.int64(3), "optimizer.learning_rate": np.float32(0.5), "sampling.stop_token_ids": (3, 4)},
    )
    assert (config.steps, config.optimizer.learning_rate, config.sampling.stop_token_ids) == (3, 0.5, [3, 4])
    assert (type(config.steps), type(config.optimizer.learning_rate)) == (int, float)
    for value in (True, "3", 3.0):
        with pytest.raises(ConfigError, match=r"steps is .*, but must be a whole number\."):
            load_recipe("demo", {"steps": value})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("demo", {"steps": 0, "sampling": {"top_p": 2.0, "topp": 1}})
    assert str(error.value) == (
        "steps is 0, but must be at least 1. sampling.top_p is 2.0, but must be in (0, 1]. sampling.topp is not an "
        "option. Did you mean sampling.top_p? `sppo train --help` lists all of them."
    )


def test_a_config_is_a_plain_dataclass_that_is_checked_when_it_is_used() -> None:
    config = load_recipe("demo")
    assert replace(config, steps=5) == load_recipe("demo", {"steps": 5})
    assert replace(config, data=replace(config.data, limit=7)) == load_recipe("demo", {"data.limit": 7})
    wrong = replace(config, optimizer=replace(config.optimizer, layout="x"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"optimizer.layout is 'x', but must be 'sorted' or 'packed'\."):
        load_recipe(wrong)


def test_only_true_or_false_may_lack_a_value() -> None:
    config = load_recipe("demo", ["--model.gradient_checkpointing", "--model.config.tie_word_embeddings", "--steps=3"])
    assert config.model.gradient_checkpointing is True
    assert config.model.config is not None
    assert config.model.config["tie_word_embeddings"] is True
    assert config.steps == 3


def test_paths_are_text(tmp_path: Path) -> None:
    config = load_recipe("demo", {"output": tmp_path, "evaluation": {"data": {"task": "rows", "path": tmp_path / "x"}}})
    assert config.output == str(tmp_path)
    assert config.evaluation.data is not None
    assert config.evaluation.data.path == str(tmp_path / "x")


def test_names_known_elsewhere_lead_to_options_that_exist() -> None:
    keys = [option.key for option in options(Config).values() if not option.is_heading]
    for ours in _KNOWN_ELSEWHERE_AS.values():
        assert set(ours) <= set(keys)
    assert not set(_KNOWN_ELSEWHERE_AS) & {key.rpartition(".")[2] for key in keys if ".N." not in key}


def test_unknown_option_shows_near_keys_rather_than_all() -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("demo", ["--sampling.temprature", "1"])
    assert str(error.value).count("sampling.") == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [", "is not YAML that can be read"),
        ("- steps", "options are a mapping of keys"),
        ("steps: 3\nsteps: 4", "key 'steps' is given twice"),
        ("optimiser:\n  epochs: 1", "optimiser is not an option. Did you mean optimizer?"),
        ("data:\n  path: 3", "data.path is 3, but must be text or null"),
        ("", "model.path is not set"),
    ],
)
def test_mistakes_in_a_file(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_recipe(tmp_path / "mine.yaml")
    assert said in str(error.value)


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    text = "model: {path: m, config: {rms_norm_eps: 1e-6}}\noptimizer: {learning_rate: 2e-6}\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    config = load_recipe(tmp_path / "mine.yaml")
    assert config.optimizer.learning_rate == 2e-6
    assert config.model.config == {"rms_norm_eps": 1e-6}


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match=r"'dmo' is not a built-in recipe. Did you mean 'demo'.*ends in .yaml"):
        load_recipe("dmo")
    with pytest.raises(ConfigError, match=r"There is no recipe file missing.yaml"):
        load_recipe("missing.yaml")


def test_a_run_folder_is_no_recipe_but_holds_one(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(ConfigError, match=r"is a run folder\. To go on with it, .*--resume"):
        load_recipe(str(tmp_path))


def test_an_old_option_that_changed_no_result_is_no_reason_to_refuse_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\noptimizer: {logprob_chunk_tokens: 1024}\n")
    assert load_recipe(path) == load_recipe("demo")


LEVELS, VALUES = "[" * 20_000, "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"steps: 3\ndata: {LEVELS}", "more than 50 levels deep at line 2, column 56"),
        ("{a: " * 20_000, "more than 50 levels deep at line 1"),
        ("- " * 20_000 + "x", "more than 50 levels deep at line 1"),
        ("x0: &x0 [a, b, c]\n" + VALUES, "more than 10,000 values, with its aliases at line 5"),
        ("data: &a [*a]", "an alias within what it stands for at line 1, column 11"),
        ("data: &a {b: {c: *a}}", "an alias within what it stands for"),
        ("a" * 200_001, "has 200,001 characters, but options have 200,000 at most"),
        ("output: 2024-99-99", "'2024-99-99' can't be read as timestamp: month must be in 1..12 at line 1"),
        (f"steps: {'9' * 5000}", "can't be read as int"),
        ("steps: !!bool 3", "'3' can't be read as bool"),
        ("steps: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("output: \xe9".encode("latin-1"), "is not text in UTF-8"),
        ("extends: mine.yaml", "mine.yaml extends itself: mine.yaml extends mine.yaml."),
    ],
)  # fmt: skip
def test_a_file_that_no_options_can_be_is_told_with_its_place(text, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        load_recipe("mine.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("mine.yaml")
    if "extends" in said:
        return
    Path("config.yaml").write_bytes(Path("mine.yaml").read_bytes())
    with pytest.raises(RunFolderError, match=r"config\.yaml"):
        read_config(tmp_path)


def test_aliases_are_read_and_what_they_stand_for_is_overridden_in_one_place(tmp_path) -> None:
    text = "extends: demo\ndata: &data {task: rows, path: a.jsonl, options: {}}\nevaluation: {data: *data}\n"
    (tmp_path / "mine.yaml").write_text(text)
    config = load_recipe(tmp_path / "mine.yaml", {"data.path": "b.jsonl"})
    assert (config.data.path, config.evaluation.data.path) == ("b.jsonl", "a.jsonl")


def test_every_key_of_data_has_its_help_whichever_class_it_stands_in():
    for key, option in options(Config).items():
        if key.startswith("data.") or key.startswith("evaluation.data."):
            assert option.help, key
    assert options(Config)["data.sources.N.path"].help == options(Config)["data.path"].help
