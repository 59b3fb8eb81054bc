"""What a process pays for being measured, in CPU time: of a GetCounts from memory without its transport, and of a flush. Prints; asserts
nothing.

    python -m benchmarks.counting
"""

import asyncio
import random
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from grpc import StatusCode
from tests.projector.test_projector import LOG, batch
from tests.query.fakes import FakeClock, FakeStore

from watertower.backends.memory_log import MemoryLog
from watertower.backends.rocksdb import RocksDbStore
from watertower.clock import SystemClock
from watertower.codec import encode_batch
from watertower.config import ProjectorSettings, QuerySettings
from watertower.core.model import Metric
from watertower.counters import CallCounters
from watertower.ports import StoreIdentity
from watertower.projector.projector import FlushCounters, Projector
from watertower.query.service import SERVICE, QueryService
from watertower.rpc import _Ending
from watertower.v1 import common_pb2, reader_pb2

CALLS, ROUNDS = 20_000, 7
FLUSH_EVENTS, FLUSHES = 2_000, 7


class Context:
    """A call whose request is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data

    def time_remaining(self) -> float:
        return 5.0

    def add_done_callback(self, callback: Any) -> None:
        callback(self)


class Details:
    method = f"/{SERVICE}/GetCounts"
    invocation_metadata = ()


async def calls() -> tuple[float, float]:
    """Microseconds of a call by the handler, and by the native server's way past it; each the least of ROUNDS."""
    store, clock = FakeStore(), FakeClock()
    store.write("star", Metric.FOLLOWERS, 0, 42, 1, clock.now_us())
    store.write("star", Metric.FOLLOWERS, 1, 42, 1, clock.now_us())
    service = QueryService(store, store, QuerySettings(), SystemClock(), random.Random(1), 2)
    await service.start()
    handler: Any = service.handler().service(Details())  # type: ignore[arg-type]
    data = reader_pb2.GetCountsRequest(entity="star", metrics=[common_pb2.METRIC_FOLLOWERS]).SerializeToString()
    context = Context(data)
    by_handler, past_it = [], []
    await handler.stream_unary(None, context)
    for _ in range(ROUNDS):
        began = process_time()
        for _ in range(CALLS):
            await handler.stream_unary(None, context)
        by_handler.append(process_time() - began)
        began = process_time()
        for _ in range(CALLS):
            service.get_counts_now(data)
        past_it.append(process_time() - began)
    await service.stop()
    return min(by_handler) / CALLS * 1e6, min(past_it) / CALLS * 1e6


def flush() -> float:
    """Milliseconds of a flush of FLUSH_EVENTS events of as many actors, the least of FLUSHES."""
    clock, took = SystemClock(), []
    with tempfile.TemporaryDirectory() as home:
        log = MemoryLog(LOG)
        store = RocksDbStore(Path(home) / "store", StoreIdentity(LOG, 1), 1 << 22, 1 << 22, 100)
        projector = Projector(log, store, store.feed, ProjectorSettings(), clock, random.Random(1))
        projector.start()
        for number in range(FLUSHES):
            log.append(0, encode_batch(batch(*(f"{number}-{actor}" for actor in range(FLUSH_EVENTS)))), clock.now_us())
            began = process_time()
            projector.step()
            took.append(process_time() - began)
        store.close()
    return min(took) * 1e3


async def counting() -> tuple[float, float]:
    """Microseconds of what is counted around a call and of what is around a flush, each the least of ROUNDS."""
    calls, flushes, clock = CallCounters(["GetCounts"]), FlushCounters(), SystemClock()
    of_call, of_flush = [], []
    for _ in range(ROUNDS):
        began = process_time()
        for _ in range(CALLS):
            with _Ending("service/GetCounts", calls) as ending:
                ending.end(StatusCode.OK)
        of_call.append(process_time() - began)
        began = process_time()
        for _ in range(CALLS):
            began_s = clock.monotonic_s()
            flushes.durations.add(clock.monotonic_s() - began_s)
            flushes.events += FLUSH_EVENTS
        of_flush.append(process_time() - began)
    return min(of_call) / CALLS * 1e6, min(of_flush) / CALLS * 1e6


def main() -> None:
    by_handler, past_it = asyncio.run(calls())
    print(f"GetCounts from memory, without its transport: {by_handler:.2f} µs by the handler, {past_it:.2f} µs past it (native)")
    print(f"a flush of {FLUSH_EVENTS:,} events: {flush():.2f} ms")
    of_call, of_flush = asyncio.run(counting())
    print(f"of these, what counting takes: {of_call:.2f} µs of a call, {of_flush:.2f} µs of a flush")


if __name__ == "__main__":
    main()
