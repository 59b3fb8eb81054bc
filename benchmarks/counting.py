"""What a process pays for being measured: a GetCounts from memory without its transport, and a flush. Prints; asserts nothing.

    python -m benchmarks.counting

Run it on two versions of the tree, in turns, to see what counting adds.
"""

import asyncio
import random
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.projector.test_projector import LOG, batch
from tests.query.fakes import FakeClock, FakeStore

from watertower.backends.memory_log import MemoryLog
from watertower.backends.rocksdb import RocksDbStore
from watertower.clock import SystemClock
from watertower.codec import encode_batch
from watertower.config import ProjectorSettings, QuerySettings
from watertower.core.model import Metric
from watertower.ports import StoreIdentity
from watertower.projector.projector import Projector
from watertower.query.service import SERVICE, QueryService
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
        began = perf_counter()
        for _ in range(CALLS):
            await handler.stream_unary(None, context)
        by_handler.append(perf_counter() - began)
        began = perf_counter()
        for _ in range(CALLS):
            service.get_counts_now(data)
        past_it.append(perf_counter() - began)
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
            began = perf_counter()
            projector.step()
            took.append(perf_counter() - began)
        store.close()
    return min(took) * 1e3


def main() -> None:
    by_handler, past_it = asyncio.run(calls())
    print(f"GetCounts from memory, without its transport: {by_handler:.2f} µs by the handler, {past_it:.2f} µs past it (native)")
    print(f"a flush of {FLUSH_EVENTS:,} events: {flush():.2f} ms")


if __name__ == "__main__":
    main()
