"""vLLM in the trainer's process: how it starts and ends, is given weights, and leaves alone what is the trainer's."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sppo.errors import ConfigError, ModelError, SppoError, TrainingError
from sppo.models.adapters import plain_weights
from sppo.models.checks import described
from sppo.rollouts.engines.engine import EngineSetup
from sppo.rollouts.engines.vllm_options import VllmOptions
from sppo.rollouts.engines.vllm_worker import load_counted
from sppo.rollouts.engines.weights import second_names, weight_names

_CPU_CACHE = 2**30
"""Bytes of the key-value cache on a CPU, where no share of the device is set aside."""
_MOST_CHARACTERS = 400
"""Of an error of vLLM's that are passed on."""
_MEND = (
    "vLLM's gpu_memory_utilization is engine.options.memory_share here, its max_num_seqs engine.max_rows, its "
    "max_model_len the longest prompt and response"
)


def start(model: PreTrainedModel, folder: str, limit: int, setup: EngineSetup, *, shares_ranks: bool) -> Any:
    """Starts a vLLM of the policy's architecture, its weights still noise.

    Args:
        model: the policy.
        folder: to write its config to, which vLLM reads.
        limit: longest sequence, in tokens.
        setup: with `VllmOptions`.
        shares_ranks: whether a launcher started this process as one of several.

    Raises:
        ConfigError: the vLLM that is installed is for another kind of device.
    """
    on_gpu = model.device.type == "cuda"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in another process it could not read our tensors
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # Else it would pin all threads of this process, the trainer's too.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Else the first response on a CPU waits minutes for a kernel that counts ranks, which nobody reads.
        **({} if on_gpu else {"TORCHDYNAMO_DISABLE": "1"}),
    }.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.platforms import current_platform

    there = current_platform.device_type or "no device here"
    if there != model.device.type:
        raise ConfigError(
            f"engine.name is vllm, and the vLLM that is installed runs on {there}, but the policy is on "
            f"{model.device.type}. Set --device, install the vLLM for the other, or use --engine.name hf."
        )
    architecture = copy.deepcopy(model.config)
    architecture.architectures = [type(model).__name__.removeprefix("FSDP")]
    architecture.save_pretrained(folder)
    options = cast(VllmOptions, setup.options)
    share = setup.memory_share if options.memory_share is None else options.memory_share
    settings: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": _CPU_CACHE}
    if on_gpu:
        settings = {"enforce_eager": options.eager, "gpu_memory_utilization": share, "enable_sleep_mode": True}
        torch.cuda.empty_cache()
    if shares_ranks:
        settings["distributed_executor_backend"] = "external_launcher"
    return LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype=str(setup.dtype).removeprefix("torch."),
        max_model_len=limit,
        max_num_seqs=setup.max_rows,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        seed=0,
        **settings,
    )


def shut_down(llm: Any, *, shares_ranks: bool) -> None:
    """Ends what `start` made, None where it did not get so far; the groups of ranks that are the trainer's stay."""
    if "vllm.v1.engine.core" not in sys.modules:
        return
    from vllm.distributed import parallel_state
    from vllm.v1.engine import core

    # It would end all groups of this process, the ranks' own too.
    clean_up = core.cleanup_dist_env_and_memory
    if shares_ranks:
        core.cleanup_dist_env_and_memory = parallel_state.destroy_model_parallel
    # One that is dead may fail here too, and has nothing more to say.
    try:
        with contextlib.suppress(Exception):
            if llm is not None:
                llm.llm_engine.engine_core.shutdown()
        core.cleanup_dist_env_and_memory()
    finally:
        core.cleanup_dist_env_and_memory = clean_up


def take_over(worker: Any, policy: nn.Module) -> list[str]:
    """Runs in vLLM's worker: gives its model the policy's weights; returns what `load_counted` does."""
    return load_counted(worker, weight_names(policy), second_names(policy), plain_weights(policy))


def last_lines(error: BaseException) -> str:
    """The last lines of what vLLM said, as a sentence of bearable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {' '.join(lines[-3:])}" if lines else type(error).__name__
    said = said if len(said) <= _MOST_CHARACTERS else f"{said[:_MOST_CHARACTERS]} ..."
    return said if said.endswith((".", "!")) else f"{said}."


@contextmanager
def refusing(model: nn.Module) -> Iterator[None]:
    """Turns what vLLM raises while it starts into our error."""
    try:
        yield
    except TrainingError as error:
        raise ModelError(
            f"Engine vllm can't sample from {described(model)}: {last_lines(error.__cause__ or error)}"
        ) from error
    except (SppoError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # vLLM may raise anything
        raise ModelError(
            f"Engine vllm can't run {described(model)}: {last_lines(error)} ({_MEND}.) Or use --engine.name hf."
        ) from error


@contextmanager
def kept_threads() -> Iterator[None]:
    """Undoes what vLLM does to torch's threads: on a CPU it takes `torch.set_num_threads` away from everyone."""
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)
