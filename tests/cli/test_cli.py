"""The command line: help at once, mistakes in one line, progress and the story at the end."""

import io
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from rich.console import Console

from sppo.algorithms.options import ALGORITHM_OPTIONS, JointOptions
from sppo.cli import COMMANDS, main
from sppo.cli.checks import write_json
from sppo.cli.demo import demo_folder
from sppo.cli.options import parse
from sppo.cli.progress import LiveProgress, Phase, PlainProgress, make_progress, sparkline
from sppo.cli.story import print_evaluation, print_result, print_story
from sppo.config import Config, flatten, to_dict
from sppo.config.recipes import load_recipe
from sppo.data.tasks import TASKS
from sppo.errors import ConfigError
from sppo.rollouts.engines import ENGINES
from sppo.verifiers import VERIFIERS

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "scipy", "sympy", "math_verify")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["recipes"], ["train", "dmeo"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    listing = f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    code = f"import sys; from sppo.cli import main; main({arguments!r}); {listing}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_help_has_a_line_and_an_example_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert command.summary in text
        assert command.example in text
        assert command.example.startswith(f"sppo {name}")


def test_train_help_shows_every_option_with_help_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in flatten(to_dict(Config())):
        assert re.search(rf"  --{re.escape(key)} .*\(default: .+\)\n +\S", text), key
    assert "--sft.phases.N.stop_at_accuracy" in text


def test_help_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "sampling"]) == 0
    text = capsys.readouterr().out
    assert "--sampling.top_p" in text
    assert "--optimizer" not in text.replace("--help optimizer", "")


def test_help_of_other_commands_names_the_sections_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Sections: model, critic, data, selection, sampling, algorithm, optimizer, " in " ".join(text.split())
    assert "--optimizer.learning_rate" not in text
    assert len(text.splitlines()) < 40
    assert main(["calibrate", "--help", "optimizer"]) == 0
    assert "--optimizer.learning_rate" in capsys.readouterr().out


def test_help_names_what_a_table_holds(capsys: pytest.CaptureFixture[str]) -> None:
    from sppo.algorithms.table import ALGORITHMS

    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for names in (ALGORITHMS, TASKS, VERIFIERS, ENGINES):
        assert f" {', '.join(names)}. " in text


def test_help_of_a_section_shows_the_options_of_each_algorithm_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {name: task.options for name, task in TASKS.items() if task.options}
    for section, own in (("algorithm", {**ALGORITHM_OPTIONS, "ratio joint": JointOptions}), ("data", tasks)):
        assert main(["train", "--help", section]) == 0
        text = capsys.readouterr().out
        for name, options in own.items():
            for option in fields(options):
                sign = rf"  --{section}\.options\.{option.name} \S.*\(default: (.+)\)\n +(.+?): \S"
                default = [] if option.default is MISSING else "null" if option.default is None else option.default
                said = [value for value, owners in re.findall(sign, text) if name in owners.split(", ")]
                assert said == [str(default)], (name, option.name)
    assert "chain_arithmetic: Terse demonstrations" in text
    assert "skills: Terse demonstrations" in text


def test_help_says_what_a_number_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "sampling"]) == 0
    text = capsys.readouterr().out
    assert "--sampling.top_p NUMBER in (0, 1]  (default: 1.0)" in text
    assert "--sampling.samples_per_prompt INT at least 1  (default: 1)" in text


def test_help_of_the_run_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "steps"]) == 0
    text = capsys.readouterr().out
    assert "--prompts_per_step" in text
    assert "--sampling.top_p" not in text


