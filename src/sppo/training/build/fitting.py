"""Whether a run fits: its memory in words, on which cards it has room, and what would make room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.algorithms.algorithm import Algorithm
from sppo.config import Config, ModelConfig
from sppo.config.lora import LoraConfig
from sppo.errors import ModelError
from sppo.models.adapter_files import is_adapter, read_config
from sppo.models.adapters import adapt, inject
from sppo.models.loading import build_config, load_model_config, read_tokenizer, trainable_parameters
from sppo.models.quantization import quantizable_parameters
from sppo.models.remote import is_remote
from sppo.runs.files import gigabytes
from sppo.training.build.memory import Memory, Sized
from sppo.training.prompts import Prompts
from sppo.verifiers import reward_model
from sppo.verifiers.table import verifiers_behind
from sppo.verifiers.tools import Tools

CARDS = 24, 40, 80, 141
"""Gigabytes of the GPUs that people have."""
COUNTS = 1, 2, 4, 8, 16, 32, 64


def planned_memory(
    config: Config,
    algorithm: Algorithm,
    tokenizer: Tokenizer,
    architecture: PretrainedConfig,
    prompts: Prompts,
    device: torch.device,
    ranks: int = 1,
) -> Memory:
    """What a run will need, from its options and its models' configs; no weights are loaded.

    Args:
        config: all options.
        algorithm: as the run uses it.
        tokenizer: of the policy.
        architecture: of the policy; its vocabulary is the tokenizer's where the options name none.
        prompts: of the run.
        device: of each rank.
        ranks: how many there are.

    Raises:
        ModelError: a config that can't be read.
    """
    architecture = _sized(architecture, config.model.config, len(tokenizer))
    adapter = config.model.path if is_adapter(config.model.path) else None
    modelled = algorithm.critic == "token" or (algorithm.critic == "prompt" and config.critic.source == "model")
    return Memory(
        config,
        algorithm,
        policy=_counted(architecture, AutoModelForCausalLM, config.model.lora, "model", adapter),
        critic=_critic(config, architecture, len(tokenizer)) if modelled else None,
        scoring=_scoring(config, prompts),
        held_out=len(prompts.held_out),
        device=device,
        ranks=ranks,
    )


def in_words(memory: Memory) -> list[tuple[str, str]]:
    """Label and value of each line: every phase on the run's own device, and how many GPUs of each size would do."""
    peak = memory.peak()
    count = memory.ranks
    where = {"cpu": "memory", "cuda": "on one GPU"}[memory.device.type]
    if count > 1:
        where = f"on each of {count} {'processes' if memory.device.type == 'cpu' else 'GPUs'}"
    lines = [
        (
            f"{where}: {phase.name}",
            f"{gigabytes(phase.bytes)}: "
            + ", ".join(f"{name} {gigabytes(size)}" for name, size in phase.parts.items())
            + (f", and {gigabytes(phase.cache)} of cache at least" if phase.cache else ""),
        )
        for phase in memory.phases()
    ]
    lines.append((f"{where}: at most", f"{gigabytes(peak.bytes)} ({peak.name})"))
    if memory.device.type == "cuda":
        lines += [(f"GPUs of {card} GB", _enough(memory, card)) for card in CARDS]
    return lines


def on_gpus(memory: Memory) -> Memory:
    """The same run on GPUs, which this machine need not have."""
    return replace(memory, device=torch.device("cuda"))


def require_room(memory: Memory, size: int) -> None:
    """Refuses a run that does not fit a device of `size` bytes, before its weights are loaded.

    Raises:
        ModelError: says what it needs, in which phase, and which options would make it fit.
    """
    if memory.fits(size):
        return
    peak, taken = memory.peak(), memory.beside_engine(size)
    parts = ", ".join(f"{name} {gigabytes(part)}" for name, part in peak.parts.items())
    on = "this GPU" if memory.ranks == 1 else f"each of {memory.ranks} GPUs"
    why = f"in its {peak.name} ({parts})"
    if taken > peak.bytes:
        why = f"while it samples, engine {memory.config.engine.name}'s share of the GPU among them"
    raise ModelError(
        f"The run needs {gigabytes(max(peak.bytes, taken))} on {on} {why}, and there are {gigabytes(size)}. "
        f"{_advice(memory, size)} See `sppo train RECIPE --dry-run`."
    )


def measured(memory: Memory, size: int) -> str:
    """Says what a step has needed on a GPU, against what was planned, with `size` bytes held at most."""
    peak = memory.peak()
    return (
        f"Memory of the first step: {gigabytes(size)} at most, planned {gigabytes(peak.bytes)} ({peak.name}; rows as "
        "long as they may get)."
    )


def _enough(memory: Memory, card: int) -> str:
    for count in COUNTS:
        on = replace(memory, ranks=count)
        if on.fits(card * 1e9):
            return f"{count} or more ({gigabytes(on.peak().bytes)} on each, {on.peak().name})"
    return f"more than {COUNTS[-1]}, or other options"


