"""Reads of the store: bounded, in threads, and one per entity however many callers wait for it."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from watertower import failpoints
from watertower.core.model import Shard
from watertower.errors import BackendRefused, BackendUnavailable, CallRefused, Reason
from watertower.ports import Clock, StoreReader
from watertower.query.cache import CountsCache, Entry, Load

LOAD_ENTITIES_MAX = 100
"""Entities, or subjects of a check, that one hop into a thread reads: enough to make the hop cheap, few enough to share the threads."""

T = TypeVar("T")


class ReadCounters:
    """What was asked of the store: reads of an entity, of a page of a list, of a subject to check."""

    def __init__(self) -> None:
        self.begun = 0
        self.failed = 0
        self.waiting = 0  # now


class _Job:
    """One hop into a thread: the load of some entities, or another read."""

    __slots__ = ("_reads", "done", "load", "read", "since_s", "traceback")

    def __init__(self, read: Callable[[StoreReader], Any], load: Load | None = None, reads: int = 1) -> None:
        self.read = read
        self.load = load
        self._reads = reads
        loop = asyncio.get_running_loop()
        self.since_s = loop.time()  # when it was asked for
        self.done: asyncio.Future[Any] = loop.create_future()
        self.traceback: TracebackType | None = None  # of its error, as it left the thread

    @property
    def reads(self) -> int:
        return self._reads if self.load is None else len(self.load.entities)


class StoreReads:
    """All reads of the store of one process. Belongs to one event loop; only the reads themselves run in threads.

    At most `concurrent_max` hops are under way and `waiting_max` reads (of an entity, of a list, of a subject to check) wait; a call that
    would need more is refused with READS_FULL before anything is read. A load that waits takes further entities in, up to
    LOAD_ENTITIES_MAX.
    """

    def __init__(
        self,
        reader: StoreReader,
        cache: CountsCache,
        clock: Clock,
        concurrent_max: int,
        waiting_max: int,
        retry_after_s: float,
        patience_s: float,
        pool: Executor,
    ) -> None:
        """`patience_s`: seconds that a caller waits for what it could have from memory. `pool` runs the hops, up to `concurrent_max` at
        once; it is shut down by `close`."""
        self._reader, self._cache, self._clock = reader, cache, clock
        self._concurrent_max, self._waiting_max, self._retry_after_s = concurrent_max, waiting_max, retry_after_s
        self._patience_s = patience_s
        self._pool = pool
        self._queue: OrderedDict[_Job, None] = OrderedDict()  # in order; what is given up leaves it from anywhere
        self._jobs: dict[Load, _Job] = {}  # the loads that wait or are under way
        self.counters = ReadCounters()
        self._under_way = 0  # hops
        self._closed = False

    async def load(self, entities: Sequence[str], left_s: float = math.inf) -> tuple[list[Entry], bool]:
        """The entries of entities that the cache cannot serve, in place, after loading them; and whether all were loaded.

        Where too many reads wait, or the store fails, or it takes longer than `patience_s` since somebody first asked, what was known
        before is returned. Where one of them has nothing that may stand in, the call is refused, or the store is waited for, and its
        error is raised, or BackendUnavailable after `left_s`.
        """
        deadline_s = asyncio.get_running_loop().time() + left_s
        under_way = self._cache.under_way
        if not self._has_room(len({entity for entity in entities if under_way(entity) is None})):
            held = [self._cache.held(entity) for entity in entities]
            known = [entry for entry in held if entry is not None]
            if self._closed or len(known) < len(entities) or not self._may_stand_in(known):
                raise self._refusal()
            return known, False
        entries: list[Entry] = []
        jobs: list[_Job] = []  # that bring them, in place
        for entity in entities:
            entry, load = under_way(entity) or self._register(entity)
            entries.append(entry)
            jobs.append(self._jobs[load])
        self._dispatch()
        # Patience begins with whoever asked first: of a store that hangs only that caller waits, and not each one that comes after.
        waited_s = asyncio.get_running_loop().time() - min(job.since_s for job in jobs)
        # `wait` leaves the futures alone when this caller is cancelled: others wait for them too.
        await asyncio.wait({job.done for job in jobs}, timeout=min(max(0.0, self._patience_s - waited_s), left_s))
        needed = {job.done for entry, job in zip(entries, jobs, strict=True) if not job.done.done() and not self._may_stand_in([entry])}
        if needed:
            rest_s = None if left_s == math.inf else max(0.0, deadline_s - asyncio.get_running_loop().time())
            _, late = await asyncio.wait(needed, timeout=rest_s)
            if late:
                raise BackendUnavailable("the store did not answer before the deadline")
        ended = [job for job in dict.fromkeys(jobs) if job.done.done()]
        errors = [(error, job.traceback) for job in ended if (error := job.done.exception()) is not None]
        for error, traceback in errors:
            if not isinstance(error, BackendUnavailable | BackendRefused) or not self._may_stand_in(entries):
                # All who wait raise the same one, and each time it would keep the frames of those before.
                raise error.with_traceback(traceback)
        return entries, not errors and all(job.done.done() for job in jobs)

    def load_ahead(self, entities: Sequence[str]) -> None:
        """Starts to load entities for which nobody waits yet; not more of them than leaves half of the waiting room to callers."""
        for entity in entities:
            if self._closed or self.counters.waiting >= self._waiting_max // 2:
                break
            if self._cache.under_way(entity) is None:
                self._register(entity)
        self._dispatch()

    async def read(self, read: Callable[[StoreReader], T]) -> T:
        """What `read` returns, called in a thread. A caller that gives up while it waits spares the read."""
        self._admit(1)
        job = self._enqueue(_Job(read))
        self._dispatch()
        try:
            result: T = await job.done
        finally:
            self._leave(job)
        return result

    async def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        """StoreReader.check_edges, each subject once, in hops: a check may have to look at many edges, and others wait for the reader."""

        def check(piece: Sequence[str]) -> Callable[[StoreReader], list[bool]]:
            return lambda reader: reader.check_edges(actor, kind, piece)

        unique = list(dict.fromkeys(subjects))
        self._admit(len(unique))
        pieces = [unique[at : at + LOAD_ENTITIES_MAX] for at in range(0, len(unique), LOAD_ENTITIES_MAX)]
        jobs = [self._enqueue(_Job(check(piece), reads=len(piece))) for piece in pieces]
        self._dispatch()
        try:
            answers = await asyncio.gather(*(job.done for job in jobs))
        finally:
            for job in jobs:
                self._leave(job)
        active = dict(zip(unique, chain.from_iterable(answers), strict=True))
        return [active[subject] for subject in subjects]

    async def close(self) -> None:
        """Refuses what waits and waits for what is under way."""
        self._closed = True
        while self._queue:
            job = self._next()
            self._end(job, None, CallRefused(Reason.STOPPING, retry_after_s=self._retry_after_s))
        await asyncio.to_thread(self._pool.shutdown)

    def _admit(self, reads: int) -> None:
        if not self._has_room(reads):
            raise self._refusal()

    def _has_room(self, reads: int) -> bool:
        return not self._closed and (not reads or self.counters.waiting + reads <= self._waiting_max)

    def _refusal(self) -> CallRefused:
        return CallRefused(Reason.STOPPING if self._closed else Reason.READS_FULL, retry_after_s=self._retry_after_s)

    def _may_stand_in(self, entries: Sequence[Entry]) -> bool:
        now_s = self._clock.monotonic_s()
        return all(self._cache.may_stand_in(entry, now_s) for entry in entries)

    def _register(self, entity: str) -> tuple[Entry, Load]:
        load = self._open_load()
        self.counters.waiting += 1
        return self._cache.register(entity, load), load

    def _enqueue(self, job: _Job) -> _Job:
        self._queue[job] = None
        self.counters.waiting += job.reads
        return job

    def _next(self) -> _Job:
        """Takes out what has waited longest."""
        job, _ = self._queue.popitem(last=False)
        self.counters.waiting -= job.reads
        return job

    def _leave(self, job: _Job) -> None:
        """Takes out what its only caller no longer waits for: while the store hangs, it would keep others from waiting."""
        if job in self._queue:
            del self._queue[job]
            self.counters.waiting -= job.reads

    def _open_load(self) -> Load:
        """The load at the end of the queue, if there is one with room; else a new one there."""
        last = next(reversed(self._queue)).load if self._queue else None
        if last is not None and len(last.entities) < LOAD_ENTITIES_MAX:
            return last
        load = Load()

        def read(reader: StoreReader) -> Sequence[Mapping[tuple[int, int], Shard]]:
            return reader.read_entities(load.entities)

        self._jobs[load] = self._enqueue(_Job(read, load))
        return load

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._under_way < self._concurrent_max:
            job = self._next()
            if job.done.cancelled():
                continue
            if job.load is not None:
                self._cache.begin(job.load, self._clock.monotonic_s())
            self._under_way += 1
            self.counters.begun += job.reads

            def tell(future: "Future[Any]", job: _Job = job) -> None:
                loop.call_soon_threadsafe(self._ended, job, future)

            self._pool.submit(self._hop, job).add_done_callback(tell)

    def _hop(self, job: _Job) -> Any:
        """In a thread."""
        failpoints.reach("query.before_load")
        result = job.read(self._reader)
        failpoints.reach("query.after_load")
        return result

    def _ended(self, job: _Job, future: "Future[Any]") -> None:
        self._under_way -= 1
        error = future.exception()
        if error is not None:
            self.counters.failed += job.reads
        self._end(job, None if error is not None else future.result(), error)
        self._dispatch()

    def _end(self, job: _Job, result: Any, error: BaseException | None) -> None:
        if job.load is not None:
            del self._jobs[job.load]
            if error is None:
                try:
                    self._cache.finish(job.load, result)
                except Exception as found:  # a store that answers nonsense must not leave callers waiting
                    error = found
            if error is not None:
                self._cache.abandon(job.load)
        if job.done.cancelled():
            return
        if error is None:
            job.done.set_result(result)
        else:
            job.traceback = error.__traceback__
            job.done.set_exception(error)
            job.done.exception()  # seen: nobody may be waiting any more
