"""A server of vLLM as it is spoken to: a few requests over HTTP, each with a time after which it is given up."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import httpx2

from sppo.errors import TrainingError
from sppo.rollouts.engines.engine import SamplingParameters
from sppo.rollouts.engines.vllm_options import VllmServerOptions
from sppo.rollouts.engines.vllm_responses import completion_of
from sppo.types import Completion

Answer = TypeVar("Answer")

_SECONDS = 30.0
"""For an answer that takes no work of a server: to whether it is there, to a cache that is emptied."""
_MOST_CHARACTERS = 400
"""Of a server's answer that are passed on."""
_NO_NUMBER = -9999.0
"""What a server says for a log-probability that is nan, or less."""


class ServerError(Exception):
    """A server that is not there, or whose answer is none; says what it said last."""


@dataclass(frozen=True, eq=False)
class Server:
    """One server."""

    address: str
    """As http://host:port."""
    options: VllmServerOptions

    async def describe(self, client: httpx2.AsyncClient) -> dict[str, Any]:
        """How it was started, as its first worker says."""
        return (await self._worker(client, "sppo_describe", {}, _SECONDS))[0]

    async def weights(self, client: httpx2.AsyncClient) -> str:
        """Label of the weights that it has."""
        return str((await self._ask(client, "GET", "/weight_info", None, _SECONDS)).get("weight_version"))

    async def take_over(self, client: httpx2.AsyncClient, folder: str, label: str) -> None:
        """Has it sample from the weights in a folder once it is resumed; what it is at is aborted.

        Raises:
            ServerError: it did not take all of them, still has keys and values of those before, or failed.
        """
        await self._ask(client, "POST", "/pause?mode=abort", None, _SECONDS)
        where = {"folder": folder, "label": label}
        for answer in await self._worker(client, "sppo_take_over", where, self.options.reload_timeout):
            if answer.get("missing") != []:
                raise ServerError(_why_not(answer, folder))
        if (await self._ask(client, "POST", "/reset_prefix_cache", None, _SECONDS)).get("success") is not True:
            raise ServerError("its cache of prompts could not be emptied, so that it would go on with old weights'")
        await self._ask(client, "POST", "/update_weight_version", {"new_version": label}, _SECONDS)
        if (has := await self.weights(client)) != label:
            raise ServerError(f"it says that it has the weights {has!r}, where it was given {label!r}")

    async def resume(self, client: httpx2.AsyncClient) -> None:
        """Has it take up rows, which a handover has stopped, or somebody else."""
        await self._ask(client, "POST", "/resume", None, _SECONDS)

    async def complete(
        self, client: httpx2.AsyncClient, body: dict[str, Any], sampling: SamplingParameters, label: str, version: int
    ) -> Completion:
        """Samples one row.

        Args:
            client: to ask with.
            body: of the request.
            sampling: that it asks for.
            label: of the weights that the response has to be sampled from.
            version: of the policy that has them.

        Raises:
            ServerError: it failed, or answered something else than was asked for.
        """
        answer = await self._ask(client, "POST", "/inference/v1/generate", body, self.options.request_timeout)
        try:
            (choice,) = answer["choices"]
            ids, reason = list(choice["token_ids"]), choice["finish_reason"]
            content = choice["logprobs"]["content"]
            named = [place["token_id"] for place in content]
            logprobs = [float(place["logprob"]) for place in content]
            spans = [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"] or []]
            numbers = all(type(token) is int and 0 <= token < 2**31 for token in ids)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"it answered what is no response: {_shortened(answer)}") from error
        if not numbers:
            raise ServerError(f"it answered token ids that are none: {_shortened(ids)}")
        logprobs = [value if value > _NO_NUMBER else float("nan") for value in logprobs]
        try:
            completion = completion_of(ids, logprobs, named, reason, sampling, version)
        except TrainingError as error:
            raise ServerError(str(error)) from error
        if spans != [(label, 0, len(ids))]:
            raise ServerError(f"it sampled from the weights {_shortened(spans)}, not from {label!r}")
        return completion

    async def _worker(
        self, client: httpx2.AsyncClient, method: str, arguments: dict[str, str], seconds: float
    ) -> list[dict[str, Any]]:
        """What a method of ours answers in each of its workers; there is one at least."""
        body = {"method": method, "kwargs": arguments}
        results = (await self._ask(client, "POST", "/collective_rpc", body, seconds)).get("results")
        if not isinstance(results, list) or not results or not all(isinstance(result, dict) for result in results):
            raise ServerError(f"its workers answered {_shortened(results)} to {method}")
        return results

    async def _ask(
        self, client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                response = await client.request(method, self.address + path, json=body)
        except TimeoutError as error:
            raise ServerError(f"no answer to {path} within {seconds:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise ServerError(f"{type(error).__name__}: {_shortened(str(error) or path)}") from error
        if response.status_code != 200:
            raise ServerError(f"HTTP {response.status_code} to {path}: {_shortened(response.text)}")
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise ServerError(f"it answered to {path} what is no JSON: {_shortened(response.text)}") from error
        if not isinstance(answer, dict):
            raise ServerError(f"it answered to {path} with {_shortened(answer)}")
        return answer


def _why_not(answer: dict[str, Any], folder: str) -> str:
    missing = answer.get("missing")
    if isinstance(missing, list) and missing:
        return (
            f"it did not take over all of the policy's weights: {len(missing)} are missing, the first is {missing[0]}"
        )
    return (
        f"it did not take over the weights in {folder}: {_shortened(answer.get('refused', answer))}. Set "
        "engine.options.folder to a folder that it sees under the same name"
    )


def _shortened(said: Any) -> str:
    """What a server said, on one line of bearable length that is safe to print."""
    text = said if isinstance(said, str) else json.dumps(said, default=str)
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 2 * _MOST_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


@asynccontextmanager
async def connected(options: VllmServerOptions) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for any number of servers and rows."""
    # That a machine has gone, its connections don't say by themselves.
    alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            alive.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    # A connection a request: one that was kept may be closed by the server just as it is used again.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    transport = httpx2.AsyncHTTPTransport(_trusted(), limits=limits, socket_options=alive, trust_env=False)
    timeout = httpx2.Timeout(None, connect=options.connect_timeout)
    async with httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
        yield client


@cache
def _trusted() -> ssl.SSLContext:
    """Certificates for addresses of https; reading them takes longer than all the rest of a client."""
    return httpx2.create_ssl_context()


def finish(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Does asynchronous work to its end, in a thread of its own, as this one may have a loop that runs already.

    What interrupts the wait, such as Ctrl-C, cancels the work.
    """
    began: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def cancellable() -> Answer:
        task = asyncio.current_task()
        assert task is not None
        began.set_result((asyncio.get_running_loop(), task))
        return await work

    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(asyncio.run, cancellable())
        try:
            return answer.result()
        except BaseException:
            if not answer.done():
                loop, task = began.result()
                loop.call_soon_threadsafe(task.cancel)
            raise
