"""What can be asked of a client and of a session, in the words of the service."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from watertower.client.answers import (
    ALL_METRICS,
    Checked,
    Counts,
    Event,
    Freshness,
    Item,
    Page,
    Update,
    Written,
    covers,
    datetime_of,
    datetime_of_us,
    freshness_of,
    position_of,
)
from watertower.client.errors import ClientError
from watertower.client.requests import event_messages, kind_name, metric_names, refuse_check, refuse_counts, refuse_page, refuse_watch
from watertower.client.seen import Seen
from watertower.client.transport import Transport
from watertower.client.watching import forward_only
from watertower.core.model import Kind, Metric
from watertower.core.positions import Position
from watertower.v1 import reader_pb2

T = TypeVar("T")


class Answer(NamedTuple, Generic[T]):
    """An answer, as the service gave it."""

    value: T
    tokens: set[bytes]
    """The positions at which its parts were given."""
    behind: Callable[[], T]
    """The same, not `satisfied`."""


class Calls(ABC):
    """The calls. Every one of them takes `timeout_s`, in which it ends with its retries, and raises ClientError.

    Writes return when the events are durable. A write that fails may have been recorded; the same call again, with the same
    `occurred_at` (the error has it), counts nothing twice. Reads take `max_staleness_s`: how far back `as_of` may be; the service waits
    for a while if it is further back, and says in `freshness.satisfied` whether that helped.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @abstractmethod
    def _wrote(self, token: bytes) -> None:
        """Something was recorded at `token`."""

    @abstractmethod
    async def _read(self, ask: Callable[[Position | None, float], Awaitable[Answer[T]]], timeout_s: float) -> T:
        """What `ask(min_position, timeout_s)` answers, as new as the caller needs it."""

    @abstractmethod
    def _watched(self) -> Seen:
        """What the updates of a watch must include; they move it on."""

    # --- writes

    async def follow(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """An account follows an account."""
        return await self.record_many([Event(actor, Kind.FOLLOW, subject, occurred_at=occurred_at)], timeout_s=timeout_s)

    async def unfollow(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """An account follows an account no more."""
        return await self.record_many([Event(actor, Kind.FOLLOW, subject, "", False, occurred_at)], timeout_s=timeout_s)

    async def like(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """An account likes a post."""
        return await self.record_many([Event(actor, Kind.LIKE, subject, occurred_at=occurred_at)], timeout_s=timeout_s)

    async def unlike(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """An account takes a like back."""
        return await self.record_many([Event(actor, Kind.LIKE, subject, "", False, occurred_at)], timeout_s=timeout_s)

    async def comment(
        self, actor: str, subject: str, ref: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None
    ) -> Written:
        """An account comments on a post; `ref` is the comment's own id."""
        return await self.record_many([Event(actor, Kind.COMMENT, subject, ref, occurred_at=occurred_at)], timeout_s=timeout_s)

    async def delete_comment(
        self, actor: str, subject: str, ref: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None
    ) -> Written:
        """A comment is deleted."""
        return await self.record_many([Event(actor, Kind.COMMENT, subject, ref, False, occurred_at)], timeout_s=timeout_s)

    async def record_many(self, events: Iterable[Event], *, timeout_s: float | None = None) -> Written:
        """Any number of events, in requests of up to 1,000. Each of these is recorded whole or, if it breaks a rule, not at all; after one
        that failed, no further one is sent. The violations of an InvalidRequest count from the first event of the call."""
        left_s = self._transport.timeout_s(timeout_s)
        # Before anything else: a retry, and what is left of a batch that was refused, carry these moments.
        messages, moments = event_messages(events, self._transport.stamps)
        occurred_at = tuple(map(datetime_of_us, moments))
        try:
            token = await self._transport.record(messages, left_s)
        except ClientError as error:
            error.occurred_at = occurred_at
            if error.token:
                self._wrote(error.token)
            raise
        self._wrote(token)
        return Written(token, occurred_at)

    # --- reads

    async def counts(
        self,
        entity: str,
        metrics: Sequence[Metric] = ALL_METRICS,
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Counts:
        """The counts of one entity. One that was never seen has zeros, and `known` is false."""
        (found,) = await self.counts_many([entity], metrics, max_staleness_s=max_staleness_s, timeout_s=timeout_s)
        return found

    async def counts_many(
        self,
        entities: Sequence[str],
        metrics: Sequence[Metric] = ALL_METRICS,
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> list[Counts]:
        """The counts of any number of entities, in their order, in requests of up to 1,000."""
        refuse_counts(entities, metrics)

        async def ask(wanted: Position | None, left_s: float) -> Answer[list[Counts]]:
            counts = await self._transport.counts(entities, metrics, wanted, max_staleness_s, left_s)
            tokens = {one.freshness.position for one in counts}
            return Answer(counts, tokens, lambda: [replace(one, freshness=_behind(one.freshness)) for one in counts])

        return await self._read(ask, self._transport.timeout_s(timeout_s))

    async def check(
        self,
        actor: str,
        subjects: Sequence[str],
        kind: Kind = Kind.FOLLOW,
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Checked:
        """Whether the actor follows (likes, has commented on) each of 1 to 1,000 subjects."""
        refuse_check(actor, kind, subjects)

        async def ask(wanted: Position | None, left_s: float) -> Answer[Checked]:
            request = reader_pb2.CheckEdgesRequest(actor=actor, kind=kind_name(kind), subjects=subjects)
            answer = await self._transport.ask("CheckEdges", request, wanted, max_staleness_s, left_s)
            freshness = _freshness(answer, wanted, max_staleness_s)
            checked = Checked(tuple(answer.active), freshness)
            return Answer(checked, {freshness.position}, lambda: checked._replace(freshness=_behind(freshness)))

        return await self._read(ask, self._transport.timeout_s(timeout_s))

    async def list_actors(
        self,
        subject: str,
        kind: Kind = Kind.FOLLOW,
        *,
        page_size: int = 0,
        page_token: str = "",
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """A page of who follows (likes, has commented on) a subject, newest first. `page_size` 1 to 1,000; 0 means 100."""
        refuse_page("subject", subject, kind, page_size)
        request = reader_pb2.ListActorsRequest(subject=subject, kind=kind_name(kind), page_size=page_size, page_token=page_token)
        return await self._page("ListActors", request, lambda item: item.actor, max_staleness_s, timeout_s)

    async def list_subjects(
        self,
        actor: str,
        kind: Kind = Kind.FOLLOW,
        *,
        page_size: int = 0,
        page_token: str = "",
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """A page of whom an actor follows (likes, has commented on), newest first. `page_size` 1 to 1,000; 0 means 100."""
        refuse_page("actor", actor, kind, page_size)
        request = reader_pb2.ListSubjectsRequest(actor=actor, kind=kind_name(kind), page_size=page_size, page_token=page_token)
        return await self._page("ListSubjects", request, lambda item: item.subject, max_staleness_s, timeout_s)

    async def watch(
        self, entities: Sequence[str], metrics: Sequence[Metric] = ALL_METRICS, *, interval_s: float | None = None
    ) -> AsyncGenerator[Update, None]:
        """The counts of 1 to 1,000 different entities, and then each change of them, at most one message per interval (the service's own
        where it is None or shorter). Connects again by itself; no update is older than one before it. Ends only when it is closed, or with
        an error that repeating cannot help."""
        self._transport.timeout_s(None)
        refuse_watch(entities, metrics)
        request = reader_pb2.WatchCountsRequest(entities=entities, metrics=metric_names(metrics))
        if interval_s is not None:
            request.interval.FromMicroseconds(round(interval_s * 1e6))
        async with contextlib.aclosing(forward_only(self._transport.watch(request), self._watched())) as updates:
            async for update in updates:
                yield update

    async def _page(
        self, method: str, request: Any, id_of: Callable[[Any], str], max_staleness_s: float | None, timeout_s: float | None
    ) -> Page:
        async def ask(wanted: Position | None, left_s: float) -> Answer[Page]:
            answer = await self._transport.ask(method, request, wanted, max_staleness_s, left_s)
            freshness = _freshness(answer, wanted, max_staleness_s)
            items = tuple(Item(id_of(item), item.ref, datetime_of(item.occurred_at)) for item in answer.items)
            page = Page(items, answer.next_page_token, freshness)
            return Answer(page, {freshness.position}, lambda: page._replace(freshness=_behind(freshness)))

        return await self._read(ask, self._transport.timeout_s(timeout_s))


def _behind(freshness: Freshness) -> Freshness:
    return freshness._replace(satisfied=False)


def _freshness(answer: Any, wanted: Position | None, max_staleness_s: float | None) -> Freshness:
    """Of an answer to a request that asked for these."""
    included = covers(position_of(answer.freshness.position), wanted)
    return freshness_of(answer.freshness, included and (max_staleness_s is None or answer.freshness.satisfied))