def _advice(memory: Memory, size: float) -> str:
    """What would make it fit: more GPUs, options of which it takes as many as are needed, or both."""
    count = _count(memory, size)
    ways = [] if count is None else [_on_gpus(count)]
    changed, options = memory, list[str]()
    for name, (said, change) in _OPTIONS.items():
        tried = replace(changed, config=change(changed.config))
        if tried.peak().bytes < changed.peak().bytes or tried.beside_engine(size) < changed.beside_engine(size):
            changed, options = tried, [*options, f"--{name} {said(memory.config)}"]
        if changed.fits(size):
            ways.append(" ".join(options))
            break
        if not ways and (count := _count(changed, size)) is not None:
            ways.append(f"{' '.join(options)} and {_on_gpus(count)}")
    if not ways:
        return "Use a smaller model, shorter responses, LoRA (--model.lora.rank 16) or --model.precision bf16_weights."
    return f"It would fit with {', or with '.join(ways)}."


def _count(memory: Memory, size: float) -> int | None:
    """The smallest number of GPUs, more than there are, on which it fits."""
    more = (count for count in COUNTS if count > memory.ranks)
    return next((count for count in more if replace(memory, ranks=count).fits(size)), None)


def _on_gpus(count: int) -> str:
    return f"{count} GPUs (--launcher torchrun --nproc-per-node {count})"


def _longest(config: Config) -> int:
    return config.data.max_prompt_tokens + config.sampling.max_response_tokens


_OPTIONS: Mapping[str, tuple[Callable[[Config], Any], Callable[[Config], Config]]] = {
    "model.gradient_checkpointing": (
        lambda config: "true",
        lambda config: replace(config, model=replace(config.model, gradient_checkpointing=True)),
    ),
    "critic.gradient_checkpointing": (
        lambda config: "true",
        lambda config: replace(config, critic=replace(config.critic, gradient_checkpointing=True)),
    ),
    "optimizer.offload": (
        lambda config: "true",
        lambda config: replace(config, optimizer=replace(config.optimizer, offload=True)),
    ),
    "engine.max_rows": (
        lambda config: min(config.engine.max_rows, 64),
        lambda config: replace(config, engine=replace(config.engine, max_rows=min(config.engine.max_rows, 64))),
    ),
    "optimizer.tokens_per_microbatch": (
        _longest,
        lambda config: replace(config, optimizer=replace(config.optimizer, tokens_per_microbatch=_longest(config))),
    ),
}
"""Options that change memory and not the result: what each would be set to, and the config with it."""


def _counted(
    architecture: PretrainedConfig, kind: Any, lora: LoraConfig, key: str, adapter: str | None = None
) -> Sized:
    """A model with the adapter that it will have, counted on the meta device, where nothing is allocated.

    Args:
        architecture: of the model.
        kind: AutoModel or AutoModelForCausalLM.
        lora: the adapter's options.
        key: the section of the model, for messages.
        adapter: folder of an adapter that it has already.
    """
    with torch.device("meta"):
        model = kind.from_config(architecture, trust_remote_code=is_remote(architecture))
        if adapter is not None:
            inject(model, read_config(adapter))
        adapt(model, lora, "", key)
    trained = sum(parameter.numel() for parameter in trainable_parameters(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    quantized = quantizable_parameters(model) if lora.quantize != "none" else 0
    return Sized(architecture, total, total - trained, quantized, head=kind is AutoModelForCausalLM)


def _scoring(config: Config, prompts: Prompts) -> list[Sized]:
    """The models that judge responses, or their steps, where there are any."""
    options, tools = config.verification, Tools(config.verification)
    judges = {prompt.verifier for prompt in (*prompts.training, *prompts.held_out)} if not config.data.reward else set()
    behind = {name for judge in judges for name in verifiers_behind(judge, tools)}
    named = [("verification.process.model", options.process.model, options.process.trust_remote_code)]
    if reward_model.NAME in behind:
        own = options.reward_model
        named.append(("verification.reward_model.path", own.path, own.trust_remote_code))
    found = []
    for key, path, trusted in named:
        if path is not None:
            architecture = load_model_config(ModelConfig(path=path, trust_remote_code=trusted), key)
            found.append(_counted(architecture, AutoModel, LoraConfig(), key))
    return found


def _critic(config: Config, policy: PretrainedConfig, vocabulary: int) -> Sized:
    options = config.critic
    if options.tokenizer or options.path:
        key = "critic.tokenizer" if options.tokenizer else "critic.path"
        revision = "main" if options.tokenizer else options.revision or "main"
        vocabulary = len(read_tokenizer(options.tokenizer or str(options.path), key, revision=revision))
    if options.path is not None:
        architecture = load_model_config(ModelConfig(path=options.path, revision=options.revision), "critic.path")
    elif options.config is not None:
        architecture = _sized(build_config(options.config, "critic.config"), options.config, vocabulary)
    else:
        architecture = policy
    head = architecture.get_text_config().hidden_size + 1
    one = _counted(architecture, AutoModel, options.lora, "critic")
    many = options.members
    return replace(
        one, parameters=(one.parameters + head) * many, resting=one.resting * many, quantized=one.quantized * many
    )


def _sized(architecture: PretrainedConfig, settings: Mapping[str, Any] | None, vocabulary: int) -> PretrainedConfig:
    """A model made from settings takes its vocabulary from the tokenizer, unless the settings name one."""
    if settings is not None and "vocab_size" not in settings:
        architecture.vocab_size = vocabulary
    return architecture
