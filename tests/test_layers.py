"""The house: each room imports only from rooms above it, and the first ones import without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sppo"
LAYERS = [
    "types", "errors", "batch", "config.ranges", "algorithms.options", "config", "runs", "verifiers", "data",
    "algorithms", "models", "rollouts", "update", "critics", "evaluation", "training", "control", "report", "web",
    "commands", "api", "cli", "__main__",
]  # fmt: skip
"""Rooms in order: each imports from itself and from those before it."""
WITH_TORCH = {"batch", "algorithms", "models", "rollouts", "update", "critics", "training", "commands", "api"}
"""Rooms that may import torch; the others don't, but for the modules named next."""
WITH_TORCH_ELSEWHERE = {"evaluation.held_out", "evaluation.benchmarking"}
TOP = {"__init__", "__main__", "types", "errors", "batch", "api"}
"""Modules that stand in no room."""


def module_of(path: Path) -> str:
    """The module's name below sppo: "runs.folder", "runs" of a package."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"}


def room_of(module: str) -> str:
    return module if module in LAYERS else module.split(".")[0]


def imports_of(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of ours, below sppo, that a file imports; those within functions only where `lazy`."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else at_import(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sppo"):
            module = node.module.removeprefix("sppo").removeprefix(".")
            inner = {f"{module}.{name.name}".removeprefix(".") for name in node.names}
            found |= {name if name in MODULES else module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("sppo.") for name in node.names if name.name.startswith("sppo.")}
    return found - {""}


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_upwards_only(module):
    room = room_of(module)
    assert room in LAYERS, f"{room} has no place in the layers yet"
    for imported in imports_of(MODULES[module]):
        above = room_of(imported)
        assert LAYERS.index(above) <= LAYERS.index(room), f"{module} imports {imported} from a room below it"


def test_nothing_imports_in_a_circle():
    waiting = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    while waiting:
        free = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these import one another: {sorted(waiting)}"
        waiting = {module: needs for module, needs in waiting.items() if module not in free}


def test_algorithms_take_tensors_and_know_nothing_of_language():
    for module in (name for name in MODULES if room_of(name) == "algorithms"):
        assert "types" not in imports_of(MODULES[module]), module
    program = "import sys, sppo.algorithms.table\nprint('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_more_modules_at_the_top():
    assert {path.stem for path in SOURCE.glob("*.py")} == TOP


def test_options_are_settled_when_a_run_is_built():
    """Beyond the rooms that people's options enter by, a function is handed a section or the values that it uses."""
    seen = {"config", "commands", "api", "cli", "__init__", "__main__"}
    for module, path in MODULES.items():
        if room_of(module) in seen or module.startswith("training.build"):
            continue
        named = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
        assert "Config" not in named, f"{module} takes the whole Config"


def test_reports_read_the_run_folder_only():
    for path in (SOURCE / "report").glob("*.py"):
        assert {room_of(module) for module in imports_of(path)} <= {"types", "errors", "runs", "report"}


def test_the_upper_rooms_and_the_command_line_import_without_torch():
    light = [name for name in MODULES if room_of(name) not in WITH_TORCH and name not in WITH_TORCH_ELSEWHERE]
    light = [name for name in light if name not in ("__main__", "verifiers.math.preload")]
    assert {"config.options", "runs.folder", "verifiers.grading", "data.checks", "cli.audit"} <= set(light)
    program = "import sys\n" + "".join(f"import sppo.{name}\n" for name in light)
    program += "print(sorted({'torch', 'transformers', 'sympy', 'matplotlib', 'datasets', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
