"""JSON Lines that survive a kill, and the records of a run's responses."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
import torch

from sppo.errors import RunFolderError
from sppo.runs.records import JsonLines, forget_records, read_records, record_files, write_records

RECORDS = [
    {"step": 7, "prompt": "1+1=", "response": "a\u2028b\u0085c\r", "response_token_ids": [3, 4], "value": 0.25},
    {"step": 7, "prompt": "é", "response": "\ud83d", "response_token_ids": [], "value": None},
]


def files_in(run):
    return sorted(path.name for path in (run / "rollouts").iterdir())


def test_pandas_reads_a_step_in_one_line(tmp_path):
    write_records(tmp_path, 7, RECORDS[:1] * 3)
    table = pandas.read_json(tmp_path / "rollouts" / "step_000007.jsonl.zst", lines=True)
    assert table["response_token_ids"].tolist() == [[3, 4]] * 3
    assert table["response"].tolist() == ["a\u2028b\u0085c\r"] * 3
    assert table["step"].tolist() == [7] * 3


def test_records_come_back_as_they_were_and_in_order(tmp_path):
    assert list(read_records(tmp_path)) == []
    for step in (10, 7, 1_000_000, 8):
        write_records(tmp_path, step, [{**record, "step": step} for record in RECORDS])
    assert [record["step"] for record in read_records(tmp_path)] == [7, 7, 8, 8, 10, 10, 1_000_000, 1_000_000]
    assert list(read_records(tmp_path))[:2] == RECORDS
    assert {record["step"] for record in read_records(tmp_path, after=8)} == {10, 1_000_000}


def test_arrays_and_tensors_are_lists_of_numbers(tmp_path):
    arrays = {"ids": np.arange(3, dtype=np.int32), "n": np.float32(0.5), "t": torch.tensor([1.5]), "tuple": (1, 2)}
    write_records(tmp_path, 1, [arrays])
    assert list(read_records(tmp_path)) == [{"ids": [0, 1, 2], "n": 0.5, "t": [1.5], "tuple": [1, 2]}]
    with pytest.raises(TypeError, match="a set cannot be written as JSON"):
        write_records(tmp_path, 2, [{"a": {1}}])
    assert files_in(tmp_path) == ["step_000001.jsonl.zst"]


def test_the_records_of_a_step_are_whole_or_absent(tmp_path):
    def killed():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, 7, killed())
    assert files_in(tmp_path) == []


def test_later_records_are_deleted_and_nothing_else(tmp_path):
    forget_records(tmp_path, -1)
    for step in (1, 2, 3):
        write_records(tmp_path, step, RECORDS)
    for name in (".step_000002.jsonl-12345678.tmp.zst", "step_000009.txt", "mine.jsonl.zst", ".mine"):
        (tmp_path / "rollouts" / name).touch()
    forget_records(tmp_path, 1)
    assert files_in(tmp_path) == [".mine", "mine.jsonl.zst", "step_000001.jsonl.zst", "step_000009.txt"]
    assert list(record_files(tmp_path)) == [1]


def test_the_one_file_of_an_earlier_version_is_read(tmp_path):
    lines = [json.dumps({**record, "step": step}) for step in (1, 2) for record in RECORDS]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "pro')
    assert list(read_records(tmp_path, after=1)) == [{**record, "step": 2} for record in RECORDS]


def test_a_damaged_file_is_named(tmp_path):
    write_records(tmp_path, 7, RECORDS * 100)
    (path,) = record_files(tmp_path).values()
    whole = path.read_bytes()
    for damaged in (b"no zstd" + whole, whole[:-20] + bytes(20)):
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError, match="step_000007"):
            list(read_records(tmp_path))


def test_a_torn_last_line_is_none_and_goes_when_the_file_is_written_anew(tmp_path):
    lines = JsonLines(tmp_path / "a.jsonl")
    assert list(lines.read()) == []
    size = lines.append(RECORDS)
    assert size == (tmp_path / "a.jsonl").stat().st_size == len((tmp_path / "a.jsonl").read_bytes())
    with open(tmp_path / "a.jsonl", "ab") as handle:
        handle.write('{"step": 8}\n{"prompt": "é'.encode()[:-1])
    assert list(lines.read()) == [*RECORDS, {"step": 8}]
    assert list(lines.read(size)) == RECORDS
    assert list(lines.read(size - 1)) == RECORDS[:1]
    lines.replace(line for line in lines.read() if line["step"] == 7)
    assert (tmp_path / "a.jsonl").stat().st_size == size


def test_lines_of_something_else_are_named(tmp_path):
    for text, said in (
        ("{}\nnot json\n", r"a\.jsonl, line 2, is no JSON:"),
        ("{}\n{}\n" + "[" * 200_000 + "\n", r"line 3, is no JSON: more than 100 values within one another"),
        ("[1]\n", "no JSON object"),
        ("\xff\n", "no JSON"),
    ):
        (tmp_path / "a.jsonl").write_bytes(text.encode("latin-1"))
        with pytest.raises(RunFolderError, match=said):
            list(JsonLines(tmp_path / "a.jsonl").read())


def test_lines_are_not_added_through_a_link(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "profile")
    with pytest.raises(OSError, match="symbolic links"):
        JsonLines(tmp_path / "a.jsonl").append([{"step": 1}])
    assert not (tmp_path / "profile").exists()
