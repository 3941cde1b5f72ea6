"""What a checkpoint says of itself."""

from __future__ import annotations

import pytest

from sppo.errors import RunFolderError
from sppo.runs.checkpoint import TrainingState, find_checkpoint, load_state, require_checkpoint
from sppo.runs.files import write_json


def test_the_state_names_the_version_that_wrote_it(tmp_path):
    for saved, version in (({"step": 3}, r"0\.1\.0"), ({"sppo": "9.1", "step": 3, "horizon": 1}, r"9\.1")):
        write_json(tmp_path / "state.json", saved)
        with pytest.raises(RunFolderError, match=f"was written by sppo {version},.*evaluated, calibrated and plotted"):
            load_state(tmp_path)
    write_json(tmp_path / "state.json", {"sppo": "0.2.0", "step": 3, "best_step": 2})
    assert load_state(tmp_path) == TrainingState(step=3, best_step=2)


def test_no_name_and_no_link_leads_out_of_the_folder_of_checkpoints(tmp_path):
    run, outside = tmp_path / "run" / "checkpoints", tmp_path / "outside"
    for folder in (run / "step_1", run / ".step_2.tmp", outside):
        folder.mkdir(parents=True)
        write_json(folder / "state.json", {"step": 1})
    (run / "last").symlink_to("step_1")
    (run / "best").symlink_to(outside)
    (run / "step_9").symlink_to(outside)
    assert find_checkpoint(tmp_path / "run", "step_1") == find_checkpoint(tmp_path / "run") == run / "step_1"
    for name in ("best", "step_9", "../../outside", str(outside), ".step_2.tmp", ".", ""):
        assert find_checkpoint(tmp_path / "run", name) is None, name
    with pytest.raises(RunFolderError, match=r"has no checkpoint 'best'\. There are: step_1\."):
        require_checkpoint(tmp_path / "run", "best")
