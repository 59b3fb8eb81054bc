"""The parts of one run: what they share, and what each must never show.

An invariant that breaks ends the run; `Broken` names it.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

from watertower.codec import UndecodableRecord, decode_batch
from watertower.core.model import Metric
from watertower.core.positions import Position
from watertower.ports import CountsFeed, FeedReader, LogIdentity, LogRecord, Store, StoreIdentity, StoreReader
from watertower.projector.projector import Projector
from watertower.testing.simulator import cassandra
from watertower.testing.simulator.cassandra import RowScanner
from watertower.testing.simulator.cluster import REPLICAS, Cluster
from watertower.testing.simulator.embedded import EmbeddedStore, SecondaryReader
from watertower.testing.simulator.faults import Faults
from watertower.testing.simulator.feed import SimulatedFeed, SimulatedFeedReader, SimulatedFeedWriter
from watertower.testing.simulator.kernel import Trace, VirtualClock, VirtualTimeLoop
from watertower.testing.simulator.log import SimulatedLog
from watertower.testing.simulator.reference import Reference
from watertower.testing.simulator.replicas import ReplicaScanner, ReplicatedStore

EMBEDDED_SHARE = 0.25
"""Of the runs: with one owner and the embedded store, instead of three projectors and a replicated one."""

CASSANDRA_SHARE = 0.5
"""Of the other runs: with the back end for Cassandra, instead of a store in which every row is a cell of its own."""

CLOCK_OFF_US_MAX = 2_000_000
"""How far a process's wall clock may be off."""

Event = tuple[str, int, str, str, bool, int]
"""(actor, kind, subject, ref, active, occurred_at)."""


