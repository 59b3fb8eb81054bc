"""The console script as a process: Ctrl-C at any moment of its start, and output in a locale that lacks the characters."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.fakes import Event, FakeService
from tests.cli.stored import data_folder
from tests.core.histories import Happening
from watertower.core.model import Kind

pytestmark = pytest.mark.slow  # each test starts processes

T = 1_767_323_045_000_006

ASCII = {"PYTHONIOENCODING": "ascii"}
"""As LC_ALL=C with PYTHONUTF8=0 PYTHONCOERCECLOCALE=0."""

INTERRUPTED_BY_AN_IMPORT = """
import os, signal, sys
from watertower.__main__ import main

class Finder:
    def find_spec(self, name, *args):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["watertower", *ARGUMENTS]
main()
"""


def console(*arguments: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "watertower", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **(environment or {})}, timeout=60, check=False)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        *(
            (module, ["config"])
            for module in ("typer", "watertower.cli.reads", "watertower.config", "pydantic", "pydantic.main", "rich.table")
        ),
        *((module, ["config", "--json"]) for module in ("typer", "pydantic.main")),
    ],
    ids=str,
)
def test_ctrl_c_while_modules_are_imported(module: str, arguments: list[str]) -> None:
    """One line, no traceback, whichever import it meets, and whatever a library makes of it."""
    program = f"MODULE, ARGUMENTS = {module!r}, {arguments!r}\n{INTERRUPTED_BY_AN_IMPORT}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    # Python ends by the signal itself where the interrupt met code that was made from text.
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stdout == ""
    assert done.stderr == ('{"error": "interrupted", "exit_code": 130}\n' if "--json" in arguments else "watertower: interrupted\n")


def test_characters_that_the_locale_lacks(service: FakeService, target: str) -> None:
    """For people they are escaped; for machines JSON is UTF-8 in every locale."""
    service.recorded.append([Event("ann", 1, "zoë", "", 1, T)])
    shown = console("counts", "zoë", "--read-target", target, environment=ASCII)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"zo\\xeb" in shown.stdout
    for_machines = console("list", "subjects", "ann", "--json", "--read-target", target, environment=ASCII)
    assert '"subject": "zoë"'.encode() in for_machines.stdout
    failed = console("counts", "zoë", "--metric", "größe", "--json", environment=ASCII)
    assert b'"exit_code": 2' in failed.stderr


def test_an_export_is_utf8_in_every_locale(tmp_path: Path) -> None:
    """To standard output as to a file: an id stays the id that it is."""
    data_folder(tmp_path / "data", [Happening("ann", Kind.FOLLOW, "zoë", "", True, T)], 2)
    assert "zoë,followers,1\n".encode() in console("export", "counts", "--data", str(tmp_path / "data"), environment=ASCII).stdout


def test_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    """A message can name it."""
    done = console("audit", "--data", os.fsdecode(b"\xff"))
    assert b"Traceback" not in done.stderr
    assert b"\\udcff is no data folder" in done.stderr
