"""Low-rank adapters in memory: with adapter_files.py, which writes and reads them, the one place that knows of peft.

A model with an adapter stays the class that transformers made: some of its layers give way to layers of peft that hold
the one that was there and two small matrices beside it. So whatever calls the backbone, the head or a trunk (losses,
engines, critics, probes) needs not know of adapters, and a PeftModel that a program hands over is taken out of its
wrapper, whose tensors these are. An adapter begins at zero: the model computes what it did before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo.config.lora import LoraConfig
from sppo.errors import ModelError
from sppo.models.sharding import renew_flags, whole, whole_weights

if TYPE_CHECKING:
    import peft

NAME = "default"
"""Of the adapters that are made or read here; it stands in the names of their parameters."""
AnyModel = TypeVar("AnyModel", bound=nn.Module)


def has_adapter(model: nn.Module) -> bool:
    """Whether the model carries an adapter."""
    # transformers' own mark, so that its functions know too.
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_name(model: Any) -> str:
    """The name of the model's one adapter."""
    (name,) = model.peft_config
    return str(name)


def adapter_config(model: Any) -> peft.LoraConfig:
    """What peft knows of the model's adapter; its base_model_name_or_path says where the weights lie that rest."""
    config: peft.LoraConfig = model.peft_config[adapter_name(model)]
    return config


def based_on(model: nn.Module) -> str | None:
    """Folder or hub name of the weights that the model's adapter stands on; None for a model without one."""
    return adapter_config(model).base_model_name_or_path if has_adapter(model) else None


def unwrapped(model: Any) -> PreTrainedModel:
    """Takes a model with its adapter out of peft's wrapper, of whose tensors it is; returns any other as it is.

    Raises:
        ModelError: an adapter that checkpoints could not hold, or that isn't in the model's layers.
    """
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner is model:
        return inner
    configs = dict(model.peft_config)
    if len(configs) > 1:
        raise ModelError(
            f"The model handed over has {len(configs)} adapters ({', '.join(configs)}), and one of them would be "
            "trained. Delete the others, model.delete_adapter(NAME)."
        )
    ((name, config),) = configs.items()
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    strange = {
        f"is of type {kind}": kind != "LORA",
        f"trains biases of the model (bias {getattr(config, 'bias', None)})": getattr(config, "bias", "none") != "none",
        "trains single tokens (trainable_token_indices)": bool(getattr(config, "trainable_token_indices", None)),
    }
    found = next((said for said, holds in strange.items() if holds), None)
    if found is not None:
        raise ModelError(f"The model handed over has an adapter that {found}; only plain LoRA adapters can be trained.")
    _mark(inner, configs)
    if any(getattr(layer, "merged", False) for layer in _layers(inner).values()):
        raise ModelError(
            "The adapter of the model handed over is merged into its weights. Call model.unmerge_adapter() first."
        )
    outside = [key for key, weight in inner.named_parameters() if weight.requires_grad and name not in key.split(".")]
    if outside:
        raise ModelError(
            f"The model handed over trains weights outside its adapter ({', '.join(outside[:3])}), which a checkpoint "
            "of the adapter would not hold. Freeze them, or name their modules in the adapter's modules_to_save."
        )
    return inner


def adapt(model: PreTrainedModel, options: LoraConfig, base: str, key: str) -> None:
    """Gives a model the adapter that its options ask for, which begins at zero; one that it has already stays.

    Args:
        model: changed in place; everything but the adapter is frozen.
        options: rank 0 asks for none.
        base: folder or hub name of the model's present weights.
        key: the section that the options are in, for messages.

    Raises:
        ModelError: no layers of these names, or the model has an adapter of another rank or alpha.
    """
    if has_adapter(model):
        _require_same(model, options, key)
        return
    if not options.rank:
        return
    _require_layers(model, options, key)
    import peft

    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=options.targets or "all-linear",
        base_model_name_or_path=base,
        task_type=task_of(model),
    )
    inject(model, config)


def task_of(model: PreTrainedModel) -> str:
    """What peft calls the task of a model with a head, or of a trunk."""
    return "FEATURE_EXTRACTION" if model.get_output_embeddings() is None else "CAUSAL_LM"


def inject(model: PreTrainedModel, config: peft.PeftConfig) -> None:
    """Puts an adapter's layers into the model, in place, and freezes everything else.

    Args:
        model: without an adapter.
        config: of the adapter.

    Raises:
        ValueError: no layer that the config names.
    """
    import peft

    training = model.training
    peft.inject_adapter_in_model(config, model, NAME)
    model._hf_peft_config_loaded = True
    model.train(training)
    # Beside weights of 4 bits peft makes them in bfloat16, in which an optimiser's small steps are lost.
    for name, weight in model.named_parameters():
        if NAME in name.split("."):
            weight.data = weight.data.float()


def _mark(model: Any, configs: dict[str, Any]) -> None:
    """Lets transformers' functions, and ours, know of an adapter."""
    model._hf_peft_config_loaded, model.peft_config = True, configs


def _unmark(model: Any) -> None:
    model._hf_peft_config_loaded = False
    del model.peft_config


def _require_same(model: PreTrainedModel, options: LoraConfig, key: str) -> None:
    there = adapter_config(model)
    if options.rank and (options.rank, options.alpha) != (there.r, there.lora_alpha):
        raise ModelError(
            f"{key}.lora asks for an adapter of rank {options.rank} and alpha {options.alpha}, but the model has one "
            f"of rank {there.r} and alpha {there.lora_alpha} already. Leave {key}.lora out to go on training it, or "
            "merge it first with `sppo merge` for a new one."
        )


