"""Options that several commands share: targets, the data folder, kinds and metrics (lower-case names of the one table in core.model)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watertower.core.model import Kind, Metric

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from watertower.config import Settings
    from watertower.ports import StoreScanner

WRITE_VARIABLE = "WATERTOWER_WRITE_TARGET"
READ_VARIABLE = "WATERTOWER_READ_TARGET"
DEFAULT_WRITE_TARGET = "127.0.0.1:50051"
DEFAULT_READ_TARGET = "127.0.0.1:50052"
DEFAULT_DATA = Path("watertower-data")

WriteTarget = Annotated[str, typer.Option("--write-target", envvar=WRITE_VARIABLE, help="Address of the writer, HOST:PORT.")]
ReadTarget = Annotated[str, typer.Option("--read-target", envvar=READ_VARIABLE, help="Address of the reader, HOST:PORT.")]
Data = Annotated[Path, typer.Option("--data", envvar="WATERTOWER_DATA", help="Data folder (of the embedded back ends).")]

Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as NAME=VALUE; `watertower config` lists them. Repeatable.")]


def assigned(assignments: list[str] | None) -> dict[str, Any]:
    """What `--set` says, by name. Raises StartRefused."""
    from watertower.errors import StartRefused

    options: dict[str, Any] = {}
    for assignment in assignments or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise StartRefused(f"--set {assignment}: write it as NAME=VALUE")
        options[name] = value
    return options


def loaded(assignments: list[str] | None, **options: Any) -> "Settings":
    """The settings of a command that opens back ends itself; what these log from now on is set up, too. Raises StartRefused."""
    from watertower import config, logs

    logs.configure_command()
    return config.load({**assigned(assignments), **options})


def opened_scanner(data: Path, assignments: list[str] | None = None) -> "AbstractContextManager[StoreScanner]":
    """All rows of the configured store. Raises StartRefused, BackendUnavailable."""
    from watertower import bootstrap

    return bootstrap.opened_scanner(loaded(assignments, data=str(data)))


KIND_NAMES = {kind.name.lower(): kind for kind in Kind}
METRIC_NAMES = {metric.name.lower(): metric for metric in Metric}


def parse_kind(name: "str | Kind") -> Kind:
    """The kind of a name as in `follow`."""
    if isinstance(name, Kind):
        return name
    if name not in KIND_NAMES:
        raise typer.BadParameter(f"{name!r} is no kind: {', '.join(KIND_NAMES)}")
    return KIND_NAMES[name]


def parse_metric(name: "str | Metric") -> Metric:
    """The metric of a name as in `followers`."""
    if isinstance(name, Metric):
        return name
    if name not in METRIC_NAMES:
        raise typer.BadParameter(f"{name!r} is no metric: {', '.join(METRIC_NAMES)}")
    return METRIC_NAMES[name]


KindOption = Annotated[
    Kind,
    typer.Option("--kind", parser=parse_kind, metavar="|".join(KIND_NAMES), show_default="follow", help="What the actor does."),
]
MetricsOption = Annotated[
    list[Metric] | None,
    typer.Option("--metric", parser=parse_metric, metavar="METRIC", help=f"Repeatable (default: all): {', '.join(METRIC_NAMES)}."),
]
