"""A query service as callers meet it: over gRPC, on a fake store, with a clock of the test."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from tests.query.fakes import FakeClock, FakeStore
from watertower.config import QuerySettings
from watertower.query.process import server_of
from watertower.query.service import QueryService
from watertower.rpc import RpcServer
from watertower.v1 import reader_pb2_grpc


class Served(NamedTuple):
    """What a test works with."""

    stub: Any
    store: FakeStore
    clock: FakeClock
    service: QueryService
    channel: grpc.aio.Channel
    port: int
    address: str
    server: RpcServer

    def assert_to_come_back(self, refused: "Refusal", milliseconds: int) -> None:
        """The caller is told to come back after half to one and a half of this time, in RetryInfo and in the pushback metadata that the
        native server cannot send (docs/operating.md)."""
        assert refused.retry_ms is not None
        assert milliseconds / 2 <= refused.retry_ms < milliseconds * 3 / 2
        assert refused.pushback_ms == (str(refused.retry_ms) if type(self.server) is RpcServer else None)


class Refusal(NamedTuple):
    """A refused call, taken apart."""

    code: grpc.StatusCode
    reason: str
    violations: list[tuple[str, str]]  # (field, reason)
    retry_ms: int | None
    pushback_ms: str | None


@asynccontextmanager
async def served(store: FakeStore | None = None, started: bool = True, **settings: Any) -> AsyncIterator[Served]:
    """Serves until the block ends. `settings` are those of QuerySettings, `server` among them."""
    store, clock = store or FakeStore(), FakeClock()
    limits = QuerySettings(**{"tail_interval_ms": 1, **settings})
    service = QueryService(store, store, limits, clock, random.Random(0), store.identity.log.partitions)
    server = server_of(service, "127.0.0.1", 0, limits)
    port = await server.start()
    try:
        if started:
            await service.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(reader_pb2_grpc.EngagementReaderStub(channel), store, clock, service, channel, port, f"127.0.0.1:{port}", server)
    finally:
        store.open.set()
        await server.stop(1.0)
        await service.stop()


async def refusal(call: Any) -> Refusal:
    """What a call was refused with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        has_retry = False
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
            has_retry |= detail.Unpack(retry)
        violations = [(violation.field, violation.reason) for violation in bad.field_violations]
        retry_ms = retry.retry_delay.ToMilliseconds() if has_retry else None
        return Refusal(error.code(), info.reason, violations, retry_ms, trailing.get("grpc-retry-pushback-ms"))
    raise AssertionError("the call was not refused")


async def until(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    """Waits for a condition; fails after the deadline."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - the condition is set in threads and in the service
            await asyncio.sleep(0.002)
