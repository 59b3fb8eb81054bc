"""`watertower export`: counts and edges out of a data folder, at one moment."""

import contextlib
import csv
import json as json_module
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import DEFAULT_DATA, Data, Set, opened_scanner
from watertower.core.model import Kind, Metric

if TYPE_CHECKING:
    from watertower.ports import StoreScanner

COUNTS_COLUMNS = ("entity", "metric", "value")
EDGES_COLUMNS = ("actor", "kind", "subject", "ref", "state", "occurred_at")

Format = Annotated[str, typer.Option("--format", help="csv or ndjson.")]
Output = Annotated[Path, typer.Option("--output", help="A file, or - for standard output.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(name="export", help="Write counts or edges of a data folder as csv or ndjson.", no_args_is_help=True)
    group.command("counts")(counts)
    group.command("edges")(edges)
    app.add_typer(group)


def counts(data: Data = DEFAULT_DATA, set_: Set = None, format_: Format = "csv", output_: Output = Path("-")) -> None:
    """Write every count: entity, metric (as in followers), value.

    Works beside a running service and without one.
    """
    _export(data, set_, format_, output_, COUNTS_COLUMNS, count_rows)


def edges(data: Data = DEFAULT_DATA, set_: Set = None, format_: Format = "csv", output_: Output = Path("-")) -> None:
    """Write every edge, removed ones included: actor, kind, subject, ref, state, occurred_at (RFC 3339, UTC).

    Works beside a running service and without one.
    """
    _export(data, set_, format_, output_, EDGES_COLUMNS, edge_rows)


def count_rows(scanner: "StoreScanner") -> Iterator[tuple[str, str, int]]:
    """Every metric of every entity that has a shard of it, summed over the shards; entities in the store's order."""
    names = {int(metric): metric.name.lower() for metric in Metric}
    for entity, shards in groupby(scanner.shards(), key=lambda row: row[0][0]):
        totals: dict[int, int] = {}
        for (_, metric, _), shard in shards:
            totals[metric] = totals.get(metric, 0) + shard.value
        for metric in sorted(totals):
            yield entity, names[metric], totals[metric]


def edge_rows(scanner: "StoreScanner") -> Iterator[tuple[str, str, str, str, str, str]]:
    """Every edge; an actor's edges next to each other."""
    names = {int(kind): kind.name.lower() for kind in Kind}
    for (actor, kind, subject, ref), edge in scanner.edges():
        yield actor, names[kind], subject, ref, "active" if edge.active else "removed", output.time_text(edge.occurred_at)


def _export(
    data: Path,
    set_: list[str] | None,
    format_: str,
    target: Path,
    columns: tuple[str, ...],
    rows_of: "Callable[[StoreScanner], Iterable[tuple[Any, ...]]]",
) -> None:
    if format_ not in ("csv", "ndjson"):
        raise output.usage(f"--format {format_}: must be csv or ndjson")
    with opened_scanner(data, set_) as scanner, _opened(target) as file:
        rows = rows_of(scanner)
        if format_ == "csv":
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        else:
            encode = json_module.JSONEncoder(ensure_ascii=False).encode
            file.writelines(encode(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


@contextlib.contextmanager
def _opened(target: Path) -> "Iterator[IO[str]]":
    """Standard output, or a file that appears under its name when it is whole."""
    if str(target) == "-":
        file = output.machine_output()
        yield file
        file.flush()
        return
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
