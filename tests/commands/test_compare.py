"""sppo compare: what is planned, what is run, what is not repeated, and what the numbers mean."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sppo.cli import main
from sppo.commands.compare import Budget, Setting, compare, parse_algorithms, parse_budget, plan
from sppo.commands.runner import peak_memory, run_command
from sppo.commands.train import fine_tune, train
from sppo.config.compatibility import read_config
from sppo.config.recipes import load_recipe, to_yaml
from sppo.errors import ConfigError, RunFolderError, SppoError, TrainingError
from sppo.report.comparison import write_comparison
from sppo.report.comparison_numbers import final_accuracy, reach, read_run, spread, step_seconds, summarise
from sppo.report.comparison_text import number
from sppo.runs.folder import read_metrics, read_summary
from sppo.runs.lock import lock
from sppo.runs.progress import NoProgress
from sppo.training.build import algorithm_of
from tests.conftest import tiny_config

WARM = [{"demonstrations": "full", "steps": 2, "batch_size": 4}]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    config = tiny_config(tmp_path / "unused", steps=2, evaluation__every=1, sft__phases=WARM)
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return str(path)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process what would be processes of their own, which take seconds to start; lists what was run."""
    commands: list[str] = []

    def run_here(arguments, log, memory, watch):
        command, path, *rest = arguments
        config = load_recipe(path)
        commands.append(f"{command} {Path(config.output).parent.name} {config.seed} {config.steps} {' '.join(rest)}")
        log.write_text("", encoding="utf-8")
        try:
            {"train": train, "sft": fine_tune}[command](config, resume=bool(rest))
        except SppoError as error:
            log.write_text(f"error: {error}\n", encoding="utf-8")
            return 2
        watch()
        return 0

    monkeypatch.setattr("sppo.commands.runner.run_process", run_here)
    return commands


def planned(recipe: str, text: str, conventions: tuple[str, ...] = ("prompts", "responses"), budget="steps=3", **more):
    base = load_recipe(recipe, more)
    overrides = tuple(f"--{key}={value}" for key, value in more.items())
    setting = Setting(recipe, overrides, base, conventions, 8, parse_budget(budget), Path("out"))
    return [job for entry in parse_algorithms(text) for job in plan(setting, entry, 5, None)]


def test_groups_get_the_same_prompts_or_the_same_responses_and_as_many_updates(recipe):
    single, prompts, responses = planned(recipe, "sppo,grpo")
    assert single.conventions == ("prompts", "responses")
    assert single.config == load_recipe(recipe, {"seed": 5, "output": "out/runs/sppo/seed_5", "steps": 3})
    assert (prompts.conventions, responses.conventions) == (("prompts",), ("responses",))
    sizes = [
        (c.prompts_per_step, c.sampling.samples_per_prompt, c.optimizer.minibatch_size, c.critic.minibatch_size)
        for c in (prompts.config, responses.config)
    ]
    assert sizes == [(16, 8, 64, 64), (2, 8, 8, 8)]
    assert prompts.config.output == "out/runs/grpo_same_prompts/seed_5"


def test_a_budget_of_responses_buys_whole_steps(recipe):
    single, prompts, responses = planned(recipe, "sppo,grpo", budget="responses=300")
    assert [job.config.steps for job in (single, prompts, responses)] == [18, 2, 18]
    with pytest.raises(ConfigError, match="--budget is 100 responses, but one step has 128"):
        planned(recipe, "grpo", budget="responses=100")


def test_the_demo_takes_the_algorithms_own_recipe_and_the_users_options_over_it(recipe):
    own, over = (planned("demo", "ppo", **more)[0].config for more in ({}, {"critic.learning_rate": 0.5}))
    wanted = load_recipe("demo_ppo")
    assert (own.algorithm, own.critic, own.optimizer) == (wanted.algorithm, wanted.critic, wanted.optimizer)
    assert over.critic.learning_rate == 0.5
    (elsewhere,) = planned(recipe, "ppo")
    assert elsewhere.config.algorithm.name == "ppo"
    assert elsewhere.config.critic == load_recipe(recipe).critic


