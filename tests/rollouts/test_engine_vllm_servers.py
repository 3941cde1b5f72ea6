"""Engine "vllm-server" with servers of the real vLLM, on a CPU: `make test-vllm` runs these.

Two servers are started once. The last tests kill them, in the order in which they stand here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

import sppo
from sppo.commands.train import train
from sppo.config import EngineConfig
from sppo.errors import ConfigError, ModelError, TrainingError
from sppo.models.adapters import plain_weights
from sppo.rollouts.engines import build_engine, weights_folder
from sppo.rollouts.engines.vllm_http import Server
from sppo.runs.folder import read_metrics
from sppo.training.given import Given
from tests.conftest import tiny_config, tiny_qwen2
from tests.ranks.test_equal import responses
from tests.rollouts.test_engine_vllm import kept
from tests.rollouts.with_vllm import (
    EXACT,
    LIMIT,
    LONG_PROMPTS,
    PROMPTS,
    SIZES,
    gap,
    moved,
    needs_vllm,
    sampled,
    sampling,
)
from tests.training.test_loop import likes_threes

pytestmark = needs_vllm

STARTS_WITHIN = 400
"""Seconds; two at once on a busy machine."""


@dataclass
class Started:
    """A server's process, which leads a group of its own: its engine's core is another."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def is_well(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"http://{self.address}/health", timeout=5, trust_env=False).status_code == 200
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(folder: Path, number: int, port: int | None = None) -> Started:
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": str(Path(sppo.__file__).parents[1]), "VLLM_SERVER_DEV_MODE": "1",
        "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model"),
        "--dtype", "float32", "--max-model-len", str(LIMIT), "--logprobs-mode", "processed_logprobs",
        "--generation-config", "vllm", "--skip-tokenizer-init", "--enable-scale-out",
        "--worker-extension-cls", "sppo.rollouts.engines.vllm_worker.SppoWorker",
        "--enforce-eager", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    log = folder / f"server{number}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Started(process, f"127.0.0.1:{port}", log)


def await_all(started: list[Started]) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while not all(server.is_well() for server in started):
        assert time.monotonic() < until, "the servers don't get ready"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Started]]:
    folder = tmp_path_factory.mktemp("servers")
    tiny_qwen2(**SIZES, seed=9).save_pretrained(folder / "model")
    started = [start(folder, number) for number in range(2)]
    try:
        await_all(started)
        yield started
    finally:
        for server in started:
            server.kill()


def options_of(servers: list[Started]) -> dict[str, Any]:
    return {"addresses": [server.address for server in servers], "request_timeout": 120}


def engine_of(model: Any, servers: list[Started], **settings: Any) -> Any:
    config = EngineConfig("vllm-server", options=options_of(servers), **settings)
    return build_engine(model, config, max_tokens=LIMIT, memory_share=0.5)


