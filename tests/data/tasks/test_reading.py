"""Files and hub data sets: every kind reads the same, and every broken one is named with its line."""

import csv
import gzip
import json
import subprocess
import sys

import pytest

from sppo.config import DataConfig
from sppo.data.tasks import demonstrations, load_prompts
from sppo.data.tasks.reading import rows_of
from sppo.data.tasks.rows import TASK
from sppo.errors import ConfigError, DataError
from tests.conftest import SHARED_DATA

needs_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="the folder shared/data beside the repository is absent"
)
ROWS = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "1+2, or 2+1?", "answer": "3"}]


READ = [("1+1?", "2"), ("1+2, or 2+1?", "3")]


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """Where the library `datasets` keeps what it made of files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    return datasets


def read(path, **fields):
    return [(prompt.text, prompt.gold) for prompt in load(path, **fields).prompts]


def load(path, **fields):
    return load_prompts(DataConfig(path=str(path), **fields), seed=0)


def fails(path, *words, **fields):
    with pytest.raises(DataError) as caught:
        load(path, **fields)
    assert all(str(word) in str(caught.value) for word in words), str(caught.value)


def write(folder, name):
    path = folder / name
    lines = "\n".join(json.dumps(row) for row in ROWS)
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(write(folder, name.removesuffix(".gz")).read_bytes()))
    elif name.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["prompt", "answer"], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        path.write_text(lines if name.endswith("jsonl") else json.dumps(ROWS))
    return path


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "A.JSONL"]
)
def test_every_kind_of_file_reads_the_same(tmp_path, name):
    path = write(tmp_path, name.lower()).rename(tmp_path / name)
    assert read(path) == READ


def test_lines_of_json_that_are_called_json_are_read_as_lines(tmp_path):
    path = write(tmp_path, "a.jsonl").rename(tmp_path / "a.json")
    assert read(path) == READ
    path.write_text(path.read_text() + "\nnonsense")
    fails(path, f"{path}, line 3, cannot be read")


def test_a_cell_of_csv_may_be_long(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,answer\n{'x' * 200_000},5\n")
    assert [len(text) for text, _ in read(path)] == [200_000]


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for number in (1, 0):
        (tmp_path / f"train-0000{number}.jsonl").write_text(json.dumps(ROWS[number]))
    (tmp_path / "test-00000.jsonl").write_text(json.dumps({"prompt": "?", "answer": "9"}))
    assert read(tmp_path / "train-*.jsonl") == READ
    fails(tmp_path / "dev-*.jsonl", "matches no file", "dev-*.jsonl")


def test_a_folder_of_files_is_read_by_split(tmp_path, cache):
    for number in (0, 1):
        (tmp_path / f"train-0000{number}-of-00002.jsonl").write_text(json.dumps(ROWS[number]))
    (tmp_path / "test-00000-of-00001.jsonl").write_text(json.dumps({"prompt": "?", "answer": "9"}))
    assert read(tmp_path) == READ
    assert read(tmp_path, split="test") == [("?", "9")]
    (tmp_path / "test-00000-of-00001.jsonl").write_text(json.dumps({"prompt": "?", "answer": "2024-01-01"}))
    assert read(tmp_path, split="test", verifier="exact") == [("?", "2024-01-01")]
    fails(tmp_path, "data.split is 'dev', but the data has the splits train, test", split="dev")


def test_what_save_to_disk_wrote_is_read(tmp_path, cache):
    rows = cache.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    cache.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "splits")
    cache.DatasetDict({"validation": rows}).save_to_disk(tmp_path / "only")
    assert read(tmp_path / "one") == read(tmp_path / "splits") == read(tmp_path / "only") == READ
    assert read(tmp_path / "splits", split="test") == READ[1:]
    assert load(tmp_path / "only").notes == ("rows: there is only the split 'validation', which is used",)
    (note,) = load(tmp_path / "one", split="test").notes
    assert "data.split 'test' does not apply" in note
    fails(tmp_path / "only", "has the splits validation", split="test")


def test_a_dict_of_splits_is_handed_over_as_rows(cache):
    rows = cache.Dataset.from_list(ROWS)
    splits = cache.DatasetDict({"train": rows, "test": rows.select([0])})
    for split, count in (("train", 2), ("test", 1)):
        assert len(load_prompts(DataConfig(split=split), seed=0, rows=splits).prompts) == count


def test_a_revision_is_of_a_hub_data_set_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"data.revision is 'main', but .* is no data set of the hub"):
        load(write(tmp_path, "a.jsonl"), revision="main")


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "A?", "answer": 1}\n\n  \n{"prompt": "B?", "answer": 2}\n')
    assert [p.gold for p in load(path).prompts] == ["1", "2"]


def test_a_missing_file_names_the_near_ones(tmp_path):
    write(tmp_path, "train.jsonl")
    fails(tmp_path / "trian.jsonl", tmp_path / "trian.jsonl", f"Did you mean {tmp_path / 'train.jsonl'}?")
    fails(tmp_path / "zzzzzzzzzzz.parquet", "does not exist", "Data files in", "train.jsonl")
    fails(tmp_path / "no" / "a.jsonl", f"There is no folder {tmp_path / 'no'} either")
    fails("./nowhere/data", "nowhere/data does not exist")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty" / "a.csv", "There are no data files in")


def test_an_empty_folder_and_an_unknown_kind_are_refused(tmp_path, cache):
    fails(tmp_path, "is a folder in which no data is found", f"'{tmp_path}/*.parquet'")
    (tmp_path / "a.xlsx").write_text("")
    fails(tmp_path / "a.xlsx", "of no kind that can be read", ".parquet, .jsonl")


def test_broken_json_lines_name_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(ROWS[0])
    for broken in ('{"prompt": "A?",', "[1, 2]", "nonsense"):
        path.write_text(f"{good}\n\n{broken}\n{good}\n")
        fails(path, f"{path}, line 3, cannot be read")
    path.write_bytes(good.encode() + b'\n{"prompt": "\xff"}\n')
    fails(path, "line 2, cannot be read", "utf-8")


@pytest.mark.parametrize("levels", [150, 900, 200_000])
@pytest.mark.parametrize("pair", ["[]", ('{"a":', "}")], ids=["lists", "objects"])
def test_values_within_values_without_end_name_the_line(tmp_path, levels, pair):
    nested = pair[0] * levels + "1" + pair[1] * levels
    good = json.dumps({"prompt": "A?" + "[({" * 500, "answer": [[1], {"a": [2]}]})
    path = tmp_path / "a.jsonl"
    path.write_text(f'{good}\n{{"prompt": "A?", "answer": {nested}}}\n')
    fails(path, f"{path}, line 2, cannot be read: more than 100 values within one another.")
    path = tmp_path / "a.json"
    path.write_text(f'[{{"prompt": "A?", "answer": {nested}}}]')
    fails(path, f"{path} cannot be read: more than 100 values within one another.")


def test_broken_gzip_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(write(tmp_path, "b.jsonl.gz").read_bytes()[:-12])
    fails(path, f"{path}, line ", "cannot be read")
    path.write_text(json.dumps(ROWS[0]))
    fails(path, "line 1, cannot be read", "gzip")
    path.write_bytes(write(tmp_path, "b.jsonl.gz").read_bytes()[:12] + b"\x00garbage\xff" * 5)
    fails(path, "cannot be read")


def test_broken_json_csv_and_parquet_are_named(tmp_path):
    path = tmp_path / "a.json"
    for text, words in [
        ("[{]", "line 1 column 3"),
        ('{"data":\n []}', "holds a dict, not a list of rows"),
        ('[{"prompt": "A?"}, 5]', "row 2 is a int"),
    ]:
        path.write_text(text)
        fails(path, f"{path} cannot be read", words)
    path = tmp_path / "a.csv"
    for text, line in [("prompt,answer\nA?,1\nB?\n", 3), ("prompt,answer\nA?,1,2\n", 2), ('prompt,answer\n"A?', 2)]:
        path.write_text(text)
        fails(path, f"{path}, line {line}, cannot be read")
    path = tmp_path / "a.parquet"
    path.write_text("not parquet at all")
    fails(path, f"{path} cannot be read", "arquet")
    path.write_bytes(write(tmp_path, "b.parquet").read_bytes()[:-20])
    fails(path, f"{path} cannot be read")


def test_a_git_lfs_pointer_is_called_one(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    fails(path, "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_an_empty_file_holds_no_rows(tmp_path, name):
    (tmp_path / name).write_text("[]" if name.endswith(".json") else "")
    fails(tmp_path / name, f"{tmp_path / name} holds no rows")


def test_a_split_beside_a_file_is_noted(tmp_path):
    (note,) = load(write(tmp_path, "a.jsonl"), split="test").notes
    assert "data.split 'test' does not apply to a file" in note


def test_hub_data_sets_are_read_by_name_configuration_and_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name, config, split, revision):
        calls.append((name, config, split, revision))
        return datasets.Dataset.from_list(
            [{"question": "A?", "answer": "So.\n#### 4", "problem": "A?", "level": 3, "prompt": "A?"}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (prompt,) = load_prompts(DataConfig(task="gsm8k", split="test"), seed=0).prompts
    assert (prompt.gold, prompt.id) == ("4", "gsm8k/1")
    loaded = load_prompts(DataConfig(task="math500"), seed=0, require_gold=False)
    assert loaded.prompts[0].difficulty == "Level 3"
    assert loaded.notes == ("math500: the hub has only the split 'test', which is used",)
    load_prompts(DataConfig(path="someone/some-data", subset="raw", revision="v2"), seed=0, require_gold=False)
    assert calls == [
        ("openai/gsm8k", "main", "test", None),
        ("HuggingFaceH4/MATH-500", None, "test", None),
        ("someone/some-data", "raw", "train", "v2"),
    ]


def test_the_commit_of_a_hub_data_set_is_noted(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    rows.info.download_checksums = {f"hf://datasets/a/b@{'0f' * 20}/data/train.parquet": {"num_bytes": 1}}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split, revision: rows)
    assert load("a/b").revisions == {"a/b": "0f" * 20}


def test_a_hub_that_fails_says_so_and_names_the_way_out(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name, config, split, revision):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        load_prompts(DataConfig(task="gsm8k"), seed=0)
    for word in ("openai/gsm8k", "cannot be loaded from the hub: no route to host", "--data.path a local file"):
        assert word in str(caught.value)


def test_rows_are_read_one_after_the_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\nbroken\n")
    rows = rows_of(TASK, DataConfig(path=str(path)), [])
    assert next(rows) == ROWS[0]
    assert len(load(path, limit=1).prompts) == 1


# ---- the real files


@needs_data
def test_dapo_math():
    loaded = load(SHARED_DATA / "dapo_math_17k.parquet", task="dapo_math")
    prompts = loaded.prompts
    assert len(prompts) == len({p.id for p in prompts}) == 17398
    assert prompts[0].id == "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"
    assert prompts[0].gold == "34"
    assert all(p.text.endswith("Please output the final answer within \\boxed{}.") for p in prompts)
    assert loaded.notes == (
        "dapo_math: 1046 of 17398 rows repeat an earlier prompt, 16352 are distinct (letters, digits and operators "
        "compared); 20 repeated prompts have conflicting answers as text, as in rows 272, 7261; sppo audit says more",
    )


@needs_data
def test_math500():
    loaded = load(SHARED_DATA / "math_500.parquet", task="math500")
    assert loaded.notes == ()
    assert len(loaded.prompts) == 500
    assert loaded.prompts[0].id == "test/precalculus/807.json"
    assert loaded.prompts[0].gold == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert sum(p.text.count("boxed") for p in loaded.prompts) == 500


@needs_data
def test_aime24():
    loaded = load(SHARED_DATA / "aime24_repeated_8x.parquet", task="aime24")
    assert len(loaded.prompts) == len({p.id for p in loaded.prompts}) == 240
    assert len({p.text for p in loaded.prompts}) == 30
    assert all(0 <= int(p.gold) <= 999 for p in loaded.prompts)
    assert loaded.notes == (
        "aime24: 210 of 240 rows repeat an earlier prompt, 30 are distinct (letters, digits and operators compared)",
    )


@needs_data
@pytest.mark.parametrize(("split", "rows", "gold"), [("train", 7473, "72"), ("test", 1319, "18")])
def test_gsm8k(split, rows, gold):
    loaded = load(SHARED_DATA / f"gsm8k_{split}.jsonl", task="gsm8k")
    assert loaded.notes == ()
    assert len(loaded.prompts) == rows
    assert loaded.prompts[0].gold == gold
    assert all(p.gold.lstrip("-").replace(".", "", 1).isdigit() for p in loaded.prompts)


@needs_data
def test_gsm8k_demonstrations():
    config = DataConfig(task="gsm8k", path=str(SHARED_DATA / "gsm8k_test.jsonl"))
    prompts = demonstrations(config, "full", seed=0)
    assert len(prompts) == 1319
    assert all(p.demonstration.endswith(f"\nThe answer is \\boxed{{{p.gold}}}") for p in prompts)
    assert not any("<<" in p.demonstration or "####" in p.demonstration for p in prompts)


@needs_data
def test_a_gzipped_file_of_another_schema_as_rows():
    path = SHARED_DATA / "humaneval.jsonl.gz"
    prompts = load_prompts(DataConfig(path=str(path), reward="m:f"), seed=0).prompts
    assert len(prompts) == 164
    assert prompts[0].columns["task_id"] == "HumanEval/0"


def test_tasks_import_without_torch_and_datasets():
    heavy = "{'torch', 'datasets', 'pyarrow', 'transformers'}"
    code = f"import sys, sppo.data.tasks, sppo.data.stream; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
