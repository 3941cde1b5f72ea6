"""Recipes: YAML files of options, one a published or built-in experiment, and how one becomes a `Config`.

`load_recipe("demo", {"steps": 5})` is what `sppo train demo --steps 5` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sppo.config.compatibility import as_yaml, drop_idle, without_notes
from sppo.config.options import Config, to_dict
from sppo.config.parsing import build, merge, read_yaml, read_yaml_file, set_text, split_arguments
from sppo.config.settle import check
from sppo.config.trust import require_granted
from sppo.errors import ConfigError, did_you_mean

_ENDINGS = (".yaml", ".yml")
_BUILT_IN = resources.files("sppo") / "recipes"


def list_recipes() -> dict[str, str]:
    """Returns {name: description} of the built-in recipes, by name."""
    recipes = {}
    for file in sorted(_BUILT_IN.iterdir(), key=lambda file: file.name):
        if file.name.endswith(_ENDINGS):
            values = read_yaml(file.read_text(encoding="utf-8"), file.name)
            recipes[file.name.rsplit(".", 1)[0]] = str(values.get("description", ""))
    return recipes


def load_recipe(
    recipe: str | Path | Config | None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    training: bool = True,
    source: str | None = None,
) -> Config:
    """Reads a recipe, puts the overrides over it, and checks the whole.

    What makes code run or takes a guard away holds where the overrides say so, or a config that a program made: a file
    may be somebody else's, see `sppo.config.trust`.

    Args:
        recipe: Name of a built-in recipe, path of a file that ends in .yaml, a config, or None for the defaults.
        overrides: As on the command line, ["--steps", "5"] or ["steps=5"], where a key is set to the whole value; or a
            mapping of keys, dotted or nested, that is merged into the recipe key by key. An empty mapping changes
            nothing in a section, and empties a mapping of any keys, such as data.options.
        training: whether it is to be trained with; what belongs to training alone holds up no evaluation.
        source: the file that a config was read from; None: a program made it.

    Raises:
        ConfigError: no such recipe, an unknown key, a value of the wrong type, options that cannot work, or a file that
            asks for what only a person may allow.
    """
    if isinstance(recipe, Config):
        values = to_dict(recipe)
    else:
        values = {} if recipe is None else _values(str(recipe))
        source = None if recipe is None else str(recipe)
    said = merge(values, overrides) if isinstance(overrides, Mapping) else _set_texts(values, overrides)
    config = build(Config, values)
    if source is not None:
        require_granted(config, source, said)
    check(config, training=training)
    return config


def _set_texts(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Sets keys to whole values, in place; returns the keys."""
    positionals, pairs = split_arguments(overrides)
    for positional in positionals:
        key, separator, text = positional.partition("=")
        if not separator:
            raise ConfigError(f"{positional!r} is not an override: write key=value, as in steps=5.")
        pairs.append((key, text))
    for key, text in pairs:
        set_text(values, key, text)
    return [key for key, _ in pairs]


def to_yaml(config: Config) -> str:
    """Returns the config as YAML that `load_recipe` reads back to an equal config, with the version that wrote it."""
    return as_yaml(to_dict(config))


def _values(name_or_path: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns a recipe's options, over those of the recipe that its `extends` names."""
    if name_or_path in extended_by:
        raise ConfigError(f"{name_or_path} extends itself: {' extends '.join((*extended_by, name_or_path))}.")
    # A run's config.yaml is a recipe too.
    values = without_notes(_read(name_or_path))
    base = values.pop("extends", None)
    values = drop_idle(values)
    if base is None:
        return values
    inherited = _values(str(base), (*extended_by, name_or_path))
    merge(inherited, values)
    return inherited


def _read(name_or_path: str) -> dict[str, Any]:
    """Returns what the recipe's own file says."""
    path = Path(name_or_path).expanduser()
    if path.suffix in _ENDINGS:
        if not path.is_file():
            raise ConfigError(f"There is no recipe file {name_or_path} (looked from {Path.cwd()}).")
        return read_yaml_file(path, name_or_path)
    if (path / "config.yaml").is_file():
        raise ConfigError(
            f"{name_or_path} is a run folder. To go on with it, give its recipe with --output {name_or_path} "
            f"--resume; to start another run like it, give {path / 'config.yaml'} with another --output."
        )
    if name_or_path not in list_recipes():
        raise ConfigError(
            f"{name_or_path!r} is not a built-in recipe.{did_you_mean(name_or_path, list_recipes())} "
            "A recipe of your own is a file that ends in .yaml."
        )
    name = f"{name_or_path}.yaml"
    return read_yaml((_BUILT_IN / name).read_text(encoding="utf-8"), name)
