"""Both servers of Watertower in the test's own event loop: real gRPC on a free port, and answers from a script."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import grpc

from watertower.client import Client, ClientOptions
from watertower.core.positions import Position, encode_position
from watertower.errors import CallRefused, Reason, Violation
from watertower.ports import Clock
from watertower.rpc import status_of
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc


class Refusal(NamedTuple):
    """How the fake refuses a call; what a server of Watertower sends is made by `refused`."""

    status: grpc.StatusCode
    said: str = "refused"
    trailing: tuple[tuple[str, str | bytes], ...] = ()


def refused(
    reason: Reason, retry_after_s: float | None = None, violations: Sequence[Violation] = (), pushback: str | None = None
) -> Refusal:
    """A refusal exactly as a server of Watertower sends it; `pushback` in place of its own."""
    refusal = CallRefused(reason, violations, retry_after_s)
    trailing: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status_of(refusal).SerializeToString())]
    if pushback is None and retry_after_s is not None:
        pushback = str(round(retry_after_s * 1e3))
    if pushback is not None:
        trailing.append(("grpc-retry-pushback-ms", pushback))
    return Refusal(grpc.StatusCode[reason.status.name], str(refusal), tuple(trailing))


SHED = refused(Reason.QUEUE_FULL, 0.2)
AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, "nobody here")

Script = Callable[[int, Any], Awaitable[Refusal | None] | Refusal | None]
"""What to do with call number n (from 0): refuse it, wait, or nothing (None)."""


class FakeServer(writer_pb2_grpc.EngagementWriterServicer, reader_pb2_grpc.EngagementReaderServicer):
    """Counts followers of what was recorded. `position` is where answers are; a write moves `written` on, and `position` with it, unless
    `lags`."""

    def __init__(self) -> None:
        self.port = 0
        self.loop = asyncio.get_running_loop()
        self.records: list[writer_pb2.RecordEventsRequest] = []
        self.reads: list[Any] = []
        self.deadlines: list[float] = []
        self.on_record: Script = lambda number, request: None
        self.on_read: Script = lambda number, request: None
        self.followers: Counter[str] = Counter()
        self.edges: set[tuple[str, str]] = set()
        self.written = Position(1, {0: 0})
        self.positions: list[bytes] = []  # of the next answers, instead of `written`
        self.watches: list[reader_pb2.WatchCountsRequest] = []
        self.watching = 0  # watches that have not ended
        self.updates: asyncio.Queue[reader_pb2.WatchCountsResponse | Refusal | None] = asyncio.Queue()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def RecordEvents(self, request: writer_pb2.RecordEventsRequest, context: Any) -> writer_pb2.RecordEventsResponse:  # noqa: N802
        self.records.append(request)
        self.deadlines.append(context.time_remaining())
        await self._scripted(self.on_record, len(self.records) - 1, request, context)
        for event in request.events:
            edge = (event.actor, event.subject)
            active = event.state == common_pb2.STATE_ACTIVE
            if active != (edge in self.edges):
                self.followers[event.subject] += 1 if active else -1
                (self.edges.add if active else self.edges.discard)(edge)
        self.written = Position(1, {0: self.written.offsets[0] + 1})
        return writer_pb2.RecordEventsResponse(write_token=encode_position(self.written))

    async def BatchGetCounts(self, request: reader_pb2.BatchGetCountsRequest, context: Any) -> reader_pb2.BatchGetCountsResponse:  # noqa: N802
        self.reads.append(request)
        self.deadlines.append(context.time_remaining())
        await self._scripted(self.on_read, len(self.reads) - 1, request, context)
        answer = reader_pb2.BatchGetCountsResponse(freshness=self._freshness())
        for index, entity in enumerate(request.entities):
            answer.counts.add(values=[self.followers[entity]] * len(request.metrics))
            if entity not in self.followers:
                answer.exceptions.add(index=index, known=False)
        return answer

    async def CheckEdges(self, request: reader_pb2.CheckEdgesRequest, context: Any) -> reader_pb2.CheckEdgesResponse:  # noqa: N802
        self.reads.append(request)
        await self._scripted(self.on_read, len(self.reads) - 1, request, context)
        active = [(request.actor, subject) in self.edges for subject in request.subjects]
        return reader_pb2.CheckEdgesResponse(active=active, freshness=self._freshness())

    async def ListActors(self, request: reader_pb2.ListActorsRequest, context: Any) -> reader_pb2.ListActorsResponse:  # noqa: N802
        self.reads.append(request)
        await self._scripted(self.on_read, len(self.reads) - 1, request, context)
        items = [reader_pb2.ActorItem(actor=actor) for actor, subject in sorted(self.edges) if subject == request.subject]
        return reader_pb2.ListActorsResponse(items=items, freshness=self._freshness())

    async def ListSubjects(self, request: reader_pb2.ListSubjectsRequest, context: Any) -> reader_pb2.ListSubjectsResponse:  # noqa: N802
        self.reads.append(request)
        await self._scripted(self.on_read, len(self.reads) - 1, request, context)
        items = [reader_pb2.SubjectItem(subject=subject) for actor, subject in sorted(self.edges) if actor == request.actor]
        return reader_pb2.ListSubjectsResponse(items=items, freshness=self._freshness())

    async def WatchCounts(self, request: reader_pb2.WatchCountsRequest, context: Any) -> AsyncIterator[reader_pb2.WatchCountsResponse]:  # noqa: N802
        self.watches.append(request)
        self.watching += 1
        try:
            while True:
                update = await self.updates.get()
                if update is None:
                    return
                if isinstance(update, Refusal):
                    await context.abort(update.status, update.said, update.trailing)
                yield update
        finally:
            self.watching -= 1

    def update(self, **followers: int) -> reader_pb2.WatchCountsResponse:
        """A message to the newest watch, at the current position: entities of the watch by name, with one value for every metric."""
        entities, metrics = list(self.watches[-1].entities), self.watches[-1].metrics
        rows = [
            reader_pb2.WatchedCounts(index=entities.index(entity), values=[value] * len(metrics), known=True)
            for entity, value in followers.items()
        ]
        return reader_pb2.WatchCountsResponse(counts=rows, freshness=self._freshness())

    def _freshness(self) -> common_pb2.Freshness:
        position = self.positions.pop(0) if self.positions else encode_position(self.written)
        freshness = common_pb2.Freshness(position=position, satisfied=True)
        freshness.as_of.FromMicroseconds(1_700_000_000_000_000)
        return freshness

    async def _scripted(self, script: Script, number: int, request: Any, context: Any) -> None:
        said = script(number, request)
        refusal = await said if isinstance(said, Awaitable) else said
        if refusal is not None:
            await context.abort(refusal.status, refusal.said, refusal.trailing)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test that is a coroutine function, in an event loop of its own."""
    asyncio.run(test())


