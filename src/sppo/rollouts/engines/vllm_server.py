"""Engine "vllm-server": servers of vLLM that the user has started, which may have GPUs and machines of their own.

Rows go out as token ids over HTTP and come back with log-probabilities. The policy's weights go through a folder that
all see: the main rank writes them, and each server takes them over before it gets rows of a newer version. Every
handover has a label of its own, which a server is given with the weights and says with each response, so that nothing
is ever sampled from others: not by a server that was started anew, nor by one that another run uses too.

A server that fails is left out until responses are next asked for, and its rows go to the others; with the same seed
the same response. Then it is tried again, and given the present weights where it hasn't them. Each rank sends its rows.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx2
from torch import nn
from transformers import PreTrainedModel

from sppo.errors import ConfigError, TrainingError
from sppo.models.checks import undisturbed
from sppo.rollouts.engines.engine import EngineSetup, SamplingParameters, require_finite, require_room
from sppo.rollouts.engines.vllm_http import Server, ServerError, connected, finish
from sppo.rollouts.engines.vllm_options import VllmServerOptions, server_urls
from sppo.rollouts.engines.vllm_responses import limit_of, require_same, row_parameters
from sppo.rollouts.engines.vllm_worker import sizes_of
from sppo.rollouts.engines.weights_folder import delete_weights, write_weights
from sppo.runs import ranks
from sppo.types import Completion, TokenIds


class VllmServerEngine:
    """Samples from servers of vLLM, each of which keeps a batch full by taking up rows as others end."""

    def __init__(self, model: PreTrainedModel, setup: EngineSetup) -> None:
        """Gives all servers the weights of `model`; every rank calls this.

        Args:
            model: the policy; may be sharded.
            setup: with `VllmServerOptions`.

        Raises:
            ConfigError: a server isn't there, or was started otherwise than is needed; says how to start it.
            ModelError: a server computes something else than the policy does.
        """
        self._options = cast(VllmServerOptions, setup.options)
        self._servers = [Server(url, self._options) for url in server_urls(self._options.addresses)]
        self._limit, self._limit_is = limit_of(model, setup.max_tokens)
        self._setup = setup
        self._architecture = type(model).__name__.removeprefix("FSDP")
        self._sizes = sizes_of(model.config)
        self._source: nn.Module = model
        self._version = 0
        self._name = ranks.of_main(secrets.token_hex(4))
        self._handovers = 0
        self._label = ""
        self._handed: Path | None = None
        self._present: list[Server] = []
        self._said: dict[Server, str] = {}
        """The last words of those that are left out."""
        self._is_awake = False
        self._is_closed = False
        self._own_folder = None
        if self._options.folder is None and ranks.is_main():
            self._own_folder = tempfile.TemporaryDirectory(prefix="sppo-weights-")
        try:
            self._begin(model)
        except BaseException:
            self.close()
            raise

    def _begin(self, model: PreTrainedModel) -> None:
        """Gives all servers the weights, and has each compute a few tokens; every one has to be there."""
        self._hand_over()
        for server in self._present if not self._said else ():
            alone = partial(self._generate, servers=[server])
            with undisturbed(), suppress(TrainingError):
                require_same(model, alone, self._limit, self._setup.dtype, f"The vLLM at {server.address}")
        if self._said:
            raise ConfigError(f"engine.options.addresses: {self._last_words()} {self._how_to_start(model)}")

    @property
    def version(self) -> int:
        """Version of the weights that `generate` samples from."""
        return self._version

    def load_weights(self, model: nn.Module, version: int) -> None:
        """Samples from `model`'s weights from now on; servers are given them when responses are next asked for.

        They may not change between the two unless a newer version is handed over, which `sample` checks.

        Raises:
            TrainingError: the folder can't be written, or no server took them over.
        """
        self._source, self._version = model, version
        self._drop_handed()
        if self._is_awake:
            self._wake()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Sees to it that all servers that are there have the present weights; every rank enters together.

        Raises:
            TrainingError: as `load_weights`.
        """
        self._wake()
        self._is_awake = True
        try:
            yield
        finally:
            self._is_awake = False

    def close(self) -> None:
        """Deletes the weights that were on their way; the servers stay as they are. A second time it does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._drop_handed()
        if self._own_folder is not None:
            self._own_folder.cleanup()

    def generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, *, seeds: Sequence[int]
    ) -> list[Completion]:
        """Samples one response to each row; arguments, result and what is refused as engine vllm has them.

        Raises:
            TrainingError: every server failed; names each with its last words.
        """
        assert self._is_awake, "asked for responses while it sleeps"
        return self._generate(prompts, sampling, seeds, servers=self._present)

    def _generate(
        self, prompts: Sequence[TokenIds], sampling: SamplingParameters, seeds: Sequence[int], *, servers: list[Server]
    ) -> list[Completion]:
        assert not self._is_closed, "the engine is closed"
        assert len(seeds) == len(prompts), f"{len(seeds)} seeds for {len(prompts)} rows"
        require_room(prompts, sampling.max_tokens, self._limit, self._limit_is)
        vocabulary = self._sizes["vocab_size"]
        assert vocabulary is not None, "a language model has a vocabulary"
        bodies = [
            {"token_ids": prompt.tolist(), "sampling_params": row_parameters(sampling, int(seed), vocabulary)}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        completions = finish(self._deal(bodies, sampling, servers)) if bodies else []
        require_finite(completions, range(len(prompts)))
        return completions

    async def _deal(
        self, bodies: Sequence[dict[str, Any]], sampling: SamplingParameters, servers: list[Server]
    ) -> list[Completion]:
        """Keeps every server busy until all rows are done; those of one that fails go to the others."""
        done: dict[int, Completion] = {}
        waiting = deque(range(len(bodies)))
        running: dict[asyncio.Task[Completion], tuple[int, Server]] = {}
        asked_again: set[Server] = set()
        async with connected(self._options) as client:
            try:
                while len(done) < len(bodies):
                    if not servers:
                        servers.extend(await self._still_there(client, asked_again))
                    if not servers:
                        raise self._none_left()
                    for row, server in self._placed(waiting, running, servers):
                        work = server.complete(client, bodies[row], sampling, self._label, self._version)
                        running[asyncio.create_task(work)] = (row, server)
                    finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    failed: dict[Server, ServerError] = {}
                    for task in finished:
                        row, server = running.pop(task)
                        error = task.exception()
                        if error is None:
                            done[row] = task.result()
                        elif isinstance(error, ServerError):
                            failed[server] = error
                            waiting.appendleft(row)
                        else:
                            raise error
                    for server, error in failed.items():
                        self._leave_out(server, error, servers)
                        waiting.extendleft(await _taken_back(server, running))
            finally:
                await _cancelled(running)
        return [done[row] for row in range(len(bodies))]

    def _placed(
        self, waiting: deque[int], running: dict[asyncio.Task[Completion], tuple[int, Server]], servers: list[Server]
    ) -> Iterator[tuple[int, Server]]:
        """Takes rows from `waiting` as long as a server has a place free, for the one that is at fewest."""
        rows = dict.fromkeys(servers, 0)
        for _, server in running.values():
            rows[server] += 1
        places = -(-self._setup.max_rows // len(servers))
        while waiting:
            server = min(servers, key=lambda one: rows[one])
            if rows[server] >= places:
                return
            rows[server] += 1
            yield waiting.popleft(), server

    async def _still_there(self, client: httpx2.AsyncClient, asked_again: set[Server]) -> list[Server]:
        """Servers that failed, but say that they have the present weights; each of them once."""
        found = []
        for server in [server for server in self._said if server not in asked_again]:
            asked_again.add(server)
            try:
                if await server.weights(client) == self._label:
                    await server.resume(client)  # it may have failed because somebody has paused it
                    found.append(server)
            except ServerError as error:
                self._said[server] = str(error)
        return found

    def _leave_out(self, server: Server, error: ServerError, servers: list[Server]) -> None:
        servers.remove(server)
        self._said[server] = str(error)
        if servers:
            warnings.warn(
                f"The vLLM at {server.address} is left out until responses are next asked for: {error}. Its rows go to "
                "the others.",
                stacklevel=2,
            )

    def _wake(self) -> None:
        """Has every server that is there sample from the present weights, and notes the last words of the others."""
        self._hand_over()
        if not self._present:
            raise self._none_left()
        for server, words in self._said.items() if ranks.is_main() else ():
            warnings.warn(f"The vLLM at {server.address} is left out: {words}.", stacklevel=2)

    def _hand_over(self) -> None:
        assert not self._is_closed, "the engine is closed"
        if self._handed is None:
            self._write()
        said = ranks.of_main(finish(self._give_all(str(self._handed))) if ranks.is_main() else [])
        answers = list(zip(self._servers, said, strict=True))
        self._present = [server for server, words in answers if words is None]
        self._said = {server: words for server, words in answers if words is not None}

    def _write(self) -> None:
        self._handovers += 1
        self._label = f"sppo {self._name}: {self._handovers}, version {self._version}"
        place = Path(self._options.folder or (self._own_folder.name if self._own_folder is not None else ""))
        folder = place.expanduser().absolute() / f"sppo-{self._name}-{self._handovers}"
        try:
            write_weights(self._source, folder, self._label, self._setup.dtype)
        except BaseException as error:
            delete_weights(folder)
            if isinstance(error, OSError):
                raise TrainingError(
                    f"The policy's weights could not be written to {place} for engine vllm-server: {error}. Set "
                    "engine.options.folder to a folder with room for them, which all servers see."
                ) from error
            raise
        self._handed = folder

    def _drop_handed(self) -> None:
        if self._handed is not None and ranks.is_main():
            delete_weights(self._handed)
        self._handed = None

    async def _give_all(self, folder: str) -> list[str | None]:
        """Gives every server the present weights where it hasn't them; last words of those that didn't take them."""
        async with connected(self._options) as client:

            async def give(server: Server) -> str | None:
                try:
                    if await server.weights(client) != self._label:
                        self._require_settings(await server.describe(client))
                        await server.take_over(client, folder, self._label)
                    await server.resume(client)
                except ServerError as error:
                    return str(error)
                return None

            return list(await asyncio.gather(*map(give, self._servers)))

    def _require_settings(self, described: dict[str, Any]) -> None:
        """Refuses a server that was started otherwise than is needed."""
        wanted = {
            "architecture": self._architecture,
            "dtype": str(self._setup.dtype).removeprefix("torch."),
            "logprobs_mode": "processed_logprobs",
            **self._sizes,
            "quantization": None,
            "data_parallel_size": 1,  # of several, all but one would not say whether they took the weights
        }
        # None stands for what it doesn't say too.
        wrong = [
            f"{name} {described.get(name)}, not {value}"
            for name, value in wanted.items()
            if described.get(name) != value
        ]
        longest = described.get("max_model_len")
        if not isinstance(longest, int) or longest < self._limit:
            wrong.append(f"max_model_len {longest}, not {self._limit} or more")
        if wrong:
            raise ServerError(f"it was started with {'; '.join(wrong)}")

    def _none_left(self) -> TrainingError:
        return TrainingError(
            f"Engine vllm-server has no server left: {self._last_words()} The run ends here. Start them again, and go "
            "on from its last checkpoint with --resume."
        )

    def _last_words(self) -> str:
        said = [(server.address, self._said[server].rstrip(".")) for server in self._servers if server in self._said]
        return " ".join(f"{address}: {words}." for address, words in said)

    def _how_to_start(self, model: PreTrainedModel) -> str:
        precision = str(self._setup.dtype).removeprefix("torch.")
        return (
            "Each has to be there when a run begins, started so (docs/engines.md has more): VLLM_SERVER_DEV_MODE=1 "
            f"python -m vllm.entrypoints.openai.api_server --model {getattr(model, 'name_or_path', '') or 'MODEL'} "
            f"--dtype {precision} --max-model-len {self._limit} --logprobs-mode processed_logprobs --generation-config "
            "vllm --skip-tokenizer-init --enable-scale-out --worker-extension-cls "
            "sppo.rollouts.engines.vllm_worker.SppoWorker --port PORT"
        )


async def _taken_back(server: Server, running: dict[asyncio.Task[Completion], tuple[int, Server]]) -> list[int]:
    """Ends what a server was at; returns the rows, the last first, so that they come to be in order at the front."""
    own = {task: where for task, where in running.items() if where[1] is server}
    for task in own:
        del running[task]
    rows = sorted((row for row, _ in own.values()), reverse=True)
    await _cancelled(own)
    return rows


async def _cancelled(tasks: dict[asyncio.Task[Completion], tuple[int, Server]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
