"""Virtual time, and one thread for everything.

The product's asynchronous code (ingest, query) runs on an event loop whose clock jumps from one timer to the next. Its blocking code
(the projector, reads of the store) runs in greenlets: where a simulated back end would block, `wait` hands an awaitable to the loop
and comes back with its result. Nothing depends on real time, on addresses or on hashes, so a seed decides everything that happens.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")


class Deadlock(Exception):
    """Nothing can ever happen any more."""


class _Jump:
    """Stands where an event loop has its selector: instead of waiting for the next timer, time jumps to it."""

    def __init__(self, loop: "VirtualTimeLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("every task waits for something that nothing will bring")
        self._loop.now_s += max(timeout, 0.0)
        return []

    def close(self) -> None:
        """Nothing to close."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """An event loop without a machine below it. `now_s` is seconds since its start."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """The loop never sleeps, so that nothing needs to wake it."""


class _Blocking(greenlet):
    """Blocking code of one process."""

    def __init__(self, run: Callable[[], Any], process: str) -> None:
        super().__init__(run)
        self.process = process


async def blocking(function: Callable[[], T], process: str = "") -> T:
    """Runs blocking code beside everything else; `wait` within it waits in virtual time. Cancelling drops the code where it is: it
    never goes on, as a process that was killed."""
    inner = _Blocking(function, process)
    awaited = inner.switch()
    while not inner.dead:
        try:
            result = await awaited
        except asyncio.CancelledError:
            inner.throw(GreenletExit)
            raise
        except BaseException as error:
            awaited = inner.throw(error)
        else:
            awaited = inner.switch(result)
    outcome: T = awaited
    return outcome


def wait(awaitable: Awaitable[T]) -> T:
    """From within `blocking`: waits for something of the event loop."""
    loop_side = getcurrent().parent
    if loop_side is None:
        raise RuntimeError("only code that runs in `blocking` may wait")
    result: T = loop_side.switch(awaitable)
    return result


def process_name() -> str:
    """Whose blocking code runs now; "" for none."""
    current = getcurrent()
    return current.process if isinstance(current, _Blocking) else ""


class GreenletExecutor(Executor):
    """Stands where the product has a pool of threads. `spawn` makes a task that ends with the process."""

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, None]], Any], name: str) -> None:
        self._spawn, self._name = spawn, name

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        async def run() -> None:
            try:
                result = await blocking(lambda: function(*args, **kwargs), self._name)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._spawn(run())
        return future


class VirtualClock:
    """ports.Clock of one process: the loop's time, with a wall clock of its own that may be off and jump."""

    EPOCH_US = 1_700_000_000_000_000

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self.off_us = 0

    def now_us(self) -> int:
        return self.EPOCH_US + int(self._loop.now_s * 1e6) + self.off_us

    def monotonic_s(self) -> float:
        return self._loop.now_s

    def sleep(self, seconds: float) -> None:
        wait(asyncio.sleep(seconds))


class Trace:
    """What happened, in order: a hash of it always, the lines if they are wanted."""

    def __init__(self, loop: VirtualTimeLoop, show: Callable[[str], object] | None = None) -> None:
        self._loop, self._show = loop, show
        self._hash = hashlib.blake2b(digest_size=16)

    def say(self, who: str, what: str) -> None:
        line = f"{self._loop.now_s:12.6f} {who:<12} {what}"
        self._hash.update(line.encode() + b"\n")
        if self._show is not None:
            self._show(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
