"""Several data sets in one run: loaded each by its own options, asked by weight, told apart in ids and metrics."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from sppo.commands.audit import audit
from sppo.commands.train import train
from sppo.config import Config, DataConfig
from sppo.config.data import MixedSource
from sppo.config.parsing import build
from sppo.data.prompts import copy_keys
from sppo.data.stream import PromptStream
from sppo.data.tasks import demonstrations, load_prompts
from sppo.errors import ConfigError, DataError
from sppo.runs.folder import read_metrics
from sppo.types import Prompt
from tests.conftest import tiny_config


@pytest.fixture
def files(tmp_path):
    math, words = tmp_path / "math.jsonl", tmp_path / "words.jsonl"
    math.write_text("".join(json.dumps({"problem": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(6)))
    words.write_text(json.dumps({"ask": "Say yes.", "say": "yes", "demonstration": "yes"}) + "\n")
    return str(math), str(words)


def mixed(files, **fields):
    math, words = files
    sources = [
        MixedSource(task="deepscaler", path=math),
        MixedSource(path=words, prompt_column="ask", answer_column="say", verifier="exact", name="yes"),
    ]
    return DataConfig(sources=sources, **fields)


def test_each_source_is_read_by_its_own_options(files):
    loaded = load_prompts(mixed(files), seed=0)
    assert [(p.id, p.source, p.verifier) for p in loaded.prompts[-2:]] == [
        ("math/deepscaler/6", "math", "math"),
        ("yes/rows/1", "yes", "exact"),
    ]
    assert loaded.prompts[-1].content == "Say yes."
    assert "boxed" in loaded.prompts[0].text


def test_sources_are_options_like_others(files):
    config = build(DataConfig, {"sources": [{"task": "gsm8k", "weight": 2}, {"path": files[1], "weight": 0.5}]})
    assert config.weights == {"gsm8k": 2.0, "words": 0.5}
    assert list(config.each()) == ["gsm8k", "words"]
    assert config.each()["words"].path == files[1]


@pytest.mark.parametrize(
    ("fields", "sources", "said"),
    [
        ({"path": "a.jsonl"}, [{"task": "gsm8k"}], "data.path is set, and data.sources too"),
        ({"verifier": "exact"}, [{"task": "gsm8k"}], "data.verifier is set, and data.sources too"),
        ({}, [{"task": "gsm8k"}, {"task": "gsm8k"}], "data.sources has two called 'gsm8k'"),
        ({}, [{"task": "gsm8k", "weight": 1}, {"path": "a.jsonl"}], "'a' has no weight, but others have"),
        ({}, [{"path": "missing.jsonl"}], "data.sources.0.path missing.jsonl does not exist"),
        ({}, [{"task": "gsm9k"}], "data.sources.0.task 'gsm9k' is not known"),
    ],
)
def test_mistakes_are_told(fields, sources, said):
    config = build(DataConfig, {**fields, "sources": sources})
    with pytest.raises((ConfigError, DataError)) as caught:
        load_prompts(config, seed=0)
    assert said in str(caught.value)


def test_rows_and_an_audit_are_of_one_data_set(files):
    with pytest.raises(ConfigError, match=r"data.sources is set, but rows were given too"):
        load_prompts(mixed(files), seed=0, rows=[{"prompt": "?", "answer": "1"}])
    with pytest.raises(ConfigError, match=r"2 data sets \(math, yes\), but an audit is of one"):
        audit(Config(data=mixed(files)))


def test_copies_are_known_by_each_sources_own_instruction(files):
    prompts = load_prompts(mixed(files), seed=0).prompts
    keys = copy_keys(prompts, mixed(files))
    assert len(keys) == 7
    assert "0+1" in set().union(*keys), "the problem without the request for a box"


def test_demonstrations_are_those_of_all_sources(files):
    source = MixedSource(path=files[1], prompt_column="ask", name="yes")
    built_in = MixedSource(task="chain_arithmetic", options={"prompts": 3})
    found = demonstrations(DataConfig(sources=[source, built_in]), "full", 0)
    assert Counter(prompt.source for prompt in found) == {"yes": 1, "chain_arithmetic": 3}


# ---- weights


def prompts_of(**sizes):
    return [Prompt(f"{name}{n}", "?", source=name) for name, size in sizes.items() for n in range(size)]


def test_an_epoch_holds_prompts_by_weight_and_goes_through_each_source_evenly():
    prompts = prompts_of(a=8, b=2)
    stream = PromptStream(prompts, 0, {"a": 1.0, "b": 1.0})
    epoch = [prompt.id for prompt in stream.take(10)]
    assert Counter(name[0] for name in epoch) == {"a": 5, "b": 5}
    # Eight epochs are five walks through a's eight prompts, and twenty through b's two.
    counts = Counter(epoch + [prompt.id for prompt in stream.take(70)])
    assert {counts[f"a{n}"] for n in range(8)} == {5}
    assert {counts[f"b{n}"] for n in range(2)} == {20}
    assert stream.epoch == 8.0


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ({"a": 3.0, "b": 1.0}, {"a": 8, "b": 2}),  # 7.5 and 2.5: the rest goes to the first that lost most
        ({"a": 0.001, "b": 1.0}, {"a": 1, "b": 9}),
        ({"a": 8.0, "b": 2.0}, {"a": 8, "b": 2}),
    ],
)
def test_shares_of_an_epoch(weights, wanted):
    stream = PromptStream(prompts_of(a=8, b=2), 0, weights)
    assert Counter(prompt.source for prompt in stream.take(10)) == wanted


def test_a_weighted_walk_is_resumed_where_it_was():
    weights = {"a": 1.0, "b": 2.0}
    whole = [prompt.id for prompt in PromptStream(prompts_of(a=5, b=4), 3, weights).take(40)]
    stream = PromptStream(prompts_of(a=5, b=4), 3, weights)
    first = [prompt.id for prompt in stream.take(13)]
    resumed = PromptStream(prompts_of(a=5, b=4), 3, weights)
    resumed.load_state_dict(stream.state_dict())
    assert first + [prompt.id for prompt in resumed.take(27)] == whole


def test_a_source_without_prompts_is_named():
    with pytest.raises(DataError, match="'b' has no prompts left"):
        PromptStream(prompts_of(a=5), 0, {"a": 1.0, "b": 1.0})


def test_a_run_of_two_sources_measures_each(tmp_path):
    sources = [
        MixedSource(task="chain_arithmetic", options={"prompts": 60, "max_operations": 2}, weight=3, name="short"),
        MixedSource(task="chain_arithmetic", options={"prompts": 60, "min_operations": 3}, weight=1, name="long"),
    ]
    config = tiny_config(tmp_path / "run", steps=1, evaluation__data=None)
    train(replace(config, data=DataConfig(sources=sources, max_prompt_tokens=64)))
    before, step, *_ = read_metrics(tmp_path / "run")
    assert {name for name in step if name.startswith("reward/source/")} == {
        "reward/source/short",
        "reward/source/long",
    }
    assert {name for name in before if name.startswith("eval/source/")} == {"eval/source/short", "eval/source/long"}