@pytest.mark.parametrize("arguments", [[], ["train", "--help"], ["eval", "--help", "data"], ["recipes", "--help"]])
def test_help_lines_end_where_their_text_does(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"sppo \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "'trian' is not a command. Did you mean 'train'?"),
        (["train"], "RECIPE is missing. Usage: sppo train RECIPE"),
        (["train", "demo", "more"], "'more' is one argument too many."),
        (["train", "demo", "--output", "[bold]x[/]", "--steps", "[red]"], "steps is '[red]', but must be"),
        (["eval", "nowhere"], "nowhere is no run folder"),
        (["eval", "nowhere", "--checkpoint", "newest"], "--checkpoint is 'newest', but must be best, last, or step_N"),
        (["eval", "nowhere", "--samples_per_prompt", "0"], "--samples_per_prompt is '0'"),
        (["eval", "runs/nowhere"], "There is no folder runs/nowhere"),
        (["eval", "./nowhere", "--recipe", "demo"], "There is no folder ./nowhere"),
        (["eval", "nowhere", "--json"], "--json has no value"),
        (["eval", "nowhere", "--json", "missing/out.json"], "--json missing/out.json: there is no folder missing"),
        (["eval", "nowhere", "--benchmark", "math500"], "--benchmark is not an option. Did you mean --benchmarks?"),
        (["plot", "curves", "nowhere"], "nowhere is no run folder with something to draw (it has no metrics.jsonl)"),
        (["plot", "tail", "nowhere"], "nowhere is no run folder with something to draw (it has no metrics.jsonl)"),
        (["recipes", "--all"], "--all is no flag of this command"),
        (["train", "demo", "-steps", "3"], "'-steps' has a single dash: write --steps."),
        (["train", "demo", "--output"], "--output has no value"),
        (["train", "--help", "optimiser"], "there is no such section. Did you mean 'optimizer'?"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, said, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["trian"])


def test_errors_of_the_system_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(arguments: list[str]) -> int:
        raise OSError(28, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr("sppo.cli.recipes.run", full)
    assert main(["recipes"]) == 2
    said = "error: The disk is full (runs/x/metrics.jsonl): free some space; a run goes on with --resume.\n"
    assert capsys.readouterr().err == said


def test_a_result_that_cannot_be_written_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--json .*file/out.json cannot be written: Not a directory"):
        write_json("--json", tmp_path / "file" / "out.json", {})


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sppo.cli.recipes.run", interrupted)
    assert main(["recipes"]) == 130


def test_print_config_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--steps=7", "demo", "--data.options.prompts", "64", "--print-config"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    again = load_recipe(tmp_path / "again.yaml")
    assert again == load_recipe("demo", {"steps": 7, "data.options.prompts": 64})


def test_sft_prints_its_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "demo", "--seed", "5", "--print_config"]) == 0
    assert "seed: 5\n" in capsys.readouterr().out


def test_eval_of_a_checkpoint_names_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run" / "checkpoints" / "best"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    assert main(["eval", str(folder)]) == 2
    assert (
        f"is a checkpoint. Give its run, and the checkpoint's name: sppo eval {tmp_path / 'run'} --checkpoint best"
        in (capsys.readouterr().err)
    )


def test_own_flags_are_told_from_overrides_in_any_order() -> None:
    given = parse(
        ["--resume", "runs/x", "--samples-per-prompt", "4", "--seed", "-1", "--dry-run"],
        "usage",
        positional="RUN",
        switches=("resume", "dry_run"),
        settings=("samples_per_prompt",),
    )
    assert given.positional == "runs/x"
    assert given.switches == {"resume", "dry_run"}
    assert given.settings == {"samples_per_prompt": "4"}
    assert given.overrides == ["--seed=-1"]


def test_demo_takes_a_fresh_folder(tmp_path: Path) -> None:
    wanted = str(tmp_path / "demo")
    assert demo_folder(wanted) == demo_folder(wanted, newest=True) == wanted
    os.mkdir(wanted)
    os.mkdir(f"{wanted}-2")
    assert demo_folder(wanted) == f"{wanted}-3"
    assert demo_folder(wanted, newest=True) == f"{wanted}-2"


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert sparkline([0.3, 0.3], 5) == "▄▄"
    assert sparkline([], 5) == ""


def test_time_left_counts_from_the_first_update() -> None:
    phase = Phase("training", total=60, unit="steps", started=0.0)
    phase.update(41, {}, now=100.0)
    assert phase.seconds_left(100.0) is None
    phase.update(43, {}, now=104.0)
    assert phase.seconds_left(104.0) == 2.0 * 17
    assert phase.seconds_left(105.0) == 2.0 * 17 - 1


