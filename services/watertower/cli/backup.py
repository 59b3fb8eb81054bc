"""`watertower backup`: a copy of the data folder, beside a running service."""

from pathlib import Path
from typing import Annotated

import typer

from watertower.cli import output
from watertower.cli.options import DEFAULT_DATA, Data, Set, loaded


def register(app: typer.Typer) -> None:
    app.command("backup")(backup)


def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The backup: a new folder, outside the data folder.")],
    data: Data = DEFAULT_DATA,
    set_: Set = None,
    json: output.Json = False,
) -> None:
    """Copy a data folder while the service writes, or while it does not run. The copy is a data folder.

    Everything that was acknowledged before the command began is in it. To restore, stop the service and put the copy, or a copy of the
    copy, in the data folder's place. Exit code: 0 the backup is there and durable, 1 it is not, 3 the data folder was refused.
    """
    from watertower import bootstrap
    from watertower.clock import SystemClock

    clock = SystemClock()
    started_s = clock.monotonic_s()
    made = bootstrap.make_backup(loaded(set_, data=str(data)), target)
    seconds = clock.monotonic_s() - started_s
    if json:
        output.print_json({**made._asdict(), "path": str(made.path), "seconds": round(seconds, 3)})
    else:
        shared = f", {made.linked_bytes:,} of them shared with the data folder" if made.linked_bytes else ""
        output.print_lines([f"{made.path}: {made.bytes:,} bytes{shared}, in {seconds:.1f} s"])
