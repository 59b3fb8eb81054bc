"""min_position and max_staleness: a call waits for what it asks, and is told whether it got it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.query.fakes import FakeStore, unavailable
from tests.query.serving import Served, refusal, served, until
from watertower.core.model import Metric
from watertower.core.positions import Position, encode_position
from watertower.v1 import reader_pb2 as pb

FOLLOWERS = Metric.FOLLOWERS.value
NOW = 1_700_000_000_000_000


def token(offsets: dict[int, int], generation: int = 1) -> bytes:
    return encode_position(Position(generation, offsets))


def serving(test: Callable[[Served], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        store = FakeStore()
        for partition in (0, 1):
            store.write("star", FOLLOWERS, partition, 10, 5, NOW)
        async with served(store, **settings) as s:
            await test(s)

    asyncio.run(run())


def requests(**need: Any) -> dict[str, Any]:
    return {
        "GetCounts": pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS], **need),
        "BatchGetCounts": pb.BatchGetCountsRequest(entities=["star"], metrics=[FOLLOWERS], **need),
        "CheckEdges": pb.CheckEdgesRequest(actor="fan", kind=1, subjects=["star"], **need),
        "ListActors": pb.ListActorsRequest(subject="star", kind=1, **need),
        "ListSubjects": pb.ListSubjectsRequest(actor="fan", kind=1, **need),
    }


METHODS = list(requests())


@pytest.mark.parametrize("method", METHODS)
def test_a_call_waits_until_its_position_is_there(method: str) -> None:
    """It is answered as soon as the feed has brought it, satisfied, and claims it."""

    async def test(s: Served) -> None:
        request = requests(min_position=token({1: 6}))[method]
        waiting = asyncio.ensure_future(getattr(s.stub, method)(request, timeout=20))
        await until(lambda: bool(s.service._tail._waiting))
        s.store.write("star", FOLLOWERS, 1, 11, 6, NOW)
        answer = await waiting
        assert answer.freshness.satisfied
        if method == "GetCounts":
            assert list(answer.values) == [21]

    serving(test, freshness_wait_ms_max=60_000)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("need", [{"min_position": token({0: 6})}, {"max_staleness": Duration(nanos=1_000)}], ids=["position", "age"])
def test_a_call_that_waited_in_vain_is_answered_and_told(method: str, need: dict[str, Any]) -> None:
    """freshness_wait_ms_max: what there is, not satisfied, and no refusal; without a need it is satisfied."""

    async def test(s: Served) -> None:
        s.clock.us = NOW + 5
        answer = await getattr(s.stub, method)(requests(**need)[method], timeout=20)
        assert not answer.freshness.satisfied
        assert answer.freshness.position
        assert (await getattr(s.stub, method)(requests()[method])).freshness.satisfied

    serving(test, freshness_wait_ms_max=30)


def test_a_call_is_answered_before_its_own_deadline() -> None:
    """However long the service would wait: it takes half of the call's time, and leaves the rest to the store."""

    async def test(s: Served) -> None:
        answer = await s.stub.GetCounts(requests(min_position=token({0: 6}))["GetCounts"], timeout=3.0)
        assert not answer.freshness.satisfied

    serving(test, freshness_wait_ms_max=60_000)


def test_what_is_there_is_answered_at_once() -> None:
    """Positions that are included, and ages that are kept, make nobody wait; a partition that is not named is not asked for."""

    async def test(s: Served) -> None:
        s.clock.us = NOW + 2_000_000
        for need in ({"min_position": token({0: 5})}, {"min_position": token({})}, {"max_staleness": Duration(seconds=3)}):
            assert (await s.stub.GetCounts(requests(**need)["GetCounts"], timeout=20)).freshness.satisfied

    serving(test, freshness_wait_ms_max=60_000)


def test_nobody_waits_for_another_generation() -> None:
    """Its positions will never be there: the answer says so at once."""

    async def test(s: Served) -> None:
        for generation in (2, 7):
            need = {"min_position": token({0: 0}, generation)}
            assert not (await s.stub.GetCounts(requests(**need)["GetCounts"], timeout=20)).freshness.satisfied

    serving(test, freshness_wait_ms_max=60_000)


