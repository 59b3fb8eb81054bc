"""Watches, and the near cache that one of them feeds, against a scripted server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.client.fake import FakeServer, Naps, Never, Refusal, refused, run, served, serving, until
from watertower.client import Client, ClientClosed, Metric, Refused
from watertower.client.near_cache import NEAR_CANDIDATES_FACTOR_MAX, NEAR_IDLE_LOOKS_MAX
from watertower.client.watch_channels import WATCHES_PER_CHANNEL
from watertower.client.watching import WATCH_SETTLED_S
from watertower.core.positions import Position, encode_position
from watertower.errors import Reason
from watertower.testing.clock import FakeClock
from watertower.v1 import reader_pb2


async def next_of(updates: Any) -> dict[str, int]:
    """The next update's followers."""
    async with asyncio.timeout(10):
        update = await anext(updates)
    return {counts.entity: counts.followers for counts in update.counts}


def test_a_watch_gives_every_entity_and_then_the_changes() -> None:
    """As the service sends them; closing it ends the call there."""

    async def test() -> None:
        async with served() as (fake, client):
            updates = client.watch(["a", "b"], [Metric.FOLLOWERS], interval_s=0.5)
            first = asyncio.create_task(next_of(updates))
            await until(lambda: fake.watches, "the watch is there")
            assert fake.watches[0].interval.ToMilliseconds() == 500
            fake.updates.put_nowait(fake.update(a=1, b=2))
            assert await first == {"a": 1, "b": 2}
            fake.updates.put_nowait(fake.update(b=3))
            assert await next_of(updates) == {"b": 3}
            fake.updates.put_nowait(fake.update())
            assert await next_of(updates) == {}
            await updates.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(updates)

    run(test)


@pytest.mark.parametrize("end", [refused(Reason.STOPPING, 0.5), Refusal(grpc.StatusCode.UNAVAILABLE), None])
def test_a_watch_connects_again(end: Refusal | None) -> None:
    """After a lost connection, a service that stops, or one that merely ends the stream: no sooner than it asks for."""

    async def test() -> None:
        clock = FakeClock()
        naps = Naps(clock)
        async with served(clock, sleep=naps) as (fake, client):
            updates = client.watch(["a"])
            first = asyncio.create_task(next_of(updates))
            await until(lambda: fake.watches, "the watch is there")
            fake.updates.put_nowait(fake.update(a=1))
            await first
            fake.updates.put_nowait(end)
            second = asyncio.create_task(next_of(updates))
            await until(lambda: len(fake.watches) == 2, "it is there again")
            assert fake.watches[1] == fake.watches[0]
            fake.updates.put_nowait(fake.update(a=2))
            assert await second == {"a": 2}
            asked = 0.5 if end is not None and end.trailing else 0.0
            assert [asked <= wait < asked + 0.05 for wait in naps.waits] == [True]
            await updates.aclose()

    run(test)


def test_a_watch_that_ends_again_and_again_waits_longer() -> None:
    """A message is no sign of a good connection: only after some seconds of one do the waits begin anew."""

    async def test() -> None:
        clock = FakeClock()
        naps = Naps(clock)
        async with served(clock, Never(), naps) as (fake, client):
            updates = client.watch(["a"])
            for number in range(6):
                following = asyncio.create_task(next_of(updates))
                await until(lambda number=number: len(fake.watches) == number + 1, "the watch is there")
                fake.updates.put_nowait(fake.update(a=number))
                assert await following == {"a": number}
                clock.advance(WATCH_SETTLED_S if number == 4 else WATCH_SETTLED_S - 0.1)
                fake.updates.put_nowait(None)
            following = asyncio.create_task(next_of(updates))
            await until(lambda: len(fake.watches) == 7, "it is there again")
            assert naps.waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.05, 0.1], rel=1e-3)
            following.cancel()
            await asyncio.wait([following])
            await updates.aclose()

    run(test)


