"""What came of a run, told on the screen: accuracy, the critic's calibration, responses before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BAR_CELLS = 20
Summary = Mapping[str, Any]


def print_story(console: Console, summary: Summary) -> None:
    """Prints the end of the demo."""
    print_result(console, summary, calibration=True, examples=True)
    console.print("\nNext: [bold]sppo recipes[/] lists real models and data; [bold]sppo train --help[/] every option.")


def print_result(console: Console, summary: Summary, *, calibration: bool = False, examples: bool = False) -> None:
    """Prints accuracy, the critic's scores, time and where the files are."""
    if summary.get("accuracy_after") is not None:
        console.print(f"\n[bold]Held-out {summary.get('measure', 'accuracy')}, before and after[/]")
        console.print(_indented(accuracy_table(summary)))
    if summary.get("critic"):
        console.print("\n[bold]How well the critic foresees success, from the prompt alone[/]")
        if calibration and summary.get("calibration_in_training"):
            console.print("  [dim]All training responses, by V as it was before the critic saw what came of them:[/]")
            console.print(_indented(calibration_table(summary["calibration_in_training"])))
            console.print("  [dim]Held-out prompts, at the end:[/]")
        console.print(_indented(Text.from_markup(_critic_line(summary["critic"]))))
    if examples and summary.get("examples"):
        console.print("\n[bold]Three prompts[/]")
        for example in summary["examples"]:
            console.print(_indented(_example(example)))
    console.print()
    for label, value in _facts(summary):
        console.print(f"[dim]{label:<8}[/]{escape(value)}", soft_wrap=True)


def print_evaluation(console: Console, result: Summary) -> None:
    """Prints what `sppo eval` measured: accuracy and its standard error, in all and by difficulty."""
    if result.get("measure") == "mean reward":
        error = result.get("accuracy_stderr")
        spread = "" if error is None else f" ± {error:.3f}"
        console.print(f"mean reward {result['accuracy']:.3f}{spread}, {result['prompts']:,} prompts")
        return
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("difficulty")
    for heading in ("prompts", "accuracy", "s.e."):
        table.add_column(heading, justify="right")
    table.add_column("0 to 100%")
    groups = result.get("accuracy_by_difficulty") or {}
    for label, group in groups.items():
        accuracy, error = group["accuracy"], group.get("stderr")
        table.add_row(escape(str(label)), f"{group['prompts']:,}", _percent(accuracy), _percent(error), _bar(accuracy))
    accuracy = result.get("accuracy")
    prompts = result.get("prompts") or sum(group["prompts"] for group in groups.values())
    error = result.get("accuracy_stderr")
    table.add_row("[bold]all[/]", f"{prompts:,}", f"[bold]{_percent(accuracy)}[/]", _percent(error), _bar(accuracy))
    console.print(table)
    if result.get("critic"):
        console.print("\n[bold]How well the critic foresees success, from the prompt alone[/]")
        console.print(_indented(Text.from_markup(_critic_line(result["critic"]))))


def accuracy_table(summary: Summary) -> Table:
    """Accuracy by difficulty before and after, with a bar: what was there, and what was gained or lost."""
    if summary.get("measure") == "mean reward":
        return _reward_table(summary)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("difficulty")
    for heading in ("prompts", "before", "after", "change"):
        table.add_column(heading, justify="right")
    table.add_column("0 to 100%")
    before_groups = summary.get("accuracy_before_by_difficulty") or {}
    after_groups = summary.get("accuracy_after_by_difficulty") or {}
    for label, group in after_groups.items():
        before, after = before_groups.get(label, {}).get("accuracy"), group["accuracy"]
        table.add_row(escape(str(label)), f"{group['prompts']:,}", *_change(before, after))
    before, after = summary.get("accuracy_before"), summary["accuracy_after"]
    prompts = summary.get("prompts") or sum(group["prompts"] for group in after_groups.values())
    table.add_row("[bold]all[/]", f"{prompts:,}" if prompts else "", *_change(before, after))
    errors = [_percent(summary.get(f"accuracy_{when}_stderr")) for when in ("before", "after")]
    table.add_row("[dim]± standard error[/]", "", *[f"[dim]{error}[/]" for error in errors])
    return table


def _reward_table(summary: Summary) -> Table:
    """The mean reward before and after, which is no share of anything."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for heading in ("prompts", "before", "after", "change"):
        table.add_column(heading, justify="right")
    before, after = summary.get("accuracy_before"), summary["accuracy_after"]
    shown = [
        "–" if value is None else f"{value:{form}}"
        for value, form in ((before, ".3f"), (after, ".3f"), (None if before is None else after - before, "+.3f"))
    ]
    table.add_row(f"{summary.get('prompts', 0):,}", *shown)
    return table


def calibration_table(bins: Sequence[Summary]) -> Table:
    """Solve rate by the value that the critic gave."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("V between")
    for heading in ("responses", "mean V", "solved"):
        table.add_column(heading, justify="right")
    table.add_column("share solved")
    for entry in bins:
        if entry["count"]:
            between = f"{entry['low']:.1f} and {entry['high']:.1f}"
            value, rate = f"{entry['mean_value']:.2f}", entry["solve_rate"]
            table.add_row(between, f"{entry['count']:,}", value, f"{rate:.2f}", _bar(rate))
    return table


