"""What runs in vLLM's workers: weights taken over in place, with every name counted.

In the trainer's process `vllm_process` calls it; a server has `SppoWorker` beside its own worker's methods, by
`--worker-extension-cls sppo.rollouts.engines.vllm_worker.SppoWorker`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sppo.rollouts.engines.weights_folder import read_weights

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size",
)  # fmt: skip


def sizes_of(config: Any) -> dict[str, int | None]:
    """A model's sizes by the names of its config. Weights of other sizes vLLM may take over without a word."""
    text = config.get_text_config()
    return {name: getattr(text, name, None) for name in _SIZES}


def load_counted(worker: Any, names: set[str], second: set[str], weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Gives the worker's model weights in place.

    Args:
        worker: vLLM's.
        names: of all weights that the policy has.
        second: those of them under which a tied weight comes once more.
        weights: by name.

    Returns:
        Names of weights that went missing: of the policy, where vLLM did not read them, and of vLLM's model, where it
        says that nothing was loaded into them.
    """
    model = worker.get_model()
    wanted = {name for name, _ in model.named_parameters()}
    # Where vLLM has a module for a tied weight's second name it may keep a copy there, else it refuses the name.
    given = names - {name for name in second if not hasattr(model, name.partition(".")[0])}
    read: set[str] = set()
    loaded: set[str] = set()
    load = model.load_weights

    def listening(weights: Any) -> Any:
        loaded.update(load(weights) or wanted)
        return loaded

    def counted() -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights:
            if name in given:
                read.add(name)
                yield name, weight

    # vLLM says which of its weights were loaded to its log alone.
    model.load_weights = listening
    try:
        worker.reload_weights(weights_iterator=counted())
    finally:
        del model.load_weights
    return sorted((given - read) | (wanted - loaded))


class SppoWorker:
    """Methods that a server's workers have beside vLLM's own; their answers are what JSON has."""

    def sppo_describe(self) -> dict[str, Any]:
        """How the server was started, as far as it decides on what is sampled."""
        model = self.vllm_config.model_config  # type: ignore[attr-defined]
        return {
            "architecture": model.architectures[0],
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "logprobs_mode": str(getattr(model.logprobs_mode, "value", model.logprobs_mode)),
            **sizes_of(model.hf_config),
            "quantization": model.quantization,
            "data_parallel_size": self.vllm_config.parallel_config.data_parallel_size,  # type: ignore[attr-defined]
        }

    def sppo_take_over(self, folder: str, label: str) -> dict[str, Any]:
        """Takes over the weights in a folder.

        Args:
            folder: as this machine sees it.
            label: which weights they have to be.

        Returns:
            "refused": why nothing was touched; or "missing": names that went missing.
        """
        try:
            handed = read_weights(Path(folder))
        except (OSError, ValueError) as error:
            return {"refused": f"the folder of weights can't be read: {error}"}
        if handed.label != label:
            return {"refused": f"{folder} holds the weights {handed.label}, not {label}"}
        return {"missing": load_counted(self, set(handed.names), set(handed.second), handed.weights())}
