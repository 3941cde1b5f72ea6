"""The reductions that a run on many ranks needs. With one rank there is nothing to do and nothing is imported late.

Every rank runs the same program on its own share of the prompts. Losses are sums divided by counts over all ranks, so
a gradient summed over ranks is the gradient that one rank with the whole mini-batch would have had.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums `tensor` over ranks, in place, and returns it."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # NCCL reduces only what lies on a GPU.
        moved = tensor.cuda() if dist.get_backend() == "nccl" else tensor
        dist.all_reduce(moved)
        if moved is not tensor:
            tensor.copy_(moved)
    return tensor
