"""The picture of V(s_t) along responses: what it reads, and what it refuses."""

from __future__ import annotations

import json

import pytest

from sppo.cli import main
from sppo.errors import RunFolderError
from sppo.report.tail import write_tail
from sppo.runs.records import write_records


def run_folder(path, records):
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 30)))
    for step in {record["step"] for record in records}:
        write_records(path, step, (record for record in records if record["step"] == step))
    return path


def test_the_picture_is_drawn_from_the_newest_steps(tmp_path, monkeypatch):
    seen = {}
    from sppo.report import tail

    monkeypatch.setattr(tail, "_draw", lambda folder, curves, steps: seen.update(curves=curves, steps=steps) or folder)
    write_tail(
        run_folder(
            tmp_path / "run",
            [
                {"step": 2, "reward": 1.0, "token_values": [0.9, 0.9]},  # older than the last ten steps
                {"step": 30, "reward": 1.0, "token_values": [0.5, 1.0]},
                {"step": 30, "reward": 0.0, "token_values": [0.5]},
                {
                    "step": 30,
                    "reward": None,
                    "token_values": [0.1, 0.1],
                },  # the verifier failed: neither right nor wrong
            ],
        )
    )
    assert seen["steps"] == "steps 30 to 30"
    assert [len(seen["curves"][right]) for right in (True, False)] == [1, 1]
    (right,) = seen["curves"][True]
    assert (right[0], right[-1]) == (0.5, 1.0)
    assert right == sorted(right)
    assert seen["curves"][False][0] == [0.5] * len(right)


def test_the_command_writes_a_png(tmp_path, capsys):
    records = [{"step": 30, "reward": float(row % 2), "token_values": [0.2, 0.4, 0.6]} for row in range(6)]
    folder = run_folder(tmp_path / "run", records)
    assert main(["plot", "tail", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "tail.png")
    assert (folder / "tail.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_version_0_1_0_has_all_records_in_one_file(tmp_path):
    folder = run_folder(tmp_path / "run", [])
    records = [{"step": 30, "reward": float(row % 2), "token_values": [0.2, 0.4, 0.6]} for row in range(6)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert write_tail(folder) == folder / "tail.png"


def test_a_run_without_token_values_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run", [{"step": 30, "reward": 1.0, "value": 0.5}])
    with pytest.raises(RunFolderError, match="only runs of ppo and ppo_bce"):
        write_tail(folder)


def test_an_unknown_kind_of_picture(capsys):
    assert main(["plot", "tale", "somewhere"]) == 2
    assert "Did you mean 'tail'" in capsys.readouterr().err
