"""`watertower dlq`: records in the log's topic that no ingest can have written."""

import contextlib
from typing import TYPE_CHECKING, Any

import typer

from watertower.cli import output
from watertower.cli.options import Set, loaded

if TYPE_CHECKING:
    from watertower.backends.kafka_dead_letters import DeadLetter

SHOWN_BYTES = 32
"""Bytes of a record that the list shows."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(name="dlq", help="Records in the log's topic that no ingest can have written.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("replay")(replay)
    app.add_typer(group)


def list_(set_: Set = None, json: output.Json = False) -> None:
    """List the records that projectors have set aside: where each lay, when, why, and how it begins.

    They were written to the topic by something else than Watertower, and are not counted.
    """
    from watertower.bootstrap import cluster

    rows = [_row(letter) for letter in cluster.letters(loaded(set_))]
    if json:
        for row in rows:
            output.print_json(row)
        return
    output.print_table(
        ("partition", "offset", "at", "bytes", "reason", "begins with"),
        [tuple(str(row[name]) for name in ("partition", "offset", "at", "bytes", "reason", "begins_with")) for row in rows],
        numbers=("partition", "offset", "bytes"),
    )


def replay(set_: Set = None, json: output.Json = False) -> None:
    """Append the records that were set aside to the log again, each to its partition, if this version can read them now.

    Repeating it is safe: events that are in the log twice count once. What cannot be read is left where it is, and said.
    """
    from watertower import bootstrap
    from watertower.bootstrap import cluster
    from watertower.clock import SystemClock
    from watertower.codec import UndecodableRecord, decode_batch

    settings = loaded(set_)
    appended, left = 0, 0
    with contextlib.ExitStack() as opened:
        log, _ = bootstrap.log_writer(settings, opened)
        for letter in cluster.letters(settings):
            try:
                decode_batch(letter.record.payload)
            except UndecodableRecord:
                left += 1
                continue
            log.append(letter.record.partition, letter.record.payload, SystemClock().now_us()).result()
            appended += 1
    if json:
        output.print_json({"appended": appended, "left": left})
    else:
        output.print_lines([f"{appended} appended to the log, {left} cannot be read by this version"])


def _row(letter: "DeadLetter") -> dict[str, Any]:
    record = letter.record
    return {
        "partition": record.partition,
        "offset": record.offset,
        "at": output.time_text(record.appended_at),
        "bytes": len(record.payload),
        "reason": letter.reason,
        "begins_with": record.payload[:SHOWN_BYTES].hex(),
    }
