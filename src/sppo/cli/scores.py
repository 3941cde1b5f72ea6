"""Benchmark scores and comparisons as tables, on the screen and in table.txt."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sppo.cli.console import Screen
from sppo.evaluation.paired import Comparison, PairedDifference
from sppo.evaluation.scores import BenchmarkScores, Estimate, EvaluationResult
from sppo.evaluation.statistics import Interval

_WIDTH = 110
_WIDE = 100


def as_text(render: Callable[[Console], None]) -> str:
    """Returns what `render` prints, as plain text."""
    console = Screen(file=io.StringIO(), width=_WIDTH, force_terminal=False)
    render(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def print_scores(console: Console, result: EvaluationResult) -> None:
    """Prints one model's scores, and what to know of them."""
    n, sampling = result.samples, result.sampling
    how = f"temperature {sampling['temperature']:g}, top_p {sampling['top_p']:g}"
    how += f", top_k {sampling['top_k']}" if sampling["top_k"] else ""
    console.print(f"[bold]{escape(result.model)}[/]", soft_wrap=True)
    console.print(
        f"{n} response{'s' * (n > 1)} a problem, {how}, at most {sampling['max_response_tokens']:,} tokens\n",
        markup=False,
    )
    console.print(_scores_table(console, result))
    console.print()
    for line in _explanations(result):
        console.print(f"[dim]{escape(line)}[/]")
    for line in _warnings(result):
        console.print(f"[yellow]{escape(line)}[/]")
    console.print(f"[dim]every response and verdict:[/] {escape(result.output)}/responses.jsonl", soft_wrap=True)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints two models' scores side by side, their paired difference and its test."""
    console.print(f"[bold]A[/] {escape(comparison.a)}\n[bold]B[/] {escape(comparison.b)}\n", soft_wrap=True)
    table = _table(console, "benchmark")
    for heading in ("problems", "A", "B", "A - B", "95% interval", "p", "A wins", "B wins", "ties"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, pair in comparison.benchmarks.items():
        table.add_row(escape(name), *_pair_cells(pair))
    if comparison.average is not None:
        table.add_row("[bold]average[/]", *_pair_cells(comparison.average))
    console.print(table)
    console.print(
        "\n[dim]A, B: mean over problems of the share of right responses, in percent. A - B is paired by problem; its "
        "interval is for other problems of this kind. p: two-sided sign-flip test. A wins: problems that A solves "
        "more often.[/]"
    )
    for note in comparison.notes:
        console.print(f"[yellow]{escape(note)}[/]")


def _scores_table(console: Console, result: EvaluationResult) -> Table:
    n, scores = result.samples, list(result.benchmarks.values())
    table = _table(console, "benchmark")
    headings = ["problems", f"avg@{n}", "95% interval", "± sampling"]
    votes, top = _votes(result), _largest_k(result)
    headings += ([f"pass@{top}"] if n > 1 else []) + ([f"maj@{top}"] if votes else []) + ["clipped", "tokens"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for benchmark in scores:
        cells = [f"{benchmark.problems:,}", *_estimate_cells(benchmark.accuracy)]
        cells += [_value(benchmark.pass_at.get(top))] if n > 1 else []
        cells += [_value(benchmark.majority_at.get(top))] if votes else []
        table.add_row(escape(benchmark.benchmark), *cells, f"{100 * benchmark.clipped_share:.1f}%", _tokens(benchmark))
    mean = result.average
    if mean is not None:
        table.add_row("[bold]average[/]", f"{mean.problems:,}", *_estimate_cells(mean))
    return table


def _explanations(result: EvaluationResult) -> list[str]:
    n = result.samples
    lines = [
        f"avg@{n}: mean over problems of the share of right responses, in percent. 95% interval: on other problems of "
        "this kind. ± sampling: on the same problems, with other samples"
        + (", which one sample a problem can't tell." if n == 1 else ".")
    ]
    if n > 1:
        k = _largest_k(result)
        voted = f" maj@{k}: by the most frequent answer." if _votes(result) else ""
        lines.append(f"pass@{k}: solved by at least one of {k} samples.{voted}")
    return lines


def _largest_k(result: EvaluationResult) -> int:
    return max((k for benchmark in result.benchmarks.values() for k in benchmark.pass_at), default=1)


def _votes(result: EvaluationResult) -> bool:
    return result.samples > 1 and any(benchmark.majority_at for benchmark in result.benchmarks.values())


def _warnings(result: EvaluationResult) -> list[str]:
    lines = []
    for name, benchmark in result.benchmarks.items():
        total = benchmark.problems * benchmark.samples
        for errors, consequence in ((benchmark.errors, "left out"), (benchmark.response_errors, "counted as wrong")):
            if errors:
                whose = "the verifier failed on" if errors is benchmark.errors else "verification was made to fail by"
                counted, found = sum(errors.values()), list(errors.items())[:3]
                what = "; ".join(f"{error} ({count})" for error, count in found)
                lines.append(f"{name}: {whose} {counted:,} of {total:,} responses, {consequence}: {what}")
        if benchmark.left_out:
            lines.append(f"{name}: {benchmark.left_out:,} of {total:,} responses without a reward, left out")
        silent = benchmark.no_answer_share - benchmark.clipped_share
        if silent > 0.1:
            lines.append(
                f"{name}: {100 * silent:.0f}% of the responses ended without an answer that the verifier found"
            )
    clipped = {name: benchmark.clipped_share for name, benchmark in result.benchmarks.items()}
    cut = [f"{name} {share:.0%}" for name, share in clipped.items() if share > 0.2]
    if cut:
        lines.append(f"responses cut at the length limit: {', '.join(cut)}; raise --max_response_tokens")
    for name, rows in result.left_out.items():
        lines.append(f"{name}: {len(rows)} rows can't be used as published and are left out, named in settings.json")
    return lines


def _pair_cells(pair: PairedDifference) -> list[str]:
    value, difference = pair.difference.value, pair.difference
    color = "default" if pair.p_value >= 0.05 else "green" if value > 0 else "red"
    return [
        f"{difference.problems:,}",
        f"{100 * pair.a:.1f}",
        f"{100 * pair.b:.1f}",
        f"[{color}]{100 * value:+.1f}[/]",
        _interval(difference.interval, "+.1f"),
        _p_value(pair.p_value),
        f"{pair.a_better:,}",
        f"{pair.b_better:,}",
        f"{pair.equal:,}",
    ]


def _estimate_cells(estimate: Estimate) -> list[str]:
    """avg@n, its interval, and half of the sampling interval's width."""
    inside = estimate.sampling_interval
    margin = None if inside is None else max(inside.high - estimate.value, estimate.value - inside.low)
    return [
        f"[bold]{100 * estimate.value:.1f}[/]",
        _interval(estimate.interval, ".1f"),
        "–" if margin is None else f"{100 * margin:.1f}",
    ]


def _interval(interval: Interval | None, form: str) -> str:
    return "–" if interval is None else f"{100 * interval.low:{form}} to {100 * interval.high:{form}}"


def _value(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{100 * estimate.value:.1f}"


def _tokens(benchmark: BenchmarkScores) -> str:
    return f"{benchmark.length_mean:,.0f}"


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _table(console: Console, first: str) -> Table:
    table = Table(box=None, padding=(0, 2 if console.width >= _WIDE else 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    return table
