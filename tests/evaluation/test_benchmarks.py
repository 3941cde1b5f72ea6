"""`sppo eval --benchmarks` end to end: a model that sometimes answers right, killed and resumed, compared, and told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

import sppo
from sppo.cli import main
from sppo.commands.train import train
from sppo.data.tasks import TASKS
from sppo.errors import ConfigError, DataError, RewardError, RunFolderError
from sppo.evaluation import benchmarking, folder
from sppo.evaluation.benchmarks import BENCHMARKS
from sppo.runs.progress import NoProgress
from tests.conftest import SHARED_DATA, tiny_config, tiny_qwen2
from tests.training.test_recipe_dapo import TEMPLATE, byte_tokenizer

ANSWERS = ["\\boxed{7}", "\\boxed{8}", "\\boxed{9}"]
SMALL = {"max_response_tokens": 6, "temperature": 1.0, "device": "cpu"}
FLAGS = ["--max_response_tokens", "6", "--temperature", "1", "--device", "cpu"]


def save_answering_model(folder: Path, seed: int) -> Path:
    """A random model that reads bytes and mostly writes one of three boxed answers, or ends."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<think>\n", "")
    tokenizer.add_tokens(ANSWERS)
    model = tiny_qwen2(vocab_size=len(tokenizer), seed=seed, max_position_embeddings=256, eos_token_id=256)
    loud = tokenizer.convert_tokens_to_ids([*ANSWERS, tokenizer.eos_token])
    with torch.no_grad():
        model.get_output_embeddings().weight[loud] *= 8
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