def test_a_watch_never_goes_backwards() -> None:
    """An update from a process that is behind is left out; in a session also one that lacks the session's own write."""

    async def test() -> None:
        async with served() as (fake, client):
            behind, ahead = (encode_position(Position(1, {0: offset})) for offset in (0, 9))
            session = client.session()
            for watcher, seen in ((client, ahead), (session, b"")):
                fake.watches.clear()
                if watcher is session:
                    fake.written = Position(1, {0: 4})
                    await session.follow("ann", "a")
                updates = watcher.watch(["a"])
                first = asyncio.create_task(next_of(updates))
                await until(lambda: fake.watches, "the watch is there")
                if seen:
                    fake.positions = [seen]
                    fake.updates.put_nowait(fake.update(a=5))
                    assert await first == {"a": 5}
                    first = asyncio.create_task(next_of(updates))
                fake.positions = [behind, ahead]
                fake.updates.put_nowait(fake.update(a=4))
                fake.updates.put_nowait(fake.update(a=6))
                assert await first == {"a": 6}
                await updates.aclose()
            assert session.token == ahead

    run(test)


def test_what_a_process_that_is_behind_knows_is_not_lost() -> None:
    """Its first message is held until it has caught up: it sends only what changes after that."""

    async def test() -> None:
        async with served() as (fake, client):
            updates = client.watch(["a", "b"])
            first = asyncio.create_task(next_of(updates))
            await until(lambda: fake.watches, "the watch is there")
            fake.positions = [encode_position(Position(1, offsets)) for offsets in ({0: 5, 1: 5}, {0: 6, 1: 4}, {0: 6, 1: 6})]
            fake.updates.put_nowait(fake.update(a=1, b=1))
            assert await first == {"a": 1, "b": 1}
            fake.updates.put_nowait(fake.update(a=0, b=2))  # partition 0 is ahead, partition 1 is behind
            fake.updates.put_nowait(fake.update(a=3))
            async with asyncio.timeout(10):
                update = await anext(updates)
            assert {counts.entity: counts.followers for counts in update.counts} == {"a": 3, "b": 2}
            assert {counts.freshness for counts in update.counts} == {update.freshness}
            await updates.aclose()

    run(test)


