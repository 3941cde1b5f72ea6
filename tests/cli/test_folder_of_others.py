"""A folder that the command is started in may hold modules of a stranger's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sppo

SOURCE = Path(sppo.__file__).parents[1]
TORCHRUN = ["train", "demo", "--print_config", "--launcher", "torchrun", "--nproc-per-node", "2"]
PROGRAMS = {
    "torchrun": f"import sys; from sppo.cli import main; sys.exit(main({TORCHRUN}))",
    "compare": "import pathlib, sys; from sppo.commands.runner import run_process\n"
    "sys.exit(run_process(['recipes'], pathlib.Path('log'), pathlib.Path('memory.json'), lambda: None))",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_process_of_ours_looks_for_modules_there(program, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sppo").write_text(program)
    place = tmp_path / "theirs"
    place.mkdir()
    for name in ("yaml", "rich", "torch", "sppo", "numpy"):
        (place / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, tmp_path / "bin" / "sppo"], cwd=place, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 0, done.stderr
