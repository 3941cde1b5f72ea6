"""A policy's weights as an engine with weights of its own takes them over."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sppo.errors import ModelError


def require_plain(model: nn.Module, engine: str) -> None:
    """Refuses a model with adapters, which `named_weights` doesn't merge.

    Raises:
        ModelError: it has some.
    """
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"The model has adapters (PEFT), which engine {engine} can't take over. Merge them first "
            "(model = model.merge_and_unload()), or sample with --engine.name hf."
        )


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in a checkpoint, one at a time, each whole.

    Tied weights come under each of their names: an engine may hold a copy for each. A sharded weight is gathered when
    its turn comes, so that every rank has to go through all of them. An adapter would be merged into its weight here.

    Args:
        model: the policy, sharded or not.
    """
    for name, weight in model.state_dict().items():
        yield name, (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()
