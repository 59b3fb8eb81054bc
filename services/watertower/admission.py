"""Who is let in when more comes than can be done.

A call passes three doors, the first two before its request is parsed:

1. *Room.* `calls_max` calls are in the process at once, whatever they do: arrive, wait, work, go out. More are refused.
2. *Shedding.* `queue_s` is how long calls wait now until this process turns to them, which a probe measures (transport.py). Each class
   of work has a threshold. Above it a share of the class is refused, which grows from none at the threshold to all at twice the threshold;
   so the wait settles where what is left can be done, instead of swinging. Thresholds grow from class to class: bulk writes go first, reads
   from memory last. What counts is the least of the last waits: a burst that is worked off is no overload. (K. Nichols, V. Jacobson:
   "Controlling Queue Delay", ACM Queue, 2012; the share instead of CoDel's drop interval, because calls here come on many connections
   and a caller that is refused waits as long as it was told.)
3. *The method's gate*, for methods that read the store, right before they do: so many of their calls are under way; the next ones wait
   in order, for a while at most.

What was refused is told when to come back: later the longer the wait is, and never all at once.

Who is in takes turns: bulk work is done a piece at a time, and between two pieces the event loop turns to whatever else is there. Without
that, a caller who makes 20 bulk reads at once has all 20 done before anybody else's small one.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Any

from watertower.config import ServerSettings
from watertower.errors import CallRefused, Reason
from watertower.transport import Receiving


class Work(IntEnum):
    """Classes of work, in the order in which they are shed."""

    BULK_WRITE = 0
    BULK_READ = 1
    WRITE = 2
    STORE_READ = 3
    CACHED_READ = 4


BULK_BYTES_MIN = 4_096
"""Bytes from which a request is bulk: about 50 events, or 200 entities."""

RETRY_AFTER_S_MAX = 10.0
"""Seconds that a shed caller is told to wait, at most (before jitter)."""

TURN_ROUNDS = 4
"""Rounds of the event loop between two pieces of bulk work: a small read takes six, from its arrival to its answer."""

WAITS_KEPT = 4
"""Measured waits of which the least counts."""

_BULK = {Work.WRITE: Work.BULK_WRITE, Work.CACHED_READ: Work.BULK_READ, Work.STORE_READ: Work.BULK_READ}


class Shedding:
    """How much of each class is refused now. Pure: waits are handed in, and randomness."""

    def __init__(self, first_s: float, last_s: float, retry_after_s: float, uniform: Callable[[], float]) -> None:
        """The thresholds of the classes go from `first_s` to `last_s`, each the same factor above the one before. `uniform` gives
        numbers in [0, 1)."""
        factor: float = (last_s / first_s) ** (1 / (len(Work) - 1))
        self._thresholds_s = [first_s * factor ** int(work) for work in Work]
        self._retry_after_s = retry_after_s
        self._uniform = uniform
        self._waits: deque[float] = deque(maxlen=WAITS_KEPT)
        self._shares = [0.0] * len(Work)
        self.level = 0
        """Classes of which some is refused: those below this number."""

    @property
    def queue_s(self) -> float:
        """Seconds that calls wait at least; 0 until enough was measured."""
        return min(self._waits) if len(self._waits) == WAITS_KEPT else 0.0

    def observe(self, wait_s: float) -> None:
        """One measured wait, seconds; infinite where a call was not taken at all."""
        self._waits.append(wait_s)
        queue_s = self.queue_s
        self.level = bisect_right(self._thresholds_s, queue_s)
        self._shares = [min(1.0, max(0.0, queue_s / threshold_s - 1.0)) for threshold_s in self._thresholds_s]

    def threshold_s(self, work: Work) -> float:
        """Seconds of waiting from which some of this class is refused."""
        return self._thresholds_s[work]

    def sheds(self, work: Work) -> bool:
        """Whether this call is one of those that are refused."""
        return work < self.level and self._uniform() < self._shares[work]

    def retry_after_s(self) -> float:
        """Seconds after which a refused caller may come back, before they are spread at random (rpc.py): grows with the wait."""
        return min(RETRY_AFTER_S_MAX, self._retry_after_s * (1.0 + self.queue_s / self._thresholds_s[0]))


class Gate:
    """So many calls of one method under way; the next ones wait in order, for so long at most. Belongs to one event loop."""

    def __init__(self, calls_max: int, queue_s_max: float) -> None:
        self._calls_max, self._queue_s_max = calls_max, queue_s_max
        self._waiting: dict[asyncio.Future[None], None] = {}
        self.under_way = 0

    def enter_at_once(self) -> bool:
        """Whether there is room. Then it is taken."""
        if self.under_way < self._calls_max:
            self.under_way += 1
            return True
        return False

    async def enter(self, left_s: float) -> None:
        """Waits for room, but not longer than the call has time. Raises CallRefused (CALLS_FULL, DEADLINE_PASSED)."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await asyncio.wait({turn}, timeout=min(self._queue_s_max, left_s))
        except asyncio.CancelledError:
            if turn.done():
                self.leave()
            raise
        finally:
            self._waiting.pop(turn, None)
        if not turn.done():
            raise CallRefused(Reason.DEADLINE_PASSED if left_s <= self._queue_s_max else Reason.CALLS_FULL)

    def leave(self) -> None:
        """Gives the room to whoever waits longest."""
        for turn in self._waiting:
            del self._waiting[turn]
            turn.set_result(None)
            return
        self.under_way -= 1


