"""What is said where a tool chain is missing or too old, and when a program is built again."""

import sys
from pathlib import Path

import pytest

from tests.languages import programs
from tests.languages.programs import LANGUAGES, Language, Tool, Unavailable

PYTHON = (sys.executable, "--version")


def test_a_tool_that_is_there_is_taken() -> None:
    """The least version itself is enough."""
    Tool(PYTHON, sys.version_info[:2]).check()


def test_a_missing_tool_is_named() -> None:
    """Whoever sees a skipped test knows what to install."""
    with pytest.raises(Unavailable, match="no-such-tool is not installed"):
        Tool(("no-such-tool", "--version"), (1, 0)).check()


def test_a_tool_that_is_too_old_is_named() -> None:
    """With the version that it has and the one that is needed; 3.9 is older than 3.11."""
    with pytest.raises(Unavailable, match=r"Python 3\.\d+.*; 3\.99 is needed"):
        Tool(PYTHON, (3, 99)).check()
    Tool(PYTHON, (3, 9)).check()


def test_a_changed_source_is_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program or a proto that changes is built again; what builds leave in the folders is not looked at."""
    source, proto, made = tmp_path / "examples" / "go" / "a.go", tmp_path / "proto" / "a.proto", tmp_path / "examples" / "go" / "gen" / "a"
    for path in (source, proto, made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    go: Language = LANGUAGES["go"]
    first = programs._digest(go)
    made.write_text("after")
    assert programs._digest(go) == first
    source.write_text("after")
    second = programs._digest(go)
    proto.write_text("after")
    assert len({first, second, programs._digest(go)}) == 3


def test_every_example_is_built() -> None:
    """A folder of examples/ without a test would rot."""
    assert {path.name for path in (programs.ROOT / "examples").iterdir() if path.is_dir()} == set(LANGUAGES)
