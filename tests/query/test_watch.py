"""WatchCounts over gRPC: everything once, then what changes; nobody's slowness costs memory; limits."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.query.fakes import FakeStore, unavailable
from tests.query.serving import Served, refusal, served, until
from watertower.core.model import Metric
from watertower.errors import BackendRefused
from watertower.ports import FeedMessage
from watertower.v1 import reader_pb2 as pb
from watertower.v1 import reader_pb2_grpc

FOLLOWERS, LIKES = Metric.FOLLOWERS.value, Metric.LIKES.value
pytestmark = pytest.mark.usefixtures("each_server")

NOW = 1_700_000_000_000_000


def serving(test: Callable[[Served], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        store = FakeStore()
        for partition in (0, 1):
            store.write("star", FOLLOWERS, partition, 10, 5, NOW)
        async with served(store, **{"watch_interval_ms": 5, "watch_heartbeat_ms": 60_000, **settings}) as s:
            await test(s)

    asyncio.run(run())


def watch(s: Served, *entities: str, **more: Any) -> Any:
    return s.stub.WatchCounts(pb.WatchCountsRequest(entities=entities, metrics=[FOLLOWERS, LIKES], **more), timeout=60)


def rows(message: pb.WatchCountsResponse) -> dict[int, tuple[list[int], bool]]:
    return {counts.index: (list(counts.values), counts.known) for counts in message.counts}


def test_everything_once_and_then_what_changes() -> None:
    """In place, with what is known of each; an entity that nobody knew becomes known."""

    async def test(s: Served) -> None:
        stream = watch(s, "star", "nobody", "star")
        assert rows(await stream.read()) == {0: ([20, 0], True), 1: ([0, 0], False), 2: ([20, 0], True)}
        s.store.write("nobody", LIKES, 0, 3, 6, NOW)
        assert rows(await stream.read()) == {1: ([0, 3], True)}
        s.store.write("star", FOLLOWERS, 1, 11, 6, NOW)
        message = await stream.read()
        assert rows(message) == {0: ([21, 0], True), 2: ([21, 0], True)}
        assert message.freshness.position
        assert message.freshness.satisfied
        stream.cancel()
        await until(lambda: s.service._watches.open == 0)

    serving(test)


def test_a_watch_without_changes_says_how_fresh_that_is() -> None:
    """watch_heartbeat_ms: a message without counts."""

    async def test(s: Served) -> None:
        stream = watch(s, "star")
        await stream.read()
        s.store.beat(0, NOW + 7)
        s.store.beat(1, NOW + 8)
        while True:
            message = await stream.read()
            assert not message.counts
            if message.freshness.as_of.ToMicroseconds() == NOW + 7:
                break

    serving(test, watch_heartbeat_ms=10)


@pytest.mark.parametrize(("own_ms", "asked_ms"), [(300, 1), (1, 300)])
def test_the_longer_interval_holds(own_ms: int, asked_ms: int) -> None:
    """Of the service's and the caller's: changes that come faster are one message, with the newest values."""

    async def test(s: Served) -> None:
        began = asyncio.get_running_loop().time()
        stream = watch(s, "star", interval=Duration(nanos=asked_ms * 1_000_000))
        await stream.read()
        for value in range(11, 31):
            s.store.write("star", FOLLOWERS, 0, value, value, NOW)
        await until(lambda: not s.store.feed)
        assert rows(await stream.read()) == {0: ([40, 0], True)}
        assert asyncio.get_running_loop().time() - began >= 0.3

    serving(test, watch_interval_ms=own_ms)


def test_a_watch_outlives_a_store_that_refuses() -> None:
    """Damage in the rows of one entity is no reason to end the watch of others."""

    async def test(s: Served) -> None:
        stream = watch(s, "star")
        await stream.read()
        s.store.broken = BackendRefused("Corruption: half a record")
        s.service._cache._entries.clear()
        while not (await stream.read()).freshness.stale:
            pass
        s.store.broken = None
        s.store.write("star", FOLLOWERS, 0, 12, 6, NOW)
        while not (message := await stream.read()).counts:
            pass
        assert rows(message) == {0: ([22, 0], True)}

    serving(test, watch_heartbeat_ms=10, load_wait_ms_max=10)


@pytest.mark.slow
def test_a_caller_that_does_not_read_gets_the_newest_values_later() -> None:
    """What it misses is not kept: it reads what the connection holds, whose window is the caller's, and then the last values."""

    async def test(s: Served) -> None:
        names, metrics, turns = [f"entity-{number:04d}" for number in range(1_000)], [int(metric) for metric in Metric], 100
        rows_of = len(names) * len(metrics)
        # A connection that keeps to the first window of HTTP/2, 64 KiB: a message or two. By itself gRPC makes it larger and larger.
        options = [("grpc.http2.bdp_probe", 0)]
        slow = grpc.aio.insecure_channel(s.address, options=options)
        stub: Any = reader_pb2_grpc.EngagementReaderStub(slow)
        stream = stub.WatchCounts(pb.WatchCountsRequest(entities=names, metrics=metrics), timeout=100)  # type: ignore[arg-type]
        await stream.read()
        for turn in range(1, turns + 1):
            value = 2**62 + turn
            columns = (sorted(names * len(metrics)), bytes(metrics) * len(names), [value] * rows_of, [5 + turn] * rows_of)
            s.store.feed.append(FeedMessage(0, 4 + turn, 5 + turn, NOW, *columns))
            await until(lambda: not s.store.feed and s.service._tail._ends[0] == 5 + turn)  # noqa: B023
            await asyncio.sleep(0.003)  # a message is due
        messages, values = 0, [0]
        while values[0] != 2**62 + turns:
            messages += 1
            values = list((await stream.read()).counts[-1].values)
        assert messages < turns / 2
        await slow.close()

    serving(test, watch_interval_ms=1)


