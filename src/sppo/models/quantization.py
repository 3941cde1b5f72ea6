"""Loading weights that rest in 4 bits (QLoRA), where that can be."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sppo.config.lora import LoraConfig
from sppo.errors import ModelError


def require_quantization(options: LoraConfig, key: str, device: torch.device) -> None:
    """Refuses 4 bits where they can't be had, before anything is loaded.

    Args:
        options: of the adapter.
        key: the section that they are in.
        device: where the model will be.

    Raises:
        ModelError: no bitsandbytes, or no GPU.
    """
    if options.quantize == "none":
        return
    lacks = {
        f"that needs an NVIDIA GPU, and the device is {device.type}": device.type != "cuda",
        "bitsandbytes is not installed here (pip install bitsandbytes)": find_spec("bitsandbytes") is None,
    }
    found = next((said for said, holds in lacks.items() if holds), None)
    if found is not None:
        raise ModelError(f"{key}.quantize is {options.quantize}, but {found}. Or set --{key}.quantize none.")


def quantized_loading(options: LoraConfig, key: str, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load weights in 4 bits where the options ask for it; {} elsewhere.

    Raises:
        ModelError: as `require_quantization`.
    """
    if options.quantize == "none":
        return {}
    require_quantization(options, key, device)
    from transformers import BitsAndBytesConfig

    # As published: 4-bit normal floats, whose scales are quantized too.
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantized, "device_map": {"": device}}


def quantizable_parameters(model: PreTrainedModel) -> int:
    """Weights that 4 bits would hold: of all linear layers but the output head, adapters aside."""
    head = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    )