def test_plain_progress_always_prints_the_last_step() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = make_progress(console)
    assert isinstance(progress, PlainProgress)
    progress.phase("training", 100)
    for step in range(1, 41):
        progress.update(step, {"reward/mean": step / 100, "critic/value_mean": 0.25})
    progress.message("[saved]")
    progress.close()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].endswith("training: 100 steps")
    assert lines[-1].endswith("training 40/100 steps  reward 0.400  V 0.250")
    assert any(line.endswith("[saved]") for line in lines)
    assert len(lines) < 10


@pytest.mark.parametrize("width", [80, 120])
def test_live_panel_fits_and_training_goes_on_after_an_evaluation(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    progress = LiveProgress(console)
    progress.phase("training", 60)
    for step in range(1, 31):
        progress.update(step, {"reward/mean": step / 60, "critic/value_mean": 0.4, "eval/accuracy": 0.5})
    progress.phase("evaluation", None)
    progress.phase("training", 60)
    screen = Console(file=io.StringIO(), width=width)
    screen.print(progress.render())
    progress.close()
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    for shown in ("training", "30/60 steps", "reward", "0.500", "█", "held-out accuracy", "critic expected"):
        assert shown in text


CHOOSING = {
    "reward/mean": 0.5, "critic/value_mean": 0.41, "critic/bias": -0.04, "critic/brier": 0.12,
    "selection/control_share": 0.1, "selection/control_reward": 0.25, "selection/dead_share": 0.62,
    "selection/gain": 4.13, "selection/chosen_reward": 0.528,
}  # fmt: skip


def test_the_panel_tells_the_reward_of_chosen_prompts_from_that_of_all() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    progress = LiveProgress(console)
    progress.phase("training", 60)

    def shown(metrics: dict[str, float]) -> str:
        progress.update(1, metrics)
        screen = Console(file=io.StringIO(), width=80)
        screen.print(progress.render())
        return screen.file.getvalue()  # type: ignore[attr-defined]

    text = shown(CHOOSING)
    assert re.search(r"reward of chosen +0\.528", text)
    assert re.search(r"reward at large +0\.250 +of the 10% that nobody chose", text)
    assert re.search(r"critic expected +0\.410 +where R was 0\.500 \(bias -0\.040\), Brier 0\.120", text)
    assert re.search(r"dead prompts +62% +as is believed; best teach 4\.1 x the mean", text)
    # A step of auto that chose none.
    text = shown(
        {name: value for name, value in {**CHOOSING, "selection/control_share": 1.0}.items() if "chosen" not in name}
    )
    progress.close()
    assert re.search(r"reward +0\.500", text)
    assert "nobody chose" not in text


def test_the_log_tells_the_reward_of_chosen_prompts_from_that_of_all() -> None:
    console = Console(file=io.StringIO(), width=110)
    progress = PlainProgress(console)
    progress.phase("training", 1)
    progress.update(1, CHOOSING)
    assert "reward 0.528  of chosen, 0.250 at large  V 0.410" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_story_says_whose_reward_it_was_and_what_the_critic_cost() -> None:
    def told(summary: dict[str, object]) -> str:
        console = Console(file=io.StringIO(), width=110)
        print_result(console, summary)
        return console.file.getvalue()  # type: ignore[attr-defined]

    selection = {
        "steps": 40,
        "steps_chosen": 30,
        "reward": 0.5,
        "control_reward": 0.25,
        "candidates": 4.5,
        "dead_share": 0.62,
        "gain": 4.1,
    }
    # Loading and evaluations are no training: 1 + 2 + 1 of 20 seconds.
    seconds = {
        "rollout": 9.0,
        "grade": 1.0,
        "policy": 6.0,
        "value": 1.0,
        "critic": 2.0,
        "select": 1.0,
        "evaluate": 40.0,
    }
    text = told({"seconds": seconds, "selection": selection})
    assert "the critic took 20% of training" in text
    assert (
        "chosen in 30 of 40 steps, of 4.5 candidates each: reward 0.500 of late, 0.250 of prompts nobody chose" in text
    )
    assert "62% of the prompts are believed to be solved always or never; the most promising teach 4.1 x" in text
    text = told({"seconds": {"rollout": 9.0, "critic": 0.001}, "selection": {**selection, "steps_chosen": 0}})
    assert "as they came, none chosen" in text
    assert "critic took" not in text
    assert "prompts" not in told({"seconds": seconds})


def test_story_tells_everything_in_80_columns() -> None:
    group = {"2 operations": {"accuracy": 0.25, "prompts": 100, "stderr": 0.04}}
    summary = {
        "accuracy_before": 0.25, "accuracy_after": 0.75, "accuracy_before_stderr": 0.04, "accuracy_after_stderr": 0.03,
        "accuracy_before_by_difficulty": group,
        "accuracy_after_by_difficulty": {"2 operations": {"accuracy": 0.75, "prompts": 100, "stderr": 0.03}},
        "critic": {"pearson": 0.5, "spearman": None, "brier": 0.1, "ece": 0.05, "bias": -0.04},
        "calibration_in_training": [{"low": 0.9, "high": 1.0, "mean_value": 0.95, "solve_rate": 1.0, "count": 100}],
        "examples": [{"prompt": "1+[b]2", "gold": "3", "before": "#4", "before_reward": 0.0, "after": "#3",
                      "after_reward": 1.0}],
        "seconds": {"rollout": 61.0, "total": 125.0}, "tokens": {"sampled": 1234}, "output": "runs/demo",
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    print_story(console, summary)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"2 operations +100 +25\.0% +75\.0% +\+50\.0 +█{5}▓{10}·{5}", text)
    assert re.search(r"0\.9 and 1\.0 +100 +0\.95 +1\.00 +█{20}", text)
    assert "Pearson 0.500  Brier 0.100  ECE 0.050  bias -0.040" in text
    assert "1+[b]2" in text
    assert "✗ #4" in text
    assert "✓ #3" in text
    assert "2:05 (rollout 1:01)" in text
    assert "runs/demo" in text


def test_evaluation_table_has_standard_errors() -> None:
    console = Console(file=io.StringIO(), width=80)
    groups = {"Level 1": {"accuracy": 0.5, "prompts": 8, "stderr": 0.125}}
    print_evaluation(console, {"accuracy": 0.5, "accuracy_stderr": 0.125, "accuracy_by_difficulty": groups})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"Level 1 +8 +50\.0% +12\.5% +█{10}·{10}", text)
    assert re.search(r"all +8 +50\.0% +12\.5%", text)
    assert "foresees" not in text
    print_evaluation(console, {"accuracy": 0.5, "prompts": 8, "critic": {"pearson": 0.25, "ece": None}})
    assert "  Pearson 0.250 " in console.file.getvalue()  # type: ignore[attr-defined]


def test_result_counts_prompts_without_difficulty() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_result(console, {"accuracy_before": 0.25, "accuracy_after": 0.5, "prompts": 64})
    assert re.search(r"all +64 +25\.0% +50\.0%", console.file.getvalue())  # type: ignore[attr-defined]


def test_the_share_right_so_far_is_in_percent() -> None:
    console = Console(file=io.StringIO(), width=100)
    progress = PlainProgress(console)
    progress.phase("evaluation", 64, "responses")
    progress.update(64, {"right so far": 0.015625})
    assert "64/64 responses  right so far 1.6%" in console.file.getvalue()  # type: ignore[attr-defined]


def test_errors_of_a_verifier_are_shown_once_there_are_any() -> None:
    console = Console(file=io.StringIO(), width=100)
    progress = PlainProgress(console)
    progress.phase("training", 2)
    progress.update(1, {"reward/mean": 0.5, "reward/error_share": 0.0})
    progress.update(2, {"reward/mean": 0.5, "reward/error_share": 0.125})
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "verifier errors 12.5%" in lines[-1]
    assert not any("verifier errors" in line for line in lines[:-1])
