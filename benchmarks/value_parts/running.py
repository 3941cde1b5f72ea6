"""Many short runs in few processes: torch is imported once a worker, and each run leaves an ordinary run folder.

A run ends at its target or its cap (`StopWhenDone`), without a checkpoint to go on from: one that was killed has no
summary.json, and is begun anew. What is kept of a run is config.yaml, metrics.jsonl and summary.json.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sppo.config import Config
from sppo.config.compatibility import config_differences, written_config
from sppo.errors import RunFolderError, TrainingError
from sppo.runs.files import read_json, write_json
from sppo.runs.folder import read_summary
from sppo.runs.progress import NoProgress

FAILED = "failed.json"
"""In a run's folder, instead of its summary, where training could not go on: it never got there."""
_NOT_SPENT = ("load", "warm_start", "evaluate", "checkpoint", "total")
"""Phases of a run before its first step that are no part of its cost."""


@dataclass(frozen=True)
class Job:
    """One run, planned."""

    config: Config
    cap: int = 0
    """Most responses; 0: a warm start."""
    target: float = 0.9
    """Held-out accuracy to end at."""
    pass_at: tuple[int, int] = (0, 0)
    """Prompts and k of pass@k at the end; (0, 0): not measured."""
    keep_checkpoints: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    @property
    def is_done(self) -> bool:
        """Whether it has ended, at the target or at a cap as large as this one.

        Raises RunFolderError where it was made with other options.
        """
        summary = read_summary(self.folder)
        if not (summary or read_json(self.folder / FAILED)):
            return False
        if self.cap and summary and summary["ended"]["why"] == "cap" and summary["responses"] < self.cap:
            return False
        differences = config_differences(written_config(self.folder), self.config)
        if differences:
            raise RunFolderError(
                f"{self.folder} was made with other options: {'; '.join(differences)}. Give another --output, or "
                "remove it."
            )
        return True


class Done(Exception):
    """A run is where it has to go."""


class StopWhenDone(NoProgress):
    """Ends a run once the target is reached, by the rule that costs are measured by, or the cap is spent."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.spent: list[float] = []
        self.accuracy: list[float] = []
        self.why = "cap"

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        from value_parts.curves import crossing

        responses = metrics.get("responses/total", 0.0)
        if "eval/accuracy" in metrics and (not self.spent or responses > self.spent[-1]):
            self.spent.append(responses)
            self.accuracy.append(metrics["eval/accuracy"])
            if step and crossing(self.spent, self.accuracy, self.job.target) is not None:
                self.why = "target"
                raise Done
        if responses >= self.job.cap:
            raise Done


def run_all(jobs: Sequence[Job], workers: int, tell: Callable[[str], None]) -> list[str]:
    """Makes the warm starts that the jobs lack, then runs what is not done; returns what went wrong.

    Args:
        jobs: in the order to run them.
        workers: processes.
        tell: told of each run that ends.

    Raises:
        RunFolderError: a finished run that was made with other options.
    """
    left = [job for job in jobs if not job.is_done]
    if not left:
        return []
    tell(f"{len(jobs) - len(left)} of {len(jobs)} runs are done already, {len(left)} are left")
    began, errors = time.perf_counter(), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare) as pool:
        waiting = [pool.submit(run, job) for job in left]
        try:
            for number, (job, error) in enumerate(_ended(waiting, left), start=1):
                if error:
                    errors.append(f"{job.folder}: {error}")
                hours = (time.perf_counter() - began) / number * (len(left) - number) / 3600
                tell(f"{number}/{len(left)} {job.folder}: {error or _outcome(job)}; {hours:.2f} h left")
        except BaseException:
            # A run that is cut short is begun anew, so nothing is lost but its own seconds.
            for process in multiprocessing.active_children():
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return errors


def _ended(waiting: Sequence[Future[str]], jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    of = dict(zip(waiting, jobs, strict=True))
    while of:
        done, _ = wait(of, return_when=FIRST_COMPLETED)
        for future in done:
            # A worker's fault costs its own run alone: the others go on, and it is told at the end.
            error = future.exception()
            if isinstance(error, Exception) and not isinstance(error, BrokenExecutor):
                yield of.pop(future), f"{type(error).__name__}: {error}"
            else:
                yield of.pop(future), future.result()


def _outcome(job: Job) -> str:
    summary = read_summary(job.folder)
    if not job.cap:
        return f"warm start, accuracy {summary['accuracy_after']:.3f}"
    ended = summary["ended"]
    return f"{ended['why']} after {summary['responses']} responses, {ended['wall']:.1f} s"


def _prepare() -> None:
    """Imports what every run needs, keeps libraries quiet, and ends with the process that started it."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run(job: Job) -> str:
    """Makes one run in this process; returns why training could not go on, or ""."""
    from sppo.commands.train import fine_tune

    shutil.rmtree(job.folder, ignore_errors=True)
    if not job.cap:
        fine_tune(job.config)
        return ""
    try:
        _train(job)
    except TrainingError as error:
        write_json(job.folder / FAILED, {"error": str(error)})
        return str(error)
    if not job.keep_checkpoints:
        shutil.rmtree(job.folder / "checkpoints")
    return ""


def _train(job: Job) -> None:
    """As `sppo.commands.train.train`, but that it ends early, and measures pass@k with the model as it is then."""
    from sppo.training import loop, start
    from sppo.training.build import open_run
    from sppo.training.given import Given

    stop = StopWhenDone(job)
    wall, processor, load = time.perf_counter(), time.process_time(), os.getloadavg()
    with open_run(job.config, Given(), resume=False, progress=stop) as (run, parts, recorder):
        start.begin(run, parts, recorder)
        seconds = sum(took for name, took in run.state.seconds.items() if name not in _NOT_SPENT)
        before = {"responses": run.state.responses, "tokens": run.state.tokens_sampled, "seconds": seconds}
        try:
            loop.train(run, parts, recorder)
        except Done:
            if job.keep_checkpoints:
                loop.save(run, parts, recorder)
        trained = time.perf_counter() - wall, time.process_time() - processor
        solved = _pass_at_k(parts, *job.pass_at) if job.pass_at[0] else None
        ended = {
            "why": stop.why,
            "before": before,
            "wall": round(time.perf_counter() - wall, 3),
            # Below 1 the machine was busy with other programs, and seconds are too many by as much.
            "processor_share": round(trained[1] / trained[0], 3),
            "load": [round(load[0], 2), round(os.getloadavg()[0], 2)],
            "pass_at_k": solved,
        }
        names = {"seed": job.config.seed, "algorithm": job.config.algorithm.name, "output": job.config.output}
        loop.finish(run, parts, recorder, **names, ended=ended)


def _pass_at_k(parts: Any, prompts: int, k: int) -> dict[str, float]:
    """pass@1 and pass@k of k samples to each of the first held-out prompts."""
    held_out = replace(parts.held_out, prompts=parts.held_out.prompts[:prompts])
    rates = held_out.evaluate(k, parts.policy.version).solve_rates
    return {
        "k": k,
        "prompts": len(rates),
        "pass_1": sum(rates) / len(rates),
        "pass_k": sum(r > 0 for r in rates) / len(rates),
    }
