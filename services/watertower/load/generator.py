"""The open loop: sends each call when it is due, whatever the answers take.

A call is as late as its answer is after the moment at which it was *due*, not after the one at which it was sent: a generator that waits
for slow answers, or is slow itself, would leave out just the calls that matter (coordinated omission: G. Tene, "How NOT to measure
latency", 2015). How late it sends is measured, too: a figure of a generator that is behind is not one of the service.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from watertower.client import ClientError
from watertower.load.measure import Recorder
from watertower.load.schedule import Arrival
from watertower.ports import Clock

IN_FLIGHT_MAX = 20_000
"""Calls without an answer; one more is not sent, and counts as failed."""

BURST_MAX = 64
"""Calls that are due which are sent before answers are looked at."""

Send = Callable[[Arrival], Awaitable[object]]


class Generator:
    """Sends a schedule. Belongs to one event loop."""

    def __init__(self, send: Send, recorder: Recorder, clock: Clock) -> None:
        """`send` may raise ClientError."""
        self._send, self._recorder, self._clock = send, recorder, clock
        self._under_way: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None  # of the load test itself

    async def run(self, arrivals: Iterator[Arrival], start_s: float) -> None:
        """Sends everything, `start_s` being moment 0 of the schedule; returns when everything has ended. Raises what `send` raises but
        for ClientError, as soon as it has: what is under way is ended, and nothing more is sent."""
        burst = 0
        try:
            for arrival in arrivals:
                wait_s = start_s + arrival.at_s - self._clock.monotonic_s()
                if wait_s > 0.0 or burst >= BURST_MAX:
                    await asyncio.sleep(max(0.0, wait_s))
                    burst = 0
                if self._fault is not None:
                    raise self._fault
                burst += 1
                self._begin(arrival, start_s + arrival.at_s)
            while self._under_way:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_EXCEPTION)
                if self._fault is not None:
                    raise self._fault
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    def _begin(self, arrival: Arrival, due_s: float) -> None:
        if len(self._under_way) >= IN_FLIGHT_MAX:
            self._recorder.not_sent(arrival.call, arrival.at_s)
            return
        self._recorder.sent(arrival.at_s, max(0.0, self._clock.monotonic_s() - due_s))
        task = asyncio.get_running_loop().create_task(self._one(arrival, due_s))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            self._fault = self._fault or task.exception()

    async def _one(self, arrival: Arrival, due_s: float) -> None:
        try:
            await self._send(arrival)
        except ClientError as error:
            self._recorder.failed(arrival.call, arrival.at_s, error)
        else:
            self._recorder.answered(arrival.call, arrival.at_s, self._clock.monotonic_s() - due_s)
