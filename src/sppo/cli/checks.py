"""What several commands ask of their own flags, checked before any long work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo.errors import ConfigError
from sppo.runs import files


def require_writable(flag: str, path: Path) -> None:
    """Refuses a file that could not be written after the work.

    Raises:
        ConfigError: names the flag and the file.
    """
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder, but must be a file to write.")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}. Make it first, or choose another.")
    # A file is written beside its old version, which needs the folder; a device is written to.
    if not os.access(path if path.exists() and not path.is_file() else path.resolve().parent, os.W_OK):
        raise ConfigError(f"{flag} {path} is not writable. Choose another file.")


def write_json(flag: str, path: Path, result: Mapping[str, Any]) -> None:
    """Writes a command's result to the file that a flag names.

    Raises:
        ConfigError: it cannot be written after all: a full disk, say.
    """
    try:
        # What a link points to is replaced, not the link.
        files.write_json(path.resolve() if path.is_file() else path, result)
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error.strerror}. Choose another file.") from error


def checkpoint_name(settings: Mapping[str, str]) -> str:
    """Returns --checkpoint, by default "last".

    Raises:
        ConfigError: it is no name of a checkpoint.
    """
    name = settings.get("checkpoint", "last")
    if name in ("best", "last") or (name.startswith("step_") and name[5:].isdecimal()):
        return name
    raise ConfigError(f"--checkpoint is {name!r}, but must be best, last, or step_N, as in step_40.")


def whole_number(settings: Mapping[str, str], name: str, least: int = 1) -> int | None:
    """Returns the flag --NAME as a number of at least `least`; None where it was not given.

    Raises:
        ConfigError: it is none.
    """
    text = settings.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"--{name} is {text!r}, but must be a whole number, at least {least}.")
    return int(text)