def test_a_watch_that_cannot_be_ends() -> None:
    """A service without watches is an error, not a silence."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.updates.put_nowait(Refusal(grpc.StatusCode.UNIMPLEMENTED))
            with pytest.raises(Refused, match="UNIMPLEMENTED"):
                await anext(client.watch(["a"]))

    run(test)


def test_closing_the_client_ends_a_watch() -> None:
    """Whoever waits for an update hears that the client was closed."""

    async def test() -> None:
        async with served() as (fake, client):
            waiting = asyncio.create_task(next_of(client.watch(["a"])))
            await until(lambda: fake.watches, "the watch is there")
            await client.close()
            with pytest.raises(ClientClosed):
                await waiting

    run(test)


def test_watches_take_no_room_from_reads() -> None:
    """Of a service that bounds the calls at once on a connection: more watches than that are all there, and reads are answered. Connections
    that no watch needs any more are closed."""

    async def test() -> None:
        async with serving(streams_max=WATCHES_PER_CHANNEL) as fake, Client(fake.target, fake.target) as client:
            channels: Any = client._transport._watches
            watches = [client.watch([f"e{number}"]) for number in range(2 * WATCHES_PER_CHANNEL + 1)]
            waiting = [asyncio.ensure_future(anext(updates)) for updates in watches]
            await until(lambda: fake.watching == len(watches), "all watches are there")
            await asyncio.gather(*(client.counts("a", timeout_s=5.0) for _ in range(2)), client.check("a", ["b"], timeout_s=5.0))
            assert len(channels._open) == 3
            for _ in watches:
                fake.updates.put_nowait(reader_pb2.WatchCountsResponse())
            await asyncio.gather(*waiting)
            for left, updates in enumerate(reversed(watches)):
                assert len(channels._open) == 3 - (left + WATCHES_PER_CHANNEL - 1) // WATCHES_PER_CHANNEL
                await updates.aclose()
            assert channels._open == []
            await until(lambda: fake.watching == 0, "all watches have ended")

    run(test)


def test_few_calls_at_once_are_enough_for_watches_and_reads() -> None:
    """Also where one connection takes two calls: two watches leave both to reads, and end with their client."""

    async def test() -> None:
        async with serving(streams_max=2) as fake, Client(fake.target, fake.target) as client:
            waiting = [asyncio.ensure_future(anext(client.watch([entity]))) for entity in "ab"]
            await until(lambda: fake.watching == 2, "both watches are there")
            await client.counts("a", timeout_s=5.0)
            await client.close()
            assert [type(one) for one in await asyncio.gather(*waiting, return_exceptions=True)] == [ClientClosed] * 2
            await until(lambda: fake.watching == 0, "both watches have ended")

    run(test)


class Steps:
    """`sleep` of a client whose near cache looks when the test says so."""

    def __init__(self) -> None:
        self._steps = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        await self._steps.acquire()

    def step(self) -> None:
        self._steps.release()


@contextlib.asynccontextmanager
async def near(clock: FakeClock, entities: int = 2) -> AsyncIterator[tuple[FakeServer, Client, Steps]]:
    """A client that keeps some entities near, and has read "a" often enough; the service watches it, and has said that it has 7."""
    steps = Steps()
    async with served(clock, sleep=steps, near_entities_max=entities) as (fake, client):
        for _ in range(2):
            await client.counts("a")
        steps.step()
        await until(lambda: fake.watches, "it is watched")
        fake.updates.put_nowait(fake.update(a=7))
        await _near(client, "a", 7)
        fake.reads.clear()
        yield fake, client, steps


async def _near(client: Client, entity: str, followers: int) -> None:
    cache: Any = client._transport._near
    await until(lambda: cache._feed is not None and cache._feed.counts[entity].followers == followers, "the update is there")


def test_what_is_read_often_is_kept_near() -> None:
    """And answered without a call, for any metrics, as its watch goes on."""

    async def test() -> None:
        async with near(FakeClock()) as (fake, client, _):
            found = await client.counts("a", [Metric.LIKES, Metric.FOLLOWERS])
            assert found.values == {Metric.LIKES: 7, Metric.FOLLOWERS: 7}
            fake.updates.put_nowait(fake.update(a=8))
            await _near(client, "a", 8)
            assert [one.followers for one in await client.counts_many(["a", "a"])] == [8, 8]
            assert not fake.reads
            assert len(fake.watches[0].metrics) == 6

    run(test)


def test_what_is_not_all_near_is_asked_for() -> None:
    """All of one call at one moment: never some from here and some from there."""

    async def test() -> None:
        async with near(FakeClock()) as (fake, client, _):
            await client.counts_many(["a", "b"])
            assert [list(request.entities) for request in fake.reads] == [["a", "b"]]

    run(test)


def test_a_watch_that_says_nothing_is_not_believed() -> None:
    """After near_age_ms_max without a word, and after one that is stale, reads go to the service; with the next good word they do not."""

    async def test() -> None:
        clock = FakeClock()
        async with near(clock) as (fake, client, _):
            clock.advance(2.5)
            await client.counts("a")
            assert not fake.reads
            clock.advance(0.001)
            await client.counts("a")
            assert len(fake.reads) == 1
            fake.updates.put_nowait(fake.update(a=8))
            await _near(client, "a", 8)
            await client.counts("a")
            assert len(fake.reads) == 1
            stale = fake.update(a=9)
            stale.freshness.stale = True
            fake.updates.put_nowait(stale)
            await _near(client, "a", 9)
            await client.counts("a")
            assert len(fake.reads) == 2

    run(test)


def test_what_is_near_must_be_new_enough() -> None:
    """For a session's write, and for max_staleness_s."""

    async def test() -> None:
        clock = FakeClock(1_700_000_003_000_000)  # 3 s after the fake's as_of
        async with near(clock) as (fake, client, _):
            session = client.session()
            await session.follow("ann", "a")
            assert (await session.counts("a")).followers == 1
            assert (await client.counts("a", max_staleness_s=2.9)).followers == 1
            assert len(fake.reads) == 2
            assert (await client.counts("a", max_staleness_s=3.0)).followers == 7
            fake.updates.put_nowait(fake.update(a=8))
            await _near(client, "a", 8)
            assert (await session.counts("a")).followers == 8
            assert len(fake.reads) == 2

    run(test)


def test_a_lost_watch_is_not_believed_when_it_is_back_behind() -> None:
    """What comes from a process that is behind what was near is left out; the reads go to the service meanwhile."""

    async def test() -> None:
        clock = FakeClock()
        async with near(clock) as (fake, client, steps):
            fake.updates.put_nowait(None)  # the stream ends
            # Who takes a step is open: the next look, or the watch that is to be made again.
            await until(lambda: len(fake.watches) == 2 or steps.step(), "it is watched again")
            took: list[int] = []
            cache: Any = client._transport._near
            take = cache._feed.take
            cache._feed.take = lambda update, now_s: (took.extend(one.followers for one in update.counts), take(update, now_s))
            fake.positions = [encode_position(Position(1, {}))]
            fake.updates.put_nowait(fake.update(a=3))
            fake.updates.put_nowait(fake.update(a=8))
            await _near(client, "a", 8)
            assert (await client.counts("a")).followers == 8
            assert took == [8]

    run(test)


