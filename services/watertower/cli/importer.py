"""`watertower import`: the command. What it does is in import_run.py."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import DEFAULT_READ_TARGET, DEFAULT_WRITE_TARGET, KindOption, ReadTarget, WriteTarget
from watertower.core.model import KINDS, Kind

if TYPE_CHECKING:
    from watertower.cli.import_run import ImportRun

NAME_SHOWN_MAX = 20
"""Characters of the file's name beside the progress bar: the rest of the line is for figures."""

EXIT_REJECTS = 3
"""Exit code of an import that is done, but has rejected rows: a script must not take it for "everything is in"."""


def register(app: typer.Typer) -> None:
    app.command("import")(import_)


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file whose name ends in .csv, .ndjson or .jsonl, or in one of these and .gz.")
    ],
    kind: KindOption = Kind.FOLLOW,
    mutual: Annotated[bool, typer.Option("--mutual", help="Each row is two edges, one each way.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Set the edges to REMOVED: unfollow, unlike, delete.")] = False,
    actor_column: Annotated[str | None, typer.Option(help="Who acts (default: actor; with --no-header: 1).")] = None,
    subject_column: Annotated[str | None, typer.Option(help="On what (default: subject; with --no-header: 2).")] = None,
    ref_column: Annotated[str | None, typer.Option(help="The comment's own id (default: ref; with --no-header: 3).")] = None,
    time_column: Annotated[str | None, typer.Option(help="When the user acted (default: none, see --at).")] = None,
    time_unit: Annotated[str, typer.Option(help="How times are written: rfc3339, s, ms or us (numbers since 1970).")] = "rfc3339",
    at: Annotated[str | None, typer.Option(help="Time of rows without one, RFC 3339 (default: when the import began).")] = None,
    header: Annotated[
        bool,
        typer.Option("--header/--no-header", help="Whether the first line of a csv names its columns; if not, they have numbers, from 1."),
    ] = True,
    rejects: Annotated[Path | None, typer.Option(help="Where rejected rows go (default: FILE.rejects.csv).")] = None,
    state: Annotated[Path | None, typer.Option(help="Where the progress is kept (default: FILE.watertower-import.json).")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, even if an import of this file was cut off.")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Wait until the reader shows what was imported; an error when it comes no further for 60 s."),
    ] = True,
    retry_for: Annotated[float, typer.Option(min=0, help="Seconds to go on trying while the service does not take a call.")] = 60.0,
    write_target: WriteTarget = DEFAULT_WRITE_TARGET,
    read_target: ReadTarget = DEFAULT_READ_TARGET,
    json: output.Json = False,
) -> None:
    """Import events from a file.

    The first line of a csv names its columns, in any order: actor, subject and, for comments, ref, or what the options say; others are
    left alone. If it has none of these names, its first columns are taken by place, and that is said. An ndjson line is an object with
    such keys. An import that was cut off goes on where it was when the same command is run again, with identical events; one that was
    finished begins anew. Rows that break a rule go to the rejects file (line, reason, row), the rest goes in. Exit code: 0 everything is
    in, 3 all but the rejected rows is in, 1 not finished.
    """
    import random

    from watertower.cli import import_run
    from watertower.cli.import_events import TIME_UNITS, parse_time
    from watertower.cli.import_source import Columns, format_of
    from watertower.clock import SystemClock

    format_of(file)  # refuses a name that no other file's name can be made from, such as `.`
    rejects = rejects or file.with_name(file.name + ".rejects.csv")
    state = state or file.with_name(file.name + ".watertower-import.json")
    if _same_file(rejects, file):
        raise output.usage(f"--rejects {rejects}: is the file to import, and would be written over; name another one")
    if _same_file(state, file) or _same_file(state, rejects):
        raise output.usage(f"--state {state}: is the file to import or that of the rejected rows; name another one")
    if time_unit not in TIME_UNITS:
        raise output.usage(f"--time-unit {time_unit}: must be one of {', '.join(TIME_UNITS)}")
    if mutual and KINDS[kind].needs_ref:
        raise output.usage(f"--mutual: a {kind.name.lower()} has an id of its own, so a row cannot be two of them")
    try:
        base_time = None if at is None else parse_time(at, "rfc3339")
    except ValueError as error:
        raise output.usage(f"--at {at}: {error}") from error

    request = import_run.Request(
        file=file,
        kind=kind,
        mutual=mutual,
        active=not remove,
        columns=Columns(actor_column, subject_column, ref_column, time_column),
        time_unit=time_unit,
        base_time=base_time,
        header=header,
        rejects=rejects,
        state=state,
        restart=restart,
        wait=wait,
        retry_for_s=retry_for,
        write_target=write_target,
        read_target=read_target,
    )
    rng = random.Random()  # noqa: S311 - jitter
    with _progress(file, shown=not json) as on_progress:
        run = import_run.ImportRun(request, SystemClock(), rng, lambda text: output.note(text, json), lambda: on_progress(run))
        try:
            summary = run.run()
        except KeyboardInterrupt as error:
            rows = f"after {run.state.rows:,} rows"
            message = (
                f"{rows}: all are recorded, and are counted without this command; it would begin anew"
                if run.state.finished
                else f"{rows}: run the same command again to go on"
            )
            raise output.CommandFailed(f"interrupted {message}", code=output.EXIT_INTERRUPTED) from error
    if json:
        output.print_json(summary)
    else:
        output.print_lines(_for_people(summary))
    if summary["rejected"]:
        raise typer.Exit(EXIT_REJECTS)


def _same_file(one: Path, other: Path) -> bool:
    """Whether two names are of one file, whether it is there or not."""
    return os.path.realpath(one) == os.path.realpath(other) or (one.exists() and other.exists() and one.samefile(other))


@contextlib.contextmanager
def _progress(file: Path, shown: bool) -> "Iterator[Callable[[ImportRun], None]]":
    """A bar on standard error, if that is a terminal: how much of the file is through, rows, rejected rows, events a second."""
    if not (shown and sys.stderr.isatty()):
        yield lambda run: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:3.0f} %  {task.fields[rows]:,} rows, {task.fields[rejected]:,} rejected, {task.fields[rate]:,.0f}/s"),
    )
    name = file.name if len(file.name) <= NAME_SHOWN_MAX else file.name[: NAME_SHOWN_MAX - 1] + "…"
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=file.stat().st_size, rows=0, rejected=0, rate=0.0)
        first: list[int] = []

        def update(run: "ImportRun") -> None:
            state = run.state
            first[:] = first or [state.events]
            elapsed = progress.tasks[0].elapsed or 0.0
            if state.finished:
                progress.update(task, description="counting", completed=file.stat().st_size)
                return
            rate = (state.events - first[0]) / elapsed if elapsed else 0.0
            progress.update(task, completed=run.consumed_bytes, rows=state.rows, rejected=state.rejected, rate=rate)

        yield update


def _for_people(summary: dict[str, Any]) -> list[str]:
    # The totals are of the whole file; a rate of rows that an earlier run has sent would say nothing.
    per_s = "a second in this run" if summary["resumed_after_rows"] else "a second"
    lines = [f"{summary['rows']:,} rows read, {summary['events']:,} events recorded ({summary['accepted_per_s']:,.0f} {per_s})"]
    if summary["visible_s"] is not None:
        lines.append(f"all of them are counted ({summary['visible_s']:.1f} s after the start, {summary['visible_per_s']:,.0f} {per_s})")
    else:
        lines.append("not waited until they are counted (--no-wait)")
    if summary["rejected"]:
        lines.append(f"rejected rows: {summary['rejected']:,}, see {summary['rejects_file']}")
    return lines
