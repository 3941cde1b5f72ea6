"""A data set without some of its rows: same schema, same bytes, whole or absent."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo.data.tasks import writing
from sppo.data.tasks.writing import require_target, write_rows
from sppo.errors import ConfigError, DataError


def odd(number: int) -> bool:
    return number % 2 == 1


def test_lines_of_json_stay_byte_for_byte(tmp_path):
    lines = ['{"a":1.0,   "b": "\\u00e9"}', "", '{"a": 2}', '{"b": "é \u2028"}']
    source, target = tmp_path / "data.jsonl", tmp_path / "clean.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    assert write_rows([], str(source), target, odd) == 2
    assert target.read_bytes() == f"{lines[0]}\n{lines[3]}\n".encode()


def test_compressed_lines_are_read(tmp_path):
    source, target = tmp_path / "data.jsonl.gz", tmp_path / "clean.jsonl"
    source.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert write_rows([], str(source), target, odd) == 1
    assert target.read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize("compression", ["ZSTD", "UNCOMPRESSED"])
def test_parquet_keeps_schema_metadata_and_compression(tmp_path, compression, monkeypatch):
    monkeypatch.setattr(writing, "_BATCH_ROWS", 4)
    source, target = tmp_path / "data.parquet", tmp_path / "clean.parquet"
    schema = pa.schema(
        [("n", pa.int16()), ("chat", pa.list_(pa.struct([("role", pa.large_string())]))), ("empty", pa.null())],
        metadata={"made": "by hand"},
    )
    rows = [{"n": n, "chat": [{"role": f"r{n}"}], "empty": None} for n in range(1, 10)]
    pq.write_table(pa.Table.from_pylist(rows, schema), source, compression=compression.replace("UNCOMPRESSED", "NONE"))
    assert write_rows([], str(source), target, odd) == 5
    with pq.ParquetFile(target) as file:
        assert file.schema_arrow.equals(pq.read_schema(source), check_metadata=True)
        assert file.metadata.row_group(0).column(0).compression == compression
        assert file.read().to_pylist() == rows[::2]


def test_shards_become_one_file_of_lines(tmp_path):
    source, target = str(tmp_path / "data-*.parquet"), tmp_path / "clean.jsonl"
    for name in ("0", "1"):
        pq.write_table(pa.table({"n": [1]}), tmp_path / f"data-{name}.parquet")
    with pytest.raises(ConfigError, match=r"name a file that ends in \.jsonl"):
        require_target(source, tmp_path / "clean.parquet", overwrite=False)
    require_target(source, target, overwrite=False)
    assert write_rows([{"n": 1}, {"n": 2}], source, target, odd) == 1
    assert target.read_text() == '{"n": 1}\n'


def test_parquet_without_rows(tmp_path):
    source, target = tmp_path / "data.parquet", tmp_path / "clean.parquet"
    pq.write_table(pa.table({"n": pa.array([1, 2])}), source)
    assert write_rows([], str(source), target, lambda _: False) == 0
    assert pq.read_table(target).num_rows == 0


def test_other_rows_are_written_as_lines_of_json(tmp_path):
    target = tmp_path / "clean.jsonl"
    assert write_rows(iter([{"a": "é"}, {"a": 2}, {"a": None}]), "owner/name", target, odd) == 2
    assert [json.loads(line) for line in target.read_text("utf-8").splitlines()] == [{"a": "é"}, {"a": None}]
    with pytest.raises(DataError, match="row 3 cannot be written as JSON"):
        write_rows(iter([{"a": 1}, {}, {"a": b"x"}]), None, target, odd)
    # What was there before is still whole, and nothing half-written lies about.
    assert len(target.read_text("utf-8").splitlines()) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["clean.jsonl"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    source, target = tmp_path / "data.jsonl", tmp_path / "clean.jsonl"
    source.write_text('{"a": 1}\n' * 3)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"clean\.jsonl cannot be written: .*No space left"):
        write_rows([], str(source), target, odd)
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("data.parquet", "clean.jsonl", r"written as \.parquet"),
        ("data.jsonl", "clean.parquet", r"written as \.jsonl"),
        ("data.csv", "clean.csv", r"written as \.jsonl"),
        ("owner/name", "clean", r"written as \.jsonl"),
        (None, "clean.txt", "rows of a built-in task"),
        ("data.jsonl", "nowhere/clean.jsonl", "there is no folder"),
        ("data.jsonl", "data.jsonl", "is the data itself"),
        ("data.jsonl", "there.jsonl", "exists already"),
        ("data.jsonl", "folder.jsonl", "exists already"),
    ],
)
def test_targets_that_are_refused(source, target, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data.jsonl", "there.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match=said):
        require_target(source, tmp_path / target, overwrite=False)


def test_overwriting_must_be_said(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    require_target(str(file), file, overwrite=True)
    assert write_rows([], str(file), file, odd) == 1
    assert file.read_text() == '{"a": 1}\n'
    with pytest.raises(ConfigError, match="is the data itself"):
        require_target(str(file), file, overwrite=False)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        require_target(str(file), tmp_path / "folder.jsonl", overwrite=True)
