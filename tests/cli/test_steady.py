"""A display never ends a run: its reader may go away, its disk may be full, its terminal may be gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sppo.config.recipes import to_yaml
from sppo.runs.folder import read_summary
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]


def command(tmp_path, **options):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_config(tmp_path / "run", **options)), encoding="utf-8")
    return [sys.executable, "-m", "sppo", "train", str(recipe), "--threads", "1"]


def test_a_reader_that_goes_away_leaves_the_run_to_end_well(tmp_path):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()  # as head -n 1 does
    said = process.stderr.read().decode()
    assert process.wait() == 0, said
    assert "Error" not in said
    assert read_summary(tmp_path / "run")["steps"] == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_the_screen_leaves_the_run_to_end_well(tmp_path):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command(tmp_path), cwd=ROOT, stdout=full, stderr=full, check=False)
    assert ended.returncode == 0
    assert read_summary(tmp_path / "run")["steps"] == 3


def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([*command(tmp_path), "--steps", "0"], cwd=ROOT, stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert ended.returncode == 2
