"""sppo: train language models to reason with verifiable rewards, one sampled response a prompt.

    import sppo
    sppo.train("demo")                              # a recipe by name or file
    sppo.evaluate("runs/demo", checkpoint="best")   # a run folder or a model
    sppo.verify(r"so \\boxed{1/2}", "0.5")           # a Verdict

Everything is imported on first use, so that `import sppo` and `sppo --help` are instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppo.api import compare_models, evaluate, train
    from sppo.cli.progress import make_progress
    from sppo.config import Config
    from sppo.config.recipes import load_recipe
    from sppo.critics.models import PromptCritic
    from sppo.errors import SppoError
    from sppo.types import Prompt, Rollout, Verdict
    from sppo.verifiers.verify import verify

_HOMES = {
    "train": "sppo.api",
    "evaluate": "sppo.api",
    "compare_models": "sppo.api",
    "make_progress": "sppo.cli.progress",
    "verify": "sppo.verifiers.verify",
    "load_recipe": "sppo.config.recipes",
    "Config": "sppo.config",
    "SppoError": "sppo.errors",
    "PromptCritic": "sppo.critics.models",
    "Prompt": "sppo.types",
    "Rollout": "sppo.types",
    "Verdict": "sppo.types",
}

__all__ = [
    "Config", "Prompt", "PromptCritic", "Rollout", "SppoError", "Verdict", "compare_models", "evaluate", "load_recipe",
    "make_progress", "train", "verify",
]  # fmt: skip
__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sppo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