def test_a_new_favourite_takes_over_without_a_gap() -> None:
    """The watch that is there answers until the new one has said its first word; at most near_entities_max entities are watched, those that
    are read most."""

    async def test() -> None:
        async with near(FakeClock(), entities=2) as (fake, client, steps):
            for entity, reads in (("a", 1), ("b", 2), ("c", 5), ("d", 1)):
                for _ in range(reads):
                    await client.counts(entity)
            fake.reads.clear()
            steps.step()
            await until(lambda: len(fake.watches) == 2, "the new watch is there")
            assert list(fake.watches[1].entities) == ["b", "c"]
            await client.counts("a")
            assert not fake.reads
            # Both streams take from the script's one queue: the old one may swallow the first word.
            for _ in range(2):
                fake.updates.put_nowait(fake.update(b=1, c=2))
            cache: Any = client._transport._near
            await until(lambda: cache._next is None and "c" in cache._feed.counts, "the new one has taken over")
            assert (await client.counts("c")).followers == 2
            assert not fake.reads
            await client.counts("a")
            assert len(fake.reads) == 1

    run(test)


def test_what_is_watched_stays_while_there_is_room() -> None:
    """A new favourite takes the place of what was not read for the longest time, and only if there is no free one."""

    async def test() -> None:
        async with near(FakeClock(), entities=2) as (fake, client, steps):
            cache: Any = client._transport._near
            for number, (entity, watched) in enumerate((("b", ["a", "b"]), ("c", ["b", "c"])), 2):
                for _ in range(2):
                    await client.counts(entity)
                steps.step()
                await until(lambda number=number: len(fake.watches) == number, "the new watch is there")
                assert list(fake.watches[-1].entities) == watched
                for _ in range(2):  # the old one may swallow the first word
                    fake.updates.put_nowait(fake.update(**dict.fromkeys(watched, number)))
                await until(lambda entity=entity: cache._next is None and entity in cache._feed.counts, "it has taken over")
                await until(lambda: fake.watching == 1, "the one before has ended")
            await client.counts("c")
            steps.step()
            await until(lambda: not cache._reads, "there was a look")
            assert len(fake.watches) == 3

    run(test)


def test_what_is_read_no_more_is_let_go() -> None:
    """After some looks without a read the stream ends, and with the next reads there is another one."""

    async def test() -> None:
        async with near(FakeClock()) as (fake, client, steps):
            cache: Any = client._transport._near
            for looks in (NEAR_IDLE_LOOKS_MAX - 1, NEAR_IDLE_LOOKS_MAX):
                assert (await client.counts("a")).followers == 7
                steps.step()
                await until(lambda: not cache._reads, "there was a look")
                for _ in range(looks):
                    steps.step()
                if looks < NEAR_IDLE_LOOKS_MAX:
                    await until(lambda looks=looks: cache._idle == {"a": looks}, "all looks were made")
                    assert fake.watching == 1
            await until(lambda: fake.watching == 0, "the stream has ended")
            assert cache._looking is None
            assert not fake.reads
            for _ in range(2):
                await client.counts("a")
            assert len(fake.reads) == 2
            steps.step()
            await until(lambda: fake.watching == 1, "it is watched again")

    run(test)


def test_candidates_are_bounded() -> None:
    """Reads of very many entities are counted for some of them only."""

    async def test() -> None:
        async with near(FakeClock(), entities=3) as (_, client, __):
            await client.counts_many([f"e{n}" for n in range(100)])
            cache: Any = client._transport._near
            assert len(cache._reads) == 3 * NEAR_CANDIDATES_FACTOR_MAX

    run(test)


def test_a_service_without_watches_is_asked() -> None:
    """The near cache is an extra: without it every read works."""

    async def test() -> None:
        steps = Steps()
        async with served(sleep=steps, near_entities_max=1) as (fake, client):
            for _ in range(3):
                fake.updates.put_nowait(Refusal(grpc.StatusCode.UNIMPLEMENTED))
            for number in range(1, 4):
                for _ in range(2):
                    assert (await client.counts("a")).followers == 0
                steps.step()
                await until(lambda number=number: len(fake.watches) == number, "a watch is tried")
            assert len(fake.reads) == 6

    run(test)
