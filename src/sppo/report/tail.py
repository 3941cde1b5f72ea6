"""V(s_t) along right and wrong responses of a PPO run: the tail effect that the SPPO paper describes.

A token critic should tell right from wrong early; where it does so only in the last tokens, most tokens of a long
response get the same advantage whatever came of it, and the few at the end get it all.
"""

from __future__ import annotations

from pathlib import Path

from sppo.errors import RunFolderError
from sppo.report.plots import BLUE, RED, STYLE
from sppo.runs.files import whole_file
from sppo.runs.folder import read_metrics
from sppo.runs.records import read_records

POINTS = 20
"""Places along a response at which V is averaged."""


def write_tail(folder: Path, last_steps: int = 10) -> Path:
    """Draws mean V against the share of the response that is written, and returns the path of tail.png.

    Args:
        folder: a run of an algorithm with a token critic.
        last_steps: how many of the newest steps to take responses from.

    Raises:
        RunFolderError: the run has no values of tokens, or no finished step.
    """
    import numpy as np

    curves: dict[bool, list[list[float]]] = {True: [], False: []}
    steps: list[int] = []
    newest = max((line["step"] for line in read_metrics(folder)), default=0)
    for line in read_records(folder, after=newest - last_steps):
        values = line.get("token_values")
        if values and line["reward"] in (0.0, 1.0):
            places = np.linspace(0, len(values) - 1, POINTS)
            curves[line["reward"] == 1.0].append(np.interp(places, range(len(values)), values).tolist())
            steps.append(line["step"])
    if not steps:
        raise RunFolderError(
            f"{folder} has no values of single tokens in its records of responses: only runs of ppo and ppo_bce have "
            "them."
        )
    return _draw(folder, curves, f"steps {min(steps)} to {max(steps)}")


def _draw(folder: Path, curves: dict[bool, list[list[float]]], steps: str) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import PercentFormatter

    along = np.linspace(0, 1, POINTS)
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for right, color, label in ((True, BLUE, "right"), (False, RED, "wrong")):
            if curves[right]:
                rows = np.asarray(curves[right])
                low, high = np.quantile(rows, (0.25, 0.75), axis=0)
                axis.plot(along, rows.mean(axis=0), color=color, label=f"{label} ({len(rows):,} responses)")
                axis.fill_between(along, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(xlabel="share of the response written", ylabel="V(s_t), mean and quartiles")
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_title(f"{folder.resolve().name}: what the token critic knows, and when ({steps})")
        axis.legend(loc="best")
        path = folder / "tail.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=130)
        plt.close(figure)
    return path
