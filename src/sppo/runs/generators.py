"""The states of every global generator in a checkpoint: long ones as tensors, the rest as JSON, nothing that runs code.

    random.safetensors    torch, cuda.0, cuda.1, ..., numpy and python
    random.json           what numpy's and Python's generators remember beside them

Versions up to 0.3.0 wrote random.pt, as torch.save does, which is read by torch's restricted loader.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.errors import RunFolderError
from sppo.runs.files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERS, _TENSORS, _OLD = "random.json", "random.safetensors", "random.pt"
_WORDS = 624
"""Of a Mersenne Twister, which numpy's and Python's generators are; numpy looks beyond them where it is told to."""


def save_random_state(folder: Path) -> None:
    """Writes where every global generator is."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    name, words, place, has_gauss, gauss = np.random.get_state()
    version, own, own_gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor(np.asarray(words).tolist()),
        "python": torch.tensor(own),
    }
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    tensors |= {f"cuda.{number}": state for number, state in enumerate(devices)}
    save_file(tensors, folder / _TENSORS)
    numbers = {
        "numpy": [str(name), int(place), int(has_gauss), float(gauss)],
        "python": [version, own_gauss],
        "cuda": len(devices),
    }
    write_json(folder / _NUMBERS, numbers)


def restore_random_state(checkpoint: Path) -> None:
    """Puts every global generator back to where it was; those of GPUs where there are as many now.

    Raises:
        RunFolderError: a file is missing, or holds something else.
    """
    import numpy as np
    import torch
    from safetensors import SafetensorError

    old = (checkpoint / _OLD).is_file()
    try:
        saved = load_pickled(checkpoint / _OLD) if old else _read(checkpoint)
        if not 0 <= saved["numpy"][2] <= _WORDS:
            raise ValueError(f"numpy's generator is at word {saved['numpy'][2]} of {_WORDS}")
        torch.set_rng_state(saved["torch"])
        if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(saved["cuda"])
        np.random.set_state(saved["numpy"])
        random.setstate(saved["python"])
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError, OSError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFolderError(
            f"{checkpoint / (_OLD if old else _TENSORS)} holds no states of generators, or is damaged: {first}"
        ) from error


def load_pickled(path: Path) -> dict[str, Any]:
    """Reads what torch.save wrote up to version 0.3.0: tensors and plain numbers, and nothing that runs code.

    Raises:
        RunFolderError: the file holds something else.
    """
    import torch

    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0]
        raise RunFolderError(f"{path} holds something else than tensors and numbers, or is damaged: {first}") from error
    return loaded


def _read(checkpoint: Path) -> dict[str, Any]:
    """The states, each as its own library takes it."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(checkpoint / _TENSORS)
    numbers = read_json(checkpoint / _NUMBERS) or {}
    name, place, has_gauss, gauss = numbers["numpy"]
    version, own_gauss = numbers["python"]
    return {
        "torch": tensors["torch"],
        "cuda": [tensors[f"cuda.{number}"] for number in range(numbers["cuda"])],
        "numpy": (name, tensors["numpy"].tolist(), place, has_gauss, gauss),
        "python": (version, tuple(tensors["python"].tolist()), own_gauss),
    }
