"""Kinds and metrics on the command line: lower-case names of the one table in core.model."""

from typing import Annotated

import typer

from watertower.core.model import Kind, Metric

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
