"""What the prompt critic is worth: SPPO with its choice of prompts against other methods at their best.

    python benchmarks/value.py plan primary                    # its runs, and at most how many CPU hours they take
    python benchmarks/value.py tune sppo grpo_4 rloo_4         # the same trials for each method, on seeds of their own
    python benchmarks/value.py cap primary                     # from ours on the tuning seeds
    python benchmarks/value.py register primary                # writes value_plan.json; commit it
    python benchmarks/value.py run primary                     # refuses to differ from it; go on with the same command
    python benchmarks/value.py report primary                  # tables, picture and JSON of what is there
    python benchmarks/value.py critic primary                  # V against solve rates of 64 samples
    python benchmarks/value.py noise primary                   # the gradient's noise scale at the warm start

A star, not a grid: one primary cell with all methods, from which each axis is varied alone. What is run stands in
value_parts/plan.py. Runs go to --workers processes with one thread each; those that are done are not repeated. All
methods of a seed start from the same model, made once.

Costs, in processor seconds of a shared AMD EPYC with more programs than cores: a run 1 s, of which loading .4 and
pass@8 .5, and 2.5 (groups) to 3.8 ms (sppo) a response, evaluations included, and a third less on free cores; a warm
start 75. At most, where no run gets to 90% before its cap: primary (128 runs) 1.8 CPU hours, second (88) 1.2, star
(162) 1.9; `plan` says it. `critic` takes some 2 minutes a run, `noise` 15 s a cell and method.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import machine, print_machine
from value_parts import plan
from value_parts.belief_quality import measure_critics
from value_parts.experiment import jobs_of, warm_starts
from value_parts.noise import measure_noise
from value_parts.registered import read_tuned, register, registered, require_registered
from value_parts.report import write_report
from value_parts.running import run_all
from value_parts.tuning import find_cap, grid, tune

from sppo.errors import SppoError
from sppo.runs.lock import lock

HERE = Path(__file__).resolve().parent


def main() -> int:
    arguments = options().parse_args()
    print_machine(machine(1))
    try:
        with lock(arguments.output, say):
            return int(arguments.act(arguments) or 0)
    except SppoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", type=Path, default=Path("runs/value"), help="folder of runs (default: %(default)s)")
    shared.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    shared.add_argument("--plan", type=Path, default=HERE / "value_plan.json", help="registered plans")
    shared.add_argument("--tuned", type=Path, default=HERE / "value_tuned.json", help="tuned settings and caps")
    commands = top.add_subparsers(required=True)

    def command(name: str, act: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[shared], help=text, description=text)
        made.set_defaults(act=act)
        return made

    for name, act, text in (
        ("plan", show_plan, "print an experiment's runs, and at most how many CPU hours they take"),
        ("register", do_register, "write an experiment's plan down, to be committed before it is run"),
        ("run", do_run, "run what a registered experiment lacks, and report"),
        ("report", do_report, "tables, picture and JSON of the runs that are there"),
    ):
        made = command(name, act, text)
        made.add_argument("experiment", choices=plan.EXPERIMENTS)
        if name == "register":
            made.add_argument("--replace", action="store_true", help="where nothing has been run of the old plan")
    made = command("tune", do_tune, "try learning rates and the like on tuning seeds, and keep the best")
    made.add_argument("methods", nargs="+", choices=plan.METHODS, metavar="METHOD")
    made.add_argument("--cell", default="primary", choices=plan.CELLS, help="settings hold for cells of its batch size")
    made.add_argument("--rates", type=numbers, default=list(plan.TUNING_RATES), help="learning rates")
    made.add_argument("--warmups", type=numbers, default=list(plan.TUNING_WARMUPS), help="steps of warm-up")
    made.add_argument("--negative-shares", type=numbers, default=[], help="of algorithm.negative_share; default: 1")
    made.add_argument("--seeds", type=whole, default=list(plan.TUNING_SEEDS))
    made = command("cap", do_cap, "run ours on the tuning seeds in these cells, for their caps")
    made.add_argument("cells", nargs="+", choices=plan.CELLS, metavar="CELL")
    made.add_argument("--method", default="sppo", choices=plan.METHODS)
    made.add_argument("--seeds", type=whole, default=list(plan.TUNING_SEEDS))
    made = command("critic", do_critic, "hold V against solve rates of many samples, early, midway and at the end")
    made.add_argument("cells", nargs="+", choices=plan.CELLS, metavar="CELL")
    made.add_argument("--methods", nargs="+", default=["sppo"], choices=plan.METHODS, metavar="METHOD")
    made.add_argument("--seeds", type=whole, default=[0, 1, 2])
    made.add_argument("--prompts", type=int, default=200, help="of the pool, and held out")
    made.add_argument("--samples", type=int, default=64, help="of each prompt")
    made.add_argument("--fit-prompts", type=int, default=400, help="others of the pool, to fit a critic on offline")
    made = command("noise", do_noise, "the gradient's noise scale at the warm start")
    made.add_argument("cells", nargs="+", choices=plan.CELLS, metavar="CELL")
    made.add_argument(
        "--methods", nargs="+", default=["sppo_uniform", "rloo_4"], choices=plan.METHODS, metavar="METHOD"
    )
    made.add_argument("--seeds", type=whole, default=[0])
    return top


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def whole(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def say(text: str) -> None:
    print(text, flush=True)


def show_plan(arguments: argparse.Namespace) -> None:
    tuned = read_tuned(arguments.tuned)
    jobs = jobs_of(arguments.experiment, tuned, arguments.output, untuned=True)
    for job in jobs:
        say(f"{job.folder}: at most {job.cap} responses")
    starts = warm_starts(jobs, arguments.output)
    most = sum(job.cap * plan.SECONDS_PER_RESPONSE + plan.SECONDS_PER_RUN for job in jobs)
    say(f"{len(jobs)} runs, at most {most / 3600:.1f} CPU hours; {len(starts)} warm starts")


def do_register(arguments: argparse.Namespace) -> None:
    tuned = read_tuned(arguments.tuned)
    jobs_of(arguments.experiment, tuned, arguments.output)
    register(arguments.experiment, arguments.plan, tuned, replace=arguments.replace)
    say(f"{arguments.plan} holds the plan of {arguments.experiment}: commit it before `value.py run`.")


def do_run(arguments: argparse.Namespace) -> int:
    tuned = read_tuned(arguments.tuned)
    require_registered(arguments.experiment, arguments.plan, tuned)
    jobs = jobs_of(arguments.experiment, tuned, arguments.output)
    errors = run_with_starts(jobs, arguments)
    do_report(arguments)
    return len(errors) > 0


def run_with_starts(jobs: Sequence, arguments: argparse.Namespace) -> list[str]:
    run_all(warm_starts([job for job in jobs if not job.is_done], arguments.output), arguments.workers, say)
    return run_all(jobs, arguments.workers, say)


def do_report(arguments: argparse.Namespace) -> None:
    entry, commit = registered(arguments.experiment, arguments.plan)
    say(write_report(arguments.experiment, entry, arguments.output, machine(1), commit))


def do_tune(arguments: argparse.Namespace) -> None:
    tried = grid(arguments.rates, arguments.warmups, arguments.negative_shares)
    tune(arguments, tried, lambda jobs: run_with_starts(jobs, arguments), say)


def do_cap(arguments: argparse.Namespace) -> None:
    find_cap(arguments, lambda jobs: run_with_starts(jobs, arguments), say)


def do_critic(arguments: argparse.Namespace) -> None:
    measure_critics(arguments, lambda jobs: run_with_starts(jobs, arguments), say)


def do_noise(arguments: argparse.Namespace) -> None:
    measure_noise(arguments, lambda jobs: run_with_starts(jobs, arguments), say)


if __name__ == "__main__":
    sys.exit(main())
