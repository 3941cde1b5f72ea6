"""`sppo audit DATA`: what is wrong with a data set, on the screen, as JSON, and as a clean file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.cli.checks import require_writable, write_json
from sppo.cli.options import Arguments, parse, print_help, wants_help
from sppo.config import Config, DataConfig
from sppo.config.parsing import build, set_text, split_arguments
from sppo.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sppo.data.checks import Audit, Pair

USAGE = (
    "sppo audit DATA [--task T] [--verifier V] [--against aime24,math500=FILE,...] [--write CLEAN [--overwrite]] "
    "[--json FILE] [--key value ...]"
)
FLAGS = {
    "DATA": "A file (.parquet, .jsonl, .json, .csv, .tsv), a folder, a hub name, a task's name, or a recipe.",
    "--task T": "How rows are read. Default: rows (columns prompt and answer), or the task that DATA names.",
    "--verifier V": "What holds the answers against each other. Default: the task's own.",
    "--against NAME[=FILE],...": "Evaluation sets that the data should hold no copy of, by task; default: the hub's.",
    "--write CLEAN": "Write the clean rows to a file, .parquet for .parquet, else .jsonl; columns stay as they are.",
    "--overwrite": "Replace the file that --write names, should it exist.",
    "--json FILE": "Write all that was found to a file too.",
    "--data.KEY VALUE, --verification.KEY VALUE": "Options of these two sections of a recipe, such as "
    "--data.prompt_column; sppo train --help data explains them.",
    "--model.path MODEL": "Show the prompts through this model's chat template, and check that. Default: the recipe's.",
}
ABOUT = (
    "Reads every gold answer as its verifier would, and finds those that are no answers, repeated prompts, prompts "
    "with conflicting answers, and copies of evaluation problems; shows what will be graded. Exit code 0: clean; 1: "
    "rows that should be left out; 2: a mistake in the command."
)
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 160


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 where the data is clean, 1 where it is not."""
    if wants_help(arguments):
        print_help(USAGE, ABOUT, FLAGS, arguments, options="none")
        return 0
    given = parse(
        arguments,
        USAGE,
        positional="DATA",
        switches=("overwrite",),
        settings=("task", "verifier", "against", "write", "json"),
    )
    config = data_config(given)
    sets = evaluation_sets(given.settings.get("against", ""), config.evaluation.data)
    source = config.data.path or None
    target = Path(given.settings["write"]) if "write" in given.settings else None
    from sppo.data.tasks.writing import require_target

    if target is not None:
        require_target(source, target, overwrite="overwrite" in given.switches)
    if "json" in given.settings:
        require_writable("--json", Path(given.settings["json"]))
    from rich.markup import escape

    from sppo.cli.console import Screen
    from sppo.cli.preview import print_examples
    from sppo.cli.progress import make_progress
    from sppo.commands.audit import audit, look, write_clean

    console = Screen()
    stamp = _stamp(source)
    progress = make_progress(console)
    try:
        found = audit(config, sets, progress=progress)
        seen = look(config)
    finally:
        progress.close()
    found = replace(found, notes=(*found.notes, *seen.notes))
    print_audit(console, source or config.data.task, found)
    print_examples(console, seen.examples, as_read=seen.as_read)
    examples = [asdict(example) for example in seen.examples]
    result = {"data": source or config.data.task, **found.to_dict(), "examples": examples}
    if target is not None:
        if _stamp(source) != stamp:
            raise DataError(f"{source} has changed since it was read, so that nothing was written. Run this again.")
        result["written"] = write_clean(config, found, target)
        console.print(f"\n{_counted(result['written'], 'clean row')} written to {escape(str(target))}", soft_wrap=True)
    if "json" in given.settings:
        write_json("--json", Path(given.settings["json"]), result)
    return 0 if found.is_clean else 1


def data_config(given: Arguments) -> Config:
    """Returns the config whose data section is checked: a recipe's, or one made for a file, hub name or task.

    Raises:
        ConfigError: DATA is none of them, or an option that there is not.
    """
    from sppo.config.recipes import list_recipes, load_recipe
    from sppo.data.tasks import TASKS
    from sppo.data.tasks.reading import file_kind

    name = given.positional or ""
    own = {f"data.{key}": given.settings[key] for key in ("task", "verifier") if key in given.settings}
    overrides = [*(f"--{key}={value}" for key, value in own.items()), *given.overrides]
    is_file = file_kind(name) is not None or Path(name).expanduser().is_file()
    if name.endswith((".yaml", ".yml")) or (name in list_recipes() and not is_file):
        return load_recipe(name, overrides)
    hub_tasks = {task.hub_name: task.name for task in TASKS.values() if task.hub_name}
    is_folder = Path(name).expanduser().is_dir() and name not in TASKS
    if is_file or is_folder:
        data = {"path": name}
    elif name in TASKS or name in hub_tasks:
        data = {"task": hub_tasks.get(name, name)}
    elif name.count("/") == 1 and not name.startswith((".", "~", "/")):
        data = {"path": name}
    else:
        known = [*TASKS, *list_recipes()]
        raise ConfigError(
            f"{name!r} is no file (looked from {Path.cwd()}), hub name, task or recipe.{did_you_mean(name, known)}"
        )
    values: dict[str, Any] = {"data": data}
    for key, text in split_arguments(overrides)[1]:
        set_text(values, key, text)
    return build(Config, values)


