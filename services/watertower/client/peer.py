"""One server as a client sees it: attempts, and what was learnt from those before."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from watertower.client.attempt import Attempt, OnAttempt
from watertower.client.errors import (
    ClientClosed,
    ClientError,
    DeadlineExceeded,
    Refusal,
    Throttled,
    TooManyWaiting,
    Unavailable,
    error_of,
    refusal_of,
)
from watertower.client.options import ClientOptions
from watertower.client.retries import RetryBudget, Throttle, wait_s
from watertower.ports import Clock

Method: TypeAlias = Callable[..., Any]
"""A method of a stub of grpc.aio."""

Sleep: TypeAlias = Callable[[float], Awaitable[object]]


_ANSWERED = Refusal(grpc.StatusCode.OK, "")


class AttemptFailed(Exception):
    """One attempt did not succeed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.said)
        self.refusal = refusal


class Peer:
    """The writer or the reader at one target, with the retry budget and the throttle that belong to it."""

    def __init__(
        self, target: str, options: ClientOptions, clock: Clock, rng: random.Random, sleep: Sleep, on_attempt: OnAttempt | None = None
    ) -> None:
        self.target, self.clock, self.sleep = target, clock, sleep
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.attempts_max = options.attempts_max
        self._options, self._rng = options, rng
        self._budget = RetryBudget(options.retry_percent_max, options.retry_reserve_max, clock)
        self._throttle = Throttle(clock, rng)
        self._on_attempt = on_attempt
        self._unreached = ""  # what was said when there was no connection, until there is one
        self._calls = 0  # of single callers, that have no answer yet

    @property
    def closed(self) -> bool:
        """Whether the client is closed."""
        return self._ending.done()

    def close(self) -> None:
        """Ends every pause, and lets no attempt begin any more. Idempotent."""
        if not self.closed:
            self._ending.set_result(None)

    async def pause(self, seconds: float) -> None:
        """Waits before another attempt. Raises ClientClosed as soon as the client is closed."""
        sleeping = asyncio.ensure_future(self.sleep(seconds))
        try:
            await asyncio.wait((sleeping, self._ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
        if self.closed:
            raise closed()

    def admit(self, items: int) -> None:
        """Raises Throttled for a call of so many items that the server would most likely shed."""
        if self._throttle.refuses(items):
            raise Throttled(f"{self.target} sheds load: this call was not sent; send less, or try again later")

    def left_s(self, deadline_s: float) -> float:
        """Seconds until a moment of the clock."""
        return deadline_s - self.clock.monotonic_s()

    async def attempt(self, method: Method, request: Any, deadline_s: float, items: int, number: int) -> Any:
        """The answer to one attempt (`number` from 0), which may last until the deadline. Raises AttemptFailed,
        ClientClosed."""
        if self.closed:
            raise closed()
        if number == 0:
            self._budget.request()
        timeout_s = min(self._options.attempt_timeout_ms / 1e3, self.left_s(deadline_s))
        started_s = self.clock.monotonic_s()
        try:
            # A retry waits for a connection instead of failing for want of one: while nothing answers, a call costs one retry, and not one
            # for each look whether something does.
            answer = await method(request, timeout=timeout_s, wait_for_ready=number > 0)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            if refusal.status is grpc.StatusCode.DEADLINE_EXCEEDED and self._unreached:
                # A retry waits for a connection, and where that was in vain says only that its time was over.
                refusal = refusal._replace(said=f"{self._unreached}, then {refusal.said}")
            else:
                self._unreached = refusal.said if refusal.status is grpc.StatusCode.UNAVAILABLE and not refusal.reason else ""
            # What nobody answered (nothing there, out of time) says nothing about what the server would take.
            if refusal.shed or refusal.status not in _UNANSWERED:
                self._throttle.answered(items, refusal.shed)
            self._tell(request, number, items, started_s, refusal)
            raise AttemptFailed(refusal) from error
        except asyncio.CancelledError:
            if self.closed and not cancelled():
                raise closed() from None  # the channel's end is no cancellation of the caller
            raise
        self._unreached = ""
        self._throttle.answered(items, shed=False)
        self._tell(request, number, items, started_s, _ANSWERED)
        return answer

    def _tell(self, request: Any, number: int, items: int, started_s: float, refusal: Refusal) -> None:
        if self._on_attempt is not None:
            method = request.DESCRIPTOR.name.removesuffix("Request")
            took_s = self.clock.monotonic_s() - started_s
            self._on_attempt(Attempt(self.target, method, number, items, took_s, refusal.status, refusal.reason))

    def wait_s(self, refusal: Refusal, number: int) -> float | None:
        """Seconds to wait after attempt `number` was refused; None if there is to be no other one."""
        options = self._options
        if number + 1 >= self.attempts_max:
            return None
        return wait_s(refusal, number, options.retry_base_ms / 1e3, options.retry_cap_ms / 1e3, self._rng.random())

    def take_retry(self) -> bool:
        """Whether the budget has a retry; it is taken if so."""
        return self._budget.take()

    async def call(self, method: Method, request: Any, deadline_s: float) -> Any:
        """The answer of one call that belongs to one caller, with retries until the deadline. Raises ClientError."""
        if self._calls >= self._options.waiting_items_max:
            raise self.too_many_waiting(self._calls, "calls")
        self.admit(1)
        self._calls += 1
        try:
            return await self._attempts(method, request, deadline_s)
        finally:
            self._calls -= 1

    async def _attempts(self, method: Method, request: Any, deadline_s: float) -> Any:
        number = 0
        while True:
            try:
                return await self.attempt(method, request, deadline_s, 1, number)
            except AttemptFailed as failed:
                wait = self.wait_s(failed.refusal, number)
                if wait is None or wait >= self.left_s(deadline_s) or not self.take_retry():
                    raise self.error(failed.refusal) from failed
            await self.pause(wait)
            number += 1

    def error(self, refusal: Refusal) -> ClientError:
        """What the caller hears of a refusal that is not repeated."""
        return error_of(refusal, self.target)

    def not_sent_again(self) -> Unavailable:
        """What callers hear whose items were not named, when those that were are taken out and there is no retry for the rest."""
        return Unavailable(f"{self.target} refused others of the same batch again and again, and the retries ran out; repeat the call")

    def too_many_waiting(self, waiting: int, what: str) -> TooManyWaiting:
        """What the caller hears for whom there is no room beside those that wait."""
        most = self._options.waiting_items_max
        return TooManyWaiting(f"{waiting} {what} wait for {self.target}, and {most} may (waiting_items_max)")

    def out_of_time(self, last: Refusal | None) -> DeadlineExceeded:
        """What the caller hears whose time is over; `last`: what the server said before."""
        before = f"; before that: {last.said}" if last else ""
        return DeadlineExceeded(f"{self.target} did not answer before the call's deadline{before}", last)


def closed() -> ClientClosed:
    """What whoever waits hears when the client is closed."""
    return ClientClosed("the client was closed while the call waited")


def cancelled() -> bool:
    """Whether somebody wants the task that runs to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
