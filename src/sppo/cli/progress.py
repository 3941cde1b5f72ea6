"""How far a run is: a live panel on a terminal, plain lines in a log."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sppo.cli.console import steady_screen
from sppo.cli.story import duration
from sppo.runs import ranks
from sppo.runs.progress import NoProgress, Progress

_SPARKS = "▁▂▃▄▅▆▇█"
_PLAIN_SECONDS = 2.0


def make_progress(console: Console | None = None) -> Progress:
    """Returns the live display where the output is a terminal, else plain lines; none but of the main rank."""
    if not ranks.is_main():
        return NoProgress()
    console = console or steady_screen()
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def sparkline(values: list[float], width: int) -> str:
    """Returns the values as one line of at most `width` bars between their least and greatest.

    Where there are more values than bars, a bar is the mean of its share of them.
    """
    if not values or width < 1:
        return ""
    bars = min(width, len(values))
    edges = [round(index * len(values) / bars) for index in range(bars + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_SPARKS[round((mean - low) / span * 7) if span else 3] for mean in means)


@dataclass
class Phase:
    """One phase as seen so far. A phase that is entered again (training, after an evaluation) goes on."""

    name: str
    total: int | None
    unit: str
    started: float
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    accuracy: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out accuracy) of the steps that evaluated."""
    first: tuple[float, int] | None = None
    """Time and step of the first update, from which the speed is measured: a resumed run starts late."""
    latest: float = 0.0

    def update(self, step: int, metrics: Mapping[str, float], now: float) -> None:
        """Moves to `step`."""
        self.step, self.latest = step, now
        if "reward/mean" in metrics:
            # A step that chose nothing has no reward of chosen prompts, whatever an earlier one had.
            self.metrics.pop("selection/chosen_reward", None)
        self.metrics.update(metrics)
        if metrics.get("reward/mean") is not None:
            self.rewards.append(_reward(metrics))
        if metrics.get("eval/accuracy") is not None:
            self.accuracy.append((step, metrics["eval/accuracy"]))
        self.first = self.first or (now, step)

    def seconds_left(self, now: float) -> float | None:
        """Expected seconds to the end; None where it can't be told yet."""
        if self.total is None or self.first is None or self.step <= self.first[1]:
            return None
        pace = (self.latest - self.first[0]) / (self.step - self.first[1])
        return max(0.0, pace * (self.total - self.step) - (now - self.latest))

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, as far as can be told once the next phase begins."""
        return self.done or self.total is None

    @property
    def done(self) -> bool:
        """Whether the last update was the last of the phase."""
        return self.total is not None and self.step >= self.total

    def position(self) -> str:
        """Returns "34/60 steps"."""
        return f"{self.step:,}/{self.total:,} {self.unit}" if self.total else f"{self.step:,} {self.unit}"


class _Phases:
    """The phases so far; what both displays share."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.current: Phase | None = None
        self._open: dict[str, Phase] = {}

    def enter(self, name: str, total: int | None, unit: str) -> Phase | None:
        """Makes `name` the current phase and returns the one before."""
        before = self.current
        phase = self._open.get(name)
        if phase is None or phase.done or phase.total != total:
            phase = Phase(name, total, unit, time.monotonic())
        self._open[name] = self.current = phase
        return before

    def note(self, step: int, metrics: Mapping[str, float]) -> Phase:
        """Takes in an update."""
        assert self.current is not None, "Progress.update was called before Progress.phase"
        self.current.update(step, metrics, time.monotonic())
        return self.current


