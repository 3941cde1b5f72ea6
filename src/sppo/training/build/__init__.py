"""From options to a run: everything it needs, checked and loaded in an order that fails early and cheaply.

The options are read here and no further: what the loop works with holds the few values that it uses.
"""

from sppo.training.build.checks import algorithm_of, check, notes_on
from sppo.training.build.opening import open_run, restore
from sppo.training.build.parts import build, load_prompts, reward_function_of

__all__ = ["algorithm_of", "build", "check", "load_prompts", "notes_on", "open_run", "restore", "reward_function_of"]