def test_a_watch_outlives_a_store_that_is_away() -> None:
    """What left memory stands as it was sent; the claim says that nothing is known of its age; and it goes on by itself."""

    async def test(s: Served) -> None:
        stream = watch(s, "star")
        await stream.read()
        s.store.broken = unavailable()
        s.service._cache._entries.clear()
        while not (message := await stream.read()).freshness.stale:
            pass
        assert not message.freshness.position.strip(b"\x01")
        s.store.broken = None
        s.store.write("star", FOLLOWERS, 0, 12, 6, NOW)
        while not (message := await stream.read()).counts:
            pass
        assert rows(message) == {0: ([22, 0], True)}

    serving(test, watch_heartbeat_ms=10)


@pytest.mark.parametrize("lost", ["left memory", "past its age"])
def test_a_watch_is_heard_of_while_the_store_hangs(lost: str) -> None:
    """watch_heartbeat_ms: what can only be had from a store that does not answer is not waited for longer; and it goes on by itself."""

    async def test(s: Served) -> None:
        stream = watch(s, "star")
        await stream.read()
        s.store.open.clear()
        if lost == "left memory":
            s.service._cache._entries.clear()
        else:
            s.clock.sleep(10.0)
        for _ in range(3):
            async with asyncio.timeout(20):
                while not (message := await stream.read()).freshness.stale:
                    pass
            assert not message.counts
            assert not message.freshness.HasField("as_of")
        s.store.write("star", FOLLOWERS, 0, 12, 6, NOW)
        s.store.open.set()
        while not (message := await stream.read()).counts:
            pass
        assert rows(message) == {0: ([22, 0], True)}

    serving(test, watch_heartbeat_ms=10, load_wait_ms_max=10, cache_age_ms_max=5_000, stale_age_ms_max=5_000)


def test_a_watch_does_not_begin_while_the_store_hangs() -> None:
    """freshness_wait_ms_max: then its caller hears STORE_UNAVAILABLE, and its place is another's."""

    async def test(s: Served) -> None:
        s.store.open.clear()
        async with asyncio.timeout(20):
            refused = await refusal(_read_on(watch(s, "star")))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        s.assert_to_come_back(refused, 500)
        await until(lambda: s.service._watches.open == 0)
        s.store.open.set()
        assert rows(await watch(s, "star").read()) == {0: ([20, 0], True)}

    serving(test, freshness_wait_ms_max=30)


def test_a_stop_ends_every_watch() -> None:
    """With STOPPING, and when to come back; so is one that comes then."""

    async def test(s: Served) -> None:
        stream = watch(s, "star")
        await stream.read()
        s.service._watches.end()
        ended = await refusal(_read_on(stream))
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        s.assert_to_come_back(ended, 500)
        assert (await refusal(_read_on(watch(s, "star")))).reason == "STOPPING"

    serving(test)


