"""Files that are whole or absent."""

from __future__ import annotations

import json
import os

import pytest

from sppo.errors import RunFolderError
from sppo.runs.files import decode_json, gigabytes, read_json, whole_file, whole_folder, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_file_is_whole_or_as_before(tmp_path, error):
    target = tmp_path / "summary.json"
    target.write_text("old")

    def fails():
        with whole_file(target) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        fails()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["summary.json"]


def test_two_writers_at_once_do_not_meet(tmp_path):
    target = tmp_path / "curves.png"
    with whole_file(target) as one:
        with whole_file(target) as other:
            one.write_text("one")
            other.write_text("other")
        assert target.read_text() == "other"
    assert target.read_text() == "one"
    assert one.suffix == ".png"  # by which matplotlib knows what to write
    assert names(tmp_path) == ["curves.png"]


def test_what_a_killed_process_left_goes_once_nobody_can_be_writing_it(tmp_path):
    left = {}
    for name in (".a-12345678.tmp.json", ".a-87654321.tmp.json", ".b-12345678.tmp.json", ".a-notes.json"):
        left[name] = tmp_path / name
        left[name].touch()
        os.utime(left[name], (0, 0))
    os.utime(left[".a-87654321.tmp.json"])
    write_text(tmp_path / "a.json", "{}")
    assert names(tmp_path) == sorted([*left.keys() - {".a-12345678.tmp.json"}, "a.json"])


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "said")
    assert os.read(reader, 100) == b"said"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_folder_is_whole_or_as_before(tmp_path):
    target = tmp_path / "step_1"

    def fills(text, fails=False):
        with whole_folder(target) as temporary:
            (temporary / "policy").mkdir()
            (temporary / "policy" / "weights").write_text(text)
            if fails:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fills("lost", fails=True)
    assert names(tmp_path) == []
    fills("one")
    (target / "more").touch()
    with pytest.raises(OSError, match="disk full"):
        fills("lost", fails=True)
    assert names(target) == ["more", "policy"]
    fills("two")
    assert names(target) == ["policy"]
    assert (target / "policy" / "weights").read_text() == "two"
    assert names(tmp_path) == ["step_1"]


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    value = {"response": "é\u2028\ud83d", "twice": "😀"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_json_that_cannot_be_read(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    for text, said in (
        ('{"a": ', "no JSON that can be read"),
        ("[1]", "holds no JSON object"),
        ("[" * 9999, "more than 100"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RunFolderError, match=said):
            read_json(tmp_path / "a.json")


@pytest.mark.parametrize(("open_", "close"), ["[]", ('{"a":', "}")])
def test_json_goes_so_deep_and_no_deeper(open_, close):
    for text in (open_ * 100 + close * 100, open_ * 99 + "1" + close * 99, json.dumps(["[[{{" * 99, [[]] * 300])):
        text = text.replace(":}", ":0}")
        assert decode_json(text) == decode_json(text.encode()) == json.loads(text)
    for levels in (101, 500, 200_000):
        with pytest.raises(ValueError, match=r"^more than 100 values within one another$"):
            decode_json(open_ * levels + "1" + close * levels)


def test_bytes_as_people_read_them():
    assert [gigabytes(n) for n in (1.5e6, 99e6, 1e8, 2.34e10)] == ["1.5 MB", "99.0 MB", "0.1 GB", "23.4 GB"]
