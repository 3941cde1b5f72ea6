"""Loading policies and tokenizers through transformers, and what training needs of them."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from sppo.config import ModelConfig
from sppo.errors import ModelError, RunFolderError
from sppo.models.adapter_files import find_base, is_adapter, load_adapter
from sppo.models.chat import require_limits, set_arguments
from sppo.models.quantization import quantized_loading
from sppo.models.remote import load_architecture, require_no_kernel
from sppo.models.sharding import is_sharded
from sppo.models.tokenizers import character_tokenizer
from sppo.runs import ranks
from sppo.runs.files import read_json
from sppo.runs.hub import ask_the_hub, why_not_here

LOAD_FAILURES = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    RuntimeError,
    ZeroDivisionError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises for names, files and settings that it can't use."""


_ALIGNMENT = 64
"""Bytes of which torch's own addresses on a CPU are multiples."""


def pick_device(name: str) -> torch.device:
    """Turns "auto", "cpu", "cuda" or "mps" into a device; "auto" is a CUDA device where there is one, else the CPU.

    Raises:
        ModelError: a GPU where there is none, or Apple's for several ranks.
    """
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("device is mps, but torch sees no Apple GPU here. Use --device cpu.")
        if ranks.world_size() > 1:
            raise ModelError("device is mps, which runs in one process: start it without a launcher.")
        return torch.device("mps")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ModelError(
            "device is cuda, but torch sees no NVIDIA GPU here. Use --device cpu, or install a CUDA torch."
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def prepare_device(name: str, threads: int | None) -> torch.device:
    """Sets torch and transformers up before any model is loaded; returns where models run.

    Args:
        name: "auto", "cpu", "cuda" or "mps".
        threads: CPU threads of torch; None: all cores.

    Raises:
        ModelError: as `pick_device`.
    """
    device = pick_device(name)
    if threads is not None:
        torch.set_num_threads(threads)
    # Bars for loading and saving would run across the display of our own progress.
    transformers.utils.logging.disable_progress_bar()
    return device


def arithmetic(module: nn.Module) -> AbstractContextManager[Any]:
    """How to run a module: with bfloat16 autocast if its weights are float32 on a GPU, unless sharding has decided."""
    weight = next(module.parameters())
    if weight.device.type == "cuda" and weight.dtype == torch.float32 and not is_sharded(module):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def build_config(settings: Mapping[str, Any], key: str) -> PretrainedConfig:
    """Makes a transformers config from plain settings.

    Args:
        settings: sizes, "model_type" among them.
        key: the option they came from, for error messages.

    Raises:
        ModelError: no or an unknown model_type, or settings that it refuses.
    """
    rest = dict(settings)
    model_type = rest.pop("model_type", None)
    if model_type is None:
        raise ModelError(f"{key} has no model_type, such as qwen2 or llama.")
    try:
        architecture = AutoConfig.for_model(model_type, **rest)
    except LOAD_FAILURES as error:
        raise ModelError(f"{key} makes no {model_type!r} model: {first_line(error)}") from error
    require_no_kernel(architecture, key)
    return architecture


def load_model_config(config: ModelConfig, key: str = "model.path") -> PretrainedConfig:
    """Reads a model's architecture without its weights.

    Args:
        config: where the model is.
        key: the option that the path came from, for error messages.

    Raises:
        ModelError: the path or the settings can't be used.
    """
    if config.path is None:
        assert config.config is not None, "validate() asks for model.path or model.config"
        return build_config(config.config, "model.config")
    base = find_base(config.path)
    try:
        return load_architecture(base, config.trust_remote_code, _revision(config))
    except LOAD_FAILURES as error:
        raise ModelError(cannot_load(key, base, error)) from error


def commit_of(config: ModelConfig) -> str | None:
    """The commit of a hub model that has been read, as the hub's client keeps it; None of a folder."""
    if config.path is None or Path(config.path).exists():
        return None
    kept = try_to_load_from_cache(config.path, "config.json", revision=_revision(config))
    return Path(kept).parent.name if isinstance(kept, str) else None


def declared_end_tokens(config: ModelConfig, architecture: PretrainedConfig) -> Any:
    """What a model's generation config gives as its end tokens, without its weights: an id, a list of them, or None."""
    declared = GenerationConfig.from_model_config(architecture)
    if config.path is not None:
        with suppress(*LOAD_FAILURES):  # a model without such a file
            declared = GenerationConfig.from_pretrained(find_base(config.path), revision=_revision(config))
    return declared.eos_token_id


def load_tokenizer(config: ModelConfig, alphabet: str = "") -> Tokenizer:
    """Loads the policy's tokenizer.

    Args:
        config: the model's options.
        alphabet: characters of the built-in tokenizer, used for "characters".

    Raises:
        ModelError: it can't be loaded, has no end token, or its chat template takes too much.
        ConfigError: arguments that the chat template doesn't read.
    """
    name = config.tokenizer or config.path
    if name is None:
        raise ModelError(
            "model.tokenizer is not set, and a model made from model.config brings none: give a folder or hub name, "
            'or "characters" for the built-in one.'
        )
    if name == "characters":
        tokenizer: Tokenizer = character_tokenizer(alphabet)
        set_arguments(tokenizer, config.chat_template_arguments)
        return tokenizer
    key = "model.tokenizer" if config.tokenizer else "model.path"
    if is_adapter(name) and not (Path(name) / "tokenizer_config.json").is_file():
        name = find_base(name)
    tokenizer = read_tokenizer(name, key, config.trust_remote_code, "main" if config.tokenizer else _revision(config))
    require_end_token(tokenizer, name)
    set_arguments(tokenizer, config.chat_template_arguments)
    return tokenizer


def _revision(config: ModelConfig) -> str:
    """Which of a hub model's versions is read; folders have one, and transformers doesn't look."""
    return config.revision or "main"


def read_tokenizer(name: str, key: str, trust_remote_code: bool = False, revision: str = "main") -> Tokenizer:
    """Loads a tokenizer from a folder or the hub.

    Raises:
        ModelError: it can't be loaded, or its chat template takes too much.
    """
    ask_the_hub(name)
    # Of a folder whose tokenizer is of no model's own class transformers would make one of the model's class, which
    # reads other text into it: another normalizer, another way of splitting.
    kind: Any = PreTrainedTokenizerFast if _is_generic(Path(name)) else AutoTokenizer
    try:
        tokenizer: Tokenizer = kind.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    except LOAD_FAILURES as error:
        raise ModelError(cannot_load(key, name, error)) from error
    require_limits(tokenizer, name)
    return tokenizer


def _is_generic(folder: Path) -> bool:
    """Whether a folder's tokenizer was saved as what its tokenizer.json alone says."""
    if not (folder / "tokenizer.json").is_file():
        return False
    try:
        said = read_json(folder / "tokenizer_config.json") or {}
    except RunFolderError:  # which the loader tells better
        return False
    return said.get("tokenizer_class") == "TokenizersBackend"


def require_end_token(tokenizer: Tokenizer, name: str) -> None:
    """Refuses a tokenizer without an end token: no response could ever be finished.

    Raises:
        ModelError: there is none.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {name} has no end token (eos_token), so no response could end. Set one: "
            "tokenizer.eos_token = ..., then tokenizer.save_pretrained(folder) and --model.tokenizer folder."
        )


def load_policy(config: ModelConfig, tokenizer: Tokenizer, device: torch.device) -> PreTrainedModel:
    """Loads or makes the policy, ready to train.

    Raises:
        ModelError: it can't be loaded, or its embedding is smaller than the tokenizer.
    """
    kwargs: dict[str, Any] = {"attn_implementation": config.attention}
    try:
        if config.path is None:
            settings = dict(config.config or {})
            settings.setdefault("vocab_size", len(tokenizer))
            settings.setdefault("eos_token_id", tokenizer.eos_token_id)
            settings.setdefault("pad_token_id", tokenizer.pad_token_id)
            architecture = build_config(settings, "model.config")
            model = AutoModelForCausalLM.from_config(
                architecture, dtype=torch.float32, trust_remote_code=False, **kwargs
            )
        else:
            kwargs |= {"revision": _revision(config), **quantized_loading(config.lora, "model.lora", device)}
            model = load_pretrained(AutoModelForCausalLM, config.path, config.trust_remote_code, **kwargs)
    except LOAD_FAILURES as error:
        name = config.path or "a new model"
        raise ModelError(cannot_load("model.path", name, error)) from error
    return prepare_policy(model, tokenizer, device, config.gradient_checkpointing)


def load_pretrained(kind: Any, path: str | Path, trust_remote_code: bool, **kwargs: Any) -> PreTrainedModel:
    """Loads a model in float32, or an adapter on its base, ready to be trained.

    The base is where the adapter's folder says; its own code runs only where `trust_remote_code` lets it.

    Args:
        kind: AutoModel or AutoModelForCausalLM.
        path: folder, or hub name of a model.
        trust_remote_code: allow Python code that comes with the weights to run.
        **kwargs: of `from_pretrained`.

    Raises:
        ModelError: an adapter without its base, or that doesn't fit it.
        Exception: one of LOAD_FAILURES.
    """
    base = find_base(path)
    load_architecture(base, trust_remote_code, kwargs.get("revision", "main"))
    model: PreTrainedModel = kind.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=trust_remote_code, **kwargs
    )
    if is_adapter(path):
        load_adapter(model, path, base)
    return model


def prepare_policy(
    model: PreTrainedModel, tokenizer: Tokenizer, device: torch.device, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """Moves a model to the device, keeps its weights in float32, and switches dropout off.

    An AdamW step at RL's learning rates is far below the resolution of bfloat16 weights, which would never move; on a
    GPU the arithmetic is bfloat16 all the same. Where weights are to be kept in bfloat16 after all, `shard` rounds
    them, once everything has been tried in float32. With dropout the ratio of a policy to itself would not be 1.

    Raises:
        ModelError: the tokenizer has ids that the model has no embedding for.
    """
    rows = embedded_tokens(model)
    if len(tokenizer) > rows:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model embeds only {rows}. "
            "Use the model's own tokenizer, or resize the model's embeddings first."
        )
    disable_dropout(model)
    if not getattr(model, "is_quantized", False):  # which was loaded to where it stays
        model.to(device=device, dtype=torch.float32)  # type: ignore[call-arg]
    align(model)
    model.eval()
    if gradient_checkpointing:
        enable_gradient_checkpointing(model, "model.gradient_checkpointing")
    return model


def align(model: nn.Module) -> None:
    """Moves weights that a file was mapped to on a CPU to where torch itself would have put them.

    There they lie at whichever address the file's header leads to, and a CPU's matrix products round otherwise at
    another one, so that a run that goes on would differ in the last bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_cpu and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def enable_gradient_checkpointing(model: PreTrainedModel, key: str) -> None:
    """Recomputes activations in the backward pass. transformers does so only in train mode.

    Whether the model computes the same in train mode, dropout apart, `checks.require_recomputation` finds out.

    Args:
        model: put into train mode.
        key: the option that asks for it.

    Raises:
        ModelError: the model's class has no checkpointing.
    """
    # transformers renamed it; the old name still works and warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"{key} is on, but: {first_line(error)} Set --{key} false.") from error
    model.train()


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to 0, of units, layers or paths: with it a policy's ratio to itself is not 1."""
    for module in model.modules():
        if "dropout" in type(module).__name__.lower() and isinstance(getattr(module, "p", None), float):
            module.p = 0.0  # type: ignore[assignment]
    for holder, name, _ in float_attributes(model, "drop"):
        setattr(holder, name, 0.0)


def float_attributes(model: nn.Module, *words: str) -> list[tuple[Any, str, float]]:
    """(holder, name, value) of the floats whose names contain one of `words`, in modules and their configs."""
    holders = [holder for module in model.modules() for holder in (module, getattr(module, "config", None))]
    different = {id(holder): holder for holder in holders}.values()
    return [
        (holder, name, value)
        for holder in different
        for name, value in getattr(holder, "__dict__", {}).items()
        if isinstance(value, float) and any(word in name for word in words)
    ]


def embedded_tokens(model: PreTrainedModel) -> int:
    """Rows of the model's input embedding."""
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight.shape[0]


def context_length(architecture: PretrainedConfig) -> int | None:
    """Longest sequence that the architecture was made for, in tokens; None where the config names none."""
    length = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    return int(length) if length and length > 0 else None


def trainable_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that an optimiser should hold."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def frozen_names(model: nn.Module) -> list[str]:
    """Names of the parameters that rest."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Lets the parameters of these names rest, and trains all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)


def cannot_load(key: str, name: str, error: Exception) -> str:
    """The message for something that transformers could not load."""
    path = Path(name)
    if path.is_dir():
        where = "a folder" if (path / "config.json").is_file() else "a folder without config.json"
    elif path.exists():
        where = "a file, not a folder"
    else:
        where = why_not_here(name)
    mend = ""
    part = path / "checkpoints" / "last" / ("critic" if key.startswith("critic") else "policy")
    if part.is_dir():
        mend = f" It is the folder of a run: its model is {part}."
    if "trust_remote_code" in str(error):
        section = key.rpartition(".")[0] if key.startswith("verification.") else "model"
        mend = f" Where you trust it, set --{section}.trust_remote_code true."
    return f"{key} {name!r} can't be loaded ({where}): {first_line(error)}{mend}"


def first_line(error: Exception) -> str:
    """The first line, with those that it announces or lists."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    last = next((number for number, line in enumerate(lines) if not line.endswith((":", ","))), len(lines))
    return " ".join(lines[: last + 1]) or type(error).__name__
