"""What a query process counts of its calls, its cache and its store."""

import asyncio
from collections import Counter
from typing import Any, Never

import grpc
import pytest

from tests.query.fakes import FakeStore, unavailable
from tests.query.serving import refusal, served, until
from tests.query.test_service import FOLLOWERS, filled
from watertower import rpc
from watertower.metrics import query_samples
from watertower.v1 import reader_pb2 as pb

pytestmark = pytest.mark.usefixtures("each_server")

STAR = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])


def samples(served: Any) -> dict[tuple[str, ...], Any]:
    """By the name without what all names begin with, and the labels."""
    found = query_samples(served.service, served.clock)
    return {(name.removeprefix("watertower_").removeprefix("query_"), *labels): value for name, labels, value in found}


def test_hits_misses_and_how_calls_end() -> None:
    """The first read of an entity is a miss and a read of the store, the next ones are hits; refusals are counted with their reason. Each
    call counts once, whichever way its server answers it."""

    async def run() -> None:
        async with served(filled()) as s:
            for _ in range(3):
                await s.stub.GetCounts(STAR)
            await s.stub.BatchGetCounts(pb.BatchGetCountsRequest(entities=["star", "fan"], metrics=[FOLLOWERS]))
            assert (await refusal(s.stub.GetCounts(pb.GetCountsRequest(metrics=[FOLLOWERS])))).reason == "ID_LENGTH"
            seen = samples(s)
            assert (seen["read_hits_total",], seen["read_misses_total",], seen["store_reads_total",]) == (3, 2, 2)
            assert seen["calls_total", "GetCounts", "OK"] == 3
            assert seen["calls_total", "BatchGetCounts", "OK"] == 1
            assert seen["calls_total", "GetCounts", "INVALID_ARGUMENT"] == 1
            assert seen["calls_refused_total", "ID_LENGTH"] == 1
            assert sum(seen["call_duration_seconds", "GetCounts"].counts) == 4
            assert seen["cached_entities",] == 2
            assert seen["cached_bytes",] > 0
            await until(lambda: samples(s)["calls_under_way",] == 0)

    asyncio.run(run())


def test_a_refusal_is_counted_before_its_caller_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks after an answer finds it counted."""

    async def run() -> None:
        async with served(filled()) as s:
            counted: list[int] = []
            abort = rpc._abort

            async def looking(*arguments: Any) -> Never:
                counted.append(s.service.calls.ended["GetCounts", "INVALID_ARGUMENT"])
                await abort(*arguments)

            monkeypatch.setattr(rpc, "_abort", looking)
            await refusal(s.stub.GetCounts(pb.GetCountsRequest(metrics=[FOLLOWERS])))
            assert counted == [1]

    asyncio.run(run())


def test_a_caller_that_goes_away_is_counted_as_cancelled() -> None:
    """Its deadline passed, or it gave up: there was no answer."""

    async def run() -> None:
        async with served(filled()) as s:
            s.store.open.clear()
            call = s.stub.GetCounts(STAR)
            await until(lambda: s.store.concurrent == 1)
            assert samples(s)["calls_under_way",] == 1
            call.cancel()
            await until(lambda: samples(s).get(("calls_total", "GetCounts", "CANCELLED")) == 1)
            s.store.open.set()

    asyncio.run(run())


def test_a_store_that_fails_is_counted() -> None:
    """As a read that failed and a refusal; an answer from before is stale."""

    async def run() -> None:
        async with served(filled(), cache_age_ms_max=1_000) as s:
            await s.stub.GetCounts(STAR)
            before = samples(s)["stale_answers_total",]
            s.store.broken = unavailable()
            s.clock.sleep(2.0)
            assert (await s.stub.GetCounts(STAR)).freshness.stale
            assert (await refusal(s.stub.GetCounts(pb.GetCountsRequest(entity="fan", metrics=[FOLLOWERS])))).reason == "STORE_UNAVAILABLE"
            seen = samples(s)
            assert seen["stale_answers_total",] == before + 1
            assert seen["store_read_failures_total",] == 2
            assert seen["calls_refused_total", "STORE_UNAVAILABLE"] == 1
            assert seen["calls_total", "GetCounts", "UNAVAILABLE"] == 1

    asyncio.run(run())


def test_a_watch_is_open_until_it_ends_and_has_no_duration() -> None:
    """How long it lasts is its caller's wish."""

    async def run() -> None:
        async with served(filled()) as s:
            watch = s.stub.WatchCounts(pb.WatchCountsRequest(entities=["star"], metrics=[FOLLOWERS]))
            await watch.read()
            seen = samples(s)
            assert seen["watches_open",] == 1
            assert ("call_duration_seconds", "WatchCounts") not in seen
            watch.cancel()
            await until(lambda: samples(s).get(("calls_total", "WatchCounts", "CANCELLED")) == 1)
            assert samples(s)["watches_open",] == 0

    asyncio.run(run())


def test_the_age_of_the_feed_is_said_when_every_partition_was_heard_of() -> None:
    """And grows while nothing is heard."""

    async def run() -> None:
        store = FakeStore()
        async with served(store) as s:
            assert ("feed_age_seconds",) not in samples(s)
            store.write("star", FOLLOWERS, 0, 1, 1, s.clock.now_us())
            store.write("star", FOLLOWERS, 1, 1, 1, s.clock.now_us())
            await until(lambda: ("feed_age_seconds",) in samples(s))
            assert samples(s)["feed_age_seconds",] == 0.0
            s.clock.sleep(3.0)
            assert samples(s)["feed_age_seconds",] == 3.0

    asyncio.run(run())


def test_a_fault_is_internal_and_nobody_else_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a call, it is counted once."""

    async def run() -> None:
        async with served(filled()) as s:

            async def fails(*_: Any) -> bytes:
                raise ValueError("a fault")

            monkeypatch.setattr(s.service, "_look", fails)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await s.stub.BatchGetCounts(pb.BatchGetCountsRequest(entities=["star"], metrics=[FOLLOWERS]))
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            ended = Counter({key: count for key, count in s.service.calls.ended.items() if count})
            assert ended == {("BatchGetCounts", "INTERNAL"): 1}
            assert not s.service.calls.refused

    asyncio.run(run())
