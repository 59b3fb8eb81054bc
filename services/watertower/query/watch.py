"""WatchCounts: the counts of some entities, and then what changes.

A watch looks at its entities once an interval and sends those that differ from what it sent last. It keeps no queue: a change is found by
looking, so one that came while the caller was slow to read is part of the next message, with its newest values, and costs nothing before.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeAlias

from watertower.config import QuerySettings
from watertower.errors import BackendRefused, BackendUnavailable, CallRefused, Reason, Violation
from watertower.query.answers import shape_of
from watertower.query.cache import Entry
from watertower.query.needs import positive_us
from watertower.query.tail import Freshness
from watertower.rpc import ENDED
from watertower.v1 import common_pb2, reader_pb2
from watertower.validation import ENTITIES_MAX, count_violation, id_violations, metrics_violations, refuse_if_any

WATCH_INTERVAL_MS_MAX = 60_000
"""Between two messages, at most: milliseconds that a request may ask for."""

Look: TypeAlias = Callable[[Sequence[str], float], Awaitable[tuple[list[Entry], Freshness]]]
"""The entries of valid ids, in place, and what they may claim, within so many seconds. Raises BackendUnavailable, CallRefused."""


class Watches:
    """All watches of one process. Belongs to one event loop."""

    def __init__(
        self, settings: QuerySettings, look: Look, nothing: Callable[[], Freshness], message: Callable[[Freshness], common_pb2.Freshness]
    ) -> None:
        """`nothing` is what is claimed where looking fails; `message` says a claim as it goes out."""
        self._settings, self._look, self._nothing, self._message = settings, look, nothing, message
        self._retry_after_s = settings.retry_after_ms / 1e3
        self._heartbeat_s = settings.watch_heartbeat_ms / 1e3
        self._callers: Counter[str] = Counter()
        self._entities = 0
        self._ended = asyncio.Event()
        self._busy: set[asyncio.Task[object]] = set()  # watches that do not pause: they look, or their caller does not read

    @property
    def open(self) -> int:
        """How many there are."""
        return self._callers.total()

    def end(self) -> None:
        """Ends all watches, and refuses further ones, with STOPPING."""
        self._ended.set()
        for task in self._busy:
            task.cancel(ENDED)

    async def watch(self, request: reader_pb2.WatchCountsRequest, peer: str) -> AsyncGenerator[bytes, None]:
        """The messages of one call of `peer`, a gRPC name of the other end. Raises CallRefused, BackendUnavailable, BackendRefused: before
        the first message for any reason, after it only STOPPING. (What a store raises that answers nonsense goes on to the caller at any
        time.) A store that does not answer is waited for before the first message as a call waits to be as fresh as it asks, and then for
        one heartbeat at a time."""
        entities = list(request.entities)
        interval_s = self._interval_s(request, _violations(request, entities))
        values_of = shape_of(tuple(request.metrics)).values_of
        loop = asyncio.get_running_loop()
        with self._admitted(_host(peer), len(entities)), self._heard_of():
            entries, freshness = await self._look(entities, self._settings.freshness_wait_ms_max / 1e3)
            sent: list[object] = [None] * len(entities)
            sent_s = loop.time() - self._heartbeat_s
            while True:
                response = reader_pb2.WatchCountsResponse()
                for index, entry in enumerate(entries):
                    # An entity becomes known with its first shard, be its counts all zero.
                    seen = (tuple(values_of(entry.totals)), bool(entry.shards))
                    if seen != sent[index]:
                        sent[index] = seen
                        response.counts.add(index=index, values=seen[0], known=seen[1])
                if response.counts or loop.time() - sent_s >= self._heartbeat_s:
                    response.freshness.CopyFrom(self._message(freshness))
                    yield response.SerializeToString()
                    sent_s = loop.time()
                await self._pause(interval_s)
                try:
                    # No longer than that: the caller is to hear that nothing is known, instead of nothing.
                    entries, freshness = await self._look(entities, self._heartbeat_s)
                except (BackendUnavailable, BackendRefused, CallRefused):
                    # What left memory cannot be had now: what was sent stands, and nothing is said of how fresh it is.
                    freshness = self._nothing()

    def _interval_s(self, request: reader_pb2.WatchCountsRequest, violations: list[Violation]) -> float:
        own_us = asked_us = self._settings.watch_interval_ms * 1_000
        if request.HasField("interval"):
            asked_us = positive_us(request.interval) or 0
            if not 0 < asked_us <= WATCH_INTERVAL_MS_MAX * 1_000:
                violations.append(Violation("interval", Reason.INTERVAL_INVALID))
        refuse_if_any(violations)
        return max(own_us, asked_us) / 1e6

    @contextmanager
    def _admitted(self, caller: str, entities: int) -> Iterator[None]:
        limits = self._settings
        if self._ended.is_set():
            raise CallRefused(Reason.STOPPING, retry_after_s=self._retry_after_s)
        if (
            self.open >= limits.watches_max
            or self._callers[caller] >= limits.watches_per_caller_max
            or self._entities + entities > limits.watched_entities_max
        ):
            raise CallRefused(Reason.WATCHES_FULL, retry_after_s=self._retry_after_s)
        self._callers[caller] += 1
        self._entities += entities
        try:
            yield
        finally:
            self._entities -= entities
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]

    @contextmanager
    def _heard_of(self) -> Iterator[None]:
        task = _task()
        self._busy.add(task)
        try:
            yield
        finally:
            self._busy.discard(task)

    async def _pause(self, seconds: float) -> None:
        task = _task()
        self._busy.discard(task)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        self._busy.add(task)
        if self._ended.is_set():
            raise CallRefused(Reason.STOPPING, retry_after_s=self._retry_after_s)


def _violations(request: reader_pb2.WatchCountsRequest, entities: Sequence[str]) -> list[Violation]:
    count = count_violation(len(entities), ENTITIES_MAX, Reason.ENTITIES_COUNT)
    of_entities = id_violations("entities", entities) if count is None else [Violation("entities", count)]
    return [*of_entities, *metrics_violations("metrics", request.metrics)]


def _host(peer: str) -> str:
    """The machine at the other end: a gRPC name ("ipv4:192.0.2.1:50051") without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a watch is read by a task")
    return task