def _change(before: float | None, after: float) -> tuple[str, str, str, Text]:
    if before is None:
        return "–", _percent(after), "", _bar(after)
    color = "green" if after >= before else "red"
    return _percent(before), _percent(after), f"[{color}]{100 * (after - before):+.1f}[/]", _bar(after, before)


def _bar(share: float | None, before: float | None = None) -> Text:
    """A bar of `share`: solid what was there before, then the gain (▓) or the loss (░)."""
    if share is None:
        return Text("")
    cells = round(share * _BAR_CELLS)
    start = cells if before is None else round(before * _BAR_CELLS)
    bar = Text("█" * min(cells, start), style="blue")
    bar.append("▓" * max(0, cells - start), style="green")
    bar.append("░" * max(0, start - cells), style="red")
    return bar.append("·" * (_BAR_CELLS - max(cells, start)), style="dim")


def _critic_line(critic: Summary) -> str:
    names = {"pearson": "Pearson", "spearman": "Spearman", "brier": "Brier", "ece": "ECE"}
    scores = [f"{name} {critic[key]:.3f}" for key, name in names.items() if critic.get(key) is not None]
    if critic.get("bias") is not None:
        scores.append(f"bias {critic['bias']:+.3f}")
    return "  ".join(scores) + "\n[dim]Correlations: 1 is best. Brier score and calibration error (ECE): 0 is best.[/]"


def _example(example: Summary) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", escape(_shortened(example["prompt"])))
    table.add_row("gold", escape(str(example["gold"])))
    for when in ("before", "after"):
        reward = example.get(f"{when}_reward")
        mark = "[yellow]?[/]" if reward is None else "[green]✓[/]" if reward > 0.5 else "[red]✗[/]"
        table.add_row(when, f"{mark} {escape(_shortened(example[when]))}")
    table.add_row("", "")
    return table


def _facts(summary: Summary) -> list[tuple[str, str]]:
    seconds, tokens = summary.get("seconds") or {}, summary.get("tokens") or {}
    facts = []
    if seconds:
        phases = {name.replace("_", " "): value for name, value in seconds.items() if name != "total" and value >= 1}
        longest = sorted(phases, key=lambda name: -phases[name])[:4]
        parts = ", ".join(f"{name} {duration(phases[name])}" for name in longest)
        total = duration(seconds.get("total", sum(seconds.values())))
        share = critic_share(seconds)
        critic = f"; the critic took {share:.0%} of training" if share >= 0.005 and _has_critic(summary) else ""
        facts.append(("time", (f"{total} ({parts})" if parts else total) + critic))
    facts += _choice(summary.get("selection") or {})
    if tokens.get("sampled"):
        facts.append(("tokens", f"{tokens['sampled']:,} sampled"))
    if summary.get("output"):
        folder = Path(summary["output"])
        facts.append(("run", str(folder)))
        if (folder / "curves.png").exists():
            facts.append(("picture", str(folder / "curves.png")))
    return facts


def _has_critic(summary: Summary) -> bool:
    return bool(summary.get("critic")) or "selection" in summary


def critic_share(seconds: Mapping[str, float]) -> float:
    """Share of the training phases' seconds that a critic costs: its values, its learning, choosing prompts by it."""
    critic = sum(seconds.get(phase, 0.0) for phase in ("value", "critic", "select"))
    rest = sum(seconds.get(phase, 0.0) for phase in ("rollout", "grade", "estimate", "policy"))
    return critic / (critic + rest) if critic else 0.0


def _choice(selection: Summary) -> list[tuple[str, str]]:
    """Which prompts were asked, as the reward of training is theirs alone."""
    if not selection:
        return []
    gain, dead = selection.get("gain"), selection.get("dead_share")
    known = [] if dead is None else [f"{dead:.0%} of the prompts are believed to be solved always or never"]
    if gain is not None:
        known.append(f"the most promising teach {gain:.1f} x as much as any")
    facts = [("", "; ".join(known))] if known else []
    if not selection["steps_chosen"]:
        return [("prompts", "as they came, none chosen"), *facts]
    reward = f"reward {selection['reward']:.3f} of late" if "reward" in selection else "none of late"
    if "control_reward" in selection:
        reward += f", {selection['control_reward']:.3f} of prompts nobody chose"
    judged = f", of {selection['candidates']:.1f} candidates each" if "candidates" in selection else ""
    chosen = f"chosen in {selection['steps_chosen']:,} of {selection['steps']:,} steps{judged}: {reward}"
    return [("prompts", chosen), *facts]


def duration(seconds: float) -> str:
    """Returns seconds as 0:42, 12:05 or 3:07:09."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _shortened(text: str, most: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most // 2]} … {flat[-most // 2 :]}"


def _indented(renderable: Any) -> Padding:
    return Padding(renderable, (0, 0, 0, 2))