def write_problems(path: Path, count: int = 6) -> Path:
    rows = [{"problem": f"{'what ' * n}?", "answer": str(7 + n % 3), "level": 1 + n % 2} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models a and b, and six problems."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for seed, name in ((3, "a"), (1, "b")):
        save_answering_model(folder / name, seed)
    write_problems(folder / "six.jsonl")
    return folder


def evaluate(place: Path, output: Path, samples: int = 4, model: str = "a", **options):
    options = {"benchmarks": f"math500={place / 'six.jsonl'}", **SMALL, **options}
    return sppo.evaluate(place / model, samples_per_prompt=samples, output=output, **options)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


def by_sample(folder: Path) -> dict:
    return {(line["benchmark"], line["problem"], line["sample"]): line for line in records(folder)}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Progress(NoProgress):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[int] = []
        self.total = 0

    def phase(self, name: str, total: int | None, unit: str = "steps") -> None:
        self.total = total or 0

    def update(self, step: int, metrics: object) -> None:
        self.steps.append(step)

    def message(self, text: str) -> None:
        self.said.append(text)


# ---- one model


def test_scores_records_and_files(place, tmp_path):
    progress = Progress()
    result = evaluate(place, tmp_path / "e", progress=progress, seed=2)
    scores = result.benchmarks["math500"]
    lines = records(tmp_path / "e")
    assert len(lines) == 24
    assert scores.accuracy.value == pytest.approx(sum(line["reward"] for line in lines) / 24)
    assert 0.05 < scores.accuracy.value < 0.95, "the model of this test should be right now and then"
    assert scores.accuracy.value == scores.pass_at[1].value < scores.pass_at[4].value
    assert scores.clipped_share == sum(line["finish_reason"] == "length" for line in lines) / 24
    assert scores.length_mean == sum(line["tokens"] for line in lines) / 24
    assert list(scores.by_difficulty) == ["Level 1", "Level 2"]
    assert {key: lines[0][key] for key in ("benchmark", "problem", "sample", "verifier")} == {
        "benchmark": "math500", "problem": "math500/1", "sample": 0, "verifier": "math",
    }  # fmt: skip
    assert json.loads((tmp_path / "e" / "result.json").read_text())["benchmarks"]["math500"]["problems"] == 6
    assert (progress.total, progress.steps) == (24, [0, 24])
    assert progress.said[0] == "math500: 6 problems, but 500 are published"
    assert progress.said[-1].startswith("math500: avg@4 ")
    prompt = json.loads((tmp_path / "e" / "problems.jsonl").read_text().splitlines()[1])
    assert prompt["prompt"].startswith("what ?\nPlease reason step by step")


def test_at_temperature_0_a_problem_is_answered_once_unless_more_are_asked_for(place, tmp_path):
    assert evaluate(place, tmp_path / "e", samples=None, temperature=0).samples == 1
    assert len(records(tmp_path / "e")) == 6


def test_killed_at_any_batch_it_goes_on_to_the_same_responses(place, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, "_CPU_ROWS", 5)
    evaluate(place, tmp_path / "whole")
    append = folder.EvaluationFolder.append
    for kill_at in (1, 3):
        output, calls = tmp_path / f"killed{kill_at}", []

        def torn(self, batch, calls=calls, kill_at=kill_at):
            calls.append(1)
            if len(calls) == kill_at:
                with open(self.path / "responses.jsonl", "a") as handle:
                    handle.write(json.dumps(batch[0]) + "\n" + json.dumps(batch[1])[:20])
                raise Killed
            append(self, batch)

        monkeypatch.setattr(folder.EvaluationFolder, "append", torn)
        with pytest.raises(Killed):
            evaluate(place, output)
        monkeypatch.setattr(folder.EvaluationFolder, "append", append)
        progress = Progress()
        evaluate(place, output, progress=progress)
        assert records(output) == records(tmp_path / "whole")
        expected = json.loads((tmp_path / "whole" / "result.json").read_text())
        assert json.loads((output / "result.json").read_text()) == {**expected, "output": str(output)}
        if kill_at > 1:
            assert progress.said[1] == f"{output}: 10 of 24 responses are there already"


def test_a_sample_depends_on_nothing_but_its_own_seed(place, tmp_path, monkeypatch):
    evaluate(place, tmp_path / "e")
    monkeypatch.setattr(benchmarking, "_CPU_ROWS", 7)
    evaluate(place, tmp_path / "other", samples=3, limit=4)
    whole, part = by_sample(tmp_path / "e"), by_sample(tmp_path / "other")
    assert part == {key: whole[key] for key in part}
    assert len({line["response"] for line in whole.values()}) > 6
    evaluate(place, tmp_path / "seed", seed=1)
    assert by_sample(tmp_path / "seed") != whole


def test_raising_n_or_the_limit_uses_what_is_there(place, tmp_path, monkeypatch):
    few = evaluate(place, tmp_path / "e", samples=2, limit=3)
    before = records(tmp_path / "e")
    many = evaluate(place, tmp_path / "e")
    assert records(tmp_path / "e")[:6] == before
    assert (len(records(tmp_path / "e")), many.benchmarks["math500"].problems) == (24, 6)
    monkeypatch.setattr(benchmarking, "load_policy", None)  # nothing is left to sample
    again = evaluate(place, tmp_path / "e", samples=2, limit=3)
    assert again.to_dict() == few.to_dict()


def test_another_model_or_sampling_is_refused_in_the_same_folder(place, tmp_path):
    evaluate(place, tmp_path / "e", samples=1)
    with pytest.raises(RunFolderError, match=r"sampling.temperature 1.0 -> 0.7"):
        evaluate(place, tmp_path / "e", samples=1, temperature=0.7)
    with pytest.raises(RunFolderError, match=r"model.weights"):
        evaluate(place, tmp_path / "e", samples=1, model="b")
    with pytest.raises(RunFolderError, match=r"math500: the prompts' token ids"):
        evaluate(place, tmp_path / "e", samples=1, system_prompt="Think.")
    with pytest.raises(RunFolderError, match=r"math500: its problems"):
        evaluate(place, tmp_path / "e", samples=1, benchmarks=f"math500={write_problems(tmp_path / 'x.jsonl', 5)}")


def test_two_benchmarks_and_their_average(place, tmp_path):
    benchmarks = [f"math500={place / 'six.jsonl'}", f"amc23={place / 'six.jsonl'}"]
    result = evaluate(place, tmp_path / "e", benchmarks=benchmarks)
    values = [scores.accuracy.value for scores in result.benchmarks.values()]
    first, second = ([line["response"] for line in records(tmp_path / "e")][half : half + 24] for half in (0, 24))
    assert first != second, "the same problem has other seeds in another benchmark"
    assert result.average is not None
    assert result.average.value == pytest.approx(sum(values) / 2)


def test_what_cannot_work_is_told_before_the_weights_are_loaded(place, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, "load_policy", None)
    with pytest.raises(
        ConfigError, match=r"math500: its longest prompt has \d+ tokens, and with --max_response_tokens"
    ):
        evaluate(place, tmp_path / "e", max_response_tokens=4096)
    with pytest.raises(ConfigError, match=r"--steps means nothing for benchmarks"):
        evaluate(place, tmp_path / "e", steps=7)
    with pytest.raises(ConfigError, match=r"rows and reward are for held-out prompts"):
        evaluate(place, tmp_path / "e", rows=[])
    with pytest.raises(ConfigError, match=r"At temperature 0 all 4 samples of a problem are the same"):
        evaluate(place, tmp_path / "e", temperature=0)
    with pytest.raises(ConfigError, match=r"1025 samples a problem: maj@k can be counted for at most 1024"):
        evaluate(place, tmp_path / "e", samples=1025)
    with pytest.raises(ConfigError, match=r"limit and output are for benchmarks"):
        sppo.evaluate(place / "a", limit=3)
    with pytest.raises(ConfigError, match=r"There is no folder .*nowhere"):
        evaluate(place, tmp_path / "e", model="nowhere")
    assert not (tmp_path / "e").exists()


def test_a_verifier_that_fails_is_counted_and_left_out(place, tmp_path, monkeypatch):
    from sppo.types import Verdict
    from sppo.verifiers.grading import Grader

    grade = Grader.grade

    def failing(self, rollouts, *, evaluation):
        assert evaluation
        lost = Verdict(None, error="no sandbox", caused_by="verifier")
        bomb = Verdict(0.0, error="timed out after 3 s", caused_by="response")
        return [lost, bomb, *grade(self, rollouts, evaluation=True)[2:]]

    monkeypatch.setattr(Grader, "grade", failing)
    scores = evaluate(place, tmp_path / "e").benchmarks["math500"]
    assert scores.errors == {"no sandbox": 1}
    assert scores.response_errors == {"timed out after 3 s": 1}
    assert scores.pass_at[4].problems == 5
    assert [record["caused_by"] for record in records(tmp_path / "e")[:3]] == ["verifier", "response", ""]


# ---- two models


def test_two_models_are_paired_by_problem(place, tmp_path):
    options = {"samples_per_prompt": 4, "output": tmp_path / "pair", **SMALL}
    comparison = sppo.compare_models(place / "a", place / "b", f"math500={place / 'six.jsonl'}", **options)
    pair = comparison.benchmarks["math500"]
    singles = [evaluate(place, tmp_path / model, model=model).benchmarks["math500"] for model in "ab"]
    assert (pair.a, pair.b) == tuple(pytest.approx(single.accuracy.value) for single in singles)
    assert pair.a_better + pair.b_better + pair.equal == 6
    ready = sppo.compare_models(tmp_path / "pair" / "a", tmp_path / "b")
    assert ready.benchmarks == comparison.benchmarks
    with pytest.raises(ConfigError, match=r"evaluations made before"):
        sppo.compare_models(tmp_path / "pair" / "a", tmp_path / "b", temperature=0.3)
    with pytest.raises(ConfigError, match=r"is no evaluation yet: name the benchmarks"):
        sppo.compare_models(tmp_path / "pair" / "a", place / "b")
    with pytest.raises(ConfigError, match=r"is no run folder, so it has no held-out prompts"):
        sppo.compare_models(place / "a", place / "b")


def test_other_problems_or_gold_answers_are_not_paired(place, tmp_path):
    other = json.loads('{"problem": "?", "answer": "9", "level": 1}')
    rows = (place / "six.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join([json.dumps(other), *rows[1:]]) + "\n")
    evaluate(place, tmp_path / "a", samples=1)
    evaluate(place, tmp_path / "b", samples=1, benchmarks=f"math500={tmp_path / 'other.jsonl'}")
    with pytest.raises(DataError, match=r"problems or gold answers that differ"):
        sppo.compare_models(tmp_path / "a", tmp_path / "b")
    evaluate(place, tmp_path / "fewer", samples=1, limit=5)
    with pytest.raises(DataError, match=r"not measured on the same problems"):
        sppo.compare_models(tmp_path / "a", tmp_path / "fewer")
    evaluate(place, tmp_path / "hot", samples=1, temperature=2.0)
    assert sppo.compare_models(tmp_path / "a", tmp_path / "hot").notes == (
        "the two were sampled differently: temperature 1.0 and 2.0",
    )


def test_runs_are_paired_on_their_own_held_out_prompts(tmp_path, capsys):
    for name, prompts, rate in (("one", 20, 1e-3), ("two", 20, 1e-2), ("three", 10, 1e-3)):
        train(tiny_config(tmp_path / name, steps=1, evaluation__prompts=prompts, optimizer__learning_rate=rate))
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    assert main(["eval", one, two, "-n", "2"]) == 0
    said = capsys.readouterr().out
    assert "held_out" in said
    assert (tmp_path / "one" / "evaluations" / "held_out-step_1" / "result.json").is_file()
    comparison = sppo.compare_models(one, two, samples_per_prompt=2)
    assert comparison.benchmarks["held_out"].difference.problems == 20
    with pytest.raises(DataError, match=r"held-out prompts of .* are not the same \(\d+ in common, of 20 and 10\)"):
        sppo.compare_models(one, three)


def test_two_runs_are_judged_by_what_a_person_says_and_rewards_beyond_a_share_are_refused(tmp_path):
    function = tmp_path / "rewards.py"
    function.write_text(
        "def share(completions, **_):\n    return [0.5] * len(completions)\n"
        "def points(completions, **_):\n    return [-3.0] * len(completions)\n"
    )
    for name, config in (("one", {}), ("two", {"data__reward": f"{function}:share"})):
        train(tiny_config(tmp_path / name, steps=1, evaluation__prompts=4, algorithm__name="reinforce_pp", **config))
    one, two = tmp_path / "one", tmp_path / "two"
    # A run's file alone makes no code run; who says it has both runs judged so.
    with pytest.raises(ConfigError, match=r"two/config.yaml sets data.reward, which makes code run"):
        sppo.compare_models(one, two, samples_per_prompt=2)
    assert not sppo.compare_models(one, two, samples_per_prompt=2, data__reward=f"{function}:share").notes
    with pytest.raises(RewardError, match=r"The reward of prompt .* is -3, .*must lie in \[0, 1\]"):
        sppo.compare_models(
            one, two, samples_per_prompt=2, data__reward=f"{function}:points", output=tmp_path / "points"
        )


# ---- the command line


def test_a_run_is_evaluated_into_its_own_folder(place, tmp_path, capsys):
    config = tiny_config(
        tmp_path / "run", steps=1, model__path=str(place / "a"), model__config=None, model__tokenizer=None,
        critic__config=None, sampling__max_response_tokens=4,
    )  # fmt: skip
    train(config)
    benchmarks = f"math500={place / 'six.jsonl'},amc23={place / 'six.jsonl'}"
    out = tmp_path / "out.json"
    command = ["eval", str(tmp_path / "run"), "--benchmarks", benchmarks, "-n", "2", *FLAGS, "--json", str(out)]
    assert main(command) == 0
    folder = tmp_path / "run" / "evaluations" / "step_1"
    table = (folder / "table.txt").read_text()
    assert "math500" in table
    assert "average" in table
    assert json.loads(out.read_text()) == json.loads((folder / "result.json").read_text())
    capsys.readouterr()
    assert main(["eval", str(folder), "--benchmarks", "math500"]) == 2
    assert "is an evaluation made before, which is shown without options" in capsys.readouterr().err
    assert main(["eval", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("run step_1")
    assert (folder / "table.txt").read_text() == table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "--benchmarks", "aime"], "There is no benchmark 'aime'. Did you mean 'aime25' or 'aime24'?"),
        (["a", "--benchmarks", "aime24", "-n", "0"], "--samples_per_prompt is '0'"),
        (["a", "--benchmarks", "aime24", "--recipe", "demo"], "--recipe is for held-out prompts"),
        (["a", "--recipe", "demo", "--limit", "3"], "--limit is for benchmarks"),
        (["a", "--recipe", "demo", "--instruction", "x"], "--instruction is for benchmarks"),
        (["a", "b", "c"], "'c' is one argument too many"),
        (["a"], "name benchmarks: sppo eval a --benchmarks math500"),
    ],
)
def test_mistakes_on_the_command_line(place, arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["eval", *arguments]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_help_names_every_benchmark(capsys):
    assert main(["eval", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ", ".join(BENCHMARKS) in said


# ---- the published files


@pytest.mark.parametrize(
    ("name", "file"), [("math500", "math_500.parquet"), ("aime24", "aime24_repeated_8x.parquet"),
                       ("humaneval", "humaneval.jsonl.gz")],
)  # fmt: skip
def test_a_tiny_model_with_a_chat_template_on_the_published_files(name, file, tmp_path):
    if not (SHARED_DATA / file).exists():
        pytest.skip(f"shared/data/{file} is not here")
    if name not in TASKS:
        pytest.skip(f"the task {name} is not in the table yet")
    tokenizer = byte_tokenizer()
    model = tiny_qwen2(vocab_size=len(tokenizer), max_position_embeddings=16384, eos_token_id=tokenizer.eos_token_id)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    path = SHARED_DATA / file
    if name == "humaneval":
        # Every reference solution is run when the file is read: eight of them, so that the test is fast.
        path = tmp_path / "humaneval.jsonl.gz"
        path.write_bytes(
            gzip.compress(b"".join(gzip.decompress((SHARED_DATA / file).read_bytes()).splitlines(keepends=True)[:8]))
        )
    result = sppo.evaluate(
        tmp_path / "model", benchmarks={name: str(path)}, samples_per_prompt=2, limit=8,
        output=tmp_path / "e", max_response_tokens=12, device="cpu",
    )  # fmt: skip
    scores = result.benchmarks[name]
    assert (scores.problems, scores.samples, scores.accuracy.value, scores.errors) == (8, 2, 0, {})
    assert scores.accuracy.interval is not None
    assert scores.accuracy.interval.high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert bool(scores.majority_at) == BENCHMARKS[name].votes
    assert len(records(tmp_path / "e")) == 16
    listed = len((tmp_path / "e" / "problems.jsonl").read_text().splitlines())
    assert listed == (8 if name == "humaneval" else BENCHMARKS[name].problems)
