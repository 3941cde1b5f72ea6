"""What engines vllm and vllm-server can be asked for: their own options, and temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from sppo.config.ranges import Positive, Section
from sppo.errors import ConfigError

_TEMPERATURES = (0.01, 2.0)
"""What vLLM samples with beside 0; it raises a lower temperature without an error, and refuses a higher one."""


def require_temperature(temperature: float) -> None:
    """Refuses a temperature that vLLM can't sample with.

    Raises:
        ConfigError: names the value and the range.
    """
    lowest, highest = _TEMPERATURES
    if temperature and not lowest <= temperature <= highest:
        raise ConfigError(
            f"sampling.temperature (or that of evaluation) is {temperature:g}, but vLLM samples at 0, or from "
            f"{lowest:g} to {highest:g}. Set it so, or use --engine.name hf."
        )


@dataclass(frozen=True)
class VllmOptions(Section):
    """Options of engine vllm."""

    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the GPU's memory for vLLM's weights and cache while it samples (gpu_memory_utilization there); what is
    trained keeps its own beside it. Default: 0.5 in training, 0.9 in an evaluation. Without effect on a CPU."""
    eager: bool = False
    """Sample without compiled kernels and CUDA graphs: starts sooner, samples slower. Always so on a CPU."""


@dataclass(frozen=True)
class VllmServerOptions(Section):
    """Options of engine vllm-server."""

    addresses: list[str] = field(default_factory=list)
    """Servers of vLLM that you have started, as [host:port, ...] or [http://host:port, ...]; docs/engines.md has the
    command. Rows are dealt over them."""
    folder: str | None = None
    """Folder for the policy's weights, which training and all servers see under this name; it needs room for one copy
    of them. Default: a temporary one, for servers on this machine."""
    connect_timeout: Positive = 10.0
    """Seconds until a connection is given up."""
    request_timeout: Positive = 1800.0
    """Seconds until one response is given up, its wait in the server's queue included."""
    reload_timeout: Positive = 600.0
    """Seconds until a server is given up that takes over weights."""


def require_addresses(options: VllmServerOptions) -> None:
    """Refuses addresses that can't be; raises as `server_urls`."""
    server_urls(options.addresses)


def server_urls(addresses: Sequence[str]) -> list[str]:
    """Addresses as http://host:port.

    Raises:
        ConfigError: there are none, one is no address, or two are the same.
    """
    example = "as in --engine.options.addresses '[localhost:8000, localhost:8001]'"
    if not addresses:
        raise ConfigError(
            f"engine.options.addresses is empty, but engine vllm-server needs servers that you have started: name "
            f"them, {example}. docs/engines.md says how to start one."
        )
    urls = [_url(address) for address in addresses]
    wrong = next((address for address, url in zip(addresses, urls, strict=True) if url is None), None)
    if wrong is not None:
        raise ConfigError(
            f"engine.options.addresses names {wrong!r}, which is no address: give host:port or http://host:port, "
            f"{example}."
        )
    twice = next((url for index, url in enumerate(urls) if url in urls[:index]), None)
    if twice is not None:
        raise ConfigError(f"engine.options.addresses names {twice} twice. Name each server once.")
    return [url for url in urls if url is not None]


def _url(address: str) -> str | None:
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port
    except ValueError:  # a port that is no number, a bracket too few
        return None
    has_place = bool(parts.hostname) and (port is not None or "://" in address)
    bare = not (parts.query or parts.fragment or parts.username) and not any(map(str.isspace, address))
    if parts.scheme not in ("http", "https") or not has_place or not bare:
        return None
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
