"""The client for threads: the same calls, on an event loop in a thread of its own. Threads that call at the same time share batches."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from watertower.client.answers import ALL_METRICS, Checked, Counts, Event, Page, Update, Written
from watertower.client.attempt import OnAttempt
from watertower.client.calls import Calls
from watertower.client.client import READ_TARGET, WRITE_TARGET, Client
from watertower.client.errors import ClientClosed
from watertower.client.options import ClientOptions
from watertower.client.session import Session
from watertower.core.model import Kind, Metric

T = TypeVar("T")

_ENDING_S = 1.0
"""Seconds that calls have to end after their client has; they need none."""


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="watertower-client", daemon=True)
        self._thread.start()
        self._lock = threading.RLock()  # inside of it the collector may close a watch that was left over, and so come here again
        self._process = os.getpid()
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the loop; whoever is interrupted while waiting cancels it. Raises ClientClosed, also in a forked
        process that has inherited the loop without its thread."""
        if self._process != os.getpid():  # before the lock: a thread that held it in the parent never lets go here
            work.close()
            raise ClientClosed("the client was made before a fork, and its thread is not in this process: make the client after it")
        with self._lock:  # nothing may be begun on a loop that is about to end: it would be waited for without end
            refused = self._closed or threading.current_thread() is self._thread
            future = None if refused else asyncio.run_coroutine_threadsafe(work, self._loop)
        if future is None:
            work.close()
            raise ClientClosed("the client is closed" if self._closed else "a call from the client's own thread would wait for itself")
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the loop when everything on it has ended. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        ending.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        # Calls that the end of the client has failed have yet to tell their threads.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        late = (await asyncio.wait(others, timeout=_ENDING_S))[1] if others else set()
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await self._loop.shutdown_asyncgens()  # watches that nobody has closed


class SyncCalls:
    """The calls of `Calls`, one by one, for threads: see there for what they mean and raise."""

    def __init__(self, loop: _Loop, calls: Calls) -> None:
        self._loop, self._calls = loop, calls

    def follow(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """As Client.follow."""
        return self._loop.run(self._calls.follow(actor, subject, occurred_at=occurred_at, timeout_s=timeout_s))

    def unfollow(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """As Client.unfollow."""
        return self._loop.run(self._calls.unfollow(actor, subject, occurred_at=occurred_at, timeout_s=timeout_s))

    def like(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """As Client.like."""
        return self._loop.run(self._calls.like(actor, subject, occurred_at=occurred_at, timeout_s=timeout_s))

    def unlike(self, actor: str, subject: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None) -> Written:
        """As Client.unlike."""
        return self._loop.run(self._calls.unlike(actor, subject, occurred_at=occurred_at, timeout_s=timeout_s))

    def comment(
        self, actor: str, subject: str, ref: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None
    ) -> Written:
        """As Client.comment."""
        return self._loop.run(self._calls.comment(actor, subject, ref, occurred_at=occurred_at, timeout_s=timeout_s))

    def delete_comment(
        self, actor: str, subject: str, ref: str, *, occurred_at: datetime | None = None, timeout_s: float | None = None
    ) -> Written:
        """As Client.delete_comment."""
        return self._loop.run(self._calls.delete_comment(actor, subject, ref, occurred_at=occurred_at, timeout_s=timeout_s))

    def record_many(self, events: Iterable[Event], *, timeout_s: float | None = None) -> Written:
        """As Client.record_many."""
        return self._loop.run(self._calls.record_many(list(events), timeout_s=timeout_s))  # the loop's thread waits for no iterable

    def counts(
        self,
        entity: str,
        metrics: Sequence[Metric] = ALL_METRICS,
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Counts:
        """As Client.counts."""
        return self._loop.run(self._calls.counts(entity, metrics, max_staleness_s=max_staleness_s, timeout_s=timeout_s))

    def counts_many(
        self,
        entities: Sequence[str],
        metrics: Sequence[Metric] = ALL_METRICS,
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> list[Counts]:
        """As Client.counts_many."""
        return self._loop.run(self._calls.counts_many(entities, metrics, max_staleness_s=max_staleness_s, timeout_s=timeout_s))

    def check(
        self,
        actor: str,
        subjects: Sequence[str],
        kind: Kind = Kind.FOLLOW,
        *,
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Checked:
        """As Client.check."""
        return self._loop.run(self._calls.check(actor, subjects, kind, max_staleness_s=max_staleness_s, timeout_s=timeout_s))

    def list_actors(
        self,
        subject: str,
        kind: Kind = Kind.FOLLOW,
        *,
        page_size: int = 0,
        page_token: str = "",
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """As Client.list_actors."""
        return self._loop.run(
            self._calls.list_actors(
                subject, kind, page_size=page_size, page_token=page_token, max_staleness_s=max_staleness_s, timeout_s=timeout_s
            )
        )

    def list_subjects(
        self,
        actor: str,
        kind: Kind = Kind.FOLLOW,
        *,
        page_size: int = 0,
        page_token: str = "",
        max_staleness_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """As Client.list_subjects."""
        return self._loop.run(
            self._calls.list_subjects(
                actor, kind, page_size=page_size, page_token=page_token, max_staleness_s=max_staleness_s, timeout_s=timeout_s
            )
        )

    def watch(
        self, entities: Sequence[str], metrics: Sequence[Metric] = ALL_METRICS, *, interval_s: float | None = None
    ) -> Iterator[Update]:
        """As Client.watch; `close()` of the iterator ends it."""
        updates = self._calls.watch(entities, metrics, interval_s=interval_s)
        try:
            while True:
                try:
                    yield self._loop.run(anext(updates))
                except StopAsyncIteration:
                    return
        finally:
            with contextlib.suppress(ClientClosed):  # it ended with the client
                self._loop.run(updates.aclose())


class SyncSession(SyncCalls):
    """Session for threads; of one user, and so mostly for one thread at a time."""

    def __init__(self, loop: _Loop, session: Session) -> None:
        super().__init__(loop, session)
        self._session = session

    @property
    def token(self) -> bytes:
        """As Session.token."""
        return self._session.token


class SyncClient(SyncCalls):
    """Client for threads. Use with `with`, or `close()` it. To be made after a fork, not before."""

    def __init__(
        self,
        write_target: str = WRITE_TARGET,
        read_target: str = READ_TARGET,
        options: ClientOptions | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        """As Client; `on_attempt` is called in the client's own thread."""
        loop = _Loop()

        async def make() -> Client:
            return Client(write_target, read_target, options, credentials=credentials, on_attempt=on_attempt)

        self._client = loop.run(make())
        super().__init__(loop, self._client)

    def session(self, token: bytes = b"") -> SyncSession:
        """As Client.session."""
        return SyncSession(self._loop, self._client.session(token))

    def close(self) -> None:
        """As Client.close; ends the thread. Idempotent. In a process that was forked from the one that made the client, it does nothing."""
        try:
            self._loop.run(self._client.close())
        except ClientClosed:
            return
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
