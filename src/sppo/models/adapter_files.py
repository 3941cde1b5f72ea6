"""Adapters on the disk: written so that peft reads them, read so that a stranger's runs no code.

A folder of an adapter has adapter_config.json and adapter_model.safetensors. The weights that it stands on are
elsewhere, where the config says: a folder or a hub name. Of a model that a run made new, or that a program handed over,
no other folder has them, so the run keeps them once, in adapter_base/; there they are looked for first, wherever the
run has been moved to.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo.errors import ModelError
from sppo.models.adapters import adapter_config, adapter_name, has_adapter, inject, plain_view, resting_names, task_of
from sppo.models.sharding import whole_state
from sppo.runs import ranks

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_FOLDER = "adapter_base"
"""In a run's folder: the weights that its adapters stand on, where no other folder has them."""
_WRAPPED = "base_model.model."
"""What peft puts before each name."""
_LEVELS = 4
"""Folders above an adapter in which a run's own base may lie: RUN/checkpoints/step_N/critic/second has most."""


def is_adapter(path: str | Path | None) -> bool:
    """Whether this is a folder with an adapter rather than a model."""
    return path is not None and (Path(path) / CONFIG_FILE).is_file()


def read_config(folder: str | Path) -> Any:
    """What a folder says of its adapter, as peft reads it, for an adapter that is trained.

    Raises:
        ModelError: an adapter of another type than LoRA, or a folder that holds a model too.
    """
    import peft

    folder = Path(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} can't be read: {str(error).splitlines()[0]}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {kind}; only LoRA adapters can be used.")
    if any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{folder} holds both a model and an adapter ({CONFIG_FILE}), so that it is not clear which is meant. Move "
            "one of them to a folder of its own."
        )
    # It would import whichever module the file names.
    config.megatron_config = None
    config.inference_mode = False
    return config


def find_base(folder: str | Path) -> str:
    """Returns folder or hub name of the weights that an adapter stands on; a path itself where that is no adapter.

    Raises:
        ModelError: the folder names none, or one that is an adapter itself, or isn't there.
    """
    if not is_adapter(folder):
        return str(folder)
    return _found(Path(folder), read_config(folder).base_model_name_or_path)


def _found(folder: Path, named: str | None) -> str:
    said = f"{folder / CONFIG_FILE} names the model that the adapter stands on (base_model_name_or_path)"
    if not named:
        raise ModelError(f"{said} nowhere. Write there the folder or hub name of that model.")
    if Path(named).name == BASE_FOLDER:
        # Kept by a run, which may have been moved or copied: the one above this very folder is meant.
        above = [parent / BASE_FOLDER for parent in folder.resolve().parents[:_LEVELS]]
        named = next((str(base) for base in above if base.is_dir()), named)
    if is_adapter(named):
        raise ModelError(f"{said} as {named}, which is an adapter itself. Merge that one first with `sppo merge`.")
    if Path(named).is_absolute() and not Path(named).is_dir():
        raise ModelError(
            f"{said} as {named}, and there is no such folder. Put it back, or write into that file where it is."
        )
    return named


def note_on(path: str | Path | None) -> str | None:
    """What a person should know of where weights come from that an adapter's folder names; None for a plain model."""
    if path is None or not is_adapter(path):
        return None
    return f"The model is the adapter in {path} on the weights of {find_base(path)}."


