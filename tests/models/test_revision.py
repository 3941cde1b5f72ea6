"""Which version of a hub model is read: a cache of two commits, as the hub's client keeps it, and no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sppo.config import CriticConfig, ModelConfig
from sppo.config.recipes import load_recipe
from sppo.errors import ConfigError
from sppo.runs.files import read_json
from tests.conftest import begun

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
READ = """
import json
from sppo.config import ModelConfig
from sppo.models.loading import commit_of, load_model_config
models = [ModelConfig(path="someone/model", revision=name) for name in (None, "v1", %r)]
print(json.dumps([[load_model_config(model).hidden_size, commit_of(model)] for model in models]))
"""


def cache_of_two(home: Path) -> None:
    """A cache in which main is the newer commit, and v1 the older one."""
    model = home / "hub" / "models--someone--model"
    for commit, size in ((OLD, 16), (NEW, 32)):
        folder = model / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": size}))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(NEW)
    (model / "refs" / "v1").write_text(OLD)


def test_a_revision_is_a_branch_a_tag_or_a_commit(tmp_path):
    cache_of_two(tmp_path)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    printed = subprocess.run(
        [sys.executable, "-c", READ % OLD], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed.splitlines()[-1]) == [[32, NEW], [16, OLD], [16, OLD]]


@pytest.mark.parametrize("key", ["model", "critic"])
def test_a_folder_has_no_revision(tmp_path, key):
    with pytest.raises(ConfigError, match=rf"{key}.revision is of a model on the hub, but {key}.path is the folder"):
        load_recipe("demo", {f"{key}.path": str(tmp_path), f"{key}.config": None, f"{key}.revision": "main"})
    with pytest.raises(ConfigError, match=rf"but {key}.path names none"):
        load_recipe("demo", {f"{key}.revision": "main"})


def test_commits_are_noted_in_the_run_folder(tmp_path):
    folder = begun(tmp_path / "run", {})
    folder.note_revisions({})
    assert not (folder.path / "revisions.json").exists()
    folder.note_revisions({"someone/model": OLD})
    folder.note_revisions({"someone/data": NEW})  # gone on with, from a checkpoint
    assert read_json(folder.path / "revisions.json") == {"someone/model": OLD, "someone/data": NEW}


def test_the_default_is_the_newest():
    assert ModelConfig().revision is CriticConfig().revision is None
