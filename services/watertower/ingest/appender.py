"""The event loop's side of the batcher: hands records to the log, and answers to the calls that wait for them."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from watertower import failpoints
from watertower.codec import encode_batch
from watertower.core.model import EventBatch
from watertower.counters import WRITE_BOUNDS_S, Durations
from watertower.errors import BackendUnavailable
from watertower.ingest.batcher import Batcher, Call
from watertower.ports import Clock, LogWriter
from watertower.rpc import patience_s


class AppendCounters:
    """What the log took."""

    def __init__(self) -> None:
        self.records = 0  # durable
        self.bytes = 0  # of them
        self.failures = 0  # records that were not acknowledged
        self.durations = Durations(WRITE_BOUNDS_S)  # of one record, until the event loop heard that it is durable


class _Sent(NamedTuple):
    """A record on its way into the log."""

    partition: int
    bytes: int
    sent_s: float  # monotonic


class Appender:
    """Appends the events of calls to the log. One event loop calls all methods."""

    def __init__(self, log: LogWriter, batcher: Batcher, clock: Clock) -> None:
        self._log = log
        self._batcher = batcher
        self._clock = clock
        self._appended_at = [0] * log.identity.partitions
        self._answers: dict[Call, asyncio.Future[None]] = {}
        self._pump_scheduled = False
        # Filled by the log's threads, emptied by the event loop, which is woken once for however many records have landed.
        self._landed: deque[tuple[_Sent, Future[int]]] = deque()
        self._wake_scheduled = False
        self._drained = asyncio.Event()
        self._drained.set()
        self.counters = AppendCounters()

    async def append(self, parts: Mapping[int, EventBatch], deadline_s: float = math.inf, traceparent: str = "") -> dict[int, int]:
        """Appends the events of a call, by partition; the offset of the last record per partition, once all are durable.

        `deadline_s`: seconds by the clock's monotonic time; what has not gone into a record by then is not appended. Raises
        CallRefused (QUEUE_FULL with nothing appended, or DEADLINE_PASSED), whatever the log failed with, and BackendUnavailable a
        little before the deadline. When the waiting task is cancelled, what has not gone into a record is not appended.
        """
        call = self._batcher.add(parts, deadline_s, traceparent)
        loop = asyncio.get_running_loop()
        timer = None
        if deadline_s != math.inf:
            timer = loop.call_later(patience_s(deadline_s - self._clock.monotonic_s()), self._give_up, loop, call)
        answer = self._answers[call] = loop.create_future()
        self._drained.clear()
        self._schedule_pump(loop)
        try:
            await answer
        finally:
            if timer is not None:
                timer.cancel()
            del self._answers[call]
            self._batcher.drop(call)
            self._settle(loop)
        return call.offsets

    async def drained(self) -> None:
        """Waits until nothing waits and nothing is in flight."""
        await self._drained.wait()

    def _give_up(self, loop: asyncio.AbstractEventLoop, call: Call) -> None:
        self._batcher.give_up(call, BackendUnavailable("the log did not acknowledge before the deadline"))
        self._settle(loop)

    def _schedule_pump(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once, so that calls that arrive in the same turn of the loop share a record.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            loop.call_soon(self._pump, loop)

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands the next record of every partition that has one to the log."""
        self._pump_scheduled = False
        now_s = self._clock.monotonic_s()
        for partition in self._batcher.ready():
            events = self._batcher.next_record(partition, now_s)
            if events is None:
                continue
            try:
                size, future = self._hand_over(partition, events)
            except Exception as error:  # whatever it is, the calls that wait must hear of it
                self._failed(partition, error)
            else:
                future.add_done_callback(partial(self._land, loop, _Sent(partition, size, now_s)))
        self._settle(loop)

    def _hand_over(self, partition: int, events: EventBatch) -> "tuple[int, Future[int]]":
        """The record's bytes, and what says when it is durable."""
        payload = encode_batch(events)
        # A wall clock that is set back must not make appended_at fall.
        appended_at = self._appended_at[partition] = max(self._clock.now_us(), self._appended_at[partition])
        failpoints.reach("ingest.before_append")
        future = self._log.append(partition, payload, appended_at, self._batcher.traceparent(partition))
        failpoints.reach("ingest.after_append")
        return len(payload), future

    def _land(self, loop: asyncio.AbstractEventLoop, sent: _Sent, future: "Future[int]") -> None:
        """A record is durable, or failed. In a thread of the log."""
        self._landed.append((sent, future))
        if not self._wake_scheduled:
            self._wake_scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._wake, loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        # First this, then the queue: what lands in between is taken here or wakes the loop again, never neither.
        self._wake_scheduled = False
        while self._landed:
            sent, future = self._landed.popleft()
            try:
                offset = future.result()
                failpoints.reach("ingest.before_acknowledge")
            except Exception as error:
                self._failed(sent.partition, error)
            else:
                self._batcher.appended(sent.partition, offset)
                self.counters.records += 1
                self.counters.bytes += sent.bytes
                self.counters.durations.add(self._clock.monotonic_s() - sent.sent_s)
        self._settle(loop)

    def _failed(self, partition: int, error: Exception) -> None:
        self.counters.failures += 1
        self._batcher.failed(partition, error)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answers the calls that have ended, and sees to what can go on because of it."""
        for call in self._batcher.take_ended():
            answer = self._answers.get(call)
            if answer is None or answer.done():
                continue
            if call.error is None:
                answer.set_result(None)
            else:
                answer.set_exception(call.error)
        if self._batcher.ready():
            self._schedule_pump(loop)
        elif self._batcher.events == 0:
            self._drained.set()
