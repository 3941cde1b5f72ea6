"""The house: each room imports only from rooms above it, and the first ones import without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sppo"
LAYERS = [
    {"types", "verification", "config", "errors", "validation", "run", "calibration"},
    {"verifiers"},
    {"tasks"},
    {"shaping"},
    {"batch"},
    {"algorithms"},
    {"distributed"},
    {"models"},
    {"engines"},
    {"stream", "rollout", "grading", "process_rewards", "reward_rules", "update", "sft", "checkpoint", "evaluation",
     "record", "sinks", "critics"},
    {"recipes"},
    {"build", "collect", "trainer", "plan", "measure", "audit", "calibrate"},
    {"report"},
    {"api", "compare", "runner"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
WITHOUT_TORCH = [
    "types", "config", "errors", "run", "calibration", "verifiers", "verifiers.verify", "verifiers.pool",
    "verifiers.tools", "tasks", "stream", "grading", "recipes", "report", "cli", "evaluation", "evaluation.benchmarks",
    "evaluation.statistics", "evaluation.scores", "evaluation.paired", "evaluation.folder", "audit",
    "tasks.writing", "cli.verify", "cli.calibrate", "report.calibration",
]  # fmt: skip


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sppo."):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("sppo.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_upwards_only(path):
    relative = path.relative_to(SOURCE)
    if relative == Path("__init__.py"):
        return
    room = relative.parts[0].removesuffix(".py")
    assert room in LEVEL, f"{room} has no place in the layers yet"
    for module in imports_of(path):
        assert LEVEL[room_of(module)] <= LEVEL[room], f"{relative} imports {module} from a room below it"


def test_reports_read_the_run_folder_only():
    for path in (SOURCE / "report").glob("*.py"):
        assert {room_of(module) for module in imports_of(path)} <= {"types", "errors", "run", "report"}


def test_the_upper_rooms_and_the_command_line_import_without_torch():
    program = "import sys\n" + "".join(f"import sppo.{name}\n" for name in WITHOUT_TORCH)
    program += "print(sorted({'torch', 'transformers', 'sympy', 'matplotlib', 'datasets', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
