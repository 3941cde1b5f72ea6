"""What the benchmarks share: their options, what they say of the machine, taking turns, and the demo's warm start."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from sppo.commands.train import fine_tune
from sppo.config import Config
from sppo.config.recipes import load_recipe

PACKAGES = ("sppo", "torch", "transformers", "trl")


def parser(description: str | None, *, repeats: int | None = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has; `repeats` is None where nothing takes turns."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="file to write the results to")
    if repeats is not None:
        options.add_argument(
            "--repeats", type=int, default=repeats, help="timed rounds of each, at least 3 (default: %(default)s)"
        )
    options.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses, checks what all benchmarks check, and sets the number of threads."""
    arguments = options.parse_args()
    if getattr(arguments, "repeats", 3) < 3:
        options.error(f"--repeats is {arguments.repeats}, but a median wants at least 3.")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        options.error(f"--json is {arguments.json}, but there is no folder {arguments.json.absolute().parent}.")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return arguments


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on, with versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": threads,
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def print_machine(described: Mapping[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in described.items()), flush=True)


def write_json(path: Path | None, described: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps({"machine": dict(described), "results": list(results)}, indent=2) + "\n")


def take_turns(contenders: Mapping[str, Callable[[int], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; they take turns, after one untimed round each.

    Args:
        contenders: by name; each is called with the round's number, 0 for the untimed one.
        repeats: timed rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run(repeat)
            took = time.perf_counter() - began
            if repeat:
                seconds[name].append(took)
    return seconds


def medians(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in measured.items()}


def peak_bytes() -> int:
    """High-water mark of this process's memory."""
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def demo_config(**overrides: Any) -> Config:
    """The recipe `demo`; keyword a__b sets option a.b."""
    return load_recipe("demo", {name.replace("__", "."): value for name, value in overrides.items()})


def warm_start(folder: Path, seed: int = 0) -> Path:
    """The demo's policy after fine-tuning, made in `folder` (`sppo sft demo --output FOLDER`) unless it is there."""
    policy = folder / "checkpoints" / "last" / "policy"
    if not policy.is_dir():
        print(f"making the warm start {folder} ...", flush=True)
        fine_tune(replace(demo_config(), output=str(folder), seed=seed))
    return policy


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
