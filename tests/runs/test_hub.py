"""Names that are nothing here: the hub is asked once whether it answers, and then not again and again."""

from __future__ import annotations

import os

import pytest
from huggingface_hub import constants

from sppo.config import ModelConfig
from sppo.errors import ModelError
from sppo.models.loading import load_model_config
from sppo.runs import hub


@pytest.fixture
def silent(monkeypatch):
    """A hub that doesn't answer; the list of what it was asked."""
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append((address, timeout))
            raise OSError("Name or service not known")

    hub._answers.cache_clear()
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    yield asked
    hub._answers.cache_clear()


def test_a_silent_hub_is_asked_once(silent, tmp_path):
    hub.ask_the_hub(tmp_path)  # which is here
    assert silent == []
    for name in ("some/model", "other/model"):
        with pytest.raises(ModelError, match=f"'{name}' can't .*the hub is not asked: no network, or HF_HUB_OFFLINE"):
            load_model_config(ModelConfig(path=name))
    assert silent == [(constants.ENDPOINT, 5.0)]
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_who_says_that_there_is_no_network_is_believed(silent, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.ask_the_hub("some/model")
    assert silent == []


def test_what_lies_here_with_nearly_the_name_is_named(silent, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"did you mean runs/mine\?"):
        load_model_config(ModelConfig(path="runs/mne"))
