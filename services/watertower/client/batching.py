"""Micro-batches: calls that are made at the same time go in one request.

A call that finds nothing under way is sent in the same turn of the event loop, so a lone caller waits for nobody. While a request is on
its way, the next one fills: it goes when it is full, when the one before is answered, or after a few milliseconds. The busier it gets
the bigger the batches are, and the cheaper each call is.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import grpc

from watertower.client.errors import ClientClosed, InvalidRequest, Refusal, Violation
from watertower.client.options import ClientOptions
from watertower.client.peer import AttemptFailed, Method, Peer, closed

P = TypeVar("P")  # what a caller hands in
R = TypeVar("R")  # what it gets

_INDEXED = re.compile(r"(?P<list>[a-z_]+)\[(?P<index>[0-9]{1,9})\](?P<rest>.*)", re.DOTALL)


class Entry(Generic[P, R]):
    """One caller's part of a batch."""

    __slots__ = ("deadline_s", "last", "payload", "result")

    def __init__(self, payload: P, deadline_s: float) -> None:
        self.payload = payload
        self.deadline_s = deadline_s  # of the peer's clock
        self.result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.last: Refusal | None = None  # of the attempt before

    @property
    def waits(self) -> bool:
        """Whether somebody still waits for the result."""
        return not self.result.done()

    def fail(self, error: Exception) -> None:
        if self.waits:
            self.result.set_exception(error)

    def succeed(self, result: R) -> None:
        if self.waits:
            self.result.set_result(result)


class Batch(ABC, Generic[P, R]):
    """Entries that go in one request."""

    field: ClassVar[str]
    """The list of the request that its items are in, as the service names it."""

    def __init__(self, items_max: int) -> None:
        self.items_max = items_max
        self.entries: list[Entry[P, R]] = []
        self.due = False  # it has waited long enough
        self.key: Any = None  # what its entries have in common

    @property
    @abstractmethod
    def items(self) -> int:
        """Events or different entities in it."""

    @abstractmethod
    def fits(self, payload: P) -> bool:
        """Whether there is room for one more."""

    def add(self, entry: Entry[P, R]) -> None:
        """One more entry, which fits."""
        self.entries.append(entry)

    @abstractmethod
    def request(self) -> Any:
        """The message for the entries as they are now."""

    @abstractmethod
    def deliver(self, answer: Any) -> None:
        """Gives every entry its part of the answer to `request`."""

    @abstractmethod
    def owners(self, index: int) -> Iterable[tuple[Entry[P, R], int]]:
        """Whose the item at a place of the last request is, and its place as the owner counts."""

    def keep(self, entries: list[Entry[P, R]]) -> None:
        """Leaves only these."""
        self.entries = entries


