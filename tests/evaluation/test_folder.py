"""The folder of an evaluation: what counts after a kill, what is refused, and reading it back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sppo.errors import RunFolderError
from sppo.evaluation.folder import EvaluationFolder, is_evaluation, read_evaluation, read_settings


def settings(temperature=0.6, weights="abc", **benchmarks):
    section = {
        "source": "x",
        "votes": True,
        "problems": "p",
        "prompts": "q",
        "verifier": "math",
        "verifier_version": "1",
    }
    return {
        "model": {"name": "tiny", "weights": weights},
        "sampling": {"temperature": temperature},
        "seed": 0,
        "versions": {"sppo": "0.1.0"},
        "benchmarks": {name: {**section, **changes} for name, changes in (benchmarks or {"aime24": {}}).items()},
    }


def problems(name="aime24"):
    return {name: [{"benchmark": name, "problem": f"{name}/{n}", "difficulty": None} for n in range(2)]}


def record(number, sample=0, text="a\u2028b"):
    return {
        "benchmark": "aime24", "problem": f"aime24/{number}", "sample": sample, "response": text, "tokens": 3,
        "finish_reason": "stop", "reward": 1.0, "extracted": "7", "error": None,
    }  # fmt: skip


def test_what_a_killed_process_had_half_written_is_cut_off(tmp_path):
    folder = EvaluationFolder.open(tmp_path / "e", settings(), problems())
    folder.append([record(0), record(1)])
    folder.close()
    whole = (tmp_path / "e" / "responses.jsonl").read_bytes()
    for torn in (b'{"benchmark": "ai', (json.dumps(record(0, 1)) + "\n").encode(), b"\xe2\x80"):
        (tmp_path / "e" / "responses.jsonl").write_bytes(whole + torn)
        folder = EvaluationFolder.open(tmp_path / "e", settings(), problems())
        assert [line["problem"] for line in folder.responses()] == ["aime24/0", "aime24/1"]
        assert (tmp_path / "e" / "responses.jsonl").read_bytes() == whole
        folder.close()
    folder = EvaluationFolder.open(tmp_path / "e", settings(), problems())
    folder.append([record(0, 1)])
    assert [line["sample"] for line in folder.responses()] == [0, 0, 1]
    assert next(folder.responses())["response"] == "a\u2028b"
    folder.close()


def test_a_process_killed_before_its_settings_leaves_no_evaluation(tmp_path):
    path = tmp_path / "e"
    path.mkdir()
    (path / ".lock").touch()
    (path / "problems.jsonl").write_text("")
    assert not is_evaluation(path)
    EvaluationFolder.open(path, settings(), problems()).close()
    assert is_evaluation(path)
    with pytest.raises(RunFolderError, match="has not ended"):
        read_evaluation(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (settings(temperature=1.0), r"sampling.temperature 0.6 -> 1.0"),
        (settings(weights="def"), r"model.weights 'abc' -> 'def'"),
        (settings(aime24={"prompts": "other"}), r"aime24: the prompts' token ids, .*chat template.*\('q' -> 'other'\)"),
        (settings(aime24={"problems": "other"}), r"aime24: its problems or their gold answers"),
        (settings(aime24={"verifier_version": "2"}), r"aime24: the verifier's version \('1' -> '2'\)"),
    ],
)
def test_other_settings_are_refused_with_what_differs(changed, said, tmp_path):
    EvaluationFolder.open(tmp_path / "e", settings(), problems()).close()
    with pytest.raises(RunFolderError, match=f"{said}.*--output"):
        EvaluationFolder.open(tmp_path / "e", changed, problems())


def test_another_benchmark_joins_and_versions_may_change(tmp_path):
    EvaluationFolder.open(tmp_path / "e", settings(), problems()).close()
    more = {**settings(math500={"prompts": "z"}), "versions": {"sppo": "0.2.0"}}
    EvaluationFolder.open(tmp_path / "e", more, problems("math500")).close()
    merged = read_settings(tmp_path / "e")
    assert merged is not None
    assert list(merged["benchmarks"]) == ["aime24", "math500"]
    lines = [json.loads(line) for line in (tmp_path / "e" / "problems.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == ["aime24", "aime24", "math500", "math500"]


def test_what_only_another_machine_needs_may_change(tmp_path):
    def verifying(tokens, squash="sigmoid"):
        verification = {"workers": tokens, "time_limit": float(tokens), "reward_model": {"squash": squash}}
        return {**settings(), "verification": verification}

    EvaluationFolder.open(tmp_path / "e", verifying(8192), problems()).close()
    EvaluationFolder.open(tmp_path / "e", verifying(2048), problems()).close()
    with pytest.raises(RunFolderError, match=r"verification.reward_model.squash 'sigmoid' -> 'none'"):
        EvaluationFolder.open(tmp_path / "e", verifying(2048, "none"), problems())


def test_only_one_process_writes(tmp_path):
    folder = EvaluationFolder.open(tmp_path / "e", settings(), problems())
    program = f"import fcntl; fcntl.flock(open({str(tmp_path / 'e' / '.lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in done.stderr
    with pytest.raises(RunFolderError, match="Another process is writing"):
        EvaluationFolder.open(tmp_path / "e", settings(), problems())
    folder.close()
    EvaluationFolder.open(tmp_path / "e", settings(), problems()).close()


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="holds something else"):
        EvaluationFolder.open(tmp_path / "other", settings(), problems())
    with pytest.raises(RunFolderError, match="cannot be made: Not a directory"):
        EvaluationFolder.open(tmp_path / "other" / "thesis.tex" / "e", settings(), problems())
    folder = EvaluationFolder.open(tmp_path / "e", settings(), problems())
    folder.append([record(0)])
    folder.close()
    (tmp_path / "e" / "responses.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="something else changed it"):
        EvaluationFolder.open(tmp_path / "e", settings(), problems())


def test_a_finished_evaluation_reads_back_what_its_result_is_made_of(tmp_path):
    folder = EvaluationFolder.open(tmp_path / "e", settings(), problems())
    folder.append([record(number, sample) for number in range(2) for sample in range(3)])
    folder.write_result({"model": "tiny", "benchmarks": {"aime24": {"problems": 1, "samples": 2}}})
    folder.close()
    measured = read_evaluation(Path(tmp_path / "e"))
    assert {name: {p: len(r) for p, r in groups.items()} for name, groups in measured.responses.items()} == {
        "aime24": {"aime24/0": 2}
    }
    with pytest.raises(RunFolderError, match="has no finished math500; it has aime24"):
        read_evaluation(tmp_path / "e", ["math500"])
