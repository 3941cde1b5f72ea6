"""Code that comes with models: none of it runs unless a person allows it, and nobody is asked in the middle of a run.

transformers asks on the terminal where it isn't told, so each of its Auto classes is told; and a config.json may name a
kernel of the hub as its attention, which is code that `trust_remote_code` there doesn't look at.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from sppo.errors import ModelError
from sppo.runs.hub import ask_the_hub


def load_architecture(path: str | Path, trust_remote_code: bool, revision: str = "main") -> PretrainedConfig:
    """Reads what a folder or hub name says of a model.

    Raises:
        ModelError: its attention is code of the hub, and that isn't trusted.
        Exception: one of `loading.LOAD_FAILURES`.
    """
    ask_the_hub(path)
    architecture: PretrainedConfig = AutoConfig.from_pretrained(
        path, trust_remote_code=trust_remote_code, revision=revision
    )
    if not trust_remote_code:
        require_no_kernel(architecture, str(path))
    return architecture


def require_no_kernel(architecture: PretrainedConfig, source: str) -> None:
    """Refuses a config whose attention, or that of a part, is a kernel of the hub, which is code.

    Raises:
        ModelError: names it.
    """
    parts = [getattr(architecture, name, None) for name in architecture.sub_configs]
    for one in (architecture, *parts):
        kernel = getattr(one, "_attn_implementation", None)
        if isinstance(kernel, str) and "/" in kernel:
            raise ModelError(
                f"{source} names {kernel} as its attention (_attn_implementation), which is code of the hub; it runs "
                "only with trust_remote_code. Remove that line from its config.json, or trust it."
            )


def is_remote(architecture: PretrainedConfig) -> bool:
    """Whether the config's class is code that came with a model, which somebody has allowed to be loaded."""
    return type(architecture).__module__.startswith("transformers_modules")
