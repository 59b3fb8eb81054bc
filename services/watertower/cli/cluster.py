"""Around the processes of a cluster: `watertower topics create` and `watertower migrate` come before them, `watertower health` asks one."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from watertower.cli import output
from watertower.cli.options import Set, loaded
from watertower.core.sharding import PARTITIONS_MAX

PARTITIONS_DEFAULT = 64
"""Partitions of a log in Kafka: as many projectors can share the work, and the number can never change."""

WAIT_S_DEFAULT = 60.0

_T = TypeVar("_T")

Wait = Annotated[float, typer.Option("--wait-s", min=0, help="Seconds to wait for engines that do not answer yet.")]


def register(app: typer.Typer) -> None:
    topics = typer.Typer(name="topics", help="The topics of the log and of the counts feed, in Kafka.", no_args_is_help=True)
    topics.command("create")(create)
    app.add_typer(topics)
    app.command("migrate")(migrate)
    app.command("health")(health)


def create(
    partitions: Annotated[
        int, typer.Option(min=1, max=PARTITIONS_MAX, help="Partitions of each topic; can never be changed.")
    ] = PARTITIONS_DEFAULT,
    set_: Set = None,
    wait_s: Wait = WAIT_S_DEFAULT,
    json: output.Json = False,
) -> None:
    """Create the topics in Kafka that are missing, and check those that are there.

    Can be run again, and from two places at once. Exit code: 0 they are there as they must be, 1 Kafka did not answer, 3 a topic is there
    that is not as it must be.
    """
    from watertower.bootstrap import cluster

    settings = loaded(set_)
    made = _patiently(lambda: cluster.make_topics(settings, partitions), wait_s, json)
    if json:
        output.print_json({"topics": {name: "created" if new else "there" for name, new in made.items()}, "partitions": partitions})
    else:
        output.print_lines([f"{name}: {'created' if new else 'was there'}, {partitions} partitions" for name, new in made.items()])


def migrate(set_: Set = None, wait_s: Wait = WAIT_S_DEFAULT, json: output.Json = False) -> None:
    """Create the keyspace and the tables in Cassandra that are missing, for the rows of the log that is in Kafka.

    Comes after `topics create`. Can be run again, and from two places at once. Exit code: 0 the tables are there as they must be,
    1 Kafka or Cassandra did not answer, 3 what is there belongs to another log or to a newer version.
    """
    from watertower.bootstrap import cluster

    settings = loaded(set_)
    identity, applied = _patiently(lambda: cluster.make_tables(settings), wait_s, json)
    if json:
        output.print_json({"keyspace": settings.cassandra.keyspace, "applied": applied, **identity.log._asdict()})
    else:
        output.print_lines([f"applied {name}" for name in applied] or ["nothing to apply"])
        output.print_lines(
            [f"keyspace {settings.cassandra.keyspace} holds the rows of log {identity.log.log_id}, {identity.log.partitions} partitions"]
        )


def _patiently(work: Callable[[], _T], wait_s: float, as_json: bool) -> _T:
    """What `work` gives, tried again with backoff while an engine does not answer."""
    import random

    from watertower.clock import SystemClock
    from watertower.core.backoff import full_jitter
    from watertower.errors import BackendUnavailable

    clock = SystemClock()
    deadline_s = clock.monotonic_s() + wait_s
    attempt = 0
    while True:
        try:
            return work()
        except BackendUnavailable as error:
            if clock.monotonic_s() >= deadline_s:
                raise
            output.note(f"waiting: {error}", as_json)
            clock.sleep(full_jitter(attempt, 0.2, 5.0, random.random()))  # noqa: S311 - jitter, not secrets
            attempt += 1


def health(
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where a process serves.")],
    service: Annotated[
        str | None,
        typer.Option("--service", help="Whether it is `alive`, or what it says of one service, by full name; default: ready or not."),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.01, help="Seconds to wait for the answer.")] = 2.0,
) -> None:
    """Ask a process for its gRPC health. Exit code: 0 ready, or what was asked for; 1 not."""
    from watertower.health import ALIVE, is_serving

    serving = is_serving(target, timeout_s, service or "")
    words = "ready" if not service else "alive" if service == ALIVE else f"serving {service}"
    output.print_lines([f"{target} is {words if serving else f'not {words}'}"])
    raise typer.Exit(0 if serving else output.EXIT_FAILED)
