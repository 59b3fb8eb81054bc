"""What answers may claim, and when: the feed's tail on a store and a clock of the test."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from structlog.testing import capture_logs

from tests.query.fakes import FakeClock, FakeStore
from watertower.core.model import Metric
from watertower.core.positions import Position, decode_position
from watertower.ports import FeedMessage
from watertower.query.cache import CountsCache
from watertower.query.tail import WAKE_NEEDS_MAX, FeedTail, Need

FOLLOWERS = int(Metric.FOLLOWERS)
STALE_AFTER_MS = 10_000


class Tail:
    """A tail with everything around it."""

    def __init__(self) -> None:
        self.store, self.clock = FakeStore(), FakeClock()
        self.cache = CountsCache(1 << 20, 60.0, 1.0, 600.0, random.Random(0).random)
        self.tail = FeedTail(
            self.store, self.store, self.cache, self.clock, structlog.get_logger(), 2, STALE_AFTER_MS, 10, ThreadPoolExecutor(1)
        )

    def start(self) -> None:
        asyncio.run(self.tail.start())

    def step(self) -> None:
        asyncio.run(self.tail.step())

    def offsets(self) -> dict[int, int]:
        position = decode_position(self.tail.freshness().position)
        assert position.generation == 1
        return dict(position.offsets)


@pytest.fixture
def t() -> Iterator[Tail]:
    world = Tail()
    yield world
    asyncio.run(world.tail.close())


def test_it_starts_from_the_stores_progress(t: Tail) -> None:
    """as_of is when the last applied record was appended, until the feed says more."""
    for partition in (0, 1):
        t.store.write("a", FOLLOWERS, partition, 1, 5 + partition, t.clock.us - 3_000_000 - partition)
    assert not t.tail.started
    t.start()
    assert t.tail.started
    assert t.tail.freshness().as_of == t.clock.us - 3_000_001
    assert not t.tail.aged(t.tail.freshness()).stale
    assert t.offsets() == {0: 5, 1: 6}


def test_a_partition_never_heard_of_leaves_nothing_to_claim(t: Tail) -> None:
    """Without a word from every partition there is no as_of, and the answer is stale."""
    t.store.write("a", FOLLOWERS, 0, 1, 5, t.clock.us)
    t.start()
    assert t.tail.freshness().as_of is None
    assert t.tail.aged(t.tail.freshness()).stale
    t.store.beat(1, t.clock.us)
    t.step()
    assert t.tail.freshness().as_of == t.clock.us
    assert not t.tail.aged(t.tail.freshness()).stale
    assert t.offsets() == {0: 5}


def test_what_was_never_heard_of_is_not_fresh_enough_for_anybody(t: Tail) -> None:
    """However far back an answer may be: a partition without a word is not one of 1970."""
    t.start()
    t.store.beat(0, t.clock.us)
    t.step()
    need = Need(None, 2**62)
    assert not t.tail.meets(need)
    t.store.beat(1, 1)
    t.step()
    assert t.tail.meets(need)


def test_as_of_is_that_of_the_partition_furthest_back(t: Tail) -> None:
    """One slow partition shows; a message from the past takes nothing back."""
    t.store.beat(0, t.clock.us)
    t.store.beat(1, t.clock.us - 4_000_000)
    t.start()
    t.store.beat(0, t.clock.us)
    t.store.beat(1, t.clock.us - 4_000_000)
    t.step()
    assert t.tail.freshness().as_of == t.clock.us - 4_000_000
    t.store.beat(1, t.clock.us - 5_000_000)
    t.step()
    assert t.tail.freshness().as_of == t.clock.us - 4_000_000


def test_answers_are_stale_when_as_of_is_too_far_back(t: Tail) -> None:
    """stale_after_ms, reached by the clock alone."""
    t.start()
    for partition in (0, 1):
        t.store.beat(partition, t.clock.us)
    t.step()
    t.clock.sleep(STALE_AFTER_MS / 1e3)
    assert not t.tail.aged(t.tail.freshness()).stale
    t.clock.sleep(0.001)
    assert t.tail.aged(t.tail.freshness()).stale


def test_the_claim_moves_only_after_all_entries_are_there(t: Tail) -> None:
    """Between the slices of a message an answer claims what it claimed before it."""
    t.start()
    count = 1_200
    taking = t.tail.take(FeedMessage(0, -1, 9, t.clock.us, [f"e{n}" for n in range(count)], bytes([1]) * count, range(count), [9] * count))
    for _ in taking:
        assert t.offsets() == {}
    assert t.offsets() == {0: 9}


def test_a_gap_makes_every_entry_cold(t: Tail) -> None:
    """A range that does not follow the one before has lost messages in between; a range that overlaps has not."""
    t.start()
    epoch = t.cache.epoch
    for after, end in ((-1, 3), (3, 3), (3, 5), (2, 6), (6, 9)):
        list(t.tail.take(FeedMessage(0, after, end, t.clock.us, [], b"", [], [])))
    assert t.cache.epoch == epoch
    with capture_logs() as lines:
        list(t.tail.take(FeedMessage(0, 10, 12, t.clock.us, [], b"", [], [])))
    assert t.cache.epoch == epoch + 1
    assert t.offsets() == {0: 12}
    assert lines == [{"event": "feed_gap", "log_level": "info", "partition": 0, "seen": 9, "after": 10}]


def test_a_start_makes_what_was_loaded_before_cold(t: Tail) -> None:
    """The claim jumps to the store's progress; an older entry does not have it."""
    epoch = t.cache.epoch
    t.start()
    assert t.cache.epoch > epoch


def test_many_waiting_calls_hold_up_no_read(t: Tail) -> None:
    """A look goes through them in slices, and others have their turn in between: calls that come or give up then, too."""

    async def run() -> None:
        count, tail = 3 * WAKE_NEEDS_MAX, t.tail
        tail._needs_waiting_max = 2 * count
        need = Need(Position(1, {0: 5}), None)
        waiting = [asyncio.create_task(tail.reach(need, 60.0)) for _ in range(count)]
        unmet: list[asyncio.Task[bool]] = []
        await asyncio.sleep(0)
        asked, slices = 0, []
        meets = tail.meets

        def counted(need: Need) -> bool:
            nonlocal asked
            asked += 1
            return meets(need)

        tail.meets = counted  # type: ignore[method-assign] # to count
        t.store.write("a", FOLLOWERS, 0, 1, 5, t.clock.us)
        stepping = asyncio.create_task(tail.step())
        while not stepping.done():
            await asyncio.sleep(0)
            slices.append(asked)
            asked = 0
            if any(slices):
                waiting.pop().cancel()
                unmet.append(asyncio.create_task(tail.reach(Need(Position(1, {0: 6}), None), 60.0)))
        await stepping
        assert max(slices) <= 2 * WAKE_NEEDS_MAX + 10  # a slice, and the calls of the one before, which look once more
        assert set(await asyncio.gather(*waiting)) == {True}
        assert unmet
        assert not any(task.done() for task in unmet)
        for task in unmet:
            task.cancel()
        await asyncio.wait(unmet)
        assert not tail._waiting

    asyncio.run(run())
