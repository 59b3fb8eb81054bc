"""Counts kept near: what is read often is watched, and answered here while the watch is alive and fresh."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from watertower.client.answers import Counts, Freshness, Update, covers, microseconds_of, position_of
from watertower.client.errors import ClientError
from watertower.client.options import ClientOptions
from watertower.client.peer import Sleep
from watertower.client.seen import Seen
from watertower.client.watching import forward_only
from watertower.core.model import Metric
from watertower.core.positions import Position
from watertower.ports import Clock

NEAR_READS_MIN = 2
"""Reads of one entity between two looks that make it worth watching."""

NEAR_CANDIDATES_FACTOR_MAX = 4
"""Entities whose reads are counted, for each one that may be watched: of the others, the next look decides."""

NEAR_IDLE_LOOKS_MAX = 30
"""Looks without a read of an entity after which it has no place any more: a watch of such entities alone is ended."""


class _Feed:
    """One watch and what it said."""

    def __init__(self, entities: Sequence[str]) -> None:
        self.entities = frozenset(entities)
        self.counts: dict[str, Counts] = {}
        self.freshness: Freshness | None = None
        self.heard_s = 0.0
        self.task: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Ends the watch."""
        if self.task is not None:
            self.task.cancel()

    def take(self, update: Update, now_s: float) -> None:
        self.counts.update((counts.entity, counts) for counts in update.counts)
        self.freshness, self.heard_s = update.freshness, now_s


class NearCache:
    """At most `near_entities_max` entities, on one WatchCounts stream; a second one only while it takes over from the first.

    It never waits and never fails: what it cannot answer is asked for in the usual way.
    """

    def __init__(
        self, watch: Callable[[Sequence[str]], AsyncGenerator[Update, None]], options: ClientOptions, clock: Clock, sleep: Sleep
    ) -> None:
        """`watch` all metrics of some entities."""
        self._watch, self._options, self._clock, self._sleep = watch, options, clock, sleep
        self._reads: dict[str, int] = {}  # since the last look
        self._idle: dict[str, int] = {}  # of what is watched: looks since its last read
        self._seen = Seen()  # of all feeds: one that takes over is not behind the one before
        self._feed: _Feed | None = None
        self._next: _Feed | None = None
        self._looking: asyncio.Task[None] | None = None

    def get(
        self, entities: Sequence[str], metrics: Sequence[Metric], wanted: Position | None, max_staleness_s: float | None
    ) -> list[Counts] | None:
        """The counts of all of these entities at one moment, if they are kept near and are fresh enough."""
        for entity in entities:
            counted = entity in self._reads or entity in self._idle
            if counted or len(self._reads) < NEAR_CANDIDATES_FACTOR_MAX * self._options.near_entities_max:
                self._reads[entity] = self._reads.get(entity, 0) + 1
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        feed = self._feed
        if feed is None or feed.freshness is None or not feed.counts.keys() >= set(entities):
            return None
        freshness = feed.freshness
        if freshness.stale or self._clock.monotonic_s() - feed.heard_s > self._options.near_age_ms_max / 1e3:
            return None
        if wanted is not None and not covers(position_of(freshness.position), wanted):
            return None
        if max_staleness_s is not None and not self._as_fresh(freshness, max_staleness_s):
            return None
        found = (feed.counts[entity] for entity in entities)
        return [Counts(c.entity, {metric: c.values[metric] for metric in metrics}, c.known, freshness) for c in found]

    async def close(self) -> None:
        """Ends the streams."""
        feeds = [feed.task for feed in (self._feed, self._next) if feed is not None]
        tasks = [task for task in (self._looking, *feeds) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._feed = self._next = None

    def _as_fresh(self, freshness: Freshness, max_staleness_s: float) -> bool:
        if freshness.as_of is None:
            return False
        return self._clock.now_us() - microseconds_of(freshness.as_of) <= max_staleness_s * 1e6

    async def _look(self) -> None:
        while True:
            await self._sleep(self._options.near_refresh_ms / 1e3)
            wanted = self._worth_it()
            self._reads.clear()
            feeds = [feed for feed in (self._feed, self._next) if feed is not None]
            if not wanted:
                for feed in feeds:
                    feed.end()
                self._feed = self._next = self._looking = None  # the next read looks again
                return
            watched = self._feed.entities if self._feed is not None else frozenset()
            if self._next is None and not wanted <= watched:
                feed = self._next = _Feed(sorted(wanted))
                feed.task = asyncio.get_running_loop().create_task(self._follow(feed))

    def _worth_it(self) -> frozenset[str]:
        """What was read most since the last look; of what is watched, a single read is enough. Then, while there is room, the rest
        of what is watched, the latest read first: to watch it on costs nothing, to leave it out and take it in again two new streams."""
        watched = {entity for feed in (self._feed, self._next) if feed is not None for entity in feed.entities}
        self._idle = {entity: 0 if entity in self._reads else self._idle.get(entity, 0) + 1 for entity in sorted(watched)}
        worth = [(reads, entity) for entity, reads in self._reads.items() if reads >= NEAR_READS_MIN or entity in watched]
        worth.sort(key=lambda one: (-one[0], one[1]))
        kept = sorted((looks, entity) for entity, looks in self._idle.items() if 0 < looks < NEAR_IDLE_LOOKS_MAX)
        return frozenset([entity for _, entity in (*worth, *kept)][: self._options.near_entities_max])

    async def _follow(self, feed: _Feed) -> None:
        try:
            async for update in forward_only(self._watch(sorted(feed.entities)), self._seen):
                feed.take(update, self._clock.monotonic_s())
                if feed is self._next:
                    old, self._feed, self._next = self._feed, feed, None
                    if old is not None:
                        old.end()
        except ClientError:
            pass  # a service without watches, or one that refuses this one: the next look tries again
        finally:
            if self._next is feed:
                self._next = None
            if self._feed is feed:
                self._feed = None
