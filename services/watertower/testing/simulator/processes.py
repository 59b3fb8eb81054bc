"""The product's processes in a run, and their callers: each dies, hangs, comes back, and is called by clients that repeat themselves."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from watertower.config import IngestSettings, ProjectorSettings, QuerySettings
from watertower.core.model import KINDS, Kind, Metric
from watertower.core.positions import Position, decode_position
from watertower.core.sharding import partition_of
from watertower.errors import BackendUnavailable, CallRefused, StartRefused
from watertower.ingest.service import IngestService
from watertower.projector.projector import Projector
from watertower.query.service import QueryService
from watertower.testing.simulator.kernel import GreenletExecutor, blocking, process_name, wait
from watertower.testing.simulator.log import SimulatedLogReader, SimulatedLogWriter
from watertower.testing.simulator.world import Broken, Event, World
from watertower.v1 import common_pb2, reader_pb2, writer_pb2

ACTORS = ("ann", "bob", "cid", "dan", "eve")
POSTS = ("post-1", "post-2")
ENTITIES = (*ACTORS, *POSTS)
METRICS = tuple(Metric)
METRIC_NUMBERS: Any = [int(metric) for metric in METRICS]
STALE_AFTER_S = 8.0
LATENCY_US = 50_000
"""Between an answer and its check, at most."""

SESSION_S = 3.0
"""After this long without a sign of a projector, another one gets its partitions."""


class Cut(BaseException):
    """A process dies here."""


class Node(ABC):
    """A process that can be killed and started."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.rng, self.clock = world.rng(name), world.clock(name)
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Work of this process: it ends with it."""
        task = self.world.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    @abstractmethod
    def start(self) -> None:
        """Does nothing if it runs."""

    def kill(self) -> None:
        self.world.trace.say(self.name, "dies")
        self.world.flushing.discard(self.name)
        tasks, self._tasks = self._tasks, {}
        for task in tasks:
            task.cancel()


class IngestNode(Node):
    """IngestService on a log."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._settings = IngestSettings.model_construct(record_events_max=self.rng.choice((2, 5, 100)))
        self.service: IngestService | None = None
        self.start()

    def start(self) -> None:
        if self.service is None:
            self.service = IngestService(SimulatedLogWriter(self.world.log), self._settings, self.clock)

    def kill(self) -> None:
        super().kill()
        self.service = None


class ProjectorNode(Node):
    """A Projector on the partitions that the group gives it."""

    async def run(self) -> None:
        while True:
            store = self.world.store()
            try:
                while True:
                    await blocking(lambda store=store: self._apply(store), self.name)  # type: ignore[misc]
            except Cut as cut:
                self.world.trace.say(self.name, f"dies at {cut}")
                await asyncio.sleep(self.rng.uniform(0.05, 3.0))

    def start(self) -> None:
        if not self._tasks:
            self.spawn(self.run()).add_done_callback(self.world._ended_of_node)

    def _apply(self, store: Any) -> None:
        """Applies what the group gives it, until the process dies."""
        world, rng = self.world, self.rng
        log = SimulatedLogReader(world.log, lambda: world.owners.of(self.name))
        settings = ProjectorSettings.model_construct(
            flush_events_max=rng.choice((1, 3, 6, 20)),
            flush_records_max=rng.choice((1, 2, 4, 50)),
            poll_idle_ms=rng.choice((50, 300, 700)),
            heartbeat_ms=1_000,
            retry_cap_ms=1_000,
        )
        projector = world.parts.projector(log, store, world.feed_writer(store), settings, self.clock, rng)
        try:
            projector.start()
            self._steps(projector)
        except BackendUnavailable:
            self.clock.sleep(0.5)
        except StartRefused as error:
            raise Broken("a start is refused only with reason", str(error)) from error

    def _steps(self, projector: Projector) -> None:
        world = self.world
        owned: list[int] = []
        while True:
            step = projector.step()
            if owned != list(projector.positions):
                owned = list(projector.positions)
                world.trace.say(self.name, f"owns {projector.positions}")
            if step.events:
                world.trace.say(self.name, f"applied {step.events} events up to {projector.positions}")
            for partition, reason in projector.stopped.items():
                if partition in world.undecodable and reason.startswith(f"record at offset {world.undecodable[partition]}:"):
                    world.stopped.add(partition)
                else:
                    raise Broken("no edge is ahead of its shards", f"the projector stopped: {reason}")
            if step.wait_s:
                self.clock.sleep(step.wait_s)


