"""Takes steps with weights in bfloat16, one or several ranks; keeps the moments in full.

main([FOLDER OF MOMENTS or -, STEPS, OUTPUT])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sppo.models.precision import Precision
from sppo.models.sharding import local, shard, spread_as, whole
from sppo.runs import ranks
from sppo.update.eight_bit import MOMENTS, AdamW8bit, in_full, packed
from sppo.update.moments import load_moments, stage_moments


def main(arguments: Sequence[str]) -> int:
    source, steps, output = arguments[0], int(arguments[1]), Path(arguments[2])
    with ranks.joined():
        # Rows that 2 ranks have in even blocks, that they don't, and that are too few; 3 ranks have none evenly.
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 100))
        shard(model, Precision(torch.bfloat16, torch.bfloat16))
        optimizer = AdamW8bit(model.parameters(), lr=1e-3)
        if source != "-":
            load_moments({"policy": optimizer}, Path(source))
        for step in range(steps):
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
                rows = -(-len(gradient) // ranks.world_size())
                own = gradient[rows * ranks.rank() : rows * (ranks.rank() + 1)]
                parameter.grad = spread_as(parameter, own, tuple(parameter.shape))
            optimizer.step()
        if ranks.is_main():
            (output / "moments").mkdir(parents=True)
        ranks.wait()
        stage_moments({"policy": optimizer})(output / "moments")
        full, held = {}, {}
        for name, parameter in model.named_parameters():
            for key in MOMENTS:
                moments = optimizer.state[parameter][key]
                eight = packed(moments, parameter)
                held[f"{name} {key}"] = eight is not None
                if eight is None:
                    full[f"{name} {key}"] = whole(spread_as(parameter, local(moments), tuple(parameter.shape)))
                else:
                    full[f"{name} {key}"] = in_full(whole(eight.codes), whole(eight.scale), signed=key == MOMENTS[0])
        if ranks.is_main():
            torch.save({"full": full, "held": held}, output / "full.pt")
    return 0
