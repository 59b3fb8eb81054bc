"""What commands print: tables for people, JSON for machines, errors for both."""

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TextIO

import typer

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output, errors as JSON on standard error.")]
"""The option that every command with results has."""


class CommandFailed(Exception):
    """A command could not do its work. The message is one line and says what happened and what to do.

    `fields` are added to the error object of `--json`.
    """

    def __init__(self, message: str, code: int = EXIT_FAILED, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields


def usage(message: str) -> CommandFailed:
    """The failure of a command that was asked for something that it cannot mean."""
    return CommandFailed(message, code=EXIT_USAGE)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for JSON. Known before it is parsed, so that its own errors are JSON too."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def explain(error: Exception) -> CommandFailed | None:
    """An expected error as one line for people; None for an unexpected one, whose traceback is worth having."""
    from watertower.errors import BackendRefused, BackendUnavailable, BackupRefused, CallRefused, StartRefused
    from watertower.role import EXIT_REFUSED

    if isinstance(error, CommandFailed):
        return error
    if isinstance(error, typer.TyperException):
        said = error.format_message().rstrip(".")
        # Without a message, the help was printed instead: a command group was named without a command.
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "watertower"
        return CommandFailed(f"{said} (see `{command} --help`)" if said else "", code=error.exit_code)
    if isinstance(error, StartRefused):
        return CommandFailed(str(error), code=EXIT_REFUSED)
    if isinstance(error, CallRefused | BackendRefused | BackupRefused):
        return CommandFailed(str(error))
    if isinstance(error, BackendUnavailable):
        return CommandFailed(f"{error}; try again")
    if isinstance(error, OSError):
        return CommandFailed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return None


def report_failure(failure: CommandFailed, as_json: bool) -> int:
    """Says on standard error why a command failed; returns the exit code."""
    if as_json:
        text = json.dumps({"error": str(failure), "exit_code": failure.code, **failure.fields})
    else:
        text = f"watertower: {failure}" if str(failure) else ""
    if text:
        typer.echo(" ".join(text.split("\n")), err=True)
    return failure.code


def quiet_broken_pipe() -> int:
    """The reader of standard output went away (`| head`): no error of ours. Python's flush at exit must not raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def note(text: str, as_json: bool = False) -> None:
    """A remark for people, on standard error; machines do not get it."""
    if not as_json:
        typer.echo(text, err=True)


def machine_output() -> TextIO:
    """Standard output for what machines read: UTF-8 in every locale, so that an id stays the id that it is."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    return sys.stdout


def print_json(value: Any) -> None:
    """One value on one line of standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False), file=machine_output())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = (), whole: Sequence[str] = ()) -> None:
    """A table on standard output; the columns named in `numbers` are aligned to the right, those in `whole` are never folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: an id may contain what rich would take for markup
    # A pipe has no width: there a row must stay one line.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Lines on standard output as they come."""
    for line in lines:
        typer.echo(line)


def time_text(micros: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC, to the microsecond: 2026-01-31T23:59:59.000001Z."""
    from datetime import UTC, datetime

    seconds, fraction = divmod(micros, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:06d}Z"
