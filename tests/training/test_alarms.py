"""A run says once that its reward means nothing, also when it is resumed."""

from __future__ import annotations

from sppo.commands.train import train
from sppo.runs.checkpoint import find_checkpoint, load_state
from sppo.runs.folder import read_metrics
from sppo.runs.progress import NoProgress
from sppo.training.record import reward_spread
from sppo.types import Verdict
from tests.conftest import tiny_config


class Heard(NoProgress):
    """Keeps messages."""

    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)

    def count(self, part):
        return sum(part in text for text in self.said)


def run(folder, steps, resume=False, **options):
    # The model was never taught the task, and the verifier looks for a box that the alphabet can't write.
    heard = Heard()
    config = tiny_config(folder, steps=steps, data__verifier="math", checkpoint__every=100, **options)
    train(config, resume=resume, progress=heard)
    return heard


def test_alarms_are_raised_once_in_the_life_of_a_run(tmp_path):
    first = run(tmp_path / "run", 3)  # 48 responses
    assert first.count("same reason") == first.count("has not varied") == 0
    second = run(tmp_path / "run", 8, resume=True)
    assert second.count("All of the first 64 responses got reward 0 for the same reason: no final answer.") == 1
    assert second.count("has not varied") == 0
    third = run(tmp_path / "run", 12, resume=True)
    assert third.count("same reason") == 0
    assert third.count("has not varied in the last 10 steps: it was 0 for every response") == 1
    fourth = run(tmp_path / "run", 14, resume=True)
    assert fourth.count("same reason") == fourth.count("has not varied") == 0
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    alarms = load_state(checkpoint).alarms
    assert alarms == {"reasons": {"no final answer": 64}, "said": {"same reason": 3, "flat reward": 10}}
    assert {line["reward/std"] for line in read_metrics(tmp_path / "run")[1:]} == {0.0}


def test_the_spread_of_rewards():
    assert reward_spread([Verdict(0.1)] * 3) == {"reward/std": 0.0}
    assert reward_spread([Verdict(0.0), Verdict(None, error="failed"), Verdict(1.0)]) == {"reward/std": 0.5}
    assert reward_spread([Verdict(None)]) == {}
