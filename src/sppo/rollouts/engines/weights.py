"""Names of a policy's weights, by which an engine with weights of its own counts what it has taken over.

The weights themselves are those of `sppo.models.adapters.plain_weights`.
"""

from __future__ import annotations

from torch import nn

from sppo.models.adapters import resting_names


def weight_names(model: nn.Module) -> set[str]:
    """All names that `plain_weights` has, to count by."""
    return set(resting_names(model).values())


def second_names(model: nn.Module) -> set[str]:
    """Those names under which a tied weight comes once more, such as lm_head.weight."""
    plain = resting_names(model)
    every = {plain[name] for name, _ in model.named_parameters(remove_duplicate=False) if name in plain}
    return every - {plain[name] for name, _ in model.named_parameters() if name in plain}
