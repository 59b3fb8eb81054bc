"""The clients of a run: callers of ingest that repeat themselves, and readers of query that hold every answer against the reference."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from watertower.core.model import KINDS, Kind, Metric
from watertower.core.positions import decode_position
from watertower.core.sharding import partition_of
from watertower.errors import BackendUnavailable, CallRefused
from watertower.testing.simulator.processes import IngestNode, QueryNode
from watertower.testing.simulator.reference import EdgeName
from watertower.testing.simulator.sessions import Session
from watertower.testing.simulator.world import Broken, Event, World
from watertower.v1 import common_pb2, reader_pb2, writer_pb2

ACTORS = ("ann", "bob", "cid", "dan", "eve")
POSTS = ("post-1", "post-2")
ENTITIES = (*ACTORS, *POSTS)
METRICS = tuple(Metric)
METRIC_NUMBERS: Any = [int(metric) for metric in METRICS]


class Call(NamedTuple):
    """One call to ingest, as its caller repeats it."""

    events: list[Event]
    request: writer_pb2.RecordEventsRequest


class Deadline:
    """As much of a gRPC context as the services look at."""

    def __init__(self, world: World, seconds: float = math.inf) -> None:
        self._loop, self._ends_s = world.loop, world.loop.now_s + seconds

    def time_remaining(self) -> float | None:
        return None if self._ends_s == math.inf else self._ends_s - self._loop.now_s

    def peer(self) -> str:
        return "ipv4:192.0.2.1:50000"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


class Callers:
    """Clients of ingest: each call is repeated to the letter until it is acknowledged or given up."""

    def __init__(self, world: World, ingests: list[IngestNode], calls: int) -> None:
        self._world, self._ingests = world, ingests
        self._left = calls
        self._later_calls: list[asyncio.Task[Any]] = []
        self._clock = world.clock("callers")

    async def run(self, number: int) -> None:
        rng, faults = self._world.rng(f"caller {number}"), self._world.faults
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(rng.expovariate(1 / 2.0))
            call = self._make(rng)
            acknowledged = await self._until_acknowledged(call, rng)
            if acknowledged and faults.strikes("call_repeated_after_acknowledgement"):
                await self._until_acknowledged(call, rng)
            if faults.strikes("call_redelivered_late"):
                work = self._later(call, faults.stream("call_redelivered_late").uniform(5.0, 40.0), rng)
                self._later_calls.append(self._world.spawn(work))

    async def redelivered(self) -> None:
        """Waits for the calls that come again late."""
        await asyncio.gather(*self._later_calls)

    async def _later(self, call: Call, seconds: float, rng: Any) -> None:
        await asyncio.sleep(seconds)
        await self._until_acknowledged(call, rng)

    def _make(self, rng: Any) -> Call:
        events: list[Event] = []
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            actor, kind = rng.choice(ACTORS), rng.choice((Kind.FOLLOW, Kind.FOLLOW, Kind.FOLLOW, Kind.LIKE, Kind.COMMENT))
            subject = rng.choice([entity for entity in ENTITIES if entity != actor or KINDS[kind].allows_self])
            ref = rng.choice("xy") if KINDS[kind].needs_ref else ""
            # Whole tenths of a second, so that ties happen.
            at = (self._clock.now_us() - rng.choice((0, 0, 0, rng.randrange(20_000_000)))) // 100_000 * 100_000 - 3_000_000
            events.append((actor, int(kind), subject, ref, rng.random() < 0.6, at))
        request = writer_pb2.RecordEventsRequest()
        for actor, kind, subject, ref, active, at in events:
            state = common_pb2.STATE_ACTIVE if active else common_pb2.STATE_REMOVED
            occurred_at = Timestamp()
            occurred_at.FromMicroseconds(at)
            request.events.add(actor=actor, kind=kind, subject=subject, ref=ref, state=state, occurred_at=occurred_at)
        return Call(events, request)

    async def _until_acknowledged(self, call: Call, rng: Any) -> bool:
        world = self._world
        for _ in range(6):
            try:
                response = await self._attempt(call, rng.choice(self._ingests))
            except (BackendUnavailable, CallRefused):
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                continue
            position = decode_position(response.write_token)
            world.acknowledge(call.events, lambda actor: partition_of(actor, world.partitions), position)
            world.trace.say("caller", f"{len(call.events)} events acknowledged at {dict(position.offsets)}")
            return True
        return False

    async def _attempt(self, call: Call, node: IngestNode) -> writer_pb2.RecordEventsResponse:
        world, faults = self._world, self._world.faults
        seconds = 0.005 if faults.strikes("deadline_short") else 5.0
        await asyncio.sleep(faults.stream("call_lost").uniform(0.001, 0.01))
        if node.service is None or faults.strikes("call_lost"):
            await asyncio.sleep(min(seconds, 1.0))
            raise BackendUnavailable("no answer")
        deadline: Any = Deadline(world, seconds)
        task = node.spawn(node.service.record_events(call.request, deadline))
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            task.cancel()  # as gRPC does when the deadline is over
            raise BackendUnavailable("the deadline is over")
        if task.cancelled():
            raise BackendUnavailable("the server died")
        response: writer_pb2.RecordEventsResponse = task.result()
        if faults.strikes("answer_lost"):
            raise BackendUnavailable("no answer")
        return response


class Readers:
    """Clients of query. They hold every answer against the reference."""

    def __init__(self, world: World, nodes: list[QueryNode]) -> None:
        self._world, self._nodes = world, nodes

    async def run(self, number: int) -> None:
        rng, session = self._world.rng(f"reader {number}"), Session(self._world)
        while True:
            await asyncio.sleep(rng.expovariate(1 / 0.5))
            node = rng.choice(self._nodes)
            if node.service is not None:
                await self.read(node, rng, session)

    async def run_lists(self) -> None:
        """Another reader, for what actors act on: in Cassandra these are the reads that come in pages."""
        rng = self._world.rng("reader of lists")
        while True:
            await asyncio.sleep(rng.expovariate(1 / 0.3))
            node = rng.choice(self._nodes)
            if node.service is not None:
                await self.list_subjects(node, rng.choice(ACTORS), rng.choice(list(Kind)))

    async def read(self, node: QueryNode, rng: Any, session: Session) -> None:
        what = rng.random()
        if what < 0.7:
            await self.counts(node, rng.sample(ENTITIES, rng.randint(1, 3)), session, session.need(rng))
        elif what < 0.85:
            await self.edges(node, rng.choice(ACTORS), rng.choice(list(Kind)))
        else:
            await self.list_actors(node, rng.choice(ENTITIES), rng.choice(list(Kind)))

    async def _ask(self, node: QueryNode, call: Coroutine[Any, Any, Any]) -> Any:
        """The answer; None where there is none."""
        task = node.spawn(call)
        await asyncio.wait({task}, timeout=60.0)
        if not task.done():
            task.cancel()
            raise Broken("a read ends", "no answer in 60 s")
        if task.cancelled():
            return None
        try:
            return task.result()
        except (BackendUnavailable, CallRefused):
            return None

    async def counts(self, node: QueryNode, entities: list[str], session: Session, need: dict[str, Any]) -> None:
        service, world = node.service, self._world
        if service is None:
            return
        request = reader_pb2.BatchGetCountsRequest(entities=entities, metrics=METRIC_NUMBERS, **need)
        context: Any = Deadline(self._world)
        seen, held = node.seen(), node.held(entities)
        encoded = await self._ask(node, service.batch_get_counts(request, context))
        if encoded is None or node.service is not service:
            return
        answer = reader_pb2.BatchGetCountsResponse.FromString(encoded)
        position = node.saw(answer.freshness, seen)
        session.saw(request, answer.freshness, node.clock.now_us())
        node.check_ages(held)
        for entity, row in zip(entities, answer.counts, strict=True):
            for metric, value in zip(METRICS, row.values, strict=True):
                if value < 0:
                    raise Broken("no count is negative", f"{entity} {metric.name} {value}")
                world.check_count("answers are of their position", entity, metric, value, position.offsets)

    async def edges(self, node: QueryNode, actor: str, kind: Kind) -> None:
        service, world = node.service, self._world
        if service is None:
            return
        request = reader_pb2.CheckEdgesRequest(actor=actor, kind=int(kind), subjects=ENTITIES)  # type: ignore[arg-type]
        context: Any = Deadline(self._world)
        seen = node.seen()
        answer = await self._ask(node, service.check_edges(request, context))
        if answer is None or node.service is not service:
            return
        since = node.saw(answer.freshness, seen).offsets.get(partition_of(actor, world.partitions), -1)
        for subject, active in zip(ENTITIES, answer.active, strict=True):
            # With several refs: active if any is. Each may have been in any of its states since.
            states = [world.reference.edge(actor, kind, subject, ref).since(since) for ref in ("", "x", "y")]
            may = any(_active(state) for one in states for state in one)
            must = any(all(_active(state) for state in one) for one in states)
            if (active and not may) or (must and not active):
                raise Broken("edges are of their position", f"{actor} {kind.name} {subject} {active} at or after {since}")

    async def list_actors(self, node: QueryNode, subject: str, kind: Kind) -> None:
        service = node.service
        if service is None:
            return
        request = reader_pb2.ListActorsRequest(subject=subject, kind=int(kind), page_size=1_000)  # type: ignore[arg-type]
        context: Any = Deadline(self._world)
        seen = node.seen()
        answer = await self._ask(node, service.list_actors(request, context))
        if answer is None or node.service is not service:
            return
        position = node.saw(answer.freshness, seen).offsets
        shown = {(item.actor, int(kind), subject, item.ref): item.occurred_at.ToMicroseconds() for item in answer.items}
        self._check_list(f"{kind.name} of {subject}", shown, lambda edge: edge[1:3] == (kind, subject), position)

    async def list_subjects(self, node: QueryNode, actor: str, kind: Kind) -> None:
        service = node.service
        if service is None:
            return
        request = reader_pb2.ListSubjectsRequest(actor=actor, kind=int(kind), page_size=1_000)  # type: ignore[arg-type]
        context: Any = Deadline(self._world)
        seen = node.seen()
        answer = await self._ask(node, service.list_subjects(request, context))
        if answer is None or node.service is not service:
            return
        position = node.saw(answer.freshness, seen).offsets
        shown = {(actor, int(kind), item.subject, item.ref): item.occurred_at.ToMicroseconds() for item in answer.items}
        self._check_list(f"{kind.name} by {actor}", shown, lambda edge: edge[:2] == (actor, kind), position)

    def _check_list(self, what: str, shown: dict[EdgeName, int], belongs: Callable[[EdgeName], bool], position: Mapping[int, int]) -> None:
        """`shown`: when each edge of the list occurred. It is used up."""
        for edge, history in self._world.reference.edges.items():
            if not belongs(edge):
                continue
            states: list[Any] = history.since(position.get(partition_of(edge[0], self._world.partitions), -1))
            at = shown.pop(edge, None)
            # While an edge changes, its old row, its new one, both or none may show.
            if len(states) == 1 and at != (states[0].occurred_at if _active(states[0]) else None):
                raise Broken("lists are of their position", f"{what}: {edge} at {at}, not {states[0]}")
            if at is not None and not any(_active(state) and state.occurred_at == at for state in states):
                raise Broken("lists are of their position", f"{what}: {edge} at {at}, never since {dict(position)}")
        if shown:
            raise Broken("lists are of their position", f"{what}: {shown} never were")


def _active(state: Any) -> bool:
    return state is not None and not state.removed
