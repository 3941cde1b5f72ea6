"""sppo prefit: what it prints at the end can be run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sppo.cli import main
from sppo.config.recipes import to_yaml
from sppo.runs.folder import read_metrics
from tests.conftest import tiny_config


def test_the_command_that_it_names_trains_with_the_critic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_config(tmp_path / "made", steps=1, critic__prefit__samples=8)), encoding="utf-8")
    assert main(["prefit", str(recipe)]) == 0
    named = next(line for line in capsys.readouterr().out.splitlines() if "sppo train RECIPE" in line)
    words = {"RECIPE": str(recipe), "NAME": str(tmp_path / "run")}
    assert main([words.get(word, word) for word in shlex.split(named)[1:]]) == 0
    assert read_metrics(tmp_path / "run")[0]["responses/total"] == 8
