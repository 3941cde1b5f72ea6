"""A command of `sppo` in a process of its own, which notes the most memory that it held.

`python -m sppo.runner FILE train recipe.yaml` is `python -m sppo train recipe.yaml`, and writes FILE at the end.
Beside a run folder NAME, which has to be empty when `sppo train` begins, stand:

    NAME.yaml           its recipe
    NAME.log            what its last process printed
    NAME.memory.json    the most memory that any of its processes held
"""

from __future__ import annotations

import resource
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sppo.config import Config
from sppo.config.recipes import to_yaml
from sppo.config.trust import requests
from sppo.runs import ranks
from sppo.runs.files import read_json, write_json, write_text
from sppo.runs.folder import read_metrics
from sppo.runs.progress import Progress

_LONGEST_ERROR = 300
"""Characters of a failed run's last line that are shown; transformers lists hundreds of models in one line."""


def run_command(command: str, config: Config, progress: Progress) -> str | None:
    """Runs `sppo COMMAND` on the config in a process of its own; returns the last line it said if it failed."""
    folder = Path(config.output)
    recipe, log = _beside(folder, ".yaml"), _beside(folder, ".log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, to_yaml(config))
    # What only a person may say: the one who gave this config has said it.
    granted = [f"--{key}={'true' if value is True else value}" for key, value in requests(config).items()]
    arguments = [command, str(recipe), *granted, *(["--resume"] if (folder / "config.yaml").is_file() else [])]
    code = run_process(arguments, log, _beside(folder, ".memory.json"), _teller(folder, progress))
    if code == 0:
        return None
    said = log.read_text(encoding="utf-8").split("\n")
    last = next((line.removeprefix("error: ") for line in reversed(said) if line.strip()), f"exit code {code}")
    return last if len(last) <= _LONGEST_ERROR else f"{last[:_LONGEST_ERROR]}... (the rest is in {log})"


def _teller(folder: Path, progress: Progress) -> Callable[[], None]:
    """Returns a function that passes on the newest step that the run has recorded, if it is a new one."""
    told = 0

    def tell() -> None:
        nonlocal told
        lines = read_metrics(folder)
        if lines and lines[-1]["step"] > told:
            told = lines[-1]["step"]
            progress.update(told, {name: value for name, value in lines[-1].items() if name != "step"})

    return tell


def peak_memory(folder: Path) -> dict[str, int | None]:
    """Returns peak_memory_bytes and peak_gpu_bytes of a run, None where unknown; empty where no process ended yet."""
    return read_json(_beside(folder, ".memory.json")) or {}


def _beside(folder: Path, ending: str) -> Path:
    """A file beside a run folder, which must be empty when `sppo train` begins."""
    return folder.with_name(folder.name + ending)


def run_process(arguments: Sequence[str], log: Path, memory: Path, watch: Callable[[], None]) -> int:
    """Runs `sppo` with these arguments in a new process and returns its exit code.

    Args:
        arguments: of `sppo`.
        log: gets what it prints.
        memory: gets its peak memory.
        watch: called about once a second.
    """
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*ranks.python(), "-m", "sppo.commands.runner", str(memory), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    return process.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    watch()
        except KeyboardInterrupt:
            # The terminal sent it to the run too, which ends its step and saves; a second one stops both at once.
            process.wait()
            raise
        finally:
            process.kill()


def measured_run(memory: Path, arguments: Sequence[str]) -> None:
    """Runs `python -m sppo ARGUMENTS` in this process, and notes the most memory it held, which only it can tell.

    On Linux a process's peak is never less than what its parent held when it was started; the parent here has not
    loaded any model.
    """
    sys.argv = ["sppo", *arguments]
    try:
        runpy.run_module("sppo", run_name="__main__", alter_sys=True)
    finally:
        import torch

        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        # The kernel counts in KiB; macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        before = read_json(memory) or {}
        peaks = {"peak_memory_bytes": resident, "peak_gpu_bytes": gpu}
        most = {name: max(now or 0, before.get(name) or 0) or None for name, now in peaks.items()}
        write_json(memory, most)


if __name__ == "__main__":
    measured_run(Path(sys.argv[1]), sys.argv[2:])