def evaluation_sets(text: str, held_out: DataConfig | None = None) -> list[DataConfig]:
    """Returns the data of each `task` or `task=file` in a list with commas, and that which a recipe evaluates on.

    Raises:
        ConfigError: no such task.
    """
    from sppo.data.tasks import TASKS, get_task

    sets = []
    if held_out is not None and not get_task(held_out.task, "evaluation.data").built_in:
        sets.append(held_out)
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, path = entry.partition("=")
        known = [task.name for task in TASKS.values() if not task.built_in]
        if name not in known:
            raise ConfigError(f"--against names {name!r}, which is no data set.{did_you_mean(name, known)}")
        # Of a hub data set; a file has no splits.
        split = DataConfig.split if path else TASKS[name].only_split or "test"
        sets.append(DataConfig(task=name, path=path or None, split=split))
    return sets


def print_audit(console: Console, source: str, found: Audit) -> None:
    """Prints what was found: a table of counts, then examples of each kind."""
    from rich.markup import escape

    console.print(
        f"[bold]{escape(source)}[/]: {found.rows:,} rows, {found.distinct:,} distinct prompts; read as task "
        f"{found.task}, answers held by verifier {found.verifier}\n",
        soft_wrap=True,
    )
    console.print(_counts(found))
    for title, lines in _examples(found):
        console.print(f"\n[bold]{escape(title)}[/]")
        for line in lines[:_EXAMPLES]:
            console.print(f"  {escape(line)}", soft_wrap=True)
        if len(lines) > _EXAMPLES:
            console.print(f"  [dim]and {len(lines) - _EXAMPLES:,} more: --json FILE has all[/]")
    left_out = found.left_out()
    faults = f"[yellow]{_counted(len(left_out), 'row')} should be left out[/]"
    verdict = "[green]clean[/]" if found.is_clean else faults
    console.print(f"\n{verdict}, {found.rows - len(left_out):,} kept", soft_wrap=True)
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)


def _counts(found: Audit) -> Table:
    from rich.table import Table

    from sppo.data.checks import CONFLICTING, FAULTY, REPEATED

    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("left out")
    table.add_column("rows", justify="right")
    table.add_column("")
    counts: dict[str, int] = {}
    for reason in found.left_out().values():
        counts[reason] = counts.get(reason, 0) + 1
    prompts = f"{_counted(len(found.conflicts), 'prompt')}; {found.differ_as_text:,} differ as text"
    table.add_row(FAULTY, f"{counts.get(FAULTY, 0):,}", "")
    table.add_row(CONFLICTING, f"{counts.get(CONFLICTING, 0):,}", prompts if found.differ_as_text else "")
    table.add_row(REPEATED, f"{counts.get(REPEATED, 0):,}", "")
    for overlap in found.overlaps:
        reason = overlap.reason
        table.add_row(reason, f"{counts.get(reason, 0):,}", f"{overlap.found:,} of its {overlap.problems:,} problems")
    table.add_row("[dim]kept, to look at[/]")
    for overlap in found.overlaps:
        rows = len({pair.row for pair in overlap.variants})
        note = "alike, with other numbers" if rows else ""
        table.add_row(f"variant of a problem of {overlap.name}", f"{rows:,}", note)
    pairs, torn = found.near_copies, sum(not pair.golds_agree for pair in found.near_copies)
    rows = len({row for pair in pairs for row in (pair.row, pair.other)})
    note = f"{_counted(len(pairs), 'pair')}, answers differ in {torn:,}" if pairs else ""
    table.add_row("near-copies in the data", f"{rows:,}", note)
    return table


def _examples(found: Audit) -> list[tuple[str, list[str]]]:
    """(title, one line an example) of each kind that was found."""
    kinds = [("Gold answers that fail", [f"row {row}: {_short(why)}" for row, why in found.faulty.items()])]
    conflicts = [
        f"rows {', '.join(map(str, one.rows[:6]))}: {' against '.join(dict.fromkeys(one.golds))}: {_short(one.prompt)}"
        for one in found.conflicts
    ]
    kinds.append(("Conflicting answers", conflicts))
    for overlap in found.overlaps:
        kinds.append(
            (f"Copies of problems of {overlap.name}", [_pair(pair, "problem") for pair in _loosest(overlap.copies)])
        )
    torn = [pair for pair in found.near_copies if not pair.golds_agree]
    kinds.append(("Near-copies in the data whose answers differ", [_pair(pair, "row") for pair in torn]))
    return [(title, lines) for title, lines in kinds if lines]


def _loosest(pairs: Sequence[Pair]) -> list[Pair]:
    """Least alike first: those are the ones to judge by eye."""
    return sorted(pairs, key=lambda pair: pair.share)


def _pair(pair: Pair, other: str) -> str:
    return (
        f"row {pair.row} and {other} {pair.other}, {pair.share:.0%} alike: {_short(pair.prompt)}\n"
        f"      against: {_short(pair.other_prompt)}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _EXAMPLE_CHARACTERS else f"{flat[:_EXAMPLE_CHARACTERS]} …"


def _stamp(source: str | None) -> tuple[int, int] | None:
    """Size and time of a file, which tell whether it changed; None for what is no file."""
    path = Path(source or "").expanduser()
    if not source or not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns
