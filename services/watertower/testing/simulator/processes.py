"""The product's processes in a run: each dies, hangs and comes back."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from watertower.config import IngestSettings, ProjectorSettings, QuerySettings
from watertower.core.positions import Position, decode_position
from watertower.errors import BackendUnavailable, StartRefused
from watertower.ingest.service import IngestService
from watertower.projector.projector import Projector
from watertower.query.cache import ENTRY_BYTES, NEVER_LOADED, SHARD_BYTES, CountsCache, Entry, Load
from watertower.query.service import QueryService
from watertower.testing.simulator.kernel import GreenletExecutor, blocking, process_name, wait
from watertower.testing.simulator.log import SimulatedLogReader, SimulatedLogWriter
from watertower.testing.simulator.world import Broken, World
from watertower.v1 import common_pb2

STALE_AFTER_S = 8.0
LATENCY_US = 50_000
"""Between an answer and its check, at most."""

SESSION_S = 3.0
"""After this long without a sign of a projector, another one gets its partitions."""


class Cut(BaseException):
    """A process dies here."""


class Node(ABC):
    """A process that can be killed and started."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.rng, self.clock = world.rng(name), world.clock(name)
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Work of this process: it ends with it."""
        task = self.world.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    @abstractmethod
    def start(self) -> None:
        """Does nothing if it runs."""

    def kill(self) -> None:
        self.world.trace.say(self.name, "dies")
        self.world.flushing.discard(self.name)
        tasks, self._tasks = self._tasks, {}
        for task in tasks:
            task.cancel()


class IngestNode(Node):
    """IngestService on a log."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._settings = IngestSettings.model_construct(record_events_max=self.rng.choice((2, 5, 100)))
        self.service: IngestService | None = None
        self.start()

    def start(self) -> None:
        if self.service is None:
            self.service = IngestService(SimulatedLogWriter(self.world.log), self._settings, self.clock)

    def kill(self) -> None:
        super().kill()
        self.service = None


class ProjectorNode(Node):
    """A Projector on the partitions that the group gives it."""

    async def run(self) -> None:
        while True:
            store = self.world.store()
            try:
                while True:
                    await blocking(lambda store=store: self._apply(store), self.name)  # type: ignore[misc]
            except Cut as cut:
                self.world.trace.say(self.name, f"dies at {cut}")
                await asyncio.sleep(self.rng.uniform(0.05, 3.0))

    def start(self) -> None:
        if not self._tasks:
            self.spawn(self.run()).add_done_callback(self.world._ended_of_node)

    def _apply(self, store: Any) -> None:
        """Applies what the group gives it, until the process dies."""
        world, rng = self.world, self.rng
        log = SimulatedLogReader(world.log, lambda: world.owners.of(self.name))
        settings = ProjectorSettings.model_construct(
            flush_events_max=rng.choice((1, 3, 6, 20)),
            flush_records_max=rng.choice((1, 2, 4, 50)),
            poll_idle_ms=rng.choice((50, 300, 700)),
            heartbeat_ms=1_000,
            retry_cap_ms=1_000,
        )
        projector = world.parts.projector(log, store, world.feed_writer(store), settings, self.clock, rng)
        try:
            projector.start()
            self._steps(projector)
        except BackendUnavailable:
            self.clock.sleep(0.5)
        except StartRefused as error:
            raise Broken("a start is refused only with reason", str(error)) from error

    def _steps(self, projector: Projector) -> None:
        world = self.world
        owned: list[int] = []
        while True:
            step = projector.step()
            if owned != list(projector.positions):
                owned = list(projector.positions)
                world.trace.say(self.name, f"owns {projector.positions}")
            if step.events:
                world.trace.say(self.name, f"applied {step.events} events up to {projector.positions}")
            for partition, reason in projector.stopped.items():
                if partition in world.undecodable and reason.startswith(f"record at offset {world.undecodable[partition]}:"):
                    world.stopped.add(partition)
                else:
                    raise Broken("no edge is ahead of its shards", f"the projector stopped: {reason}")
            if step.wait_s:
                self.clock.sleep(step.wait_s)


def once_at_a_time(cache: CountsCache, world: World, name: str) -> None:
    """Sees to it that a process loads an entry once at a time, whoever waits for it; again only after a gap in the feed."""
    begin, abandon = cache.begin, cache.abandon
    under_way: set[tuple[Entry, int]] = set()

    def begin_alone(load: Load, now_s: float) -> None:
        begin(load, now_s)
        loads = {(entry, load.epoch) for entry in load.entries}
        if loads & under_way and not world.failed.done():
            world.failed.set_exception(Broken("one read of an entity at a time", f"{name} reads {load.entities}"))
        under_way.update(loads)

    def abandon_seen(load: Load) -> None:  # `finish` ends with it, too
        under_way.difference_update((entry, load.epoch) for entry in load.entries)
        abandon(load)

    cache.begin, cache.abandon = begin_alone, abandon_seen  # type: ignore[method-assign] # of this one


class QueryNode(Node):
    """QueryService on the store and the feed."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.service: QueryService | None = None
        self._starting: QueryService | None = None
        self._seen: dict[int, int] = {}
        self._settings = QuerySettings.model_construct()

    def start(self) -> None:
        if not self._tasks:
            self.spawn(self._run()).add_done_callback(self.world._ended_of_node)

    def kill(self) -> None:
        for service in (self.service, self._starting):
            if service is not None and service._task is not None:
                service._task.cancel()
        self.service = self._starting = None
        super().kill()

    async def _run(self) -> None:
        world, rng = self.world, self.rng
        settings = self._settings = QuerySettings.model_construct(
            stale_age_ms_max=rng.choice((5_000, 3_600_000)),
            cache_bytes_max=rng.choice((3, 100)) * (ENTRY_BYTES + 3 * SHARD_BYTES),
            cache_age_ms_max=rng.choice((3_000, 20_000, 600_000)),
            tail_interval_ms=200,
            stale_after_ms=int(STALE_AFTER_S * 1e3),
            loads_concurrent_max=rng.choice((1, 3)),
        )
        while True:
            service = self._starting = QueryService(
                *world.readers(),
                settings,
                self.clock,
                rng,
                world.partitions,
                pool=lambda workers, name: GreenletExecutor(self.spawn, name),
            )
            once_at_a_time(service._cache, world, self.name)
            try:
                await service.start()
                break
            except BackendUnavailable:
                await asyncio.sleep(0.5)
        self._seen = {}
        self.service = service
        world.trace.say(self.name, "is ready")
        await service.failed

    def held(self, entities: list[str]) -> dict[str, tuple[Entry, float, float]]:
        """What memory has of entities: entries, when their last loads began, and how long ago that is."""
        if self.service is None:
            return {}
        entries = {entity: self.service._cache.held(entity) for entity in entities}
        return {
            entity: (entry, entry.began_s, self.clock.monotonic_s() - entry.began_s)
            for entity, entry in entries.items()
            if entry is not None and entry.epoch != NEVER_LOADED
        }

    def check_ages(self, before: dict[str, tuple[Entry, float, float]]) -> None:
        """An answer came. What `held` said `before` the question, and was too old then, is another entry now or was loaded again."""
        now = self.held(list(before))
        for entity, (entry, began_s, age_s) in before.items():
            same = entity in now and now[entity][:2] == (entry, began_s)
            if same and age_s > max(self._settings.stale_age_ms_max, self._settings.cache_age_ms_max) / 1e3:
                raise Broken("nothing is served past its age", f"{self.name}: {entity} was loaded {age_s:.1f} s before the question")

    def seen(self) -> dict[int, int]:
        """Up to where its answers so far went."""
        return dict(self._seen)

    def saw(self, freshness: common_pb2.Freshness, seen: dict[int, int]) -> Position:
        """Checks what an answer claims; returns up to where. `seen` is from before the question."""
        position = decode_position(freshness.position)
        if not position.offsets and not freshness.HasField("as_of"):
            if not freshness.stale:
                raise Broken("answers say how old they are", "one claims nothing and is not stale")
            return position
        ends = self.world.log.ends()
        for partition, offset in position.offsets.items():
            if offset > ends[partition]:
                raise Broken("no answer is newer than the log", f"p{partition}: {offset}, the log ends at {ends[partition]}")
            if offset < seen.get(partition, -1):
                raise Broken("positions never go back", f"p{partition}: {offset} after {seen[partition]}")
            self._seen[partition] = max(offset, self._seen.get(partition, -1))
        as_of = freshness.as_of.ToMicroseconds() if freshness.HasField("as_of") else None
        if as_of is not None and not freshness.stale and self.clock.now_us() - as_of > STALE_AFTER_S * 1e6 + LATENCY_US:
            raise Broken("answers say how old they are", f"as of {(self.clock.now_us() - as_of) / 1e6:.1f} s ago, and not stale")
        self.world.check_freshness(as_of, position, freshness.stale, STALE_AFTER_S)
        return position


def reached(world: World, name: str) -> None:
    """failpoints.watcher: between two steps of a flush a projector may die, or hang until its partitions are another's."""
    process = process_name()
    if not name.startswith("projector.") or not process.startswith("projector"):
        return
    faults = world.faults
    if name == "projector.after_read":
        world.flushing.add(process)
    elif name in ("projector.after_sync", "projector.after_commit"):
        world.flushing.discard(process)
    if faults.strikes("flush_cut"):
        world.flushing.discard(process)
        faults.fired[f"flush_cut {name.removeprefix('projector.')}"] += 1
        raise Cut(name)
    if not world.embedded and faults.strikes("zombie"):
        faults.fired[f"zombie {name.removeprefix('projector.')}"] += 1
        world.trace.say(process, f"hangs at {name}")
        world.loop.call_later(SESSION_S, move_away, world, process)
        wait(asyncio.sleep(faults.stream("zombie").uniform(1.0, 20.0)))
        world.trace.say(process, "goes on")


def move_away(world: World, name: str) -> None:
    """Gives a projector's partitions to others."""
    rng = world.faults.stream("zombie")
    for partition in world.owners.of(name):
        if world.owners.assigned[partition] == name:
            world.owners.assigned[partition] = rng.choice([other for other in PROJECTORS if other != name])


PROJECTORS = ("projector-0", "projector-1", "projector-2")
