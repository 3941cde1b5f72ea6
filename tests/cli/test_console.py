"""Nothing that a model or a file wrote reaches the screen as it stands, whichever command shows it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.text import Text

from sppo.cli import main
from sppo.cli.console import Screen
from sppo.cli.progress import LiveProgress, PlainProgress, make_progress
from sppo.cli.story import print_story
from sppo.errors import DataError
from sppo.models.tokenizers import character_tokenizer
from sppo.runs.files import write_json

MARKUP = "[bold red]up[/] [link=a]b[/link] :warning:"
HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b]0;x\x1b\\\x1b[2J\x9b31m\u202egnp\u2066\r\b" + MARKUP + "\ud800"
"""What a clipboard, a title, a screen, colours, the direction of text, markup and names of emoji are set by."""
SHOWN = r"\u001b]52;c;ZXZpbA==\u0007\u001b]0;x\u001b\\u001b[2J\u009b31m\u202egnp\u2066\r\b" + MARKUP + r"\ud800"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\ud800-\udfff]")


def assert_tame(text: str, *parts: str) -> None:
    assert not (found := RAW.search(text)), f"{found[0]!r} in {text!r}"
    flat = "".join(text.split())
    for part in parts:
        assert "".join(part.split()) in flat


def screens() -> tuple[Screen, Screen]:
    """A log, and a terminal, on which colours are ours alone."""
    return Screen(file=io.StringIO(), width=200), Screen(file=io.StringIO(), width=200, force_terminal=True)


def said(screen: Screen) -> str:
    """What the screen got, without the colours and moves of the cursor that rich itself writes."""
    return re.sub(r"\x1b\[(\?25[lh]|[0-9;]*m|[0-9]*[AK]|1A|2K)|\r(?!\n)(?=\x1b|$|[^\\])", "", screen.file.getvalue())


def test_texts_are_shown_however_they_are_handed_to_the_screen():
    for screen in screens():
        screen.print(HOSTILE, markup=False)
        assert_tame(said(screen), SHOWN)
        screen.print(Text(HOSTILE))
        screen.print(Text.assemble(HOSTILE, style="bold"))
        assert_tame(said(screen), r"\u001b]52;c;ZXZpbA==")


def test_what_is_measured_is_what_is_shown():
    from rich.markup import escape
    from rich.table import Table

    screen = Screen(file=io.StringIO(), width=300)
    table = Table(box=None, padding=0, show_header=False)
    table.add_column(no_wrap=True)
    table.add_row(escape(HOSTILE))
    screen.print(table)
    assert screen.file.getvalue().rstrip() == SHOWN


def test_only_the_screen_prints():
    """A rich console or a print elsewhere would show what it is given."""
    for file in (Path(__file__).parents[2] / "src" / "sppo").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "console.py":
            assert not re.search(r"\bConsole\(", text), file
            for line in re.findall(r"(?<![\w.])print\(.*", text):
                own = ("sppo {version", "stopped", "a process was ended", "the cluster has", "visible(")
                assert any(part in line for part in own) or "verifiers" in file.parts, f"{file}: {line}"


@pytest.mark.parametrize("kind", [PlainProgress, LiveProgress])
def test_progress(kind):
    for screen in screens():
        progress = kind(screen)
        progress.phase(HOSTILE, 3)
        progress.update(1, {HOSTILE: 1.0})
        progress.message(HOSTILE)
        if isinstance(progress, LiveProgress):
            screen.print(progress.render())
        progress.update(3, {HOSTILE: 2.0})
        progress.close()
        assert_tame(said(screen), SHOWN)
    assert isinstance(make_progress().console, Screen)


def test_story():
    summary = {
        "accuracy_before": 0.1, "accuracy_after": 0.2, "measure": "accuracy", "output": f"runs/{HOSTILE}",
        "accuracy_before_by_difficulty": {HOSTILE: {"accuracy": 0.1, "prompts": 3}},
        "accuracy_after_by_difficulty": {HOSTILE: {"accuracy": 0.2, "prompts": 3}},
        "examples": [{
            "prompt": HOSTILE, "gold": HOSTILE, "before": HOSTILE, "after": HOSTILE, "before_reward": 0.0,
            "after_reward": 1.0,
        }],
    }  # fmt: skip
    for screen in screens():
        print_story(screen, summary)
        assert_tame(said(screen), SHOWN)


def test_errors(monkeypatch, capsys):
    def fail(arguments):
        raise DataError(f"row 3 holds {HOSTILE}")

    monkeypatch.setattr("sppo.cli.recipes.run", fail)
    assert main(["recipes"]) == 2
    assert_tame(capsys.readouterr().err, SHOWN)


def test_errors_that_nobody_expected(tmp_path):
    program = f"import sppo.cli, sppo.cli.recipes as r\ndef fail(a): raise ValueError({HOSTILE!r})\nr.run = fail\n"
    (tmp_path / "program.py").write_text(program + "sppo.cli.main(['recipes'])\n")
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, check=False)
    assert done.returncode == 1
    assert_tame(done.stderr.decode(), "ValueError: " + SHOWN)


def rows_of(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WHOLE = HOSTILE.replace("\ud800", "")
"""The same, as UTF-8 can hold it."""
ROWS = [{"prompt": f"{WHOLE} {number % 7}", "answer": f"{number % 3}{WHOLE}"} for number in range(40)]


def test_audit(tmp_path, capsys):
    data = rows_of(tmp_path / "data.jsonl", ROWS)
    assert main(["audit", str(data), "--verifier", "exact", "--json", str(tmp_path / "found.json")]) == 1
    assert_tame(capsys.readouterr().out, "Conflicting answers", SHOWN.replace(r"\r\b", "")[:40])
    assert_tame((tmp_path / "found.json").read_text())
    rows_of(data, [{"question": HOSTILE, HOSTILE: 3}])
    assert main(["audit", str(data)]) == 2
    assert_tame(capsys.readouterr().err, SHOWN)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on hostile rows, whose model knows hostile characters alone."""
    folder = tmp_path_factory.mktemp("hostile")
    rows_of(folder / "data.jsonl", ROWS)
    characters = "".join(sorted(set(WHOLE + "0123456")))
    character_tokenizer(characters).save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 512}
    recipe = {
        "extends": "demo", "output": str(folder / f"run [bold]{HOSTILE[-12:-1]}$x$"), "steps": 2, "prompts_per_step": 8,
        "model": {"tokenizer": str(folder / "tokenizer"), "config": sizes},
        "critic": {"config": sizes, "minibatch_size": 8},
        "optimizer": {"minibatch_size": 8, "learning_rate_warmup": 0}, "sft": {"phases": []},
        "sampling": {"max_response_tokens": 8},
        "data": {"task": "rows", "max_prompt_tokens": 400, "path": str(folder / "data.jsonl"),
                 "verifier": "exact", "options": {}, "instruction": WHOLE},
        "evaluation": {"prompts": 6, "every": 1, "final_samples_per_prompt": 2, "data": None},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def output_of(run: Path) -> Path:
    return next(run.glob("run *"))


@pytest.fixture(scope="module")
def trained(run, request) -> Path:
    assert main(["train", str(run / "recipe.yaml")]) == 0
    return run


@pytest.mark.parametrize("flags", [["--dry-run"], ["--print_config"], []])
def test_train(run, flags, capsys):
    assert main(["train", str(run / "recipe.yaml"), *flags, "--output", str(run / f"other{len(flags)}")]) == 0
    out = capsys.readouterr().out
    assert_tame(out)
    if "--print_config" in flags:
        assert yaml.safe_load(out)["data"]["instruction"] == WHOLE


@pytest.mark.parametrize(
    "command",
    [["eval"], ["eval", "--json", "/dev/stdout"], ["calibrate", "--prompts", "4", "-n", "2"], ["plot", "curves"]],
    ids=" ".join,
)
def test_commands_on_a_run(trained, command, capfd):
    first, *rest = command
    place = (
        [first, *rest[:1], str(output_of(trained)), *rest[1:]]
        if first == "plot"
        else [first, str(output_of(trained)), *rest]
    )
    capfd.readouterr()
    assert main(place) == 0
    captured = capfd.readouterr()
    assert_tame(captured.out, r"[bold]" if first != "eval" else "")
    assert_tame(captured.err)


def test_a_run_on_the_way_and_its_files(trained):
    folder = output_of(trained)
    from sppo.runs.records import read_records

    assert any(RAW.search(record["response"]) for record in read_records(folder)), "the model wrote such characters"
    for name in ("summary.json", "config.yaml", "metrics.jsonl"):
        assert_tame((folder / name).read_text())


def test_eval_of_an_evaluation(tmp_path, capsys, monkeypatch):
    from sppo.cli import eval as command

    shown = {"model": HOSTILE}, lambda console: console.print(HOSTILE, markup=False)
    monkeypatch.setattr(command, "_measure", lambda *_: shown)
    assert main(["eval", "anything"]) == 0
    assert_tame(capsys.readouterr().out, SHOWN)


def test_a_base_that_an_adapter_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sppo.commands.merge.merge", lambda *_, **__: HOSTILE)
    assert main(["merge", "adapter", "--output", str(tmp_path / "whole")]) == 0
    assert_tame(capsys.readouterr().out, SHOWN)


def test_json_files_hold_the_same_values(tmp_path):
    write_json(tmp_path / "a.json", {HOSTILE: HOSTILE})
    assert_tame((tmp_path / "a.json").read_text())
    assert json.loads((tmp_path / "a.json").read_text()) == {HOSTILE: HOSTILE}


def test_remarks_of_libraries_quote_nothing_as_it_stands(tmp_path):
    """transformers names the model_type of a config.json that it doesn't expect."""
    hostile = "evil\x1b]0;PWN\x07\x1b[2J"
    program = (
        "import logging, sys, warnings\nfrom sppo.cli import main\nassert main(['--version']) == 0\n"
        f"logging.getLogger('transformers').warning('a model of type %s', {hostile!r})\n"
        f"warnings.warn({hostile!r})\nlogging.warning('%d', 'no number')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "\x07" not in ended.stdout + ended.stderr
    assert ended.stderr.count(r"evil\u001b]0;PWN") == 2