def test_a_stop_does_not_wait_for_callers_who_do_not_read_nor_for_a_store_that_hangs() -> None:
    """A watch whose message cannot go out, and one whose first look hangs, end at once, too, with STOPPING."""

    async def test(s: Served) -> None:
        names = [f"entity-{number:04d}" for number in range(1_000)]
        slow = grpc.aio.insecure_channel(s.address, options=[("grpc.http2.bdp_probe", 0)])
        stub: Any = reader_pb2_grpc.EngagementReaderStub(slow)
        unread = stub.WatchCounts(pb.WatchCountsRequest(entities=names, metrics=[int(metric) for metric in Metric]))
        await unread.read()
        for turn in range(1, 60):
            columns = (names, bytes([FOLLOWERS]) * 1_000, [2**62 + turn] * 1_000, [5 + turn] * 1_000)
            s.store.feed.append(FeedMessage(0, 4 + turn, 5 + turn, NOW, *columns))
            await until(lambda: not s.store.feed)
            await asyncio.sleep(0.003)
        s.store.open.clear()
        hung = asyncio.ensure_future(refusal(_read_on(watch(s, "not in memory"))))
        await until(lambda: s.store.concurrent == 1)
        s.service.end_watches()
        await until(lambda: s.service._watches.open == 0)
        assert (await hung).reason == "STOPPING"
        s.store.open.set()
        await slow.close()

    serving(test)


@pytest.mark.parametrize(
    ("settings", "opened"),
    [({"watches_max": 2}, 2), ({"watches_per_caller_max": 3}, 3), ({"watched_entities_max": 8}, 4)],
)
def test_there_are_only_so_many_watches(settings: dict[str, int], opened: int) -> None:
    """watches_max, watches_per_caller_max, watched_entities_max: one more is shed with WATCHES_FULL, and has room when another ends."""

    async def test(s: Served) -> None:
        streams = [watch(s, "star", "other") for _ in range(opened)]
        for stream in streams:
            await stream.read()
        shed = await refusal(_read_on(watch(s, "star")))
        assert (shed.code, shed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHES_FULL")
        s.assert_to_come_back(shed, 500)
        streams[0].cancel()
        await until(lambda: s.service._watches.open == opened - 1)
        assert (await watch(s, "star").read()).counts

    serving(test, **settings)


@pytest.mark.parametrize(
    ("request_", "violation"),
    [
        (pb.WatchCountsRequest(metrics=[FOLLOWERS]), ("entities", "ENTITIES_COUNT")),
        (pb.WatchCountsRequest(entities=["x"] * 1_001, metrics=[FOLLOWERS]), ("entities", "ENTITIES_COUNT")),
        (pb.WatchCountsRequest(entities=["x", ""], metrics=[FOLLOWERS]), ("entities[1]", "ID_LENGTH")),
        (pb.WatchCountsRequest(entities=["x"]), ("metrics", "METRICS_COUNT")),
        (pb.WatchCountsRequest(entities=["x"], metrics=[FOLLOWERS], interval=Duration()), ("interval", "INTERVAL_INVALID")),
        (pb.WatchCountsRequest(entities=["x"], metrics=[FOLLOWERS], interval=Duration(seconds=61)), ("interval", "INTERVAL_INVALID")),
        (pb.WatchCountsRequest(entities=["x"], metrics=[FOLLOWERS], interval=Duration(seconds=-1)), ("interval", "INTERVAL_INVALID")),
    ],
)
def test_what_cannot_be_watched_is_refused(request_: pb.WatchCountsRequest, violation: tuple[str, str]) -> None:
    """By field and rule, before anything is read."""

    async def test(s: Served) -> None:
        assert (await refusal(_read_on(s.stub.WatchCounts(request_)))).violations == [violation]
        assert s.store.reads == []

    serving(test)


def test_bytes_that_are_no_request_are_refused() -> None:
    """MESSAGE_MALFORMED, as on every method."""

    async def test(s: Served) -> None:
        call = s.channel.unary_stream("/watertower.v1.EngagementReader/WatchCounts")
        assert (await refusal(_read_on(call(b"\xff\xff")))).violations == [("", "MESSAGE_MALFORMED")]

    serving(test)


async def _read_on(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
