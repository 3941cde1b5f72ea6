"""What the README and the project's files say of the house is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_tree_names_what_is_there():
    tree = README.partition("\n## The tree\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"^ {6}(\w+/?\.?\w*) ", tree, re.MULTILINE))
    source = ROOT / "src" / "sppo"
    rooms = {f"{path.name}/" for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in source.glob("*.py") if not path.name.startswith("_")}
    assert named == rooms | files


def test_the_commands_of_the_readmes_tree_are_those_that_there_are():
    from sppo.cli import COMMANDS

    line = re.search(r"^ {6}cli/ +sppo (.*)$", README, re.MULTILINE)
    assert line is not None
    assert set(line[1].split(", ")) == set(COMMANDS)


def test_the_oldest_python_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', project)
    assert oldest is not None
    minor = oldest[1]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'target-version = "py3{minor}"' in project
    assert f'python_version = "3.{minor}"' in project
    assert f"(3, {minor})" in makefile
    assert f"Python 3.{minor} or newer" in makefile
    assert f"--python-version 3.{minor} " in makefile
    assert f"Python 3.{minor} or newer" in README
