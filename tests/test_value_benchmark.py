"""benchmarks/value.py: what is registered, when a run ends, what it cost, and what ratios of costs say."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sppo.config.recipes import load_recipe
from sppo.errors import ConfigError, RunFolderError
from sppo.runs.folder import read_metrics, read_summary

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
belief_quality, configs, curves, noise, plan, ratios, registered, running, tuning = (
    importlib.import_module(f"value_parts.{name}")
    for name in (
        "belief_quality", "configs", "curves", "noise", "plan", "ratios", "registered", "running", "tuning",
    )
)  # fmt: skip
Cost = ratios.Cost
NOTHING = {"settings": {}, "caps": {}}


# What a run cost


def test_of_a_rising_curve_the_cost_is_read_off_the_line_between_evaluations():
    assert curves.crossing([0, 100, 200, 300], [0.4, 0.7, 0.9, 0.95], 0.8) == pytest.approx(150)


def test_one_lucky_evaluation_is_no_crossing():
    # The fit pools .84 with what follows it: (.84 + .70 + .74) / 3 = .76 from 100 to 300, with its middle at 200.
    assert curves.crossing([0, 100, 200, 300], [0.5, 0.84, 0.70, 0.74], 0.8) is None
    found = curves.crossing([0, 100, 200, 300, 400, 500], [0.5, 0.84, 0.70, 0.74, 0.86, 0.9], 0.8)
    assert found == pytest.approx(200 + (0.8 - 0.76) / (0.86 - 0.76) * 200)
    assert curves.crossing([0, 100, 200], [0.5, 0.7, 0.9], 0.8) is None, "the last one alone is above the target"


def test_a_model_that_begins_above_the_target_needs_nothing():
    assert curves.crossing([0, 100, 200], [0.85, 0.86, 0.9], 0.8) == 0


def test_the_fitted_curve_finds_what_made_the_points():
    spent = [0, 256, 512, 1024, 2048, 4096, 8192]
    made = [0.3 + (0.95 - 0.3) / (1 + (1000 / x) ** 1.5) if x else 0.3 for x in spent]
    found = curves.fitted_curve(spent, made)
    assert found["asymptote"] == pytest.approx(0.95, abs=1e-3)
    assert found["efficiency"] == pytest.approx(1.5, abs=1e-2)
    assert found["middle"] == pytest.approx(1000, rel=1e-2)
    assert curves.fitted_curve(spent[:4], made[:4]) is None


def test_a_curve_counts_steps_and_what_was_spent_before_them():
    lines = [
        {"step": 0, "eval/accuracy": 0.5, "time/evaluate": 9.0},
        {"step": 1, "time/step": 1.0, "time/critic": 0.25, "responses/total": 192, "tokens/total": 1000},
        {"step": 2, "time/step": 1.0, "responses/total": 320, "tokens/total": 2000, "eval/accuracy": 0.6},
    ]
    curve = curves.curve_of(lines, {"seconds": 3.0, "responses": 64, "tokens": 500})
    assert (curve.seconds, curve.responses, curve.tokens) == ([3.0, 5.0], [64, 320], [500, 2000])
    assert curve.total == {"seconds": 5.0, "responses": 320, "tokens": 2000}
    assert curve.shares == {"critic": 0.125}


def test_a_run_ends_by_the_rule_that_its_cost_is_measured_by():
    stop = running.StopWhenDone(SimpleNamespace(target=0.8, cap=1000))
    for step, accuracy in ((0, 0.5), (1, 0.84), (2, 0.70), (3, 0.86)):
        stop.update(step, {"eval/accuracy": accuracy, "responses/total": 128.0 * step})
    with pytest.raises(running.Done):
        stop.update(4, {"eval/accuracy": 0.88, "responses/total": 512.0})
    assert stop.why == "target"
    assert curves.crossing(stop.spent, stop.accuracy, 0.8) is not None


def test_a_run_ends_at_its_cap():
    stop = running.StopWhenDone(SimpleNamespace(target=0.8, cap=256))
    stop.update(1, {"responses/total": 128.0})
    with pytest.raises(running.Done):
        stop.update(2, {"responses/total": 256.0})
    assert stop.why == "cap"


# Ratios


def test_the_ratio_is_the_geometric_mean_over_seeds():
    theirs = {0: Cost(200, True), 1: Cost(800, True), 2: Cost(1, True)}
    found = ratios.paired_ratio(theirs, {0: Cost(100, True), 1: Cost(100, True)})
    assert found.by_seed == {0: 2, 1: 8}
    assert found.mean == pytest.approx(4)
    # The logs ln 2 and 3 ln 2 have the standard error ln 2, and t of one degree of freedom is 12.706.
    assert found.high == pytest.approx(4 * 2**12.7062, rel=1e-4)
    assert found.low == pytest.approx(4 / 2**12.7062, rel=1e-4)
    assert (found.bootstrap_low, found.bootstrap_high) == (pytest.approx(2), pytest.approx(8))
    assert found.bound == ""


def test_runs_that_never_get_there_are_bounds():
    done, never = Cost(100, True), Cost(400, False)
    assert ratios.paired_ratio({0: never}, {0: done}).shown() == ">4.00"
    assert ratios.paired_ratio({0: done}, {0: never}).shown() == "<0.25"
    assert ratios.paired_ratio({0: never}, {0: never}).bound == "?"
    assert ratios.paired_ratio({0: never, 1: done}, {0: done, 1: never}).bound == "?"
    assert ratios.paired_ratio({0: done}, {1: done}) is None
    assert ratios.paired_ratio({0: done}, {0: Cost(0, True)}) is None


def test_a_criterion_is_judged_by_the_best_opponent():
    def of(value, theirs=True, ours=True):
        return ratios.paired_ratio({0: Cost(value * 100, theirs)}, {0: Cost(100, ours)})

    found = ratios.judge({"slow": of(5), "fast": of(2)}, 3.0)
    assert (found["met"], found["opponent"], found["short"]) == (False, "fast", 1.5)
    assert ratios.judge({"slow": of(5), "fast": of(3.5)}, 3.0)["met"]
    assert ratios.judge({"capped": of(3.5, theirs=False)}, 3.0)["met"]
    assert ratios.judge({"capped": of(2, theirs=False)}, 3.0)["met"] is None, "it may be 3 in truth"
    assert ratios.judge({"a": of(3.5, ours=False)}, 3.0)["met"] is None, "it may be less in truth"
    assert ratios.judge({"a": of(2, ours=False)}, 3.0)["met"] is False
    assert ratios.judge({"neither": of(4, theirs=False, ours=False)}, 3.0)["met"] is None


# The plan


def git(folder, *arguments):
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_only_what_is_registered_and_committed_is_run(tmp_path, monkeypatch):
    file = tmp_path / "value_plan.json"
    with pytest.raises(ConfigError, match="smoke is not registered"):
        registered.require_registered("smoke", file, NOTHING)
    git(tmp_path, "init")
    entry = registered.register("smoke", file, NOTHING)
    with pytest.raises(ConfigError, match="is not committed"):
        registered.require_registered("smoke", file, NOTHING)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "the plan")
    registered.require_registered("smoke", file, NOTHING)
    found, commit = registered.registered("smoke", file)
    assert found == entry
    assert len(commit) == 40

    other = replace(plan.EXPERIMENTS["smoke"], seeds=(0, 1, 2))
    monkeypatch.setitem(plan.EXPERIMENTS, "smoke", other)
    with pytest.raises(ConfigError, match=r"differs from the registered plan of smoke: seeds: \[0, 1\] -> \[0, 1, 2\]"):
        registered.require_registered("smoke", file, NOTHING)
    assert registered.registered("smoke", file) == (entry, commit), "what was run is still reported as it was"
    with pytest.raises(ConfigError, match="has another plan of smoke"):
        registered.register("smoke", file, NOTHING)


def test_what_tuning_found_is_part_of_the_plan(tmp_path):
    file = tmp_path / "value_plan.json"
    registered.register("smoke", file, NOTHING)
    tuned = {
        "settings": {"rloo_4": {"128": {"settings": {"optimizer.learning_rate": 0.125}, "trials": []}}},
        "caps": {},
    }
    with pytest.raises(ConfigError, match=r"rloo_4\.optimizer\.learning_rate: 0\.0005 -> 0\.125"):
        registered.require_registered("smoke", file, tuned)


def test_an_experiment_wants_the_same_number_of_trials_for_each_method():
    with pytest.raises(ConfigError, match=r"Not tuned yet: the cap of primary .*; sppo at 128 a step"):
        registered.compose("primary", NOTHING)
    names = {plan.METHODS[name].tuned_name for name in plan.EXPERIMENTS["primary"].methods["primary"]}
    settings = {name: {"128": {"settings": {}, "trials": [{}]}} for name in names}
    tuned = {"settings": settings, "caps": {"primary": {"cap": 4096}}}
    assert registered.compose("primary", tuned)["cells"]["primary"]["cap"] == 4096
    tuned["settings"]["sppo"]["128"]["trials"].append({})
    with pytest.raises(ConfigError, match="unequal numbers of trials"):
        registered.compose("primary", tuned)


def test_experiments_name_what_there_is():
    for experiment in plan.EXPERIMENTS.values():
        for cell, methods in experiment.methods.items():
            assert cell in plan.CELLS
            assert {*methods, experiment.ours} <= plan.METHODS.keys()
        for criterion in experiment.criteria:
            assert {criterion.ours, *criterion.against} <= set(experiment.methods[criterion.cell]), criterion.name


@pytest.mark.parametrize("name", ["sppo", "grpo_8", "remax", "reinforce_pp"])
def test_every_method_has_the_same_responses_and_one_optimiser_step_a_step(name, tmp_path):
    method = plan.METHODS[name]
    config = configs.run_config(plan.CELLS["chains"], method, 3, {"optimizer.learning_rate": 0.125}, 1000, tmp_path)
    assert config.prompts_per_step * (method.generated or method.samples) == 128
    assert config.optimizer.minibatch_size == config.sequences_per_step
    assert (config.steps, config.evaluation.every, config.optimizer.learning_rate) == (8, 3, 0.125)


def test_cells_of_a_recipe_share_the_warm_start_of_a_seed(tmp_path):
    cells = [
        plan.CELLS["chains"],
        replace(plan.CELLS["chains"], name="b", options={"data.options.prompts": 500}, batch=32),
    ]
    made = [configs.run_config(cell, plan.METHODS["rloo_4"], 3, {}, 1000, tmp_path) for cell in cells]
    assert made[0].model.path == made[1].model.path
    start = configs.warm_start_config("demo", 3, tmp_path)
    assert made[0].model.path == f"{start.output}/checkpoints/step_0/policy"
    assert made[1].output == str(tmp_path / "runs" / "b" / "rloo_4" / "seed_3")


# Tuning


def test_tuning_keeps_the_best_of_all_trials():
    tuned = {"settings": {}, "caps": {}}
    key = tuning.TUNED_KEYS[0]
    assert tuning.grid([1.0, 2.0], [], []) == [{key: 1.0}, {key: 2.0}]
    assert tuning.grid([1.0], [8, 16], [0.3])[1] == dict(zip(tuning.TUNED_KEYS, (1.0, 16, 0.3), strict=True))
    tuning.add_trials(tuned, "a", 128, [{"settings": {key: 1.0}, "score": 5.0}, {"settings": {key: 2.0}, "score": 4.0}])
    assert tuning.add_trials(tuned, "a", 128, [{"settings": {key: 3.0}, "score": 4.5}]) == {key: 2.0}
    assert len(tuned["settings"]["a"]["128"]["trials"]) == 3


def test_a_run_that_fails_costs_more_than_its_cap():
    assert tuning.score([math.e**2, math.e**4], 100, [0.0, 0.0]) == pytest.approx(3)
    assert tuning.score([None], 100, [0.3]) > tuning.score([None], 100, [0.1]) > tuning.score([100], 100, [0.0])


def test_tuning_seeds_are_no_experiments_own():
    tuning.require_tuning_seeds(plan.TUNING_SEEDS)
    with pytest.raises(ConfigError, match=r"Seeds \[2\] are an experiment's own"):
        tuning.require_tuning_seeds([2, 100])


# The rest


def test_the_noise_scale_of_known_norms():
    small, large = math.sqrt(4 + 100 / 32), math.sqrt(4 + 100 / 512)
    found = noise.noise_scale([small, small], [large], 32, 512)
    assert found == {"gradient": pytest.approx(4), "noise": pytest.approx(100), "scale": pytest.approx(25)}


def test_a_label_predicts_by_the_mean_of_others_that_have_it():
    def rated(label, *rewards):
        return belief_quality.Rated(SimpleNamespace(difficulty=label), list(rewards))

    others = [rated("a", 1, 0), rated("a", 1, 1), rated("b", 0, 0)]
    said = belief_quality.difficulty_values(others, [rated("a"), rated("b"), rated("c")])
    assert said == pytest.approx([0.75, 0, 1.25 / 3 + 0.25 / 3])


def tiny(output):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    return load_recipe(
        "demo",
        {
            "output": str(output),
            "steps": 4,
            "prompts_per_step": 4,
            "model.config": sizes,
            "critic": {"config": sizes, "minibatch_size": 4},
            "optimizer.minibatch_size": 4,
            "data.options.prompts": 50,
            "sampling.max_response_tokens": 8,
            "evaluation": {"prompts": 8, "final_samples_per_prompt": 1, "every": 1},
            "sft.phases": [],
            "checkpoint.every": 0,
            "logging.rollouts_every": 0,
        },
    )


def test_a_run_leaves_its_curve_and_what_it_ended_with(tmp_path):
    def numbers(line):
        return {name: value for name, value in line.items() if not name.startswith(("time/", "throughput/"))}

    jobs = [running.Job(tiny(tmp_path / name), cap=8, pass_at=(4, 2)) for name in "ab"]
    assert not jobs[0].is_done
    for job in jobs:
        assert running.run(job) == ""
    summary, lines = read_summary(jobs[0].folder), read_metrics(jobs[0].folder)
    assert [line["step"] for line in lines] == [0, 1, 2], "4 steps were due, but the cap is 8 responses"
    assert (summary["ended"]["why"], summary["responses"], summary["ended"]["pass_at_k"]["prompts"]) == ("cap", 8, 4)
    assert summary["ended"]["before"] == {"responses": 0, "tokens": 0, "seconds": 0}
    assert not (jobs[0].folder / "checkpoints").exists()
    # What ran before in the same process leaves no trace.
    assert list(map(numbers, read_metrics(jobs[1].folder))) == list(map(numbers, lines))

    assert jobs[0].is_done
    assert not replace(jobs[0], cap=16).is_done, "it ended at a smaller cap"
    with pytest.raises(RunFolderError, match="was made with other options: seed"):
        assert replace(jobs[0], config=replace(jobs[0].config, seed=5)).is_done
    (jobs[0].folder / "summary.json").unlink()
    assert not jobs[0].is_done
    assert running.run(jobs[0]) == ""
    assert list(map(numbers, read_metrics(jobs[0].folder))) == list(map(numbers, lines))


def test_a_checkpoints_critic_is_held_against_what_others_could_know(tmp_path):
    config = replace(tiny(tmp_path / "run"), steps=2)
    config = replace(config, checkpoint=replace(config.checkpoint, every=1, keep=9))
    job = running.Job(config, cap=8, keep_checkpoints=True)
    assert running.run(job) == ""
    saved = belief_quality.checkpoints_of(job)
    assert {when: path.name for when, path in saved.items()} == {"end": "step_2"}
    asked = SimpleNamespace(prompts=6, samples=4, fit_prompts=10)
    found = belief_quality.measure_checkpoint(config, saved["end"], asked)
    assert set(found) == {"belief, pool", "belief, held out", "offline, pool", "by difficulty, pool"}
    assert {measures["prompts"] for measures in found.values()} == {6}
    for measures in found.values():
        assert abs(measures["bias"]) <= measures["ece"] + 1e-9, "a mean gap is no larger than the mean of gaps"
