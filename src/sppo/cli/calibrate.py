"""`sppo calibrate RUN`: V(prompt) of a run's critic against the solve rates of many samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.cli import launch
from sppo.cli.checks import checkpoint_name, require_writable, whole_number, write_json
from sppo.cli.options import parse, print_help, wants_help
from sppo.errors import ConfigError
from sppo.runs import ranks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

USAGE = (
    "sppo calibrate RUN [--prompts N] [-n N] [--checkpoint best|last|step_N] [--anew] [--json FILE] [--key value ...]"
)
FLAGS = {
    "RUN": "A run folder with a V(prompt): of sppo, of spo (on prompts it has seen), or of another algorithm whose "
    "prompts a critic chose.",
    "--prompts N": "Held-out prompts of the run to sample, drawn at random; where the critic has history, as many of "
    "the pool, too. Default: 200.",
    "-n N, --samples_per_prompt N": "Responses to each, at least 2. Default: 64.",
    "--checkpoint best|last|step_N": "Which of the run's checkpoints. Default: last.",
    "--anew": "Throw away what an earlier calibration with other settings left, instead of refusing.",
    "--json FILE": "Write the measures to a file too.",
}
ABOUT = (
    "Samples responses to held-out prompts as in training, and holds the critic's V against them: correlations, Brier "
    "scores, calibration error and AUROC with 95% intervals, and a picture, in RUN/calibration/CHECKPOINT. A critic "
    "with history is measured with and without it, on prompts of the pool. Stopped, it goes on where it was."
)


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, ABOUT, {**FLAGS, **launch.FLAGS}, arguments)
        return 0
    spelled = ["--samples_per_prompt" if argument == "-n" else argument for argument in arguments]
    given = parse(
        spelled,
        USAGE,
        positional="RUN",
        switches=("anew",),
        settings=("prompts", "samples_per_prompt", "checkpoint", "json"),
    )
    path = given.positional or ""
    folder = Path(path).expanduser()
    if (folder / "state.json").is_file():
        raise ConfigError(
            f"{path} is a checkpoint. Give its run, and the checkpoint's name: sppo calibrate {folder.parent.parent} "
            f"--checkpoint {folder.name}"
        )
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{path} is no run folder (it has no config.yaml). Give the folder of a run, as of sppo or spo."
        )
    if any(override.startswith("--output") for override in given.overrides):
        raise ConfigError(f"--output means nothing here: the results go into {folder / 'calibration'}.")
    checkpoint = checkpoint_name(given.settings)
    prompts = whole_number(given.settings, "prompts") or 200
    samples = whole_number(given.settings, "samples_per_prompt", least=2) or 64
    if "json" in given.settings:
        require_writable("--json", Path(given.settings["json"]))
    from sppo.config.evaluation import evaluation_config

    config, notes = evaluation_config(path, None, given.overrides)
    from rich.markup import escape

    from sppo.cli.console import steady_screen
    from sppo.cli.progress import make_progress
    from sppo.commands.calibrate import calibrate
    from sppo.report.calibration import write_calibration

    console = steady_screen()
    progress = make_progress(console)
    try:
        for note in notes:
            progress.message(note)
        result = calibrate(
            path,
            config,
            prompts=prompts,
            samples_per_prompt=samples,
            checkpoint=checkpoint,
            anew="anew" in given.switches,
            progress=progress,
        )
    finally:
        progress.close()
    if not ranks.is_main():
        return 0  # what the main one has written may not be there yet
    print_calibration(console, result)
    picture = write_calibration(folder / "calibration" / result["checkpoint"])
    files = {"picture": picture, "numbers": picture.with_name("result.json")}
    lines = [f"[dim]{name}[/]  {escape(str(file))}" for name, file in files.items()]
    console.print("\n" + "\n".join(lines), soft_wrap=True)
    if "json" in given.settings:
        write_json("--json", Path(given.settings["json"]), result)
    return 0


_NAMES = {
    "pearson": "Pearson", "spearman": "Spearman", "brier": "Brier score", "ece": "ECE", "bias": "bias", "auroc": "AUROC"
}  # fmt: skip
_GROUPS = {"of_prompts": "V and solve rate, by prompt", "of_responses": "V and R, by response"}


def print_calibration(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the measures with their intervals, and what a perfect V would have."""
    console.print(
        f"\n{result['prompts']:,} prompts, {result['responses']:,} responses, checkpoint {result['checkpoint']}: "
        f"mean V {result['mean_value']:.3f}, mean solve rate {result['mean_solve_rate']:.3f}\n",
        soft_wrap=True,
    )
    if result["left_out"]:
        console.print(f"[yellow]{result['left_out']:,} prompts are left out: none of their responses has a reward[/]")
    table = _table("V", "95% interval", "perfect V", "corrected")
    for group, title in _GROUPS.items():
        table.add_row(f"[bold]{title}[/]")
        for key, measure in result[group].items():
            cells = (_number(measure[name]) if name in measure else "" for name in ("reachable", "corrected"))
            table.add_row(f"  {_NAMES[key]}", _number(measure["value"]), _interval(measure), *cells)
    console.print(table)
    if "pool" in result:
        _print_pool(console, result["pool"])
    console.print(
        f"\n[dim]Correlations and AUROC: 1 is best. Brier score and calibration error (ECE): 0 is best. Bias: mean V "
        f"less the mean solve rate. A solve rate of {result['samples_per_prompt']} samples is uncertain: perfect V is "
        f"what the true solve rates would have, corrected the estimate of the measure against them.[/]"
    )


def _print_pool(console: Console, pool: Mapping[str, Any]) -> None:
    """Prints what history adds: V of the text against the belief, on prompts with outcomes."""
    text, belief, difference = pool["text"], pool["belief"], pool["difference"]
    console.print(
        f"\n{belief['prompts']:,} prompts of the pool with outcomes in training, {belief['responses']:,} responses: "
        f"mean solve rate {belief['mean_solve_rate']:.3f}, mean V of the text {text['mean_value']:.3f}, with history "
        f"{belief['mean_value']:.3f}\n",
        soft_wrap=True,
    )
    table = _table("V of the text", "with history", "difference, 95%", "perfect V")
    for key, gap in difference.items():
        first, second = text["of_prompts"][key], belief["of_prompts"][key]
        perfect = _number(second["reachable"]) if "reachable" in second else ""
        table.add_row(_NAMES[key], _number(first["value"]), _number(second["value"]), _interval(gap), perfect)
        if key == "brier" and "corrected" in second:
            table.add_row("  above perfect", _number(first["corrected"]), _number(second["corrected"]))
    console.print(table)


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _interval(measure: Mapping[str, Any]) -> str:
    return "–" if measure["low"] is None else f"{_number(measure['low'])} to {_number(measure['high'])}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
