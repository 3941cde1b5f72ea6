"""--dry-run: all that can be refused without weights is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sppo.commands.plan import plan
from sppo.config import CriticConfig, to_dict
from sppo.errors import ConfigError, ModelError, RunFolderError
from tests.conftest import begun, tiny_config


def test_the_plan_leaves_nothing_behind(tmp_path):
    rows = dict(plan(tiny_config(tmp_path / "run")))
    assert rows["run folder"] == str(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_run_folder_is_checked(tmp_path):
    config = tiny_config(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        plan(config, resume=True)
    begun(tmp_path / "run", to_dict(config), step=4)
    with pytest.raises(RunFolderError, match="exists already"):
        plan(config)
    plan(replace(config, steps=4), resume=True)
    with pytest.raises(RunFolderError, match="made with another config"):
        plan(replace(config, seed=1), resume=True)
    with pytest.raises(ConfigError, match="at step 4 already"):
        plan(replace(config, steps=3), resume=True)


def test_the_reward_function_and_the_critic_are_checked(tmp_path):
    config = tiny_config(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data.reward is 'nowhere.py:f', but there is no file"):
        plan(replace(config, data=replace(config.data, reward="nowhere.py:f")))
    empty = tmp_path / "empty"
    empty.mkdir()
    for critic, key in (
        (CriticConfig(path=str(empty), minibatch_size=8), "critic.path"),
        (replace(config.critic, tokenizer=str(empty)), "critic.tokenizer"),
    ):
        with pytest.raises(ModelError, match=f"{key} '.*' can't be loaded .a folder without config.json"):
            plan(replace(config, critic=critic))