@pytest.mark.parametrize("tied", [False, True])
def test_logprobs_are_the_trainers_before_and_after_updates(servers, tied):
    # Where it is tied, the servers' own head has to be given the embeddings.
    model = tiny_qwen2(**SIZES, tie_word_embeddings=tied)
    with closing(engine_of(model, servers)) as engine:
        before = sampled(engine, LONG_PROMPTS, sampling(temperature=0.6))
        assert gap(model, LONG_PROMPTS, before, 0.6) < EXACT
        engine.load_weights(moved(model, 7), 7)
        # The same prompts again, whose keys and values vLLM would still have.
        after = sampled(engine, LONG_PROMPTS * 2 + PROMPTS, sampling(temperature=0.6))
        assert gap(model, LONG_PROMPTS * 2 + PROMPTS, after, 0.6) < EXACT
        assert gap(model, LONG_PROMPTS, before, 0.6) > 0.5
        how = sampling(8, temperature=0.6, top_p=0.9)
        for prompt, completion in zip(PROMPTS, sampled(engine, PROMPTS, how, 2), strict=True):
            ids = torch.tensor([[*prompt.tolist(), *completion.token_ids.tolist()]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            for place, token in enumerate(completion.token_ids.tolist()):
                assert completion.logprobs[place] == pytest.approx(float(kept(logits[place], how)[token]), abs=EXACT)


def test_a_response_is_the_same_on_each_server_and_in_each_batch(servers):
    model = tiny_qwen2(**SIZES)
    rows = PROMPTS * 4
    with closing(engine_of(model, servers)) as both, closing(engine_of(model, servers[:1], max_rows=2)) as one:
        together = sampled(both, rows, sampling(), 3)
        for ours, theirs in zip(sampled(one, rows, sampling(), 3), together, strict=True):
            assert ours.token_ids.tolist() == theirs.token_ids.tolist()
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=EXACT)
        greedy = sampled(both, PROMPTS, sampling(temperature=0.0))
        assert gap(model, PROMPTS, greedy, 1.0) < EXACT


def test_weights_that_go_missing_or_are_not_finite_are_told(servers, monkeypatch):
    model = tiny_qwen2(**SIZES)
    with closing(engine_of(model, servers)) as engine:
        with monkeypatch.context() as patch:
            name = "model.layers.1.self_attn.k_proj.bias"
            without = lambda policy: ((key, weight) for key, weight in plain_weights(policy) if key != name)  # noqa: E731
            patch.setattr(weights_folder, "plain_weights", without)
            engine.load_weights(model, 1)
            with pytest.raises(TrainingError, match=rf"no server left: .* 1 are missing, the first is {name}.*http"):
                sampled(engine, PROMPTS, sampling())
        head = model.lm_head.weight
        good = head.detach().clone()
        with torch.no_grad():
            head[4:5] = torch.nan
        engine.load_weights(model, 2)
        for temperature in (0.0, 1.0):
            with pytest.raises(ModelError, match=r"not finite \(nan or inf\) while sampling the response to row 0"):
                sampled(engine, PROMPTS, sampling(temperature=temperature))
        with torch.no_grad():
            head.copy_(good)
        engine.load_weights(model, 3)
        assert gap(model, PROMPTS, sampled(engine, PROMPTS, sampling()), 1.0) < EXACT


def test_what_somebody_aborts_is_no_response(servers):
    model = tiny_qwen2(**SIZES)
    endless = sampling(200, stop_token_ids=frozenset())
    with closing(engine_of(model, servers)) as engine:
        undisturbed = sampled(engine, PROMPTS * 4, endless, 5)

        def ask(path: str) -> None:
            httpx2.post(f"http://{servers[1].address}/{path}", timeout=60, trust_env=False)

        stopped = threading.Event()

        def disturb() -> None:
            while not stopped.wait(0.05):
                ask("pause?mode=abort")
                ask("resume")

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            with pytest.warns(UserWarning, match=rf"{servers[1].address} is left out .* ended by 'abort'"):
                completions = sampled(engine, PROMPTS * 4, endless, 5)
        finally:
            stopped.set()
            thread.join()
        for ours, theirs in zip(completions, undisturbed, strict=True):
            assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        # One that is paused is woken before it gets rows.
        ask("pause?mode=abort")
        assert len(sampled(engine, PROMPTS * 2, sampling())) == 10


def run_config(output: Path, servers: list[Started]) -> Any:
    return tiny_config(
        output, algorithm__old_logprobs="trainer", engine__name="vllm-server", engine__options=options_of(servers)
    )


def given() -> Given:
    return Given(model=tiny_qwen2(**SIZES), reward_function=likes_threes)


@pytest.fixture(scope="module")
def undisturbed(servers: list[Started], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run over both servers."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(run_config(folder, servers), given())
    return folder


@pytest.mark.filterwarnings("error:The vLLM at")
def test_a_run_of_sppo(undisturbed):
    gaps = [line["sampler/logprob_gap_max"] for line in read_metrics(undisturbed)[1:]]
    assert len(gaps) == 3
    assert max(gaps) < EXACT


def killing(patch: pytest.MonkeyPatch, after: int, kill: Any) -> None:
    """Has `kill` called when so many responses have come."""
    complete, came = Server.complete, []

    async def counted(self: Server, *arguments: Any) -> Any:
        completion = await complete(self, *arguments)
        came.append(completion)
        if len(came) == after:
            kill()
        return completion

    patch.setattr(Server, "complete", counted)


def test_a_server_that_is_killed_in_mid_step_changes_nothing(servers, undisturbed, tmp_path, monkeypatch):
    # 8 of the start's, 20 held-out prompts, 16 of the first step, and some of the second.
    killing(monkeypatch, 50, servers[1].kill)
    with pytest.warns(UserWarning, match=rf"http://{servers[1].address} is left out"):
        train(run_config(tmp_path / "run", servers), given())
    assert servers[1].process.poll() is not None
    assert responses(tmp_path / "run") == responses(undisturbed)


def test_where_all_are_killed_the_run_ends_and_goes_on_once_one_is_back(servers, undisturbed, tmp_path, monkeypatch):
    def kill_core() -> None:
        # What speaks HTTP is there still.
        children = Path(f"/proc/{servers[0].process.pid}/task/{servers[0].process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    config = run_config(tmp_path / "run", servers[:1])
    with monkeypatch.context() as patch:
        killing(patch, 50, kill_core)
        said = rf"Engine vllm-server has no server left: http://{servers[0].address}: .*--resume"
        with pytest.raises(TrainingError, match=said):
            train(config, given())
    missing = rf"engine.options.addresses: http://{servers[0].address}: .* --enable-scale-out"
    with pytest.raises(ConfigError, match=missing):
        train(config, given(), resume=True)
    servers[0].kill()
    # With the weights that it is started with, which are others.
    servers[0] = start(servers[0].log.parent, 2, int(servers[0].address.rpartition(":")[2]))
    await_all(servers[:1])
    train(config, given(), resume=True)
    assert responses(tmp_path / "run") == responses(undisturbed)