class PlainProgress(_Phases):
    """One line a step, at most every two seconds, and always the last of a phase."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._start = time.monotonic()
        self._printed = 0.0
        self._pending: Phase | None = None

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        """Begins a phase."""
        self._flush()
        again = name in self._open
        self.enter(name, total, unit)
        if not again:
            self._print(f"{name}" + (f": {total:,} {unit}" if total else ""))
            self._printed = 0.0

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the current phase to `step`."""
        self._pending = phase = self.note(step, metrics)
        if phase.done or (step and time.monotonic() - self._printed >= _PLAIN_SECONDS):
            self._flush()

    def message(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def close(self) -> None:
        """Prints the last step."""
        self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            phase, self._pending, self._printed = self._pending, None, time.monotonic()
            left = phase.seconds_left(self._printed)
            times = [f"{duration(left)} left"] if left is not None and left >= 1 else []
            self._print("  ".join([f"{phase.name} {phase.position()}", *_facts(phase.metrics), *times]))

    def _print(self, text: str) -> None:
        self.console.print(f"[{duration(time.monotonic() - self._start)}] {text}", markup=False, soft_wrap=True)


class LiveProgress(_Phases):
    """A panel that is redrawn four times a second; finished phases and messages stay above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)
        self._live.start()
        self._told: set[str] = set()

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        """Begins a phase."""
        before = self.enter(name, total, unit)
        if before is not None and before.over:
            self._tell(before)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the current phase to `step`."""
        self.note(step, metrics)

    def message(self, text: str) -> None:
        """Prints a line above the panel."""
        self.console.print(escape(text))

    def close(self) -> None:
        """Takes the panel away."""
        if self.current is not None:
            self._tell(self.current)
        self.current = None
        self._live.stop()

    def render(self) -> RenderableType:
        """Returns the panel as it stands."""
        phase = self.current
        if phase is None:
            return Text("")
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1)
        for _ in range(2):
            head.add_column(no_wrap=True, justify="right")
        now = time.monotonic()
        left = phase.seconds_left(now)
        times = duration(now - phase.started) + ("" if left is None else f", {duration(left)} left")
        bar = ProgressBar(total=phase.total, completed=phase.step, pulse=phase.total is None, complete_style="cyan")
        head.add_row(bar, phase.position() if phase.total else "", f"[dim]{times}[/]")
        rows = self._training_rows(phase) if "reward/mean" in phase.metrics else _other_rows(phase.metrics)
        body = Group(head, "", rows) if rows.row_count else head
        return Panel(body, title=f"[bold]{escape(phase.name)}[/]", title_align="left", border_style="dim")

    def _training_rows(self, phase: Phase) -> Table:
        metrics, width = phase.metrics, max(10, min(60, self.console.width - 40))
        rows = _grid()
        chosen = metrics.get("selection/control_share", 1.0) < 1
        name = "reward of chosen" if chosen else "reward"
        rows.add_row(name, f"{_reward(metrics):.3f}", f"[blue]{sparkline(phase.rewards, width)}[/]")
        if chosen and "selection/control_reward" in metrics:
            at_large = f"[dim]of the {metrics['selection/control_share']:.0%} that nobody chose[/]"
            rows.add_row("reward at large", f"{metrics['selection/control_reward']:.3f}", at_large)
        if phase.accuracy:
            (first_step, first), (step, last) = phase.accuracy[0], phase.accuracy[-1]
            since = f"at step {step}" + (f", {first:.3f} at step {first_step}" if step != first_step else "")
            rows.add_row("held-out accuracy", f"{last:.3f}", f"[dim]{since}[/]")
        if "critic/value_mean" in metrics:
            rows.add_row(
                "critic expected", f"{metrics['critic/value_mean']:.3f}", f"[dim]{_against_reward(metrics)}[/]"
            )
        if "selection/dead_share" in metrics:
            gain = metrics.get("selection/gain")
            taught = "" if gain is None else f"; best teach {gain:.1f} x the mean"
            judged = metrics.get("selection/candidates", 1.0)
            said = f"[dim]as is believed{taught}" + (f"; 1 of {judged:.1f} taken[/]" if judged > 1 else "[/]")
            rows.add_row("dead prompts", f"{metrics['selection/dead_share']:.0%}", said)
        if failed := _failed_share(metrics):
            caused = f"caused by the response {metrics.get('reward/response_error_share', 0.0):.1%}"
            timeouts = f"[dim]of the responses; {caused}, timeouts {metrics.get('reward/timeout_share', 0.0):.1%}[/]"
            rows.add_row("verifier errors", f"{failed:.1%}", timeouts)
        if "throughput/tokens_per_second" in metrics:
            rows.add_row("tokens a second", f"{metrics['throughput/tokens_per_second']:,.0f}", "")
        return rows

    def _tell(self, phase: Phase) -> None:
        """Leaves a line for a phase that ended or was broken off; one that is entered again and again is told once."""
        if phase.name in self._told:
            return
        self._told.add(phase.name)
        facts = [escape(phase.name), f"[dim]{phase.position()}[/]" if phase.step else ""]
        facts += [f"[dim]{duration(time.monotonic() - phase.started)}[/]", *map(escape, _facts(phase.metrics)[:2])]
        self.console.print("[green]✓[/]" if phase.over else "[yellow]·[/]", "  ".join(fact for fact in facts if fact))


def _against_reward(metrics: Mapping[str, float]) -> str:
    """What came where the critic expected mean V, and how well it is calibrated now."""
    said = f"where R was {metrics['reward/mean']:.3f}"
    if "critic/bias" in metrics:
        said += f" (bias {metrics['critic/bias']:+.3f})"
    return said + (f", Brier {metrics['critic/brier']:.3f}" if "critic/brier" in metrics else "")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    # The rest of the line: remarks that don't fit are cut, never names and numbers.
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def _other_rows(metrics: Mapping[str, float]) -> Table:
    rows = _grid()
    for key, value in list(metrics.items())[:4]:
        rows.add_row(escape(_short_name(key)), _number(key, value), "")
    return rows


def _facts(metrics: Mapping[str, float]) -> list[str]:
    """The few numbers of a step that fit on one line."""
    shown = {
        "sft/loss": "loss {:.3f}",
        "reward/mean": "reward {:.3f}",
        "eval/accuracy": "held-out {:.3f}",
        "critic/value_mean": "V {:.3f}",
        "throughput/tokens_per_second": "{:,.0f} tokens/s",
    }
    if "reward/mean" in metrics:
        metrics = {**metrics, "reward/mean": _reward(metrics)}
    known = [text.format(metrics[key]) for key, text in shown.items() if metrics.get(key) is not None]
    if "selection/chosen_reward" in metrics and "selection/control_reward" in metrics:
        known.insert(1, f"of chosen, {metrics['selection/control_reward']:.3f} at large")
    if failed := _failed_share(metrics):
        known.append(f"verifier errors {failed:.1%}")
    return known or [f"{_short_name(key)} {_number(key, value)}" for key, value in list(metrics.items())[:3]]


def _failed_share(metrics: Mapping[str, float]) -> float:
    """Share of responses whose verification failed, whoever caused it: they are left out."""
    return sum(metrics.get(name, 0.0) for name in ("reward/error_share", "reward/response_error_share"))


def _reward(metrics: Mapping[str, float]) -> float:
    """Mean reward of the prompts that were chosen, where some were; else of all."""
    return metrics.get("selection/chosen_reward", metrics["reward/mean"])


def _number(key: str, value: float) -> str:
    """In percent where the table that follows is."""
    return f"{value:.1%}" if key == "right so far" else f"{value:.4g}"


def _short_name(key: str) -> str:
    return key.rsplit("/", 1)[-1].replace("_", " ")