def load_adapter(model: PreTrainedModel, folder: str | Path, base: str) -> None:
    """Puts the adapter in a folder into the model, which is loaded from its base, ready to be trained.

    Raises:
        ModelError: no safetensors, or weights that don't fit this model.
    """
    import peft

    folder, config = Path(folder), read_config(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"{folder} has no {WEIGHTS_FILE}, and adapters are read from that alone, as other files could run code."
        )
    weights = {name.removeprefix(_WRAPPED): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    config.base_model_name_or_path = base
    try:
        inject(model, config)
        found: Any = peft.set_peft_model_state_dict(model, weights, adapter_name(model))
    except (ValueError, RuntimeError, KeyError) as error:
        why = str(error).splitlines()[-1].strip()
        raise ModelError(f"The adapter in {folder} doesn't fit {base}: {why}") from error
    lacking = [name for name in found.missing_keys if adapter_name(model) in name.split(".")]
    strange = [*found.unexpected_keys, *lacking]
    if strange:
        raise ModelError(f"The adapter in {folder} doesn't fit {base}: {', '.join(strange[:3])} has no counterpart.")


@dataclass(frozen=True)
class AdapterFiles:
    """A model's adapter, saved without the weights that it stands on."""

    model: PreTrainedModel

    def save_pretrained(self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Writes the two files, into a folder that may be there already.

        Args:
            folder: to write to.
            state_dict: all tensors of the model, by its own names; default: gathered from it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights(state_dict).items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config: Any = copy.copy(adapter_config(self.model))
        # Begun some other way (PiSSA, say), it would change the base anew when it is read.
        config.inference_mode, config.init_lora_weights = True, True
        config.task_type = config.task_type or task_of(self.model)
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))

    def weights(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The adapter's tensors by the names that peft gives them in files."""
        import peft

        # Without the embeddings, which the base has; to find out whether they changed, peft would ask the hub.
        found = peft.get_peft_model_state_dict(
            self.model, state_dict, adapter_name(self.model), save_embedding_layers=False
        )
        return {f"{_WRAPPED}{name}": tensor for name, tensor in found.items()}


def save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """Writes what `saved_form` is, by the main rank; every rank has to call it."""
    own = has_adapter(model) and adapter_name(model)
    state = whole_state(model, lambda name: not own or own in name.split("."))
    if ranks.is_main():
        saved_form(model).save_pretrained(folder, state_dict=state)


def saved_form(model: PreTrainedModel) -> Any:
    """What a checkpoint saves of a model with `save_pretrained`: its adapter where it has one, else the model."""
    return AdapterFiles(model) if has_adapter(model) else model


def saved_bytes(model: PreTrainedModel) -> int:
    """Size of what a checkpoint saves of a model."""
    tensors = AdapterFiles(model).weights().values() if has_adapter(model) else model.parameters()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every tensor of a model by the name that it has in files, in those of its base and of its adapter."""
    state = model.state_dict()
    own = {plain: state[name] for name, plain in resting_names(model).items()}
    return {**own, **AdapterFiles(model).weights()} if has_adapter(model) else own


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model in a folder, those of an adapter's base among them."""
    return files_like("*.safetensors", folder)


def files_like(pattern: str, folder: str | Path) -> list[Path]:
    """The files of this pattern in a model's folder, then those of an adapter's base."""
    places = [Path(folder), *([Path(find_base(folder))] if is_adapter(folder) else [])]
    return [file for place in places for file in sorted(place.glob(pattern))]


def save_base(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights that the model's adapter stands on as a model that AutoModelForCausalLM loads.

    By the main rank; every rank has to call it.
    """
    names = resting_names(model)
    state = whole_state(model, names.__contains__)
    if state is None:
        plain_view(model).save_pretrained(folder)
    elif ranks.is_main():
        kind = next(one for one in type(model).__mro__ if not one.__name__.startswith("FSDP"))
        with torch.device("meta"):
            bare = kind(model.config)
        bare.generation_config = model.generation_config
        bare.save_pretrained(folder, state_dict={names[name]: tensor for name, tensor in state.items()})


def base_bytes(model: PreTrainedModel) -> int:
    """Size of what `save_base` writes."""
    names = resting_names(model)
    return sum(t.numel() * t.element_size() for name, t in model.state_dict().items() if name in names)


def as_named(state: Mapping[str, Tensor], old: str, model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors with the name of this model's adapter in theirs, where the other's adapter has another name."""
    new = adapter_name(model) if has_adapter(model) else old
    return {".".join(new if part == old else part for part in name.split(".")): value for name, value in state.items()}