class Broken(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant, self.detail = invariant, detail


class Parts(NamedTuple):
    """What a run is made of. Tests put parts with planted bugs here."""

    projector: type[Projector] = Projector
    store: Callable[[Cluster], Store] | None = None  # None: ReplicatedStore, or the back end for Cassandra, by seed
    cassandra: bool | None = None  # whether it is the latter; None: by seed, unless there is a store
    embedded_store: Callable[[Cluster, SimulatedFeed], EmbeddedStore] = EmbeddedStore
    prepare: Callable[["World"], object] = lambda world: None


def events_in(record: LogRecord) -> list[Event]:
    """The events of a record, in order; none of one that cannot be decoded."""
    try:
        actors, kinds, subjects, refs, actives, times = decode_batch(record.payload)
    except UndecodableRecord:
        return []
    return [
        (actor, kind, subject, ref, bool(active), at)
        for actor, kind, subject, ref, active, at in zip(actors, kinds, subjects, refs, actives, times, strict=True)
    ]


class Owners:
    """Which projector has which partition: one each as a group would have it, and for a while another one beside it."""

    def __init__(self) -> None:
        self.assigned: dict[int, str] = {}
        self.beside: dict[int, str] = {}

    def of(self, name: str) -> list[int]:
        return [partition for partition, owner in self.assigned.items() if name in (owner, self.beside.get(partition))]


class World:
    """One run's log, store, feed, clocks and truth."""

    def __init__(self, seed: int, faults: Faults, parts: Parts, show: Callable[[str], object] | None) -> None:
        self.seed, self.faults, self.parts = seed, faults, parts
        self.loop = VirtualTimeLoop()
        self.trace = Trace(self.loop, show)
        self.loop.set_exception_handler(self._unexpected)
        rng = self.rng("world")
        self.partitions = rng.choice((1, 2, 2, 3))
        self.embedded = rng.random() < EMBEDDED_SHARE
        drawn = rng.random() < CASSANDRA_SHARE and parts.store is None
        self.cassandra = not self.embedded and (drawn if parts.cassandra is None else parts.cassandra)
        identity = LogIdentity(f"log-{seed}", self.partitions)
        self.log = SimulatedLog(self.loop, faults, self.rng("log"), identity, self._landed)
        self.cluster = Cluster(self.loop, faults, self.rng("store"), StoreIdentity(identity, 1))
        self.feed = SimulatedFeed(self.loop, faults, self.rng("feed"), self.partitions)
        self.reference = Reference()
        self.owners = Owners()
        self.failed: asyncio.Future[None] = self.loop.create_future()
        self.clocks: dict[str, VirtualClock] = {}
        self.undecodable: dict[int, int] = {}
        """Partition -> the offset at which it must stop."""
        self.offsets_of: dict[Event, int] = {}
        """Each event's first offset in the log."""
        self.acknowledged: list[tuple[float, Position]] = []
        """When, and up to where, in order of time."""
        self.acknowledged_events: dict[Event, None] = {}
        self.flushing: set[str] = set()
        """The projectors between the first and the last step of a flush."""
        self.stopped: set[int] = set()
        """Partitions of which a projector said that it stopped."""
        self.events = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        parts.prepare(self)

    def store(self) -> Store:
        """For a projector that starts."""
        if self.embedded:
            return self.parts.embedded_store(self.cluster, self.feed)
        return (self.parts.store or (cassandra.store if self.cassandra else ReplicatedStore))(self.cluster)

    def scanner(self, replicas: Collection[int] = range(REPLICAS)) -> RowScanner | ReplicaScanner:
        """What these replicas hold together."""
        return (RowScanner if self.cassandra else ReplicaScanner)(self.cluster, replicas)

    def feed_writer(self, store: Store) -> CountsFeed:
        """For a projector with that store."""
        return store if isinstance(store, EmbeddedStore) else SimulatedFeedWriter(self.feed)

    def readers(self) -> tuple[StoreReader, FeedReader]:
        """For a query process that starts."""
        if self.embedded:
            secondary = SecondaryReader(self.cluster, self.feed)
            return secondary, secondary
        store = cassandra.reader(self.cluster) if self.cassandra else ReplicatedStore(self.cluster)
        return store, SimulatedFeedReader(self.feed)

    def rng(self, name: str) -> random.Random:
        """A stream of its own for each user, so that one user's draws do not move another's."""
        return random.Random(f"{self.seed}/{name}")

    def clock(self, name: str) -> VirtualClock:
        clock = self.clocks.get(name)
        if clock is None:
            clock = self.clocks[name] = VirtualClock(self.loop)
            clock.off_us = self.rng(f"clock {name}").randint(-50_000, 50_000)
        return clock

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that left a callback of the loop: it ends the run."""
        if "handle" in context and not self.failed.done():
            self.failed.set_exception(Broken("nothing unexpected is raised", repr(context.get("exception"))))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """A task of the run. An error that nobody expects ends it."""
        task = self.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def close(self) -> None:
        """Drops everything that still goes on."""
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if task.cancelled() or self.failed.done():
            return
        error = task.exception()
        if error is not None:
            self.fail(error)
        del self._tasks[task]

    def fail(self, error: BaseException) -> None:
        """Ends the run with this, unless something else has."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def _ended_of_node(self, task: "asyncio.Task[Any]") -> None:
        """The main task of a process: it ends only by being killed."""
        error = None if task.cancelled() else task.exception() or Broken("everything goes on", "a process ended")
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)

    def _landed(self, record: LogRecord) -> None:
        partition, offset = record.partition, record.offset
        events = events_in(record)
        if not events:
            self.undecodable.setdefault(partition, offset)
            self.trace.say("log", f"p{partition} @{offset} cannot be decoded")
            return
        self.events += len(events)
        self.trace.say("log", f"p{partition} @{offset} {len(events)} events")
        if partition not in self.undecodable:
            self.reference.take(partition, offset, events)
        for event in events:
            self.offsets_of.setdefault(event, offset)

    # --- what is promised about calls

    def ends(self) -> dict[int, int]:
        """Up to where each partition can be applied."""
        ends = self.log.ends()
        for partition, offset in self.undecodable.items():
            ends[partition] = max((record.offset for record in self.log.records[partition] if record.offset < offset), default=-1)
        return ends

    def acknowledge(self, events: Iterable[Event], partition_of: Callable[[str], int], position: Position) -> None:
        """A caller was told that these are durable at this position."""
        for event in events:
            offset = self.offsets_of.get(event)
            end = position.offsets.get(partition_of(event[0]), -1)
            if offset is None or offset > end:
                raise Broken("acknowledged events are in the log", f"{event} is acknowledged at {end}, in the log at {offset}")
            self.acknowledged_events[event] = None
        self.acknowledged.append((self.loop.now_s, position))

    def check_count(self, invariant: str, entity: str, metric: Metric, value: int, offsets: Mapping[int, int]) -> None:
        """A count that was shown is one that there was at or after a position."""
        possible = self.reference.values_since(entity, metric, offsets, self.partitions)
        if value not in possible:
            raise Broken(invariant, f"{entity} {metric.name} {value}, not one of {sorted(possible)} at or after {dict(offsets)}")

    def check_freshness(self, as_of: int | None, position: Position, stale: bool, stale_after_s: float) -> None:
        """What an answer says of its age, now."""
        now_s = self.loop.now_s
        tolerance_s = 2 * CLOCK_OFF_US_MAX / 1e6 + 0.1
        fresh_s = -1.0 if as_of is None else (as_of - VirtualClock.EPOCH_US) / 1e6 - tolerance_s
        if not stale:
            fresh_s = max(fresh_s, now_s - stale_after_s - tolerance_s)
        for at_s, acknowledged in self.acknowledged:
            if at_s >= fresh_s:
                break
            if any(offset > position.offsets.get(p, -1) for p, offset in acknowledged.offsets.items()):
                lacks = f"lacks what was acknowledged {now_s - at_s:.1f} s ago, {dict(acknowledged.offsets)}"
                raise Broken("answers say how old they are", f"{dict(position.offsets)} (stale: {stale}) {lacks}")