class Turns:
    """One piece of work after the other, with TURN_ROUNDS of the event loop between them. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], float] = {}  # since when, the oldest first
        self._taken = False

    @property
    def waited_s(self) -> float:
        """How long the one whose turn is next has waited."""
        return next((asyncio.get_running_loop().time() - since_s for since_s in self._waiting.values()), 0.0)

    async def take(self) -> None:
        """Returns when it is the caller's turn: it does its piece at once, without waiting for anything in the middle."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting[turn] = loop.time()
            try:
                await turn
            except asyncio.CancelledError:
                self._waiting.pop(turn, None)
                if not turn.cancelled():  # it was given the turn, and passes it on
                    self._pass_on(loop, 0)
                raise
        self._taken = True
        loop.call_soon(self._pass_on, loop, TURN_ROUNDS)

    def _pass_on(self, loop: asyncio.AbstractEventLoop, rounds: int) -> None:
        if rounds:
            loop.call_soon(self._pass_on, loop, rounds - 1)
            return
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.cancelled():  # whoever waited may be gone and not yet have been told
                turn.set_result(None)
                return
        self._taken = False


class Admission:
    """The doors of one server. Belongs to one event loop."""

    def __init__(self, limits: ServerSettings, works: Mapping[str, Work], gated: Mapping[str, Gate], uniform: Callable[[], float]) -> None:
        """`works`: the class of each method, by its name, when its request is small; `gated`: the methods whose calls wait in order."""
        self._calls_max = limits.calls_max
        self._works, self._gates = works, gated
        self.shedding = Shedding(limits.shed_first_ms / 1e3, limits.shed_last_ms / 1e3, limits.retry_after_ms / 1e3, uniform)
        self.uniform = uniform
        self.receiving = Receiving(limits.receive_ms_max / 1e3)
        self._turns = Turns()  # of bulk work
        self.calls = 0
        """Calls in the process."""

    def arrive(self) -> None:
        """A call is here, its request not yet. Raises CallRefused(CALLS_FULL). Otherwise `depart` is called once, when the call is over."""
        if self.calls >= self._calls_max:
            raise self._refusal(Reason.CALLS_FULL)
        self.calls += 1

    def depart(self, _: Any = None) -> None:
        """The call is over, and its answer is out of the process."""
        self.calls -= 1

    def enter(self, method: str, request_bytes: int, left_s: float) -> bool:
        """Before the request is parsed: whether the call is bulk, and must wait for its `turn` first. `left_s`: seconds until the caller's
        deadline, or infinite.

        Raises CallRefused: OVERLOADED, and DEADLINE_PASSED where nobody waits for the answer any more.
        """
        if left_s <= 0.0:
            raise self._refusal(Reason.DEADLINE_PASSED)
        bulk = request_bytes >= BULK_BYTES_MIN
        work = self._works.get(method, Work.CACHED_READ)
        if bulk:
            work = _BULK.get(work, work)
            # What waits for its turn waits where the probe does not see it.
            if self._turns.waited_s > self.shedding.threshold_s(work):
                raise self._refusal(Reason.OVERLOADED)
        if self.shedding.sheds(work):
            raise self._refusal(Reason.OVERLOADED)
        return bulk

    async def turn(self, left_s: Callable[[], float]) -> None:
        """Waits until a bulk call may be parsed and worked on. Raises CallRefused(DEADLINE_PASSED)."""
        await self._turns.take()
        if left_s() <= 0.0:
            raise self._refusal(Reason.DEADLINE_PASSED)

    @asynccontextmanager
    async def gate(self, method: str, left_s: float) -> AsyncIterator[None]:
        """Around the work of a method that waits for something else, and around nothing else: what a call waits for besides must not keep
        others from the store. Raises CallRefused: CALLS_FULL, DEADLINE_PASSED."""
        gate = self._gates[method]
        if not gate.enter_at_once():
            try:
                await gate.enter(left_s)
            except CallRefused as refused:
                raise self._refusal(refused.reason) from None
        try:
            yield
        finally:
            gate.leave()

    def _refusal(self, reason: Reason) -> CallRefused:
        return CallRefused(reason, retry_after_s=self.shedding.retry_after_s())
