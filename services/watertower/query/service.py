"""EngagementReader: validates, answers counts from memory, edges and lists from the store."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from operator import itemgetter
from typing import TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from watertower.config import QuerySettings
from watertower.errors import BackendUnavailable, CallRefused, Reason, Violation
from watertower.ports import Clock, FeedReader, ListCursor, StoreReader
from watertower.query.cache import CountsCache, Entry
from watertower.query.loader import StoreReads
from watertower.query.pages import PageTokens
from watertower.query.tail import FeedTail, Freshness
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
        self._settings, self._clock = settings, clock
        self._log = structlog.get_logger("watertower.query")
        self._cache = CountsCache(
            settings.cache_entities_max, settings.cache_age_ms_max / 1e3, settings.unknown_age_ms_max / 1e3, rng.random
        )
        self._tail = FeedTail(reader, feed, self._cache, clock, self._log, partitions, settings.stale_after_ms, pool(1, "feed-tail"))
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
        self._tokens = PageTokens(reader.identity.log.log_id)
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it has caught up with the store once."""
        return self._tail.started

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
        )

    async def start(self) -> None:
        """Catches up with the store, then follows the feed. Raises BackendUnavailable, BackendRefused."""
        self.failed = asyncio.get_running_loop().create_future()
        await self._tail.start()
        self._task = asyncio.create_task(self._tail.run(self._settings.tail_interval_ms / 1e3))
        self._task.add_done_callback(self._tail_ended)

    async def stop(self) -> None:
        """Stops following the feed, refuses the reads that wait, waits for those under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._tail.close()
        await self._reads.close()

    async def get_counts(self, request: reader_pb2.GetCountsRequest, context: Context) -> reader_pb2.GetCountsResponse:
        """One entity. Raises CallRefused."""
        refuse_if_any([*violations_of(("entity", id_violation(request.entity))), *metrics_violations("metrics", request.metrics)])
        (entry,), freshness = await self._entries([request.entity], context)
        return self._counts(request, entry, freshness)

    def get_counts_now(self, data: bytes) -> bytes | None:
        """The answer to a GetCounts request from memory alone, both as bytes; None for whatever needs more than that, or is refused."""
        try:
            request = reader_pb2.GetCountsRequest.FromString(data)
        except Exception:  # no such message: get_counts refuses it
            return None
        if id_violation(request.entity) or metrics_violations("metrics", request.metrics):
            return None
        if request.min_position or request.HasField("max_staleness"):
            return None
        freshness = self._tail.freshness()
        (entry,), cold = self._cache.lookup([request.entity], self._clock.monotonic_s())
        return None if cold else self._counts(request, entry, freshness).SerializeToString()

    async def batch_get_counts(self, request: reader_pb2.BatchGetCountsRequest, context: Context) -> reader_pb2.BatchGetCountsResponse:
        """Many entities. Raises CallRefused."""
        entities = list(request.entities)
        metrics = request.metrics
        refuse_if_any([*_ids("entities", entities, ENTITIES_MAX, Reason.ENTITIES_COUNT), *metrics_violations("metrics", metrics)])
        entries, freshness = await self._entries(entities, context)
        response = reader_pb2.BatchGetCountsResponse(freshness=self._message(freshness))
        add, values_of = response.counts.add, _values_of(metrics)
        for entry in entries:
            add().values.extend(values_of(entry.totals))
        for index, entry in enumerate(entries):
            if not entry.shards:
                response.exceptions.add(index=index, known=False)
        return response

    async def check_edges(self, request: reader_pb2.CheckEdgesRequest, context: Context) -> reader_pb2.CheckEdgesResponse:
        """Membership. Raises CallRefused."""
        actor, kind, subjects = request.actor, int(request.kind), list(request.subjects)
        refuse_if_any(
            [
                *violations_of(("actor", id_violation(actor)), ("kind", kind_violation(kind))),
                *_ids("subjects", subjects, SUBJECTS_MAX, Reason.SUBJECTS_COUNT),
            ]
        )
        freshness = self._tail.freshness()
        active = await _in_time(context, self._reads.check_edges(actor, kind, subjects))
        return reader_pb2.CheckEdgesResponse(active=active, freshness=self._message(freshness))

    async def list_actors(self, request: reader_pb2.ListActorsRequest, context: Context) -> reader_pb2.ListActorsResponse:
        """Who acts on a subject. Raises CallRefused."""
        rows, token, freshness = await self._page(
            "ListActors", "subject", request.subject, request, context, lambda reader: reader.list_actors
        )
        items = [reader_pb2.ActorItem(actor=other, ref=ref, occurred_at=_timestamp(at)) for at, other, ref in rows]
        return reader_pb2.ListActorsResponse(items=items, next_page_token=token, freshness=self._message(freshness))

    async def list_subjects(self, request: reader_pb2.ListSubjectsRequest, context: Context) -> reader_pb2.ListSubjectsResponse:
        """On what an actor acts. Raises CallRefused."""
        rows, token, freshness = await self._page(
            "ListSubjects", "actor", request.actor, request, context, lambda reader: reader.list_subjects
        )
        items = [reader_pb2.SubjectItem(subject=other, ref=ref, occurred_at=_timestamp(at)) for at, other, ref in rows]
        return reader_pb2.ListSubjectsResponse(items=items, next_page_token=token, freshness=self._message(freshness))

    def _counts(self, request: reader_pb2.GetCountsRequest, entry: Entry, freshness: Freshness) -> reader_pb2.GetCountsResponse:
        return reader_pb2.GetCountsResponse(
            values=_values_of(request.metrics)(entry.totals), known=bool(entry.shards), freshness=self._message(freshness)
        )

    async def _entries(self, entities: Sequence[str], context: Context) -> tuple[list[Entry], Freshness]:
        """The entries of valid ids, in place, and what they may claim together."""
        freshness, epoch = self._tail.freshness(), self._cache.epoch
        entries, cold = self._cache.lookup(entities, self._clock.monotonic_s())
        if cold:
            loaded, complete = await self._reads.load([entities[index] for index in cold], _patience_s(context))
            for index, entry in zip(cold, loaded, strict=True):
                entries[index] = entry
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
    ) -> tuple[list[ListCursor], str, Freshness]:
        """A page's rows, the token of the next page ("" if there is none), and what they may claim."""
        kind = int(request.kind)
        size = request.page_size or PAGE_SIZE_DEFAULT
        violations = violations_of(
            (of_field, id_violation(of)), ("kind", kind_violation(kind)), ("page_size", page_size_violation(request.page_size))
        )
        refuse_if_any(violations)
        after = None
        if request.page_token:  # looked at last: it belongs to a valid request
            after = self._tokens.decode(method, of, kind, request.page_token)
            if after is None:
                raise CallRefused.of([Violation("page_token", Reason.PAGE_TOKEN_INVALID)])
        freshness = self._tail.freshness()
        rows = await _in_time(context, self._reads.read(lambda reader: lister(reader)(of, kind, after, size + 1)))
        token = self._tokens.encode(method, of, kind, rows[size - 1]) if len(rows) > size else ""
        return rows[:size], token, freshness

    def _message(self, freshness: Freshness) -> common_pb2.Freshness:
        as_of, position, stale = self._tail.aged(freshness)
        return common_pb2.Freshness(as_of=None if as_of is None else _timestamp(as_of), position=position, stale=stale)

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


def _values_of(metrics: Sequence[int]) -> Callable[[Sequence[int]], Sequence[int]]:
    """Picks the metrics, in their order, out of an entry's totals."""
    numbers = [int(metric) for metric in metrics]
    if len(numbers) == 1:
        return itemgetter(slice(numbers[0], numbers[0] + 1))
    return itemgetter(*numbers)


def _timestamp(microseconds: int) -> Timestamp:
    # By hand: FromMicroseconds takes 90 ns more, an eighth, for each of up to 1,000 items of a page.
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
