"""EngagementReader: validates, answers counts from memory, edges and lists from the store."""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import grpc
import structlog

from watertower.admission import Admission, Gate, Work
from watertower.config import QuerySettings
from watertower.counters import CallCounters
from watertower.errors import BackendRefused, BackendUnavailable, CallRefused, Reason, Violation
from watertower.ports import Clock, FeedReader, ListCursor, StoreReader
from watertower.query.answers import batch_answer, freshness_message, shape_of, single_answer, timestamp
from watertower.query.asked import asked
from watertower.query.cache import CountsCache, Entry, hottest
from watertower.query.loader import ReadCounters, StoreReads
from watertower.query.needs import need_of
from watertower.query.pages import PageTokens
from watertower.query.tail import NO_NEED, FeedTail, Freshness, Need
from watertower.query.watch import Watches
from watertower.rpc import CallContext, patience_s, service_handler
from watertower.v1 import common_pb2, reader_pb2
from watertower.validation import (
    ENTITIES_MAX,
    PAGE_SIZE_DEFAULT,
    SUBJECTS_MAX,
    count_violation,
    id_violation,
    id_violations,
    kind_violation,
    metrics_violations,
    page_size_violation,
    refuse_if_any,
    violations_of,
)

SERVICE: str = reader_pb2.DESCRIPTOR.services_by_name["EngagementReader"].full_name

Context: TypeAlias = CallContext

T = TypeVar("T")

_WORKS = {
    "GetCounts": Work.CACHED_READ,
    "BatchGetCounts": Work.CACHED_READ,
    "CheckEdges": Work.STORE_READ,
    "ListActors": Work.STORE_READ,
    "ListSubjects": Work.STORE_READ,
    "WatchCounts": Work.CACHED_READ,
}


class QueryService:
    """The reader's methods on a cache of counts, which the feed keeps up to date. Belongs to one event loop.

    An answer claims the freshness of the moment before it was looked up, so it includes at least what it claims.
    """

    failed: "asyncio.Future[None]"
    """From `start` on: fails with what ended the feed's tail; the process must not go on then."""

    def __init__(
        self,
        reader: StoreReader,
        feed: FeedReader,
        settings: QuerySettings,
        clock: Clock,
        rng: random.Random,
        partitions: int,
        pool: Callable[[int, str], Executor] = ThreadPoolExecutor,
    ) -> None:
        """`pool(workers, name)` makes what runs the blocking reads."""
        self._settings, self._clock, self._partitions = settings, clock, partitions
        self._log = structlog.get_logger("watertower.query")
        self._cache = CountsCache(
            settings.cache_bytes_max,
            settings.cache_age_ms_max / 1e3,
            settings.unknown_age_ms_max / 1e3,
            settings.stale_age_ms_max / 1e3,
            rng.random,
        )
        self._tail = FeedTail(
            reader,
            feed,
            self._cache,
            clock,
            self._log,
            partitions,
            settings.stale_after_ms,
            settings.freshness_waiting_max,
            pool(1, "feed-tail"),
        )
        self._reads = StoreReads(
            reader,
            self._cache,
            clock,
            settings.loads_concurrent_max,
            settings.loads_waiting_max,
            settings.retry_after_ms / 1e3,
            settings.load_wait_ms_max / 1e3,
            pool(settings.loads_concurrent_max, "store-read"),
        )
        self._watches = Watches(
            settings,
            lambda entities, patience_s: self._look(entities, patience_s=patience_s),
            lambda: self._tail.nothing,
            lambda freshness: self._message(freshness, NO_NEED),
        )
        self._tokens = PageTokens(reader.identity.log.log_id)
        gates = {
            name: Gate(settings.store_calls_max, settings.store_queue_ms_max / 1e3)
            for name, work in _WORKS.items()
            if work is Work.STORE_READ
        }
        self.admission = Admission(settings, _WORKS, gates, rng.random)
        self.calls = CallCounters([name for name in _WORKS if name != "WatchCounts"], ["WatchCounts"])
        self.hits = self.misses = 0
        """Entities that were looked up, for calls and watches: answered from memory as they were, or only after a read of the store."""
        self.stale_answers = 0
        """Answers, and messages of watches, that said that they are stale."""
        self._task: asyncio.Task[None] | None = None
        self._said: tuple[Freshness | None, bytes] = None, b""

    @property
    def ready(self) -> bool:
        """Whether it has caught up with the store once."""
        return self._tail.started

    @property
    def as_of_us(self) -> int:
        """Up to when everything that was acknowledged is in its answers, microseconds since 1970; 0: not known yet."""
        return self._tail.as_of_us

    @property
    def cached(self) -> tuple[int, int]:
        """Entities in memory, and the estimate of the bytes that they take."""
        return len(self._cache), self._cache.bytes

    @property
    def watches_open(self) -> int:
        return self._watches.open

    @property
    def store_reads(self) -> ReadCounters:
        """What was asked of the store."""
        return self._reads.counters

    def handler(self) -> grpc.GenericRpcHandler:
        """The service, for a gRPC server."""
        return service_handler(
            SERVICE,
            {
                "GetCounts": (reader_pb2.GetCountsRequest, self.get_counts),
                "BatchGetCounts": (reader_pb2.BatchGetCountsRequest, self.batch_get_counts),
                "CheckEdges": (reader_pb2.CheckEdgesRequest, self.check_edges),
                "ListActors": (reader_pb2.ListActorsRequest, self.list_actors),
                "ListSubjects": (reader_pb2.ListSubjectsRequest, self.list_subjects),
            },
            self._log,
            unavailable=Reason.STORE_UNAVAILABLE,
            retry_after_s=self._settings.retry_after_ms / 1e3,
            admission=self.admission,
            counters=self.calls,
            streams={"WatchCounts": (reader_pb2.WatchCountsRequest, self.watch_counts)},
        )

    async def start(self) -> None:
        """Catches up with the store, then follows the feed. Raises BackendUnavailable, BackendRefused."""
        self.failed = asyncio.get_running_loop().create_future()
        await self._tail.start()
        self._task = asyncio.create_task(self._tail.run(self._settings.tail_interval_ms / 1e3))
        self._task.add_done_callback(self._tail_ended)

    async def warm(self, entities: Sequence[str], seconds: float) -> int:
        """Loads entities before anybody asks for them, for so long at most; how many it did. Where the store fails it gives up."""
        deadline_s = asyncio.get_running_loop().time() + seconds
        for start in range(0, len(entities), ENTITIES_MAX):
            piece = entities[start : start + ENTITIES_MAX]
            left_s = deadline_s - asyncio.get_running_loop().time()
            try:
                await self._reads.load(piece, max(0.0, left_s))
            except BackendRefused:  # one of them cannot be read: who asks for it will hear so
                continue
            except (BackendUnavailable, CallRefused):
                return start
        return len(entities)

    async def hottest(self, count: int) -> list[str]:
        """So many of the known entities in memory: those that were read last."""
        return await asyncio.to_thread(hottest, self._cache.items(), count)  # of hundreds of thousands: not on the event loop

    def end_watches(self) -> None:
        """Tells the callers of watches that the service stops: they would hold up the end of the server for as long as it may take."""
        self._watches.end()

    async def stop(self) -> None:
        """Ends the watches, stops following the feed, refuses the reads that wait, waits for those under way."""
        self._watches.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._tail.close()
        await self._reads.close()

    async def get_counts(self, request: reader_pb2.GetCountsRequest, context: Context) -> bytes:
        """One entity: a GetCountsResponse. Raises CallRefused."""
        refuse_if_any([*violations_of(("entity", id_violation(request.entity))), *metrics_violations("metrics", request.metrics)])
        need = need_of(request, self._partitions)
        (entry,), freshness = await self._entries([request.entity], need, context)
        shape = shape_of(tuple(request.metrics))
        return single_answer(shape, entry, self._encoded(freshness, need))

    def get_counts_now(self, data: bytes) -> bytes | None:
        """The answer to a GetCounts request from memory alone, both as bytes; None for whatever is more than that: a load, a wait for
        what is fresher, a refusal, or the question whether the call is let in."""
        if self.admission.shedding.level > Work.CACHED_READ or (found := asked(data)) is None:
            return None
        entity, shape = found
        freshness = self._tail.freshness()
        began_s = self._clock.monotonic_s()
        (entry,), cold, ageing = self._cache.lookup([entity], began_s)
        if cold or ageing:
            return None
        answer = single_answer(shape, entry, self._encoded(freshness, NO_NEED))
        self.hits += 1
        self.calls.end("GetCounts", "OK", self._clock.monotonic_s() - began_s)
        return answer

    async def batch_get_counts(self, request: reader_pb2.BatchGetCountsRequest, context: Context) -> bytes:
        """Many entities: a BatchGetCountsResponse. Raises CallRefused."""
        entities = list(request.entities)
        metrics = request.metrics
        refuse_if_any([*_ids("entities", entities, ENTITIES_MAX, Reason.ENTITIES_COUNT), *metrics_violations("metrics", metrics)])
        need = need_of(request, self._partitions)
        entries, freshness = await self._entries(entities, need, context)
        return batch_answer(shape_of(tuple(metrics)), entries, self._encoded(freshness, need))

    def watch_counts(self, request: reader_pb2.WatchCountsRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """Many entities, again and again: WatchCountsResponses. The iterator raises CallRefused."""
        return self._watches.watch(request, context.peer())

    async def check_edges(self, request: reader_pb2.CheckEdgesRequest, context: Context) -> reader_pb2.CheckEdgesResponse:
        """Membership. Raises CallRefused."""
        actor, kind, subjects = request.actor, int(request.kind), list(request.subjects)
        refuse_if_any(
            [
                *violations_of(("actor", id_violation(actor)), ("kind", kind_violation(kind))),
                *_ids("subjects", subjects, SUBJECTS_MAX, Reason.SUBJECTS_COUNT),
            ]
        )
        need = need_of(request, self._partitions)
        freshness = await self._claim(need, context)
        async with self.admission.gate("CheckEdges", _patience_s(context)):
            active = await _in_time(context, self._reads.check_edges(actor, kind, subjects))
        return reader_pb2.CheckEdgesResponse(active=active, freshness=self._message(freshness, need))

    async def list_actors(self, request: reader_pb2.ListActorsRequest, context: Context) -> reader_pb2.ListActorsResponse:
        """Who acts on a subject. Raises CallRefused."""
        rows, token, freshness = await self._page(
            "ListActors", "subject", request.subject, request, context, lambda reader: reader.list_actors
        )
        items = [reader_pb2.ActorItem(actor=other, ref=ref, occurred_at=timestamp(at)) for at, other, ref in rows]
        return reader_pb2.ListActorsResponse(items=items, next_page_token=token, freshness=freshness)

    async def list_subjects(self, request: reader_pb2.ListSubjectsRequest, context: Context) -> reader_pb2.ListSubjectsResponse:
        """On what an actor acts. Raises CallRefused."""
        rows, token, freshness = await self._page(
            "ListSubjects", "actor", request.actor, request, context, lambda reader: reader.list_subjects
        )
        items = [reader_pb2.SubjectItem(subject=other, ref=ref, occurred_at=timestamp(at)) for at, other, ref in rows]
        return reader_pb2.ListSubjectsResponse(items=items, next_page_token=token, freshness=freshness)

    async def _claim(self, need: Need, context: Context) -> Freshness:
        """What an answer may claim that is read from now on, after waiting for what the call needs, if there is time."""
        if need is NO_NEED:
            return self._tail.freshness()
        # Half of its time at most: the store may have to be read afterwards.
        satisfied = await self._tail.reach(need, min(self._settings.freshness_wait_ms_max / 1e3, _patience_s(context) / 2))
        return self._tail.freshness()._replace(satisfied=satisfied)

    async def _entries(self, entities: Sequence[str], need: Need, context: Context) -> tuple[list[Entry], Freshness]:
        """The entries of valid ids, in place, and what they may claim together."""
        return await self._look(entities, await self._claim(need, context), _patience_s(context))

    async def _look(
        self, entities: Sequence[str], freshness: Freshness | None = None, patience_s: float = math.inf
    ) -> tuple[list[Entry], Freshness]:
        """The same, with a claim that was made before: by default, right now."""
        if freshness is None:
            freshness = self._tail.freshness()
        epoch = self._cache.epoch
        entries, cold, ageing = self._cache.lookup(entities, self._clock.monotonic_s())
        self.hits += len(entities) - len(cold)
        self.misses += len(cold)
        if ageing:
            self._reads.load_ahead([entities[index] for index in ageing])
        if cold:
            loaded, complete = await self._reads.load([entities[index] for index in cold], patience_s)
            now_s = self._clock.monotonic_s()
            for index, entry in zip(cold, loaded, strict=True):
                entries[index] = entry
                entry.read_s = now_s
            if not complete:
                # The last known values. One from before a gap in the feed may lack what others have: no common claim is true.
                behind = any(entry.epoch < epoch for entry in loaded)
                freshness = self._tail.nothing if behind else freshness._replace(stale=True)
        return entries, freshness

    async def _page(
        self,
        method: str,
        of_field: str,
        of: str,
        request: reader_pb2.ListActorsRequest | reader_pb2.ListSubjectsRequest,
        context: Context,
        lister: Callable[[StoreReader], Callable[[str, int, ListCursor | None, int], list[ListCursor]]],
    ) -> tuple[list[ListCursor], str, common_pb2.Freshness]:
        """A page's rows, the token of the next page ("" if there is none), and what they claim."""
        kind = int(request.kind)
        size = request.page_size or PAGE_SIZE_DEFAULT
        violations = violations_of(
            (of_field, id_violation(of)), ("kind", kind_violation(kind)), ("page_size", page_size_violation(request.page_size))
        )
        refuse_if_any(violations)
        need = need_of(request, self._partitions)
        after = None
        if request.page_token:  # looked at last: it belongs to a valid request
            after = self._tokens.decode(method, of, kind, request.page_token)
            if after is None:
                raise CallRefused.of([Violation("page_token", Reason.PAGE_TOKEN_INVALID)])
        freshness = await self._claim(need, context)
        async with self.admission.gate(method, _patience_s(context)):
            rows = await _in_time(context, self._reads.read(lambda reader: lister(reader)(of, kind, after, size + 1)))
        token = self._tokens.encode(method, of, kind, rows[size - 1]) if len(rows) > size else ""
        return rows[:size], token, self._message(freshness, need)

    def _message(self, freshness: Freshness, need: Need) -> common_pb2.Freshness:
        """A claim as it goes out."""
        return freshness_message(self._aged(freshness, need))

    def _encoded(self, freshness: Freshness, need: Need) -> bytes:
        """The same as bytes, which are those of the answer before until something new is known."""
        claim = self._aged(freshness, need)
        if claim != self._said[0]:
            self._said = claim, freshness_message(claim).SerializeToString()
        return self._said[1]

    def _aged(self, freshness: Freshness, need: Need) -> Freshness:
        claim = self._tail.aged(freshness, need)
        self.stale_answers += claim.stale
        return claim

    def _tail_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self._log.error("feed_failed", error=repr(error))
            self.failed.set_exception(error)


def _patience_s(context: Context) -> float:
    """Seconds that the store may take for the caller; infinite where it has no deadline."""
    left_s: float | None = context.time_remaining()
    return math.inf if left_s is None else patience_s(left_s)


async def _in_time(context: Context, read: Awaitable[T]) -> T:
    """What a read of the store gives. Raises BackendUnavailable a little before the caller's deadline."""
    left_s = _patience_s(context)
    try:
        async with asyncio.timeout(None if left_s == math.inf else left_s):
            return await read
    except TimeoutError:
        raise BackendUnavailable("the store did not answer before the deadline") from None


def _ids(field: str, values: Sequence[str], count_max: int, reason: Reason) -> list[Violation]:
    """The broken rules of a repeated id. Of too many, not each is looked at."""
    count = violations_of((field, count_violation(len(values), count_max, reason)))
    return count or id_violations(field, values)
