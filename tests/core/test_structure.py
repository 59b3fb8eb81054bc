"""The structure that the design promises, read from the code's own imports."""

import ast
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "services" / "watertower"
MODULES = [p for p in SOURCES.rglob("*.py") if "v1" not in p.parts]
DRIVERS = {"sqlite3", "rocksdict", "kafka", "cassandra"}
IMPURE = {"time", "random", "os", "asyncio", "socket", "threading", "subprocess", "logging", "secrets", "datetime"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted((SOURCES / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_is_pure(path: Path) -> None:
    """core/ imports the standard library, itself, and nothing with a clock, randomness or I/O."""
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & IMPURE
    assert roots - {"watertower"} <= set(sys.stdlib_module_names)
    assert all(name.startswith("watertower.core") for name in imports(path) if name.startswith("watertower"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCES)))
def test_drivers_are_imported_only_by_back_ends(path: Path) -> None:
    """A driver's types cannot leak through a port that does not know them."""
    if "backends" not in path.relative_to(SOURCES).parts:
        assert not {name.split(".")[0] for name in imports(path)} & DRIVERS


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCES)))
def test_no_assert_guards_the_service(path: Path) -> None:
    """`assert` disappears under -O; the service raises. (testing/ is made of assertions.)"""
    if "testing" not in path.relative_to(SOURCES).parts:
        assert not [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCES)))
def test_only_the_clock_module_reads_the_clock(path: Path) -> None:
    """Everything else is handed a clock. (The debut's readers are a program of their own that measures.)"""
    allowed = {"clock.py", "debut/readers.py"}
    if str(path.relative_to(SOURCES)) not in allowed:
        assert "time" not in imports(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCES)))
def test_modules_can_be_read_in_one_sitting(path: Path) -> None:
    """450 lines at most."""
    assert len(path.read_text().splitlines()) <= 450
