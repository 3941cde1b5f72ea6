"""Other places for the metrics."""

from __future__ import annotations

import pytest

from sppo.errors import ConfigError
from sppo.runs.sinks import Sinks, require_sinks


def test_a_package_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"logging.sinks has wandb, .*pip install 'sppo\[wandb\]'"):
        require_sinks(["wandb"])


def test_tensorboard_shows_steps_that_are_made_anew_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown():
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("reward/mean")]

    def send(after, values):
        sinks = Sinks.open(tmp_path, ["tensorboard"], "sppo", {}, after)
        for step, value in enumerate(values, start=after + 1):
            sinks.log({"step": step, "reward/mean": value})
        sinks.close()

    send(-1, [0.0, 0.25, 0.5, 0.75])
    send(1, [1.0])
    assert shown() == [(0, 0.0), (1, 0.25), (2, 1.0)]
    send(-1, [0.5])
    assert shown() == [(0, 0.5)]
