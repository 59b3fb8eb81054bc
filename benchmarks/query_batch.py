"""Reads of cached counts: what BatchGetCounts costs per entity, in the process and over loopback gRPC.

    .venv/bin/python -m benchmarks.query_batch [--seconds 3]

Server and client share one process (and so one interpreter) over loopback: the calls per second are a lower bound.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Sequence

import grpc
from tests.query.fakes import PATIENT, FakeStore

from watertower.clock import SystemClock
from watertower.config import QuerySettings
from watertower.core.model import Metric
from watertower.ports import FeedMessage
from watertower.query.cache import CountsCache, Load
from watertower.query.service import SERVICE, QueryService
from watertower.rpc import RpcServer
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc

ENTITIES = 20_000
PARTITIONS = 8


METRICS = (
    common_pb2.METRIC_FOLLOWERS,
    common_pb2.METRIC_FOLLOWING,
    common_pb2.METRIC_LIKES,
    common_pb2.METRIC_LIKES_GIVEN,
    common_pb2.METRIC_COMMENTS,
    common_pb2.METRIC_COMMENTS_WRITTEN,
)


def filled_store() -> FakeStore:
    """Profiles with followers from every partition, and with a following."""
    store = FakeStore(PARTITIONS)
    now_us = SystemClock().now_us()
    for number in range(ENTITIES):
        for partition in range(PARTITIONS):
            store.write(f"account-{number:08d}", Metric.FOLLOWERS, partition, number % 1_000, number, now_us, publish=False)
        store.write(f"account-{number:08d}", Metric.FOLLOWING, number % PARTITIONS, 7, number, now_us, publish=False)
    return store


async def in_process(service: QueryService, batch: int, metrics: Sequence[common_pb2.Metric], seconds: float) -> None:
    """From a parsed request to the response's bytes."""
    rng = random.Random(1)
    requests = [
        reader_pb2.BatchGetCountsRequest(entities=[f"account-{rng.randrange(ENTITIES):08d}" for _ in range(batch)], metrics=metrics)
        for _ in range(50)
    ]
    for request in requests:  # load
        await service.batch_get_counts(request, PATIENT)
    costs: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.process_time()
        await service.batch_get_counts(requests[len(costs) % 50], PATIENT)
        costs.append((time.process_time() - began) / batch * 1e6)
    costs.sort()
    median = costs[len(costs) // 2]
    print(f"in the process, {batch:5d} entities x {len(metrics)} metrics: {median:5.2f} us CPU per entity (best {costs[0]:.2f}), "
          f"{1e6 / median:10,.0f} entities/s")  # fmt: skip


async def over_grpc(port: int, batch: int, callers: int, seconds: float) -> None:
    """Callers that each wait for their answer before they ask again."""
    rng = random.Random(2)
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reader_pb2_grpc.EngagementReaderStub(channel)
        began = time.perf_counter()

        async def call_on() -> None:
            request = reader_pb2.BatchGetCountsRequest(
                entities=[f"account-{rng.randrange(ENTITIES):08d}" for _ in range(batch)], metrics=[common_pb2.METRIC_FOLLOWERS]
            )
            while time.perf_counter() - began < seconds:
                asked = time.perf_counter()
                await stub.BatchGetCounts(request)
                latencies.append(time.perf_counter() - asked)

        await asyncio.gather(*(call_on() for _ in range(callers)))
        passed = time.perf_counter() - began
    latencies.sort()
    print(f"loopback gRPC,  {batch:5d} entities, {callers:3d} callers: {len(latencies) / passed:8,.0f} calls/s, "
          f"{len(latencies) * batch / passed:10,.0f} entities/s, p50 {latencies[len(latencies) // 2] * 1e3:.2f} ms, "
          f"p99 {latencies[len(latencies) * 99 // 100] * 1e3:.2f} ms")  # fmt: skip


def feed(cached_share: float) -> None:
    """What a feed entry costs, with a share of the entities in the cache."""
    count = 10_000
    cache = CountsCache(1 << 30, 60.0, 1.0, 60.0, lambda: 0.5)
    load = Load()
    names = [f"account-{number:08d}" for number in range(count)]
    for name in names[: round(count * cached_share)]:
        cache.register(name, load)
    cache.begin(load, 0.0)
    cache.finish(load, [{} for _ in load.entities])
    best = slice_max = float("inf")
    for turn in range(20):
        fresh = [name.encode().decode() for name in names]  # as decoded: no hash yet
        message = FeedMessage(0, turn - 1, turn, turn, fresh, bytes([1]) * count, [turn] * count, [turn] * count)
        began = last = time.perf_counter()
        longest = 0.0
        for _ in cache.apply(message):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        best, slice_max = min(best, time.perf_counter() - began), min(slice_max, longest)
    print(f"feed entries, {cached_share:4.0%} of them cached: {best / count * 1e6:.3f} us each, {slice_max * 1e3:.2f} ms per slice")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement")
    seconds = parser.parse_args().seconds
    for share in (0.0, 0.01, 1.0):
        feed(share)
    store = filled_store()
    rng = random.Random(4)
    service = QueryService(store, store, QuerySettings(), SystemClock(), rng, PARTITIONS)
    server = RpcServer("127.0.0.1", 0, [service.handler()], [SERVICE], message_bytes_max=1 << 20)
    port = await server.start()
    await service.start()
    server.set_ready(True)
    for number in (1, 2, 6):
        await in_process(service, 1_000, METRICS[:number], seconds)
    for batch, callers in ((1, 1), (1, 32), (100, 8), (1_000, 4)):
        await over_grpc(port, batch, callers, seconds)
    await server.stop(1.0)
    await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