def test_only_so_many_wait() -> None:
    """freshness_waiting_max: one more is answered at once, not satisfied."""

    async def test(s: Served) -> None:
        request = requests(min_position=token({1: 6}))["GetCounts"]
        waiting = [asyncio.ensure_future(s.stub.GetCounts(request, timeout=20)) for _ in range(2)]
        await until(lambda: len(s.service._tail._waiting) == 2)
        assert not (await s.stub.GetCounts(request, timeout=20)).freshness.satisfied
        s.store.write("star", FOLLOWERS, 1, 11, 6, NOW)
        assert all([(await one).freshness.satisfied for one in waiting])
        assert not s.service._tail._waiting

    serving(test, freshness_wait_ms_max=60_000, freshness_waiting_max=2)


def test_calls_that_wait_for_the_feed_keep_nobody_from_the_store() -> None:
    """Only reads of the store count for store_calls_max, and not what a call waits for before it."""

    async def test(s: Served) -> None:
        need = requests(min_position=token({1: 6}))
        waiting = [asyncio.ensure_future(getattr(s.stub, method)(need[method], timeout=20)) for method in ("CheckEdges", "ListActors")]
        await until(lambda: len(s.service._tail._waiting) == 2)
        for method in ("CheckEdges", "ListActors"):
            assert (await getattr(s.stub, method)(requests()[method], timeout=20)).freshness.satisfied
        s.store.write("star", FOLLOWERS, 1, 11, 6, NOW)
        assert all([(await one).freshness.satisfied for one in waiting])

    serving(test, freshness_wait_ms_max=60_000, store_calls_max=1)


def test_a_call_that_gives_up_waits_no_longer() -> None:
    """It leaves nothing behind."""

    async def test(s: Served) -> None:
        waiting = s.stub.GetCounts(requests(min_position=token({1: 6}))["GetCounts"])
        await until(lambda: bool(s.service._tail._waiting))
        waiting.cancel()
        await until(lambda: not s.service._tail._waiting)

    serving(test, freshness_wait_ms_max=60_000)


def test_an_age_that_passes_while_the_store_is_read_is_told() -> None:
    """Satisfied is decided when the answer goes out."""

    async def test(s: Served) -> None:
        s.store.open.clear()
        request = requests(max_staleness=Duration(seconds=1))["GetCounts"]
        waiting = asyncio.ensure_future(s.stub.GetCounts(request, timeout=20))
        await until(lambda: s.store.concurrent == 1)
        s.clock.us += 1_000_001
        s.store.open.set()
        assert not (await waiting).freshness.satisfied

    serving(test)


def test_values_of_unknown_age_satisfy_nobody_who_asked() -> None:
    """After a gap and with a store that is away: known values, no claim."""

    async def test(s: Served) -> None:
        await s.stub.GetCounts(requests()["GetCounts"])
        s.service._cache.gap()
        s.store.broken = unavailable()
        answer = await s.stub.GetCounts(requests(min_position=token({0: 5}))["GetCounts"], timeout=20)
        assert answer.freshness.stale
        assert not answer.freshness.satisfied
        assert (await s.stub.GetCounts(requests()["GetCounts"], timeout=20)).freshness.satisfied

    serving(test)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("need", "field", "reason"),
    [
        ({"min_position": b"nonsense"}, "min_position", "MIN_POSITION_INVALID"),
        ({"min_position": token({2: 0})}, "min_position", "MIN_POSITION_INVALID"),  # of a log with more partitions
        ({"min_position": b"\x01" * 1_025}, "min_position", "MIN_POSITION_INVALID"),
        ({"max_staleness": Duration()}, "max_staleness", "MAX_STALENESS_INVALID"),
        ({"max_staleness": Duration(seconds=-1)}, "max_staleness", "MAX_STALENESS_INVALID"),
        ({"max_staleness": Duration(seconds=1, nanos=-1)}, "max_staleness", "MAX_STALENESS_INVALID"),
        ({"max_staleness": Duration(nanos=999)}, "max_staleness", "MAX_STALENESS_INVALID"),
    ],
)
def test_what_is_no_need_is_refused(method: str, need: dict[str, Any], field: str, reason: str) -> None:
    """By field and rule, on every method."""

    async def test(s: Served) -> None:
        refused = await refusal(getattr(s.stub, method)(requests(**need)[method]))
        assert refused.violations == [(field, reason)]

    serving(test)
