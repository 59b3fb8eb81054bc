"""The tail of the counts feed: keeps the cache up to date, and knows how fresh that is.

Steps: look at the feed (in a thread, decoding included), merge its messages into the cache (on the event loop, in slices, so that a big
flush holds up no read), and then, message by message, move the claim of freshness on.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from watertower.core.model import Progress
from watertower.core.positions import Position, encode_position
from watertower.errors import BackendUnavailable
from watertower.ports import Clock, FeedMessage, FeedReader, StoreReader
from watertower.query.cache import CountsCache

WAKE_NEEDS_MAX = 500
"""Waiting calls that a look at the feed goes through in one go; reads get their turn in between."""


class Freshness(NamedTuple):
    """What an answer may claim."""

    as_of: int | None  # microseconds; everything acknowledged before is included; None: nothing is claimed
    position: bytes  # a token of core/positions.py
    stale: bool
    satisfied: bool  # it is as fresh as the request asked


class Need(NamedTuple):
    """How fresh a call wants its answer."""

    position: Position | None  # to be included
    staleness_us_max: int | None  # as_of may lie so far back


NO_NEED = Need(None, None)


class FeedTail:
    """One reader of the feed for one cache. Belongs to one event loop."""

    def __init__(
        self,
        reader: StoreReader,
        feed: FeedReader,
        cache: CountsCache,
        clock: Clock,
        log: FilteringBoundLogger,
        partitions: int,
        stale_after_ms: int,
        needs_waiting_max: int,
        pool: Executor,
    ) -> None:
        """At most `needs_waiting_max` calls wait in `reach`. `pool` is for the looks at the feed, one at a time; `close` shuts it down."""
        self._reader, self._feed, self._cache, self._clock, self._log = reader, feed, cache, clock, log
        self._stale_after_us = stale_after_ms * 1_000
        self._generation = reader.identity.generation
        self._ends = [-1] * partitions
        self._as_of = [0] * partitions  # 0: never heard of
        self._position = self.nothing.position  # what `_ends` say, encoded
        self._needs_waiting_max = needs_waiting_max
        self._waiting: dict[asyncio.Future[None], Need] = {}
        self._pool = pool
        self.started = False

    @property
    def nothing(self) -> Freshness:
        """What an answer of unknown age claims."""
        return Freshness(None, encode_position(Position(self._generation, {})), stale=True, satisfied=False)

    @property
    def as_of_us(self) -> int:
        """As of the partition that is furthest back, microseconds; 0: of one nothing was heard."""
        return min(self._as_of)

    def freshness(self) -> Freshness:
        """What an answer may claim that is read from now on, from the cache or from the store.

        As of the partition that is furthest back; stale when that was never heard of. Whether it is further back than promised is
        seen when the answer is there: see `aged`.
        """
        as_of = self.as_of_us
        if not as_of:
            return self.nothing._replace(position=self._position)
        return Freshness(as_of, self._position, stale=False, satisfied=True)

    def aged(self, freshness: Freshness, need: Need = NO_NEED) -> Freshness:
        """A claim as it goes out to a call with that need: a read may have waited for long."""
        if need is NO_NEED:
            freshness = freshness._replace(satisfied=True)
        if freshness.as_of is not None:
            age_us = self._clock.now_us() - freshness.as_of
            if age_us > self._stale_after_us:
                freshness = freshness._replace(stale=True)
            if need.staleness_us_max is not None and age_us > need.staleness_us_max:
                freshness = freshness._replace(satisfied=False)
        return freshness

    def meets(self, need: Need) -> bool:
        """Whether what `freshness` claims now is as fresh as that."""
        position, staleness_us_max = need
        if position is not None:
            ends = self._ends
            if position.generation != self._generation or any(ends[partition] < end for partition, end in position.offsets.items()):
                return False
        if staleness_us_max is None:
            return True
        as_of = self.as_of_us
        return as_of > 0 and self._clock.now_us() - as_of <= staleness_us_max  # 0 is no moment, however old an answer may be

    async def reach(self, need: Need, wait_s: float) -> bool:
        """Waits until `meets(need)`, `wait_s` at most; whether it does. Does not wait for another generation's positions, which it
        will never have, nor where too many wait already."""
        if self.meets(need):
            return True
        foreign = need.position is not None and need.position.generation != self._generation
        if foreign or len(self._waiting) >= self._needs_waiting_max:
            return False
        met: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[met] = need
        try:
            await asyncio.wait([met], timeout=wait_s)
        finally:
            del self._waiting[met]
        return self.meets(need)

    async def start(self) -> None:
        """Takes its place at the feed's end. The rows as they are then stand for all messages before."""
        progress = await asyncio.get_running_loop().run_in_executor(self._pool, self._begin)
        for partition, (end, _, appended_at) in progress.items():
            self._advance(partition, end, appended_at)
        self._cache.gap()  # what was loaded before may be older than that
        self.started = True

    async def step(self) -> None:
        """One look at the feed."""
        messages = await asyncio.get_running_loop().run_in_executor(self._pool, self._feed.poll)
        for message in messages:
            for _ in self.take(message):
                await asyncio.sleep(0)
        if not messages:
            return  # nothing that could meet a need
        # Of a list: calls come and go meanwhile. One that has gone is told to no effect.
        for number, (met, need) in enumerate(list(self._waiting.items()), 1):
            if not met.done() and self.meets(need):
                met.set_result(None)
            if number % WAKE_NEEDS_MAX == 0:
                await asyncio.sleep(0)

    async def run(self, interval_s: float) -> None:
        """Steps for good. While the store cannot be read it goes on trying: the answers' as_of shows it."""
        failing = False
        while True:
            try:
                await self.step()
            except BackendUnavailable as error:
                if not failing:
                    self._log.warning("feed_unavailable", error=str(error))
                failing = True
            else:
                if failing:
                    self._log.info("feed_available")
                failing = False
            await asyncio.sleep(interval_s)

    def take(self, message: FeedMessage) -> Iterator[None]:
        """Takes one message in; yields wherever reads may have their turn."""
        if message.after > self._ends[message.partition]:
            self._log.info("feed_gap", partition=message.partition, seen=self._ends[message.partition], after=message.after)
            self._cache.gap()
        yield from self._cache.apply(message)
        # Only now: an answer in between must not claim entries that it does not have yet.
        self._advance(message.partition, message.end, message.as_of)

    async def close(self) -> None:
        """Waits for the look that is under way."""
        await asyncio.to_thread(self._pool.shutdown)

    def _begin(self) -> dict[int, Progress]:
        """In the thread. The feed's end before the rows: what comes in between is in both, instead of in neither."""
        self._feed.poll()
        self._reader.catch_up()
        return self._reader.read_progress()

    def _advance(self, partition: int, end: int, as_of: int) -> None:
        self._as_of[partition] = max(self._as_of[partition], as_of)
        if end > self._ends[partition]:
            self._ends[partition] = end
            offsets = {number: offset for number, offset in enumerate(self._ends) if offset >= 0}
            self._position = encode_position(Position(self._generation, offsets))
