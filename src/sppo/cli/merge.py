"""`sppo merge RUN`: a run's adapter and the weights that it stands on, as one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo.cli.checks import checkpoint_name
from sppo.cli.options import parse, print_help, wants_help
from sppo.errors import ConfigError

USAGE = "sppo merge RUN --output FOLDER [--checkpoint best|last|step_N] [--trust_remote_code]"
FLAGS = {
    "RUN": "A run folder whose policy has an adapter (model.lora), or the folder of an adapter.",
    "--output FOLDER": "Folder to make, with model and tokenizer.",
    "--checkpoint best|last|step_N": "Which of the run's checkpoints. Default: last.",
    "--trust_remote_code": "Allow Python code that comes with the weights to run.",
}
ABOUT = (
    "Adds an adapter to the weights that it stands on and saves them as one model, which needs peft no more: for "
    "engines that take no adapters, and for a critic's trunk."
)


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if wants_help(arguments):
        print_help(USAGE, ABOUT, FLAGS, arguments, options="none")
        return 0
    given = parse(
        arguments, USAGE, positional="RUN", switches=("trust_remote_code",), settings=("output", "checkpoint")
    )
    if given.overrides:
        raise ConfigError(f"{given.overrides[0].partition('=')[0]} is not an option of sppo merge. Usage: {USAGE}")
    if "output" not in given.settings:
        raise ConfigError(f"--output is missing: the folder to make. Usage: {USAGE}")
    output, checkpoint = Path(given.settings["output"]).expanduser(), checkpoint_name(given.settings)
    from sppo.cli.console import say
    from sppo.commands.merge import merge

    base = merge(
        given.positional or "",
        output,
        checkpoint=checkpoint,
        trust_remote_code="trust_remote_code" in given.switches,
    )
    say(f"Merged into {output}: the adapter of {given.positional}, on the weights of {base}.")
    return 0
