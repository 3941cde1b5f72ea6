"""Engine "vllm-server" against servers without vLLM: what it sends, and what it makes of answers that are none.

With the real vLLM: `test_engine_vllm_servers.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sppo.config import EngineConfig
from sppo.errors import ConfigError, ModelError, TrainingError
from sppo.rollouts.engines import build_engine, check_engine, engine_options
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.rollouts.engines.vllm_options import VllmServerOptions, server_urls
from sppo.rollouts.engines.vllm_worker import SppoWorker
from sppo.rollouts.engines.weights_folder import write_weights
from sppo.types import Completion
from tests.conftest import tiny_qwen2
from tests.rollouts.serving import GENERATE, Broken, Fault, Gone, Served, hang, of_rows, serving
from tests.rollouts.with_vllm import EXACT, PROMPTS, gap, moved, rows, sampled, sampling

ROWS = PROMPTS * 2


def brief(**overrides: Any) -> SamplingParameters:
    return sampling(6, **overrides)


def other_model():
    return tiny_qwen2(seed=9)


@pytest.fixture
def servers() -> Iterator[list[Served]]:
    with serving(other_model) as servers:
        yield servers


def engine_of(model: Any, servers: list[Served], max_rows: int = 8, **options: Any) -> Any:
    own = {"addresses": [server.address for server in servers], **options}
    return build_engine(
        model, EngineConfig("vllm-server", max_rows, own), max_tokens=120, memory_share=0.5, precision="fp32"
    )


def assert_same(ours: list[Completion], theirs: list[Completion]) -> None:
    """The same tokens, and log-probabilities but for the rounding of another batch."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.token_ids.tolist() == other.token_ids.tolist()
        assert mine.finish_reason == other.finish_reason
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-5)


def test_responses_are_those_of_the_policy_on_whichever_server(servers):
    model = tiny_qwen2()
    for tied in (False, True):
        with closing(engine_of(model, servers)) as engine:
            for version in (1, 2):
                before = [server.rows for server in servers]
                for how in (brief(temperature=0.6, top_p=0.9), brief(temperature=0.0), brief(top_k=3)):
                    assert_same(sampled(engine, ROWS, how, 1), sampled(HFEngine(model), ROWS, how, 1))
                shares = [server.rows - was for server, was in zip(servers, before, strict=True)]
                assert sum(shares) == 3 * len(ROWS)
                assert min(shares) >= 5, "both have work"
                engine.load_weights(moved(model), version)
                assert engine.version == version
            assert sampled(engine, [], brief()) == []
        model = tiny_qwen2(tie_word_embeddings=not tied)
        for server in servers:
            server.model = tiny_qwen2(tie_word_embeddings=not tied, seed=9)


def test_weights_are_handed_over_once_a_version_and_deleted(servers, tmp_path):
    model, folder = tiny_qwen2(), tmp_path / "weights"
    engine = engine_of(model, servers, folder=str(folder))
    for _ in range(3):
        sampled(engine, PROMPTS, brief())
    assert [len(server.labels) for server in servers] == [1, 1]
    assert len(list(folder.iterdir())) == 1
    engine.load_weights(model, 4)
    assert list(folder.iterdir()) == []
    sampled(engine, PROMPTS, brief())
    assert [len(server.labels) for server in servers] == [2, 2]
    assert servers[0].labels[1] == servers[1].labels[1] == servers[0].label
    assert servers[0].labels[1].endswith("version 4")
    with engine.awake():
        engine.load_weights(moved(model), 5)
        completions = engine.generate(PROMPTS, brief(), seeds=range(5))
    assert {version for completion in completions for version in completion.versions} == {5}
    assert gap(model, PROMPTS, completions, 1.0) < EXACT
    with pytest.raises(AssertionError, match="asked for responses while it sleeps"):
        engine.generate(PROMPTS, brief(), seeds=range(5))
    engine.close()
    engine.close()
    assert list(folder.iterdir()) == []
    assert not any(server.paused for server in servers)


def changed(**fields: Any) -> Fault:
    """A response with other fields."""
    return of_rows(lambda answer: {"choices": [{**answer["choices"][0], **fields}]})


