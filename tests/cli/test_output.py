"""Errors and exit codes of the command line as a whole."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
import structlog

from tests.cli.conftest import Watertower
from watertower.cli import export, importer, output
from watertower.cli.options import loaded
from watertower.errors import BackendRefused, BackendUnavailable, CallRefused, Reason, StartRefused
from watertower.role import EXIT_REFUSED


@pytest.mark.parametrize("arguments", [[], ["list"], ["export"]])
def test_a_group_without_a_command_prints_help(watertower: Watertower, arguments: list[str]) -> None:
    """Naming no command prints the help; as bad usage it exits with 2, without an error line."""
    result = watertower(*arguments)
    assert result.code == 2
    assert "Usage:" in result.out + result.err
    assert "watertower:" not in result.err


def test_help(watertower: Watertower) -> None:
    """--help names every command and exits with 0."""
    result = watertower("--help")
    assert result.code == 0
    for command in ("serve", "ingest", "projector", "query", "config", "import", "counts", "edges", "list", "export", "audit", "debut"):
        assert command in result.out


@pytest.mark.parametrize("arguments", [["-h"], ["counts", "-h"], ["list", "actors", "-h"]])
def test_help_has_a_short_option(watertower: Watertower, arguments: list[str]) -> None:
    """-h is --help, of every command."""
    result = watertower(*arguments)
    assert (result.code, "Usage:" in result.out) == (0, True)


def test_version(watertower: Watertower) -> None:
    """--version prints that of the package."""
    assert watertower("--version") == (0, f"watertower {importlib.metadata.version('watertower')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["wave"], "watertower"), (["counts"], "watertower counts"), (["list", "actors", "x", "--kind", "y"], "watertower list actors")],
)
def test_bad_usage_names_the_help_of_its_command(watertower: Watertower, arguments: list[str], command: str) -> None:
    """Not that of the whole, which says nothing about the option that was wrong."""
    assert f"(see `{command} --help`)" in watertower(*arguments).err


@pytest.mark.parametrize("arguments", [["wave"], ["counts"], ["counts", "x", "--wave"], ["counts", "x", "--metric", "waves"]])
def test_bad_usage_is_one_line(watertower: Watertower, arguments: list[str]) -> None:
    """Bad usage: one line on standard error, exit code 2; with --json one object."""
    result = watertower(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("watertower: ")
    assert len(result.err.splitlines()) == 1
    result = watertower(*arguments, "--json")
    assert result.code == 2
    assert json.loads(result.err)["exit_code"] == 2


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (StartRefused("the folder is newer: upgrade"), "the folder is newer: upgrade", EXIT_REFUSED),
        (CallRefused(Reason.QUEUE_FULL, retry_after_s=1), "the queue for the log is full", 1),
        (BackendUnavailable("there is no store yet"), "there is no store yet; try again", 1),
        (BackendRefused("the store is damaged"), "the store is damaged", 1),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied", 1),
    ],
)
def test_expected_errors_are_one_line(
    watertower: Watertower, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str, code: int
) -> None:
    """Errors that the service is made to raise never show a traceback."""

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(export, "_export", fail)
    result = watertower("export", "counts")
    assert result.code == code
    assert text in result.err
    assert len(result.err.splitlines()) == 1


def test_unexpected_errors_keep_their_traceback(watertower: Watertower, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is not dressed up as an error of the user."""

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(export, "_export", fail)
    with pytest.raises(ZeroDivisionError):
        watertower("export", "counts")


def test_json_after_the_end_of_options_is_an_id() -> None:
    """`counts -- --json` asks for the counts of the id `--json`."""
    assert output.wants_json(["counts", "x", "--json"])
    assert not output.wants_json(["counts", "--", "--json"])


def test_a_preset_that_there_is_not(watertower: Watertower) -> None:
    """The message names those that there are."""
    assert watertower("debut", "--preset", "2020") == (2, "", "watertower: --preset 2020: choose 2019 or 2021\n")


def test_exit_codes_are_distinct() -> None:
    """A script can tell the outcomes apart."""
    assert len({0, output.EXIT_FAILED, output.EXIT_USAGE, importer.EXIT_REJECTS, output.EXIT_INTERRUPTED}) == 5


def test_starting_is_quick() -> None:
    """Importing the command line loads none of the heavy libraries: they are loaded by the commands that need them."""
    heavy = {"grpc", "rich", "pydantic_settings", "google.protobuf", "rocksdict"}
    code = f"import sys, watertower.cli; print(*({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_times_are_rfc_3339() -> None:
    """Microseconds are kept, before 1970 too."""
    assert output.time_text(1_767_323_045_000_006) == "2026-01-02T03:04:05.000006Z"
    assert output.time_text(-1) == "1969-12-31T23:59:59.999999Z"


def test_what_a_command_logs_is_not_in_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """A driver's warning while `audit --json` works goes to standard error, and what is less than a warning nowhere."""
    try:
        loaded(None)
        log = structlog.get_logger("watertower.cassandra")
        log.warning("cassandra_client", message="many tombstones")
        log.info("partitions_owned")
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr()
    assert said.out == ""
    assert 'event=cassandra_client message="many tombstones"' in said.err
    assert "partitions_owned" not in said.err
