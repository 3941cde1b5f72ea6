"""What a checkpoint says of itself."""

from __future__ import annotations

import pytest

from sppo.errors import RunFolderError
from sppo.runs.checkpoint import TrainingState, load_state
from sppo.runs.files import write_json


def test_the_state_names_the_version_that_wrote_it(tmp_path):
    for saved, version in (({"step": 3}, r"0\.1\.0"), ({"sppo": "9.1", "step": 3, "horizon": 1}, r"9\.1")):
        write_json(tmp_path / "state.json", saved)
        with pytest.raises(RunFolderError, match=f"was written by sppo {version},.*evaluated, calibrated and plotted"):
            load_state(tmp_path)
    write_json(tmp_path / "state.json", {"sppo": "0.2.0", "step": 3, "best_step": 2})
    assert load_state(tmp_path) == TrainingState(step=3, best_step=2)