class Batcher(Generic[P, R]):
    """Collects calls into batches and sends them, with retries. Belongs to one event loop."""

    def __init__(self, peer: Peer, method: Method, new_batch: Callable[[Any], Batch[P, R]], options: ClientOptions) -> None:
        """`new_batch(key)` makes an empty batch for entries of one key."""
        self._peer, self._method, self._new_batch = peer, method, new_batch
        self._calls_max, self._wait_s = options.batch_calls_max, options.batch_wait_ms_max / 1e3
        self._waiting_max = options.waiting_items_max
        self._waiting = 0  # items of callers that have no answer yet
        self._queue: deque[Batch[P, R]] = deque()
        self._filling: dict[Hashable, Batch[P, R]] = {}  # the last batch of each key, while it is in the queue
        self._under_way: dict[asyncio.Task[None], Batch[P, R]] = {}
        self._launch_planned = False
        self._closed = False

    async def submit(self, key: Hashable, payload: P, items: int, deadline_s: float) -> R:
        """The result of one caller's items. Raises ClientError, at the latest at the deadline."""
        self._admit(items, items)
        try:
            return await self._result(key, payload, deadline_s)
        finally:
            self._waiting -= items

    async def submit_parts(self, key: Hashable, parts: Sequence[P], items: Sequence[int], deadline_s: float) -> list[R | Exception | None]:
        """The results of one caller's parts, in their order, with the items of each; what was raised in place of the result of one that
        failed. After that no further one is begun: those have None. All that were begun have ended. Raises ClientError for a call that is
        refused as a whole, before anything is sent."""
        if len(parts) == 1:
            return [await self.submit(key, parts[0], items[0], deadline_s)]
        # As many at once as there are requests, and no more than may wait: the rest of the call is its caller's, and waits for nobody.
        at_once = max(1, min(self._calls_max, self._waiting_max // max(items)))
        held = sum(items[:at_once])
        self._admit(sum(items), held)
        results: list[R | Exception | None] = [None] * len(parts)
        left, failed = iter(enumerate(parts)), False

        async def one_by_one() -> None:
            nonlocal failed
            for number, part in left:
                if failed:
                    return
                try:
                    results[number] = await self._result(key, part, deadline_s)
                except Exception as error:
                    results[number], failed = error, True

        try:
            await asyncio.gather(*(one_by_one() for _ in parts[:at_once]))
        finally:
            self._waiting -= held
        return results

    async def close(self) -> None:
        """Ends what is under way; whoever waits gets ClientClosed."""
        self._closed = True
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        # Those under way, too: a task that has not begun when it is cancelled never fails its batch.
        for batch in (*self._queue, *self._under_way.values()):
            _fail(batch, closed)
        self._queue.clear()
        self._filling.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self, items: int, held: int) -> None:
        """Lets a call of so many items in, of which so many wait at once; these are counted. Raises ClientClosed, TooManyWaiting,
        Throttled."""
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._waiting + held > self._waiting_max:
            raise self._peer.too_many_waiting(self._waiting, "items")
        self._peer.admit(items)
        self._waiting += held

    async def _result(self, key: Hashable, payload: P, deadline_s: float) -> R:
        if self._closed:
            raise closed()
        entry: Entry[P, R] = Entry(payload, deadline_s)
        self._place(key, entry)
        try:
            async with asyncio.timeout(self._peer.left_s(deadline_s)):
                return await entry.result
        except TimeoutError:
            raise self._peer.out_of_time(entry.last) from None

    def _place(self, key: Hashable, entry: Entry[P, R]) -> None:
        batch = self._filling.get(key)
        if batch is None or not batch.fits(entry.payload):
            if batch is not None:
                batch.due = True  # the next one fills
            batch = self._filling[key] = self._new_batch(key)
            batch.key = key
            self._queue.append(batch)
            asyncio.get_running_loop().call_later(self._wait_s, self._release, batch)
        batch.add(entry)
        if batch.items >= batch.items_max:
            batch.due = True
        if not self._launch_planned:
            self._launch_planned = True
            # At the end of this turn of the loop: whoever calls in the same turn comes along.
            asyncio.get_running_loop().call_soon(self._launch)

    def _release(self, batch: Batch[P, R]) -> None:
        batch.due = True
        self._launch()

    def _launch(self) -> None:
        """Sends what is to be sent now."""
        self._launch_planned = False
        while len(self._under_way) < self._calls_max:
            batch = next((batch for batch in self._queue if batch.due or not self._under_way), None)
            if batch is None:
                return
            self._send(batch)

    def _send(self, batch: Batch[P, R]) -> None:
        self._queue.remove(batch)
        for key, filling in self._filling.items():
            if filling is batch:
                del self._filling[key]
                break
        task = asyncio.get_running_loop().create_task(self._carry(batch))
        self._under_way[task] = batch
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)
        if self._queue and not self._closed:
            self._queue[0].due = True
            self._launch()

    async def _carry(self, batch: Batch[P, R]) -> None:
        """One batch to its end: every entry has a result or an error afterwards, or is in a smaller batch."""
        try:
            await self._attempts(batch)
        except asyncio.CancelledError:
            _fail(batch, closed)
            raise
        except Exception as error:  # nobody may wait for what has ended
            fault = error
            _fail(batch, lambda: fault)

    async def _attempts(self, batch: Batch[P, R]) -> None:
        peer, number, blamed = self._peer, 0, False
        while self._alive(batch):
            request, items = batch.request(), batch.items
            try:
                answer = await peer.attempt(self._method, request, max(e.deadline_s for e in batch.entries), items, number)
            except AttemptFailed as failed:
                refusal = failed.refusal
            else:
                batch.deliver(answer)
                return
            if refusal.violations and self._blame(batch, refusal):
                # Without what was wrong in it, it is another request, and nothing of it was recorded. Once that is no retry, unless it is
                # bound to be refused again, since not all that is wrong was named.
                if (blamed or refusal.violations_count > len(refusal.violations)) and self._alive(batch):
                    number += 1
                    if number >= peer.attempts_max or not peer.take_retry():
                        _fail(batch, peer.not_sent_again)
                        return
                blamed = True
                continue
            if refusal.status is grpc.StatusCode.INVALID_ARGUMENT and len(batch.entries) > 1:
                self._halve(batch)
                return
            wait = peer.wait_s(refusal, number)
            late = [entry for entry in batch.entries if wait is None or peer.left_s(entry.deadline_s) <= wait]
            # They gain nothing from waiting.
            if wait is None or len(late) == len(batch.entries) or not peer.take_retry():
                _fail(batch, partial(peer.error, refusal))
                return
            for entry in late:
                entry.fail(peer.error(refusal))
            for entry in batch.entries:
                entry.last = refusal
            await peer.sleep(wait)
            number += 1

    def _halve(self, batch: Batch[P, R]) -> None:
        """Queues both halves of a batch that was refused as a whole: what is wrong may be one entry's alone, such as the position that it
        asks for, or only wrong of all together. Of n entries with one that is wrong, the others have their answers after about 2 log2(n)
        requests."""
        middle = len(batch.entries) // 2
        for entries in (batch.entries[middle:], batch.entries[:middle]):
            half = self._new_batch(batch.key)
            half.key, half.due = batch.key, True
            for entry in entries:
                half.add(entry)
            self._queue.appendleft(half)

    def _alive(self, batch: Batch[P, R]) -> bool:
        """Leaves out whose caller is gone; whether anybody is left."""
        batch.keep([entry for entry in batch.entries if entry.waits])
        return bool(batch.entries)

    def _blame(self, batch: Batch[P, R], refusal: Refusal) -> bool:
        """Fails the entries whose items were named, each with its own part; whether there were any."""
        blamed: dict[int, tuple[Entry[P, R], list[Violation]]] = {}
        for violation in refusal.violations:
            found = _INDEXED.fullmatch(violation.field)
            if found is None or found["list"] != batch.field:
                return False  # of the request as a whole, or of what all entries have in common
            for entry, index in batch.owners(int(found["index"])):
                own = violation._replace(field=f"{found['list']}[{index}]{found['rest']}")
                blamed.setdefault(id(entry), (entry, []))[1].append(own)
        for entry, violations in blamed.values():
            entry.fail(InvalidRequest(violations, refusal=refusal))
        return bool(blamed)


def _fail(batch: Batch[Any, Any], error: Callable[[], Exception]) -> None:
    """An error for every entry that waits: one each, since a traceback grows with every place where an error is raised."""
    for entry in batch.entries:
        entry.fail(error())
