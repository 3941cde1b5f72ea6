"""`sppo merge`: an adapter and the weights that it stands on, written as one model."""

from __future__ import annotations

from pathlib import Path

from sppo.config import ModelConfig
from sppo.data.tasks.chain_arithmetic import ALPHABET
from sppo.errors import ConfigError, RunFolderError
from sppo.evaluation.benchmarking import resolve
from sppo.models import adapters
from sppo.models.adapter_files import find_base, is_adapter
from sppo.models.loading import load_policy, load_tokenizer, prepare_device
from sppo.runs.files import whole_folder


def merge(path: str, output: Path, *, checkpoint: str = "last", trust_remote_code: bool = False) -> str:
    """Adds an adapter to its weights and saves the model as a folder that AutoModelForCausalLM loads.

    The sum is made in float32, whatever the run held the resting weights in.

    Args:
        path: a run folder, or the folder of an adapter.
        output: folder to make.
        checkpoint: "best", "last" or "step_N" of a run.
        trust_remote_code: allow Python code that comes with those weights to run.

    Returns:
        Folder or hub name of the weights that the adapter stood on.

    Raises:
        ConfigError: there is no adapter.
        RunFolderError: no such checkpoint, or `output` is there already.
        ModelError: the adapter can't be loaded.
    """
    model = resolve(path, ModelConfig(path=path, trust_remote_code=trust_remote_code), checkpoint).model
    assert model.path is not None, "it is where the adapter should be"
    if not is_adapter(model.path):
        raise ConfigError(f"{model.path} holds no adapter (adapter_config.json), so there is nothing to merge.")
    if output.exists():
        raise RunFolderError(f"{output} exists already. Choose another folder with --output.")
    tokenizer = load_tokenizer(model, ALPHABET)
    merged = adapters.merge(load_policy(model, tokenizer, prepare_device("cpu", None)))
    try:
        with whole_folder(output) as temporary:
            merged.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except OSError as error:
        raise RunFolderError(f"{output} cannot be written: {error.strerror}. Choose another with --output.") from error
    return find_base(model.path)