def test_the_recipes_own_options_are_not_forced_upon_other_algorithms(recipe):
    base = load_recipe(recipe, {"algorithm.name": "ppo", "algorithm.options": {"gae_lambda": 0.9}})
    Path(recipe).write_text(to_yaml(base), encoding="utf-8")
    ppo, sppo = planned(recipe, "ppo,sppo")
    assert ppo.config.algorithm.options == {"gae_lambda": 0.9}
    assert sppo.config.algorithm.options == {}


def test_a_group_algorithm_with_our_choice_keeps_the_recipes_critic_and_without_it_has_none(recipe):
    Path(recipe).write_text(to_yaml(load_recipe(recipe, {"critic.history": True, "critic.prefit.samples": 32,
                                                         "selection.name": "sqrt"})), encoding="utf-8")  # fmt: skip
    sppo, rloo, chosen = planned(recipe, "sppo,rloo,rloo:chosen,selection.name=top", ("responses",))
    assert (sppo.config.selection.name, sppo.config.critic.history) == ("sqrt", True)
    assert algorithm_of(rloo.config).critic is None
    assert (rloo.config.selection.name, rloo.config.critic.history) == (None, False)
    assert rloo.config.critic.prefit.samples == 0
    assert algorithm_of(chosen.config).critic == "prompt"
    assert chosen.config.critic == replace(sppo.config.critic, minibatch_size=chosen.config.critic.minibatch_size)
    # What the critic is fitted to beforehand is paid from the budget.
    budgets = planned(recipe, "sppo,rloo", ("responses",), budget="responses=300")
    assert [job.config.steps for job in budgets] == [(300 - 32) // 16, 300 // 16]
    with pytest.raises(ConfigError, match=r"is 40 responses, but one step has 16, after 32 of critic\.prefit"):
        planned(recipe, "sppo", budget="responses=40")


def test_a_share_of_v_and_second_responses_stay_with_the_algorithm_that_has_them(recipe):
    own = {"critic.share": 0.5, "sampling.adaptive_share": 0.25}
    Path(recipe).write_text(to_yaml(load_recipe(recipe, own)), encoding="utf-8")
    sppo, *others = planned(recipe, "sppo,grpo,rloo:chosen,selection.name=top,remax", ("responses",))
    assert (sppo.config.critic.share, sppo.config.sampling.adaptive_share) == (0.5, 0.25)
    assert {(job.config.critic.share, job.config.sampling.adaptive_share) for job in others} == {(1.0, 0.0)}


@pytest.mark.parametrize(
    ("key", "value"), [("selection.name", "curriculum"), ("optimizer.learning_rate_decay", "cosine")]
)
def test_seconds_buy_no_steps_that_go_by_their_number(recipe, key, value):
    assert planned(recipe, "sppo", **{key: value})[0].config.steps == 3
    with pytest.raises(ConfigError, match=f"--budget is in seconds, .* but {key} goes by that number"):
        planned(recipe, "sppo", budget="seconds=5", **{key: value})


def test_what_a_critic_was_fitted_to_beforehand_counts(recipe, tmp_path, started):
    variants = "rloo,rloo:chosen,selection.name=top,critic.prefit.samples=24"
    found = compare(recipe, variants, match="responses", samples=4, output=tmp_path / "out", targets=(0.9,))
    assert not any(run["error"] for run in found["runs"])
    plain, chosen = found["runs"]
    assert [point["responses"] for point in plain["points"]] == [0, 16, 32]
    assert [point["responses"] for point in chosen["points"]] == [24, 40, 56]
    assert plain["points"][0]["seconds"] == 0 < chosen["points"][0]["seconds"]
    assert plain["responses_per_step"] == chosen["responses_per_step"] == 16
    assert [row["label"] for row in found["results"]["responses"]] == ["rloo", "chosen"]


def test_variants_have_options_of_their_own(recipe):
    plain, wide, eight = planned(
        recipe, "sppo, sppo:wide,critic.config.hidden_size=32,critic.epochs=2, sppo:8,sampling.samples_per_prompt=8",
        ("prompts",),
    )  # fmt: skip
    assert [job.entry.label for job in (plain, wide, eight)] == ["sppo", "wide", "8"]
    assert (wide.config.critic.config["hidden_size"], wide.config.critic.epochs) == (32, 2)
    assert (eight.config.sequences_per_step, eight.config.optimizer.minibatch_size) == (128, 64)
    assert plain.config.critic.epochs == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--algorithms is missing. Usage: sppo compare"),
        (["--algorithms", "sppo,gropo"], "'gropo', which is no algorithm here. Did you mean 'grpo'"),
        (["--algorithms", "sppo,sppo"], "--algorithms names 'sppo' twice"),
        (["--algorithms", "critic.epochs=2,sppo"], "starts with the option 'critic.epochs=2'"),
        (["--algorithms", "sppo:a/b"], "the label 'a/b' may have letters"),
        (["--algorithms", "sppo,data.limit=5"], "would change what all runs have to share"),
        (["--algorithms", "sppo,critic.epoch=5"], "critic.epoch is not an option. Did you mean critic.epochs"),
        (["--algorithms", "grpo,sampling.samples_per_prompt=1"], "sampling.samples_per_prompt is 1"),
        (["--algorithms", "grpo", "--samples", "3"], "prompts_per_step is 16, which 3 samples"),
        (["--algorithms", "sppo", "--samples", "1"], "--samples is 1, but a group has at least 2"),
        (["--algorithms", "sppo", "--seeds", "0,0"], "give at least one, and none twice"),
        (["--algorithms", "sppo", "--seeds", "a"], "--seeds is 'a', but must be numbers"),
        (["--algorithms", "sppo", "--seed", "1"], "--seed is set by the comparison for each run: use --seeds"),
        (["--algorithms", "sppo", "--budget", "60"], "--budget is '60', but must be steps=N"),
        (["--algorithms", "sppo", "--match", "tokens"], "--match is 'tokens', but must be prompts"),
        (["--algorithms", "sppo", "--targets", "80"], "--targets has 80, but accuracies"),
    ],
)
def test_mistakes_are_found_before_any_run(flags, said, recipe, tmp_path, capsys):
    assert main(["compare", recipe, "--output", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_comparison_from_one_warm_start_a_seed_is_not_repeated_and_survives_a_failure(recipe, tmp_path, started):
    def again(seeds=(0, 1)):
        broken = "sppo:broken,critic.config.model_type=nonsense"
        return compare(recipe, f"sppo,grpo,{broken}", seeds=seeds, samples=4, output=tmp_path / "out", targets=(0.9,))

    found = again()
    assert started == [
        command
        for seed in (0, 1)
        for command in (
            f"sft warm_start {seed} 2 ", f"train sppo {seed} 2 ", f"train grpo_same_prompts {seed} 2 ",
            f"train grpo_same_responses {seed} 2 ", f"train broken {seed} 2 ",
        )
    ]  # fmt: skip
    starts = {run["points"][0]["accuracy"] for run in found["runs"] if run["seed"] == 0 and not run["error"]}
    assert starts == {read_summary(tmp_path / "out" / "warm_start" / "seed_0")["accuracy_after"]}
    assert [run["error"] is not None for run in found["runs"]] == [False, False, False, True] * 2
    assert "nonsense" in found["runs"][3]["error"]
    by_label = {row["label"]: row for row in found["results"]["prompts"]}
    assert [by_label[label]["seeds"] for label in ("sppo", "grpo", "broken")] == [[0, 1], [0, 1], []]
    assert (by_label["sppo"]["responses"], by_label["grpo"]["responses"]) == (32, 128)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock", "warm_start", "runs", "comparison.json", "comparison.md", "accuracy_against_steps.png",
        "accuracy_against_responses.png", "accuracy_against_seconds.png",
    }  # fmt: skip
    assert found == json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert "## Runs that failed\n\n- broken, seed 0" in (tmp_path / "out" / "comparison.md").read_text("utf-8")

    started.clear()
    again()
    assert started == ["train broken 0 2 ", "train broken 1 2 "]
    with pytest.raises(RunFolderError, match=r"belongs to a comparison with other options: .*learning_rate"):
        compare(recipe, "sppo", output=tmp_path / "out", overrides=["--optimizer.learning_rate=0.5"])


def test_a_second_comparison_in_the_same_folder_is_refused(recipe, tmp_path, started):
    held = lock(tmp_path / "out", print)
    with held, pytest.raises(RunFolderError, match="Another process is writing"):
        compare(recipe, "sppo", output=tmp_path / "out")
    assert started == []


def test_a_run_that_was_cut_short_goes_on(recipe, tmp_path, started):
    compare(recipe, "sppo", budget="steps=2", output=tmp_path / "out")
    (tmp_path / "out" / "runs" / "sppo" / "seed_0" / "summary.json").unlink()
    started.clear()
    compare(recipe, "sppo", budget="steps=3", output=tmp_path / "out")
    assert started == ["train sppo 0 3 --resume"]
    assert [line["step"] for line in read_metrics(tmp_path / "out" / "runs" / "sppo" / "seed_0")] == [0, 1, 2, 3]


def test_a_budget_of_seconds_is_spent_in_rounds(recipe, tmp_path, started):
    found = compare(recipe, "sppo", budget="seconds=1", output=tmp_path / "out", overrides=["--evaluation.every=1"])
    trains = [command for command in started if command.startswith("train")]
    assert trains[0] == "train sppo 0 3 "
    assert all(command.endswith("--resume") for command in trains[1:])
    lines = read_metrics(tmp_path / "out" / "runs" / "sppo" / "seed_0")
    assert sum(map(step_seconds, lines)) >= 1
    (run,) = found["runs"]
    assert run["points"][-1]["seconds"] <= 1
    assert run["points"][-1]["steps"] <= lines[-1]["step"]


def test_a_warm_start_that_fails_ends_the_comparison(recipe, tmp_path, started):
    with pytest.raises(TrainingError, match=r"The warm start in .*seed_0 failed.*nonsense"):
        compare(recipe, "sppo", output=tmp_path / "out", overrides=["--model.config.model_type=nonsense"])


def test_a_process_of_its_own_leaves_its_log_and_its_peak_memory(tmp_path):
    config = tiny_config(tmp_path / "run", steps=1)
    assert run_command("train", config, NoProgress()) is None
    assert read_config(tmp_path / "run")["steps"] == 1
    peaks = peak_memory(tmp_path / "run")
    assert 50e6 < (peaks["peak_memory_bytes"] or 0) < 50e9
    assert "Held-out accuracy" in (tmp_path / "run.log").read_text(encoding="utf-8")


def write_run(folder: Path, accuracies: dict[int, float], seconds: float = 2.0, responses: int = 10) -> str:
    """A run folder as a run of 10 steps would leave it, evaluated at the steps given."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(11):
        line: dict[str, float] = {"step": step}
        if step:
            line |= {
                "time/rollout": seconds - 0.5,
                "time/policy": 0.5,
                "time/step": 99.0,
                "responses/total": step * responses,
            }
        if step in accuracies:
            line |= {"eval/accuracy": accuracies[step], "eval/accuracy_stderr": 0.03}
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def test_curves_leave_out_evaluation_and_end_with_the_budget(tmp_path):
    write_run(tmp_path / "run", {0: 0.2, 5: 0.6, 10: 0.8})
    whole = read_run(tmp_path / "run", "steps", 10)
    assert [tuple(point.values()) for point in whole["points"]] == [
        (0, 0.0, 0.0, 0.2, 0.03), (5, 50, 10.0, 0.6, 0.03), (10, 100, 20.0, 0.8, 0.03)
    ]  # fmt: skip
    assert (whole["seconds_per_step"], whole["responses_per_step"]) == (2.0, 10.0)
    assert len(read_run(tmp_path / "run", "seconds", 19.0)["points"]) == 2
    assert len(read_run(tmp_path / "run", "responses", 50)["points"]) == 2
    assert read_run(tmp_path / "nowhere", "steps", 10)["points"] == []


def test_time_to_a_target_is_interpolated_and_may_be_never(tmp_path):
    write_run(tmp_path / "run", {0: 0.2, 5: 0.6, 10: 0.8})
    points = read_run(tmp_path / "run", "steps", 10)["points"]
    assert reach(points, 0.2, "seconds") == 0.0
    assert reach(points, 0.5, "seconds") == pytest.approx(7.5)
    assert reach(points, 0.7, "responses") == pytest.approx(75)
    assert reach(points, 0.9, "steps") is None
    assert spread([3.0, None, 1.0]) == {"median": 3.0, "low": 1.0, "high": None}
    assert spread([3.0, None, None]) == {"median": None, "low": 3.0, "high": None}


def test_the_interval_has_the_prompts_and_the_seeds_in_it():
    # Squared errors 0.0009 and 0.0016, mean 0.00125; variance between 0.7 and 0.8 is 0.005, over 2 seeds 0.0025.
    found = final_accuracy([0.7, 0.8], [0.03, 0.04])
    assert found["mean"] == pytest.approx(0.75)
    assert found["stderr"] == pytest.approx(math.sqrt(0.00125 + 0.0025))
    assert final_accuracy([0.7], [0.03])["stderr"] == pytest.approx(0.03)


def test_rows_are_held_against_the_first_from_the_same_start(tmp_path):
    def entry(label, seed, accuracies, error=None, **more):
        folder = write_run(tmp_path / label / str(seed), accuracies, **more)
        return {
            "label": label, "algorithm": label, "conventions": ["prompts"], "seed": seed, "samples_per_prompt": 1,
            "prompts_per_step": 10, "folder": folder, "error": error, "peak_memory_bytes": 2**20 * (100 + seed),
        }  # fmt: skip

    runs = [
        entry("a", 0, {0: 0.0, 10: 1.0}), entry("a", 1, {0: 0.0, 10: 0.8}),
        entry("b", 0, {0: 0.0, 10: 0.5}, seconds=4.0), entry("b", 1, {0: 0.0, 10: 0.4}), entry("b", 2, {}, "broke"),
    ]  # fmt: skip
    settings = {
        "recipe": "x", "budget": {"unit": "steps", "amount": 10}, "conventions": ["prompts"], "seeds": [0, 1, 2],
        "targets": [0.4, 0.5],
    }  # fmt: skip
    found = write_comparison(tmp_path / "out", settings, runs)
    a, b = found["results"]["prompts"]
    assert (b["seeds"], b["failed"]) == ([0, 1], 1)
    assert b["final_accuracy"]["mean"] == pytest.approx(0.45)
    assert b["difference"]["mean"] == pytest.approx(-0.45)
    assert b["difference"]["stderr"] == pytest.approx(0.05)
    # To 0.4: a needs 8 and 10 seconds, b 32 and 20.
    assert a["targets"][0]["seconds"]["median"] == pytest.approx(9)
    assert b["targets"][0]["seconds_ratio"] == pytest.approx({"median": 3.0, "low": 2.0, "high": 4.0})
    assert b["targets"][1]["reached"] == 1
    assert b["targets"][1]["seconds"] == {"median": None, "low": pytest.approx(40), "high": None}
    assert b["peak_memory_bytes"] == 101 * 2**20
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| 50% | b | 1 of 2 | not reached (40.0 to not reached) |" in text
    assert "| 101 MiB | 2, 1 failed |" in text
    assert (tmp_path / "out" / "accuracy_against_seconds.png").read_bytes().startswith(b"\x89PNG")
    assert summarise(found["runs"], "responses", [0.5]) == []


def test_numbers_have_three_digits():
    assert [number(value) for value in (0, 0.1234, 12.34, 123.4, 30720)] == ["0", "0.12", "12.3", "123", "30,720"]
    assert parse_budget("responses=30720") == Budget("responses", 30720)
