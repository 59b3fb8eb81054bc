"""A log whose disk the test holds, a clock that it sets, and ingest served on a free port."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from watertower.codec import decode_batch
from watertower.config import IngestSettings
from watertower.core.model import EventBatch
from watertower.core.sharding import partition_of
from watertower.errors import BackendUnavailable
from watertower.ingest.service import SERVICE, IngestService
from watertower.ports import LogIdentity
from watertower.rpc import RpcServer
from watertower.v1 import common_pb2
from watertower.v1.writer_pb2 import Event, RecordEventsRequest
from watertower.v1.writer_pb2_grpc import EngagementWriterStub

NOW_S = 1_800_000_000
"""What the wall clock of these tests shows, in seconds."""

METHOD = f"/{SERVICE}/RecordEvents"


class SetClock:
    """A wall clock that stands where the test puts it; the monotonic one is the machine's, because deadlines come from outside."""

    def __init__(self) -> None:
        self.wall_us = NOW_S * 1_000_000

    def now_us(self) -> int:
        return self.wall_us

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError


class Appended(NamedTuple):
    """One record that the log was asked to append."""

    partition: int
    offset: int
    appended_at: int
    events: EventBatch
    future: "Future[int]"
    traceparent: str = ""

    def land(self) -> None:
        self.future.set_result(self.offset)


class HeldLog:
    """Records land at once, or when the test says so (`held`), or never (`broken`)."""

    def __init__(self, partitions: int = 4, held: bool = False) -> None:
        self.identity = LogIdentity("a log", partitions)
        self.held = held
        self.broken: Exception | None = None
        self.records: list[Appended] = []

    def append(self, partition: int, payload: bytes, appended_at: int, traceparent: str = "") -> "Future[int]":
        if self.broken is not None:
            raise self.broken
        offset = 10 + 7 * len(self.records)
        record = Appended(partition, offset, appended_at, decode_batch(payload), Future(), traceparent)
        self.records.append(record)
        if not self.held:
            record.land()
        return record.future

    def close(self) -> None:
        pass

    def actors(self) -> list[str]:
        """Every actor whose event is in a record, landed or not."""
        return [actor for record in self.records for actor in record.events.actors]


class Ingest(NamedTuple):
    """A served ingest and a client of it."""

    stub: EngagementWriterStub
    channel: grpc.aio.Channel
    service: IngestService
    server: RpcServer
    port: int

    async def send_raw(self, data: bytes) -> bytes:
        """Calls RecordEvents with these bytes as the message."""
        return bytes(await self.channel.unary_unary(METHOD)(data))


@asynccontextmanager
async def serving(log: HeldLog, clock: SetClock | None = None, **limits: Any) -> AsyncIterator[Ingest]:
    """Ingest on a free port with these limits (the defaults otherwise)."""
    settings = IngestSettings(**limits)
    service = IngestService(log, settings, clock or SetClock(), generation=3)
    server = RpcServer("127.0.0.1", 0, [service.handler()], [SERVICE], settings.message_bytes_max, settings, service.admission)
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Ingest(EngagementWriterStub(channel), channel, service, server, port)
    finally:
        await server.stop(0)


def follow(actor: str = "ann", subject: str = "star", **changes: Any) -> Event:
    """A valid follow, with these changes."""
    fields: dict[str, Any] = {
        "actor": actor,
        "kind": common_pb2.KIND_FOLLOW,
        "subject": subject,
        "state": common_pb2.STATE_ACTIVE,
        "occurred_at": Timestamp(seconds=NOW_S - 1, nanos=123_456_789),
    }
    return Event(**(fields | changes))


def request(*events: Event) -> RecordEventsRequest:
    return RecordEventsRequest(events=events)


def actor_in(partition: int, partitions: int = 4, skip: int = 0) -> str:
    """An actor of this partition; another one for each `skip`."""
    found = [actor for actor in map("actor-{}".format, range(1_000)) if partition_of(actor, partitions) == partition]
    return found[skip]


class Refusal(NamedTuple):
    """What a caller gets to know."""

    code: grpc.StatusCode
    message: str
    info: ErrorInfo
    violations: list[tuple[str, str]]  # (field, reason)
    bad_request: BadRequest
    retry_s: float | None
    pushback_ms: str | None


async def refusal(call: Any) -> Refusal:
    """Awaits a call that must be refused; its details, decoded."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return decoded(error)
    raise AssertionError("the call was not refused")


def decoded(error: grpc.aio.AioRpcError) -> Refusal:
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailing.get("grpc-status-details-bin", b""))
    info, bad_request, retry = ErrorInfo(), BadRequest(), None
    for detail in status.details:
        if detail.Unpack(info) or detail.Unpack(bad_request):
            continue
        delay = RetryInfo()
        if detail.Unpack(delay):
            retry = delay.retry_delay.ToMilliseconds() / 1_000
    if status.details and (status.code, status.message) != (error.code().value[0], error.details()):
        raise AssertionError("the status in the details differs from the call's")
    violations = [(violation.field, violation.reason) for violation in bad_request.field_violations]
    return Refusal(error.code(), error.details() or "", info, violations, bad_request, retry, trailing.get("grpc-retry-pushback-ms"))


async def until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("the condition did not come to hold")
        await asyncio.sleep(0.001)


UNAVAILABLE = BackendUnavailable("no space left on the disk at /secret/path")