class QueryNode(Node):
    """QueryService on the store and the feed."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.service: QueryService | None = None
        self._starting: QueryService | None = None
        self._seen: dict[int, int] = {}

    def start(self) -> None:
        if not self._tasks:
            self.spawn(self._run()).add_done_callback(self.world._ended_of_node)

    def kill(self) -> None:
        for service in (self.service, self._starting):
            if service is not None and service._task is not None:
                service._task.cancel()
        self.service = self._starting = None
        super().kill()

    async def _run(self) -> None:
        world, rng = self.world, self.rng
        settings = QuerySettings.model_construct(
            cache_entities_max=rng.choice((3, 100)),
            cache_age_ms_max=rng.choice((3_000, 20_000, 600_000)),
            tail_interval_ms=200,
            stale_after_ms=int(STALE_AFTER_S * 1e3),
            loads_concurrent_max=rng.choice((1, 3)),
        )
        while True:
            service = self._starting = QueryService(
                *world.readers(),
                settings,
                self.clock,
                rng,
                world.partitions,
                pool=lambda workers, name: GreenletExecutor(self.spawn, name),
            )
            try:
                await service.start()
                break
            except BackendUnavailable:
                await asyncio.sleep(0.5)
        self._seen = {}
        self.service = service
        world.trace.say(self.name, "is ready")
        await service.failed

    def seen(self) -> dict[int, int]:
        """Up to where its answers so far went."""
        return dict(self._seen)

    def saw(self, freshness: common_pb2.Freshness, seen: dict[int, int]) -> Position:
        """Checks what an answer claims; returns up to where. `seen` is from before the question."""
        position = decode_position(freshness.position)
        if not position.offsets and not freshness.HasField("as_of"):
            if not freshness.stale:
                raise Broken("answers say how old they are", "one claims nothing and is not stale")
            return position
        ends = self.world.log.ends()
        for partition, offset in position.offsets.items():
            if offset > ends[partition]:
                raise Broken("no answer is newer than the log", f"p{partition}: {offset}, the log ends at {ends[partition]}")
            if offset < seen.get(partition, -1):
                raise Broken("positions never go back", f"p{partition}: {offset} after {seen[partition]}")
            self._seen[partition] = max(offset, self._seen.get(partition, -1))
        as_of = freshness.as_of.ToMicroseconds() if freshness.HasField("as_of") else None
        if as_of is not None and not freshness.stale and self.clock.now_us() - as_of > STALE_AFTER_S * 1e6 + LATENCY_US:
            raise Broken("answers say how old they are", f"as of {(self.clock.now_us() - as_of) / 1e6:.1f} s ago, and not stale")
        self.world.check_freshness(as_of, position, freshness.stale, STALE_AFTER_S)
        return position


class Call(NamedTuple):
    """One call to ingest, as its caller repeats it."""

    events: list[Event]
    request: writer_pb2.RecordEventsRequest


class Deadline:
    """As much of a gRPC context as ingest looks at."""

    def __init__(self, world: World, seconds: float) -> None:
        self._loop, self._ends_s = world.loop, world.loop.now_s + seconds

    def time_remaining(self) -> float:
        return self._ends_s - self._loop.now_s


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
        rng = self._world.rng(f"reader {number}")
        while True:
            await asyncio.sleep(rng.expovariate(1 / 0.5))
            node = rng.choice(self._nodes)
            if node.service is not None:
                await self.read(node, rng)

    async def read(self, node: QueryNode, rng: Any) -> None:
        what = rng.random()
        if what < 0.7:
            await self.counts(node, rng.sample(ENTITIES, rng.randint(1, 3)))
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

    async def counts(self, node: QueryNode, entities: list[str]) -> None:
        service, world = node.service, self._world
        if service is None:
            return
        request = reader_pb2.BatchGetCountsRequest(entities=entities, metrics=METRIC_NUMBERS)
        context: Any = None
        seen = node.seen()
        answer = await self._ask(node, service.batch_get_counts(request, context))
        if answer is None or node.service is not service:
            return
        position = node.saw(answer.freshness, seen)
        for entity, row in zip(entities, answer.counts, strict=True):
            for metric, value in zip(METRICS, row.values, strict=True):
                if value < 0:
                    raise Broken("no count is negative", f"{entity} {metric.name} {value}")
                possible = world.reference.values_since(entity, metric, position.offsets, world.partitions)
                if value not in possible:
                    detail = f"{entity} {metric.name} {value}, not one of {sorted(possible)} at or after {dict(position.offsets)}"
                    raise Broken("answers are of their position", detail)

    async def edges(self, node: QueryNode, actor: str, kind: Kind) -> None:
        service, world = node.service, self._world
        if service is None:
            return
        request = reader_pb2.CheckEdgesRequest(actor=actor, kind=int(kind), subjects=ENTITIES)  # type: ignore[arg-type]
        context: Any = None
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
        service, world = node.service, self._world
        if service is None:
            return
        request = reader_pb2.ListActorsRequest(subject=subject, kind=int(kind), page_size=1_000)  # type: ignore[arg-type]
        context: Any = None
        seen = node.seen()
        answer = await self._ask(node, service.list_actors(request, context))
        if answer is None or node.service is not service:
            return
        position = node.saw(answer.freshness, seen).offsets
        shown = {(item.actor, item.ref): item.occurred_at.ToMicroseconds() for item in answer.items}
        for (actor, of_kind, of_subject, ref), history in world.reference.edges.items():
            if (of_kind, of_subject) != (kind, subject):
                continue
            states: list[Any] = history.since(position.get(partition_of(actor, world.partitions), -1))
            at = shown.pop((actor, ref), None)
            # While an edge changes, its old row, its new one, both or none may show.
            if len(states) == 1 and at != (states[0].occurred_at if _active(states[0]) else None):
                raise Broken("lists are of their position", f"{kind.name} of {subject}: {actor} {ref} at {at}, not {states[0]}")
            if at is not None and not any(_active(state) and state.occurred_at == at for state in states):
                raise Broken(
                    "lists are of their position", f"{kind.name} of {subject}: {actor} {ref} at {at}, never since {dict(position)}"
                )
        if shown:
            raise Broken("lists are of their position", f"{kind.name} of {subject}: {shown} never were")


def _active(state: Any) -> bool:
    return state is not None and not state.removed


def reached(world: World, name: str) -> None:
    """failpoints.watcher: between two steps of a flush a projector may die, or hang until its partitions are another's."""
    process = process_name()
    if not name.startswith("projector.") or not process.startswith("projector"):
        return
    faults = world.faults
    if name == "projector.after_read":
        world.flushing.add(process)
    elif name in ("projector.after_sync", "projector.after_commit"):
        world.flushing.discard(process)
    if faults.strikes("flush_cut"):
        world.flushing.discard(process)
        faults.fired[f"flush_cut {name.removeprefix('projector.')}"] += 1
        raise Cut(name)
    if not world.embedded and faults.strikes("zombie"):
        faults.fired[f"zombie {name.removeprefix('projector.')}"] += 1
        world.trace.say(process, f"hangs at {name}")
        world.loop.call_later(SESSION_S, move_away, world, process)
        wait(asyncio.sleep(faults.stream("zombie").uniform(1.0, 20.0)))
        world.trace.say(process, "goes on")


def move_away(world: World, name: str) -> None:
    """Gives a projector's partitions to others."""
    rng = world.faults.stream("zombie")
    for partition in world.owners.of(name):
        if world.owners.assigned[partition] == name:
            world.owners.assigned[partition] = rng.choice([other for other in PROJECTORS if other != name])


PROJECTORS = ("projector-0", "projector-1", "projector-2")