class Never(random.Random):
    """No throttling: every coin says no. Full jitter at its most."""

    def random(self) -> float:
        return 0.999_999


class Naps:
    """`sleep` of a client that takes no time: what was asked for is kept, and a fake clock moves on by it."""

    def __init__(self, clock: Any = None) -> None:
        self.waits: list[float] = []
        self._clock = clock

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self._clock is not None:
            self._clock.advance(seconds)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(port: int = 0, host: str = "127.0.0.1", streams_max: int | None = None) -> AsyncIterator[FakeServer]:
    """A fake server that listens; port 0 takes a free one. `streams_max`: calls at once on one connection."""
    fake = FakeServer()
    options = [("grpc.so_reuseport", 0)]
    if streams_max is not None:
        options.append(("grpc.max_concurrent_streams", streams_max))
    server = grpc.aio.server(options=options)
    writer_pb2_grpc.add_EngagementWriterServicer_to_server(fake, server)
    reader_pb2_grpc.add_EngagementReaderServicer_to_server(fake, server)
    fake.port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def served(
    clock: Clock | None = None, rng: random.Random | None = None, sleep: Any = asyncio.sleep, **options: Any
) -> AsyncIterator[tuple[FakeServer, Client]]:
    """A fake server and a client of it with these options."""
    async with serving() as fake, Client(fake.target, fake.target, ClientOptions(**options), clock=clock, rng=rng, sleep=sleep) as client:
        yield fake, client


async def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    """Lets the loop run until a condition is true. Raises AssertionError after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - of any kind, at any place
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None