def cut(answer: dict[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    choice["token_ids"].pop()
    choice["logprobs"]["content"].pop()
    choice["weight_versions"][0]["end"] -= 1
    return answer


def broken(said: bytes, status: int = 200, length: int | None = None) -> Fault:
    def fault(path: str, answer: Any) -> Any:
        if path == GENERATE:
            raise Broken(said, status, length)
        return answer

    return fault


def gone(answer: Any) -> Any:
    raise Gone


FAULTS: dict[str, tuple[Fault, str]] = {
    "an error": (broken(b'{"error": "EngineCore \x1b[31mencountered\nan issue"}', 500), r"HTTP 500 to .*EngineCore \S"),
    "a refusal": (broken(b'{"error": "enable-scale-out"}', 403), r"HTTP 403 to .*: \{.error"),
    "no JSON": (broken(b"<html>"), r"what is no JSON: <html>"),
    "half of it": (broken(b'{"choices": [{"token_ids": [3,'), r"what is no JSON"),
    "less than announced": (broken(b'{"choices"', length=500), r"RemoteProtocolError: "),
    "no end of brackets": (broken(b"[" * 100_000), r"what is no JSON"),
    "a list": (broken(b"[1, 2]"), r"answered to .* with \[1, 2\]"),
    "nothing": (of_rows(gone), r"RemoteProtocolError|ReadError"),
    "no choice": (of_rows(lambda answer: {"choices": []}), r"what is no response: "),
    "no log-probabilities": (changed(logprobs=None), r"what is no response: "),
    "an abort": (changed(finish_reason="abort"), r"ended by 'abort'"),
    "no reason": (changed(finish_reason=None), r"ended by None"),
    "a repetition": (changed(finish_reason="repetition"), r"ended by 'repetition'"),
    "a cut one": (of_rows(cut), r"where at most 6 tokens were asked for"),
    "words": (changed(token_ids=["3"]), r"token ids that are none"),
    "what was not sampled": (changed(token_ids=[5] * 6, finish_reason="length"), r"returned a response of 6 tokens"),
    "other weights": (changed(weight_versions=[{"version": "x", "start": 0, "end": 1}]), r"from the weights \[\[.x"),
    "weights of its own accord": (changed(weight_versions=None), r"sampled from the weights \[\]"),
    "never": (of_rows(lambda answer: hang("", answer)), r"no answer to .*generate within [23] s"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rows_of_a_server_that_fails_go_to_the_others(servers, fault):
    model = tiny_qwen2()
    with closing(engine_of(model, servers, request_timeout=3.0)) as engine:
        servers[1].fault, said = FAULTS[fault]
        how = brief(temperature=0.7, stop_token_ids=frozenset())
        with pytest.warns(UserWarning, match=rf"The vLLM at http://{servers[1].address} is left out .*{said}"):
            completions = sampled(engine, PROMPTS, how, 1)
        assert_same(completions, sampled(HFEngine(model), PROMPTS, how, 1))
        assert not any("\x1b" in words or "\n" in words for words in engine._said.values())
        # And back as soon as it is well: with these weights it needs no others.
        servers[1].fault, before = None, servers[1].rows
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampled(engine, PROMPTS, how, 1)
        assert servers[1].rows > before
        assert len(servers[1].labels) == 1


def test_where_all_servers_fail_each_ones_last_words_are_told(servers):
    with closing(engine_of(tiny_qwen2(), servers)) as engine:
        servers[0].fault = broken(b"core is dead", 500)
        servers[1].fault = changed(finish_reason="abort")
        said = (
            rf"Engine vllm-server has no server left: http://{servers[0].address}: HTTP 500 to .*: core is dead. "
            rf"http://{servers[1].address}: vLLM returned .* by 'abort', .* --resume"
        )
        with pytest.warns(UserWarning, match="is left out"), pytest.raises(TrainingError, match=said):
            sampled(engine, ROWS, brief())
        # Four when it was built, and twice as many as it has under way at most.
        assert max(server.asked.count(GENERATE) for server in servers) <= 4 + 2 * 8, "it isn't tried without end"
        for server in servers:
            server.close()
        with pytest.raises(TrainingError, match=r"has no server left: http.*: ConnectError: .*http.*: ConnectError: "):
            sampled(engine, ROWS, brief())


def test_a_single_server_is_given_a_second_chance_but_no_third(servers):
    model = tiny_qwen2()
    with closing(engine_of(model, servers[:1], max_rows=3)) as engine:
        left = [1]

        def fails(answer: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise Gone
            return answer

        servers[0].fault = of_rows(fails)
        assert_same(sampled(engine, ROWS, brief(), 1), sampled(HFEngine(model), ROWS, brief(), 1))
        left[0] = 1000
        with pytest.raises(TrainingError, match="has no server left"):
            sampled(engine, ROWS, brief(), 1)
        assert left[0] >= 994, "two times three rows"


def test_a_single_server_that_somebody_pauses_is_woken(servers):
    model = tiny_qwen2()
    with closing(engine_of(model, servers[:1])) as engine:

        def pauses(answer: Any) -> Any:
            servers[0].paused, servers[0].fault = True, None
            answer["choices"][0]["finish_reason"] = "abort"
            return answer

        servers[0].fault = of_rows(pauses)
        assert_same(sampled(engine, ROWS, brief(), 1), sampled(HFEngine(model), ROWS, brief(), 1))


def test_a_server_that_was_started_anew_gets_the_present_weights_before_rows(servers):
    model = tiny_qwen2()
    with closing(engine_of(model, servers)) as engine:
        engine.load_weights(moved(model), 1)
        sampled(engine, PROMPTS, brief())

        def dies(answer: Any) -> Any:
            servers[1].model, servers[1].label = other_model(), "default"
            raise Gone

        servers[1].fault = of_rows(dies)
        with pytest.warns(UserWarning, match="is left out"):
            sampled(engine, ROWS, brief())
        servers[1].fault, before = None, servers[1].rows
        assert gap(model, ROWS, sampled(engine, ROWS, brief()), 1.0) < EXACT
        assert servers[1].rows > before
        assert len(servers[1].labels) == 3
        assert len(servers[0].labels) == 2
        # Between two uses, unnoticed.
        servers[1].model, servers[1].label = other_model(), "default"
        assert gap(model, ROWS, sampled(engine, ROWS, brief()), 1.0) < EXACT
        # And while it is at work: it answers at once, with the weights that it was started with.
        with engine.awake():
            servers[1].model, servers[1].label = other_model(), "default"
            with pytest.warns(UserWarning, match=r"it sampled from the weights \[\[.default., 0, "):
                completions = engine.generate(ROWS, brief(), seeds=range(len(ROWS)))
        assert gap(model, ROWS, completions, 1.0) < EXACT


def test_another_run_on_the_same_servers_is_noticed(servers):
    mine, others = tiny_qwen2(), tiny_qwen2(seed=4)
    with closing(engine_of(mine, servers)) as first, closing(engine_of(others, servers)) as second:
        refused = pytest.raises(TrainingError, match="it sampled from the weights")
        with first.awake(), second.awake(), pytest.warns(UserWarning, match="is left out"), refused:
            first.generate(PROMPTS, brief(), seeds=range(5))
        assert gap(mine, PROMPTS, sampled(first, PROMPTS, brief()), 1.0) < EXACT
        assert gap(others, PROMPTS, sampled(second, PROMPTS, brief()), 1.0) < EXACT


def at(wanted: str, change: Any) -> Fault:
    """A fault of one path."""

    def fault(path: str, answer: Any) -> Any:
        return change(answer) if path == wanted else answer

    return fault


def missing(answer: Any) -> Any:
    return {"results": [{"missing": ["lm_head.weight", "x"]}]} if "missing" in answer["results"][0] else answer


def refused(answer: Any) -> Any:
    return {"results": [{"refused": "no such folder"}]} if "missing" in answer["results"][0] else answer


def not_found(answer: Any) -> Any:
    raise Broken(b'{"detail": "Not Found"}', 404)


def no_method(answer: Any) -> Any:
    raise Broken(b"'Worker' object has no attribute 'sppo_describe'", 500)


HANDOVERS: dict[str, tuple[Fault, str]] = {
    "names are missing": (at("/collective_rpc", missing), r"did not take over .*2 are missing, the first is lm_head.w"),
    "folder not seen": (at("/collective_rpc", refused), r"no such folder. Set engine.options.folder to a folder that"),
    "its cache stays": (at("/reset_prefix_cache", lambda answer: {"success": False}), r"could not be emptied"),
    "no other label": (at("/weight_info", lambda answer: {"weight_version": "x"}), r"it has the weights 'x', where it"),
    "no dev mode": (at("/weight_info", not_found), r"HTTP 404 to /weight_info"),
    "not our worker": (at("/collective_rpc", no_method), r"no attribute 'sppo_describe'"),
    "no scale-out": (broken(b"Scale-out endpoints are disabled", 403), r"HTTP 403 to .*: Scale-out endpoints"),
    "never": (at("/collective_rpc", lambda answer: hang("", answer)), r"no answer to /collective_rpc within [23] s"),
}


@pytest.mark.parametrize("fault", HANDOVERS)
def test_a_server_without_what_is_needed_is_refused_when_a_run_begins(servers, fault, monkeypatch):
    monkeypatch.setattr("sppo.rollouts.engines.vllm_http._SECONDS", 2.0 if fault == "never" else 30.0)
    servers[1].fault, said = HANDOVERS[fault]
    message = (
        rf"engine.options.addresses: http://{servers[1].address}: .*{said}.* VLLM_SERVER_DEV_MODE=1 python -m "
        r"vllm.entrypoints.openai.api_server .*--dtype float32 --max-model-len 120 .*SppoWorker"
    )
    with pytest.raises(ConfigError, match=message):
        engine_of(tiny_qwen2(), servers)


@pytest.mark.parametrize("fault", ["names are missing", "folder not seen", "its cache stays"])
def test_a_server_that_can_not_take_over_an_update_gets_no_rows(servers, fault):
    model = tiny_qwen2()
    with closing(engine_of(model, servers)) as engine:
        engine.load_weights(moved(model), 1)
        servers[1].fault, said = HANDOVERS[fault]
        with pytest.warns(UserWarning, match=rf"http://{servers[1].address} is left out: .*{said}"):
            assert gap(model, ROWS, sampled(engine, ROWS, brief()), 1.0) < EXACT
        servers[1].fault = None
        assert gap(model, ROWS, sampled(engine, ROWS, brief()), 1.0) < EXACT
        assert servers[1].rows > len(PROMPTS)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"dtype": "bfloat16"}, r"started with dtype bfloat16, not float32\."),
        ({"logprobs_mode": "raw_logprobs"}, r"logprobs_mode raw_logprobs, not processed_logprobs"),
        ({"max_model_len": 119}, r"max_model_len 119, not 120 or more"),
        ({"architecture": "LlamaForCausalLM"}, r"architecture LlamaForCausalLM, not Qwen2ForCausalLM"),
        ({"quantization": "fp8", "data_parallel_size": 2}, r"quantization fp8, not None; data_parallel_size 2, not 1"),
        ({"intermediate_size": 64}, r"intermediate_size 64, not 32\."),
        ({"vocab_size": 41, "max_model_len": 8}, r"vocab_size 41, not 40; max_model_len 8, not 120"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(servers, described, said):
    servers[0].described = described
    with pytest.raises(ConfigError, match=rf"http://{servers[0].address}: it was {said}|{servers[0].address}.*{said}"):
        engine_of(tiny_qwen2(), servers)


def test_a_server_that_is_not_there_is_told_before_long(servers):
    servers[1].close()
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"http://{servers[1].address}: ConnectError: .*docs/engines.md"):
        engine_of(tiny_qwen2(), servers)
    assert time.monotonic() - began < 5


def test_a_server_that_computes_otherwise_is_refused(servers):
    servers[1].model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(
        ModelError, match=rf"The vLLM at http://{servers[1].address} computes something else than Qwen2"
    ):
        engine_of(tiny_qwen2(), servers)


def test_damaged_weights_are_told(servers):
    def damage(answer: Any) -> Any:
        # As vLLM says a log-probability that is nan.
        answer["choices"][0]["logprobs"]["content"][0]["logprob"] = -9999.0
        return answer

    with closing(engine_of(tiny_qwen2(), servers)) as engine:
        for server in servers:
            server.fault = of_rows(damage)
        with pytest.raises(ModelError, match=r"not finite \(nan or inf\) while sampling the response to row 0"):
            sampled(engine, PROMPTS, brief())


def test_what_can_not_be_asked_for_is_refused(servers):
    with closing(engine_of(tiny_qwen2(), servers)) as engine:
        before = [server.asked.count(GENERATE) for server in servers]
        with pytest.raises(ModelError, match=r"prompt 1 of 2 has no tokens"):
            sampled(engine, rows([3], []), brief())
        with pytest.raises(ConfigError, match=r"together 121, more than the 120 tokens that the engine was made for"):
            sampled(engine, rows([3]), sampling(120))
        with pytest.raises(ConfigError, match=r"is 2.5, but vLLM samples at 0, or from 0.01 to 2"):
            sampled(engine, rows([3]), brief(temperature=2.5))
        assert [server.asked.count(GENERATE) for server in servers] == before
    with pytest.raises(AssertionError, match="the engine is closed"):
        sampled(engine, PROMPTS, brief())


def test_ctrl_c_ends_the_wait_and_what_the_servers_are_at(servers):
    with closing(engine_of(tiny_qwen2(), servers)) as engine:
        for server in servers:
            server.fault = of_rows(lambda answer: hang("", answer))
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sampled(engine, PROMPTS, brief())
        assert time.monotonic() - began < 5, "it waited for the servers"
        for server in servers:
            server.fault = None
        assert len(sampled(engine, PROMPTS, brief())) == len(PROMPTS)


def test_a_program_with_a_loop_of_its_own_can_sample(servers):
    async def program() -> int:
        with closing(engine_of(tiny_qwen2(), servers)) as engine:
            return len(sampled(engine, PROMPTS, brief()))

    assert asyncio.run(program()) == len(PROMPTS)


def test_a_folder_that_can_not_be_written_is_told(servers, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        TrainingError, match=r"weights could not be written to .*file for engine .*engine.options.folder"
    ):
        engine_of(tiny_qwen2(), servers, folder=str(tmp_path / "file"))


def test_a_worker_refuses_a_folder_of_other_weights(tmp_path):
    write_weights(tiny_qwen2(), tmp_path / "there", "mine", torch.float32)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "weights.json").write_text('{"label": "mine"}')
    for name, said in (
        ("there", "holds the weights mine, not yours"), ("none", "No such file"), ("half", "is no list of weights"),
    ):  # fmt: skip
        answer = SppoWorker().sppo_take_over(str(tmp_path / name), "yours")
        assert set(answer) == {"refused"}
        assert said in answer["refused"]


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ([], r"engine.options.addresses is empty, .*name them, as in --engine.options.addresses"),
        (["localhost"], r"names 'localhost', which is no address: give host:port or http://host:port"),
        (["localhost:x"], r"names 'localhost:x'"),
        (["ftp://a:1"], r"names 'ftp://a:1'"),
        (["a:1", ":8000"], r"names ':8000'"),
        (["http://a:1?b=c"], r"names 'http://a:1"),
        (["a:99999"], r"names 'a:99999'"),
        (["a b:80"], r"names 'a b:80'"),
        (["http://user:secret@a:1"], r"names '"),
        (["a:1", "http://a:1/"], r"names http://a:1 twice"),
        ("localhost:8000", r"engine.options.addresses is 'localhost:8000', but must be a list"),
        ([8000], r"engine.options.addresses"),
    ],
)
def test_addresses_are_checked_before_anything_is_loaded(addresses, message):
    with pytest.raises(ConfigError, match=message):
        check_engine(EngineConfig("vllm-server", options={"addresses": addresses}), 1.0, installed=False)


def test_addresses_may_be_given_in_several_ways():
    given = ["localhost:8000", "http://a/", "https://b:1/vllm", "[::1]:80", "10.0.0.1:8000"]
    assert server_urls(given) == [
        "http://localhost:8000", "http://a", "https://b:1/vllm", "http://[::1]:80", "http://10.0.0.1:8000",
    ]  # fmt: skip
    settled = engine_options(EngineConfig("vllm-server", options={"addresses": given, "request_timeout": 60}))
    assert settled == VllmServerOptions(given, request_timeout=60)
    for options, message in (({"connect_timeout": 0}, "greater than 0"), ({"folder": 3}, "folder is 3")):
        with pytest.raises(ConfigError, match=message):
            engine_options(EngineConfig("vllm-server", options={"addresses": given, **options}))


def test_a_temporary_folder_does_for_servers_on_this_machine(servers):
    engine = engine_of(tiny_qwen2(), servers)
    folder = Path(engine._own_folder.name)
    assert len(list(folder.iterdir())) == 1
    engine.close()
    assert not folder.exists()
    assert np.array_equal([server.paused for server in servers], [False, False])
