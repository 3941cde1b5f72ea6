"""A server that speaks as vLLM's does, without vLLM: engine "hf" behind HTTP, in this process, with faults on order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.hf import HFEngine
from sppo.rollouts.engines.vllm_worker import sizes_of
from sppo.rollouts.engines.weights_folder import read_weights
from sppo.types import as_token_ids

GENERATE = "/inference/v1/generate"
Fault = Callable[[str, Any], Any]
"""Given a path and the answer, another answer; raises `Broken` for what is no answer. `Gone` ends the server."""


class Broken(Exception):
    """Bytes and a status instead of an answer."""

    def __init__(self, said: bytes, status: int = 200, length: int | None = None) -> None:
        self.said, self.status, self.length = said, status, len(said) if length is None else length


class Gone(Exception):
    """The connection ends without an answer."""


class Served:
    """A model behind an address."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.label = "default"
        self.asked: list[str] = []
        """Paths, in order."""
        self.labels: list[str] = []
        """Of the weights that it was given, in order."""
        self.rows = 0
        """That it has answered."""
        self.fault: Fault | None = None
        self.described: dict[str, Any] = {}
        """What it says of itself otherwise than it is."""
        self.paused = False
        self.hung_up = 0
        """Connections that were gone when the answer was ready."""
        self._lock = threading.Lock()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served._handle(self, {})

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                served._handle(self, json.loads(self.rfile.read(length) or b"{}"))

            def log_message(self, *args: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512  # the usual 5 resets connections that come all at once

        self._server = Listening(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        path = handler.path.partition("?")[0]
        self.asked.append(handler.path)
        status, length = 200, None
        try:
            answer = getattr(self, f"_{path.rpartition('/')[2]}", None)
            if answer is None:
                raise Broken(b'{"detail": "Not Found"}', 404)
            with self._lock:
                value = answer(body)
            if self.fault is not None:
                value = self.fault(path, value)
            said = json.dumps(value).encode()
        except Broken as broken:
            said, status, length = broken.said, broken.status, broken.length
        except Gone:
            handler.close_connection = True
            return
        try:
            handler.send_response(status)
            handler.send_header("content-length", str(len(said) if length is None else length))
            handler.end_headers()
            handler.wfile.write(said)
        except OSError:
            self.hung_up += 1

    def _weight_info(self, body: dict[str, Any]) -> Any:
        return {"weight_version": self.label}

    def _update_weight_version(self, body: dict[str, Any]) -> Any:
        self.label = body["new_version"]
        return {"success": True}

    def _pause(self, body: dict[str, Any]) -> Any:
        self.paused = True
        return {"status": "paused"}

    def _resume(self, body: dict[str, Any]) -> Any:
        self.paused = False
        return {"status": "resumed"}

    def _reset_prefix_cache(self, body: dict[str, Any]) -> Any:
        return {"success": True}

    def _collective_rpc(self, body: dict[str, Any]) -> Any:
        if body["method"] == "sppo_describe":
            return {"results": [{**self._description(), **self.described}]}
        handed = read_weights(Path(body["kwargs"]["folder"]))
        assert self.paused, "weights are taken over by a server that samples"
        assert handed.label == body["kwargs"]["label"]
        self.model.load_state_dict(dict(handed.weights()))
        self.labels.append(handed.label)
        return {"results": [{"missing": []}]}

    def _description(self) -> dict[str, Any]:
        return {
            "architecture": type(self.model).__name__,
            "dtype": "float32",
            "max_model_len": 400,
            "logprobs_mode": "processed_logprobs",
            **sizes_of(self.model.config),
            "quantization": None,
            "data_parallel_size": 1,
        }

    def _generate(self, body: dict[str, Any]) -> Any:
        assert not self.paused
        asked = body["sampling_params"]
        assert asked["ignore_eos"]
        assert asked["logprobs"] == 0
        names = ("max_tokens", "temperature", "top_p", "top_k")
        how = SamplingParameters(
            **{name: asked[name] for name in names}, stop_token_ids=frozenset(asked["stop_token_ids"])
        )
        torch.set_num_threads(1)
        (completion,) = HFEngine(self.model).generate([as_token_ids(body["token_ids"])], how, seeds=[asked["seed"]])
        self.rows += 1
        ids = completion.token_ids.tolist()
        content = [
            {"token_id": token, "logprob": value}
            for token, value in zip(ids, completion.logprobs.tolist(), strict=True)
        ]
        choice = {
            "token_ids": ids,
            "finish_reason": completion.finish_reason,
            "logprobs": {"content": content},
            "weight_versions": [{"version": self.label, "start": 0, "end": len(ids)}],
        }
        return {"choices": [choice]}


@contextmanager
def serving(make: Callable[[], PreTrainedModel], count: int = 2) -> Iterator[list[Served]]:
    """So many servers, each with a model of its own, as they are when they have just been started."""
    servers = [Served(make()) for _ in range(count)]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def hang(path: str, answer: Any) -> Any:
    """A fault: no answer as long as a test may last."""
    time.sleep(6)
    raise Gone


def of_rows(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """A fault of responses alone: what `change` makes of one."""

    def fault(path: str, answer: Any) -> Any:
        return change(answer) if path == GENERATE else answer

    return fault
