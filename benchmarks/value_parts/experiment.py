"""From an experiment to its runs, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo.config.compatibility import config_differences, written_config
from sppo.errors import RunFolderError
from sppo.runs.folder import read_summary
from sppo.training.build import check
from sppo.training.given import Given
from value_parts import plan
from value_parts.configs import run_config, warm_start_config
from value_parts.registered import compose
from value_parts.running import Job


def jobs_of(name: str, tuned: Mapping[str, Any], results: Path, *, untuned: bool = False) -> list[Job]:
    """The runs of an experiment: cell by cell, seed by seed, so that methods to be compared run near to one another.

    Raises:
        SppoError: options that can't work, before any run.
    """
    entry = compose(name, tuned, untuned=untuned)
    return [
        job_of(cell, method, seed, settings, described["cap"] or plan.LARGEST_CAP, results)
        for cell, described in entry["cells"].items()
        for seed in entry["seeds"]
        for method, settings in described["methods"].items()
    ]


def job_of(
    cell: str,
    method: str,
    seed: int,
    settings: Mapping[str, Any],
    cap: int,
    results: Path,
    kind: str = "runs",
    **more: Any,
) -> Job:
    """One run of a method in a cell."""
    config = run_config(plan.CELLS[cell], plan.METHODS[method], seed, settings, cap, results, kind)
    return Job(config, cap, **{"target": plan.TARGETS[-1], "pass_at": (plan.PASS_PROMPTS, plan.PASS_K), **more})


def warm_starts(jobs: Sequence[Job], results: Path) -> list[Job]:
    """The warm starts of these runs, one a name and seed.

    Raises:
        RunFolderError: one is there that was made otherwise.
    """
    needed = {}
    for job in jobs:
        # RESULTS/warm_start/NAME/seed_N/checkpoints/step_0/policy
        start = Path(str(job.config.model.path)).parents[2]
        needed[start] = warm_start_config(start.parent.name, job.config.seed, results)
    for folder, config in needed.items():
        if read_summary(folder) and (changed := config_differences(written_config(folder), config)):
            raise RunFolderError(f"{folder} was made with other options: {'; '.join(changed)}. Give another --output.")
    return [Job(check(config, Given())) for config in needed.values()]
