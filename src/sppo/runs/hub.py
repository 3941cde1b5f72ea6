"""The hub, as far as it answers: where it doesn't, its client would ask again and again for a minute, for each file."""

from __future__ import annotations

import difflib
import os
import sys
from functools import cache
from pathlib import Path

_SECONDS = 5.0
"""In which the hub has to answer."""


def ask_the_hub(name: str | Path) -> None:
    """Called before something is loaded: where `name` is nothing here and the hub is silent, it is not asked again.

    What was fetched before is found then as it is with HF_HUB_OFFLINE=1; in this process only.
    """
    if Path(name).exists() or not _may_be_asked() or _answers():
        return
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that this one starts
    constants.HF_HUB_OFFLINE = True
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def why_not_here(name: str | Path) -> str:
    """Says where something was looked for that is no file or folder here: the hub, or what was fetched before."""
    near = _look_alikes(Path(name))
    hint = f"; did you mean {near}?" if near else ""
    why = "and the hub is not asked: no network, or HF_HUB_OFFLINE"
    fetched = "on the hub" if _may_be_asked() else f"among what was fetched before, {why}"
    return f"neither here nor {fetched}{hint}"


def _look_alikes(path: Path) -> str:
    """What lies where `path` would, with nearly its name."""
    folder = path.expanduser().parent
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return str(folder / near[0]) if near else ""


def _may_be_asked() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE


@cache
def _answers() -> bool:
    """Whether the hub answers at all, through whatever proxy its client knows; one request, once."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # each version of the client has other classes for it
        return False
    return True
