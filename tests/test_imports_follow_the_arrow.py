"""The rooms in their order, checked on the source itself and on what an import really loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("storage", "distill", "students", "flows")
OF_FLOWS_ONLY = ("prefect", "prefect_dask", "typer")


def imported_by(module: Path) -> set[str]:
    """Top-level names of everything that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    right = set(ROOMS[ROOMS.index(room) + 1 :])
    wrong = {str(path.relative_to(ROOT)): found for path in (ROOT / room).rglob("*.py") if (found := imported_by(path) & right)}
    assert wrong == {}


@pytest.mark.parametrize("room", ROOMS[:-1])
def test_only_flows_knows_prefect_and_the_command_line(room: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): found for path in (ROOT / room).rglob("*.py") if (found := imported_by(path) & set(OF_FLOWS_ONLY))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        pytest.param("import storage", ("torch", "prefect", "monai"), id="storage knows no model"),
        pytest.param("import flows.cli", ("torch", "prefect", "monai", "zarr", "numpy"), id="the command line starts light"),
        pytest.param("import flows.stages", ("torch", "prefect", "monai"), id="finding nothing to do needs no model and no server"),
        pytest.param("import students, distill", ("prefect",), id="no room below flows pulls in prefect"),
    ],
)
def test_an_import_does_not_load_what_it_has_no_use_for(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"
