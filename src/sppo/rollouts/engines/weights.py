"""A policy's weights as an engine with weights of its own takes them over: here an adapter would be merged."""

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
    its turn comes, so that every rank has to go through all of them.

    Args:
        model: the policy, sharded or not.
    """
    for name, weight in model.state_dict().items():
        yield name, (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()


def weight_names(model: nn.Module) -> set[str]:
    """All names that `named_weights` has, to count by."""
    return set(model.state_dict())


def second_names(model: nn.Module) -> set[str]:
    """Those names under which a tied weight comes once more, such as lm_head.weight."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}