def _require_layers(model: PreTrainedModel, options: LoraConfig, key: str) -> None:
    """Refuses names that no layer has, which peft looks over among others, and ranks that no layer's weights have."""
    whole = max((min(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)), default=options.rank)
    if options.rank > whole:
        raise ModelError(
            f"{key}.lora.rank is {options.rank}, but no layer of {type(model).__name__} has more than rank {whole} "
            "itself: an adapter would have more weights than what it stands beside. Set it lower, such as 16."
        )
    names = [name for name, module in model.named_modules() if name]
    for target in options.targets or []:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            linear = sorted({name.rpartition(".")[2] for name in layers})
            raise ModelError(
                f"{key}.lora.targets names {target!r}, but {type(model).__name__} has no layer of that name. Its "
                f"linear layers: {', '.join(linear)}."
            )


def _layers(model: nn.Module) -> dict[str, Any]:
    """{name: module} of peft's modules that stand in the place of the model's own."""
    if not has_adapter(model):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    }


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it the model computes what its resting weights alone say; nothing where it has no adapter."""
    switched = [layer for layer in _layers(model).values() if not layer.disable_adapters]
    # peft freezes what it switches off, and unfreezes all that it switches on.
    flags = [(weight, weight.requires_grad) for layer in switched for weight in layer.parameters()]

    def switch(on: bool) -> None:
        for layer in switched:
            layer.enable_adapters(on)
        for weight, trained in flags:
            weight.requires_grad_(trained)

    switch(False)
    try:
        yield
    finally:
        switch(True)


@contextmanager
def reference_of(policy: nn.Module, reference: AnyModel) -> Iterator[AnyModel]:
    """The reference, which may be the policy itself: then without its adapter, as long as the context lasts."""
    if reference is not policy:
        yield reference
        return
    assert has_adapter(policy), "a policy that trains all of its weights is no reference of itself"
    with without_adapter(policy):
        yield reference


@contextmanager
def training_base(model: nn.Module) -> Iterator[None]:
    """Within it the model's own weights are trained, and its adapter rests; nothing where it has no adapter."""
    if not has_adapter(model):
        yield
        return
    name = adapter_name(model)
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    with without_adapter(model):
        for key, weight in model.named_parameters():
            weight.requires_grad_(name not in key.split("."))
        renew_flags(model)
        try:
            yield
        finally:
            for weight, trained in flags:
                weight.requires_grad_(trained)
            renew_flags(model)


def resting_names(model: nn.Module) -> dict[str, str]:
    """{name: the name without an adapter} of every tensor of the model but its adapter's."""
    places = _layers(model)
    found = {}
    for name in model.state_dict():
        place = next((place for place in places if name.startswith(f"{place}.")), None)
        if place is None:
            found[name] = name
            continue
        kept, _, rest = name.removeprefix(f"{place}.").partition(".")
        if kept in ("base_layer", "original_module"):
            found[name] = f"{place}.{rest}"
    return found


def plain_view(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its adapter, as transformers makes it: another object with the same tensors, not copies.

    Not for a model whose weights are sharded.
    """
    if not has_adapter(model):
        return model
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    view = copy.deepcopy(model, shared)
    for name, module in _layers(view).items():
        view.set_submodule(name, _original(module))
    _unmark(view)
    return view


def backbone_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a causal model's backbone in float32, without adapter, all of its weights to be trained.

    Raises:
        ModelError: its weights are held in a few bits.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "The critic would be a copy of the policy's backbone, which is quantized. Name its trunk with "
            "--critic.path or --critic.config, or set --critic.source probe."
        )
    backbone: PreTrainedModel = copy.deepcopy(plain_view(model).base_model).float()  # type: ignore[assignment]
    return backbone.requires_grad_(True)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Adds the adapter to the weights, in place, and returns the model as transformers makes it, without adapter."""
    if has_adapter(model):
        for name, module in _layers(model).items():
            model.set_submodule(name, _as_computed(module))
        _unmark(model)
    return model


@torch.no_grad()
def plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight that the model computes with now, by the name that it has without an adapter.

    The adapter is added to the weights where it is switched on, one layer at a time; the model stays as it is. An
    engine that holds weights of its own loads these.

    Raises:
        ModelError: they are held in 4 bits, which such an engine could not tell from others.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "The policy's weights are held in 4 bits, and this engine needs them whole: set model.lora.quantize to "
            "none, or engine.name to hf."
        )
    layers = _layers(model)
    if not layers:
        for name, tensor in model.state_dict().items():
            yield name, whole(tensor)
        return
    inside = tuple(f"{name}." for name in layers)
    # Before the weights are gathered: asked for its state, a sharded model lets them go; so does each of its layers.
    outside = [name for name in model.state_dict() if not name.startswith(inside)]
    with whole_weights(model):
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        # Copies: who takes them may keep some until it has all of a layer, and gathered weights are let go by then.
        for name in outside:
            yield name, tensors[name].detach().clone()
        for prefix, module in layers.items():
            plain = _original(module) if module.disable_adapters else _as_computed(copy.deepcopy(module))
            for name, tensor in (*plain.named_parameters(), *plain.named_buffers()):
                yield f"{prefix}.{name}", tensor.detach().clone()


def _original(module: Any) -> nn.Module:
    """The model's own layer behind one of peft's."""
    layer: nn.Module = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
    return layer


def _as_computed(module: Any) -> nn.Module:
    """The layer with what the adapter adds to it; the module itself is used up."""
    if not hasattr(module, "get_base_layer"):
        trained: nn.Module = module.modules_to_save[module.active_adapters[0]]
        return trained
    module.merge()
    return _original(module)
