"""`watertower counts`, `edges` and `list`: what the reader answers."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watertower.cli import output
from watertower.cli.options import DEFAULT_READ_TARGET, KindOption, MetricsOption, ReadTarget
from watertower.core.model import Kind, Metric
from watertower.validation import ENTITIES_MAX, PAGE_SIZE_MAX, SUBJECTS_MAX, id_violation

if TYPE_CHECKING:
    from watertower.v1.common_pb2 import Freshness


def _checked_ids(value: str | list[str]) -> str | list[str]:
    """Ids as they may be asked for: what the service would refuse is named as the argument that it is."""
    for id_ in [value] if isinstance(value, str) else value:
        try:
            broken = id_violation(id_)
        except UnicodeEncodeError:  # bytes of the command line that are no text
            raise typer.BadParameter(f"{id_!r} must be valid UTF-8") from None
        if broken:
            raise typer.BadParameter(f"{id_!r} {broken.rule}")
    return value


Subject = Annotated[str, typer.Argument(metavar="SUBJECT", callback=_checked_ids, help="Who or what was acted on.")]
Actor = Annotated[str, typer.Argument(metavar="ACTOR", callback=_checked_ids, help="Who acts.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Items to print, at most (default: all).")]
PageSize = Annotated[int, typer.Option("--page-size", min=1, max=PAGE_SIZE_MAX, help="Items to ask for at once.")]


def register(app: typer.Typer) -> None:
    app.command("counts")(counts)
    app.command("edges")(edges)
    group = typer.Typer(name="list", help="List who acted on a subject, or on what an actor acted; newest first.", no_args_is_help=True)
    group.command("actors")(list_actors)
    group.command("subjects")(list_subjects)
    app.add_typer(group)


def counts(
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", callback=_checked_ids, help="Accounts or posts. Write -- before ids that begin with -."),
    ],
    metric: MetricsOption = None,
    read_target: ReadTarget = DEFAULT_READ_TARGET,
    json: output.Json = False,
) -> None:
    """Print the counts of accounts and posts, and how fresh they are."""
    from watertower.v1 import reader_pb2

    metrics = list(dict.fromkeys(metric or Metric))
    names = [m.name.lower() for m in metrics]
    rows: list[tuple[str, bool, list[int]]] = []
    freshness: Freshness | None = None
    with _reader(read_target) as call:
        for at in range(0, len(ids), ENTITIES_MAX):
            some = ids[at : at + ENTITIES_MAX]
            answer = call("BatchGetCounts", reader_pb2.BatchGetCountsRequest(entities=some, metrics=[f"METRIC_{m.name}" for m in metrics]))
            unknown = {exception.index for exception in answer.exceptions if not exception.known}
            rows += [(entity, i not in unknown, list(c.values)) for i, (entity, c) in enumerate(zip(some, answer.counts, strict=True))]
            freshness = _older(freshness, answer.freshness)
    if json:
        entities = [{"entity": entity, "known": known, **dict(zip(names, values, strict=True))} for entity, known, values in rows]
        output.print_json({"entities": entities, "freshness": _freshness(freshness)})
        return
    output.print_table(
        ("entity", *names, "known"),
        ((entity, *(f"{value:,}" for value in values), "yes" if known else "no") for entity, known, values in rows),
        numbers=names,
    )
    _print_freshness(freshness)


def edges(
    actor: Actor,
    subjects: Annotated[
        list[str],
        typer.Argument(metavar="SUBJECT...", callback=_checked_ids, help="Accounts or posts. Write -- before ids that begin with -."),
    ],
    kind: KindOption = Kind.FOLLOW,
    read_target: ReadTarget = DEFAULT_READ_TARGET,
    json: output.Json = False,
) -> None:
    """Print whether an actor follows (likes, has commented on) each of some subjects."""
    from watertower.v1 import reader_pb2

    rows: list[tuple[str, bool]] = []
    freshness: Freshness | None = None
    with _reader(read_target) as call:
        for at in range(0, len(subjects), SUBJECTS_MAX):
            some = subjects[at : at + SUBJECTS_MAX]
            answer = call("CheckEdges", reader_pb2.CheckEdgesRequest(actor=actor, kind=f"KIND_{kind.name}", subjects=some))
            rows += zip(some, answer.active, strict=True)
            freshness = _older(freshness, answer.freshness)
    if json:
        found = [{"subject": subject, "active": active} for subject, active in rows]
        output.print_json({"actor": actor, "kind": kind.name.lower(), "edges": found, "freshness": _freshness(freshness)})
        return
    output.print_table(("actor", "kind", "subject", "active"), ((actor, kind.name.lower(), s, "yes" if on else "no") for s, on in rows))
    _print_freshness(freshness)


def list_actors(
    subject: Subject,
    kind: KindOption = Kind.FOLLOW,
    limit: Limit = None,
    page_size: PageSize = PAGE_SIZE_MAX,
    read_target: ReadTarget = DEFAULT_READ_TARGET,
    json: output.Json = False,
) -> None:
    """List who follows (likes, has commented on) a subject, newest first; one line each. The last line says how fresh the list is."""
    from watertower.v1 import reader_pb2

    with _reader(read_target) as call:
        _list(
            lambda size, token: call(
                "ListActors",
                reader_pb2.ListActorsRequest(subject=subject, kind=f"KIND_{kind.name}", page_size=size, page_token=token),
            ),
            "actor",
            limit,
            page_size,
            json,
        )


def list_subjects(
    actor: Actor,
    kind: KindOption = Kind.FOLLOW,
    limit: Limit = None,
    page_size: PageSize = PAGE_SIZE_MAX,
    read_target: ReadTarget = DEFAULT_READ_TARGET,
    json: output.Json = False,
) -> None:
    """List whom or what an actor follows (likes, has commented on), newest first; one line each. The last line says how fresh the list
    is."""
    from watertower.v1 import reader_pb2

    with _reader(read_target) as call:
        _list(
            lambda size, token: call(
                "ListSubjects",
                reader_pb2.ListSubjectsRequest(actor=actor, kind=f"KIND_{kind.name}", page_size=size, page_token=token),
            ),
            "subject",
            limit,
            page_size,
            json,
        )


@contextlib.contextmanager
def _reader(target: str) -> "Iterator[Callable[[str, Any], Any]]":
    """What calls a method of the reader by its name."""
    from watertower.cli import connection
    from watertower.clock import SystemClock
    from watertower.v1 import reader_pb2_grpc

    clock, rng = SystemClock(), random.Random()  # noqa: S311 - jitter
    server = connection.reader(target)
    with contextlib.closing(connection.open_channel(server)) as channel:
        stub = reader_pb2_grpc.EngagementReaderStub(channel)
        yield lambda method, request: connection.call(getattr(stub, method), request, server, connection.READ_POLICY, clock, rng)


def _list(page: Callable[[int, str], Any], other: str, limit: int | None, page_size: int, json: bool) -> None:
    """Prints a list page by page, as it comes: a list may be longer than memory. Then the freshness that holds for all pages."""
    token, left = "", limit
    freshness: Freshness | None = None
    while left is None or left > 0:
        answer = page(page_size if left is None else min(page_size, left), token)
        freshness = _older(freshness, answer.freshness)
        for item in answer.items:
            name, at = getattr(item, other), output.time_text(item.occurred_at.ToMicroseconds())
            if json:
                output.print_json({other: name, "ref": item.ref, "occurred_at": at})
            else:
                typer.echo(f"{at}  {name}  {item.ref}".rstrip())
        if left is not None:
            left -= len(answer.items)
        token = answer.next_page_token
        if not token:
            break
    if json:
        output.print_json({"freshness": _freshness(freshness)})
    else:
        _print_freshness(freshness)


def _older(one: "Freshness | None", other: "Freshness") -> "Freshness":
    """The freshness that holds for both of two answers."""
    from watertower.core.positions import decode_position, encode_position
    from watertower.v1.common_pb2 import Freshness

    if one is None:
        return other
    position = decode_position(one.position).common(decode_position(other.position))
    both = Freshness(position=encode_position(position), stale=one.stale or other.stale)
    if one.HasField("as_of") and other.HasField("as_of"):
        both.as_of.FromMicroseconds(min(one.as_of.ToMicroseconds(), other.as_of.ToMicroseconds()))
    return both


def _freshness(freshness: "Freshness | None") -> dict[str, Any]:
    if freshness is None:
        return {}
    return {
        "as_of": output.time_text(freshness.as_of.ToMicroseconds()) if freshness.HasField("as_of") else None,
        "position": freshness.position.hex(),
        "stale": freshness.stale,
    }


def _print_freshness(freshness: "Freshness | None") -> None:
    if freshness is not None:
        stale = " (stale: the service is behind)" if freshness.stale else ""
        as_of = f"as of {output.time_text(freshness.as_of.ToMicroseconds())}" if freshness.HasField("as_of") else "as of: unknown"
        output.print_lines([f"{as_of}{stale}"])
