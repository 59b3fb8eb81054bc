"""Sending statements to Cassandra: bounded, asynchronous, tried again with full jitter.

The driver's own retry policies are off: they would not repeat a write that timed out, and here every write may be repeated, because its
timestamp says where in the log it was decided.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from watertower.backends.cassandra_errors import DRIVER_ERRORS, is_retryable, text
from watertower.core.backoff import full_jitter
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.ports import Clock

Statement: TypeAlias = Any
"""A bound or batch statement of the driver, which has no types."""

Row: TypeAlias = tuple[Any, ...]

_Result = TypeVar("_Result")


class Limits(Protocol):
    """Of CassandraSettings."""

    @property
    def requests_in_flight_max(self) -> int: ...

    @property
    def attempts_max(self) -> int: ...

    @property
    def retry_base_ms(self) -> int: ...

    @property
    def retry_cap_ms(self) -> int: ...


class Requests:
    """Statements on one session of the driver. Any thread may send; each call has its own bounds."""

    def __init__(self, session: Any, limits: Limits, clock: Clock, rng: random.Random, heard: Callable[[], None] = lambda: None) -> None:
        """`heard` is called with every answer, or its failure."""
        self._session, self._limits, self._heard = session, limits, heard
        self._clock, self._rng = clock, rng
        self._closed = False

    def run(self, statements: Iterable[Statement]) -> list[list[Row]]:
        """Sends statements, at most requests_in_flight_max at a time, taking each from the iterable when its turn comes. Gives the rows
        of each, in order; whole results: none of these statements may be paged.

        Raises BackendUnavailable when one was tried attempts_max times, BackendRefused when trying again cannot help; only after
        every request that was on its way is answered or timed out.
        """
        self._refuse_closed()
        waiting = enumerate(statements)
        results: dict[int, list[Row]] = {}
        answered: SimpleQueue[_Sent] = SimpleQueue()
        again: list[tuple[float, int, _Sent]] = []  # a heap by the moment from which each may be sent again
        under_way = 0
        exhausted = False
        failed: Exception | None = None
        while True:
            while failed is None and under_way < self._limits.requests_in_flight_max:
                if again and again[0][0] <= self._clock.monotonic_s():
                    sent = heappop(again)[2]
                elif not exhausted and (following := next(waiting, None)) is not None:
                    sent = _Sent(*following)
                else:
                    exhausted = True
                    break
                under_way += 1
                self._send(sent, answered)
            until_s = max(0.0, again[0][0] - self._clock.monotonic_s()) if again and failed is None else None
            if under_way == 0:
                if until_s is None:
                    break
                self._clock.sleep(until_s)
                continue
            try:
                sent = answered.get(timeout=until_s)
            except Empty:
                continue
            under_way -= 1
            self._heard()
            try:
                results[sent.number] = sent.rows()
            except Exception as error:
                sent.failures += 1
                failed = failed or self._final(error, sent.failures)
                if failed is None:
                    heappush(again, (self._clock.monotonic_s() + self._wait_s(sent.failures), sent.number, sent))
        if failed is not None:
            raise failed
        return [results[number] for number in range(len(results))]

    def pages(self, statement: Statement) -> Iterator[list[Row]]:
        """The pages of a statement that was prepared so, each asked for while the one before it is used. Raises as `run`."""
        self._refuse_closed()
        asked = self._asked(statement)
        while True:
            result = self.again(asked)
            more = result.paging_state
            if more is not None:
                asked = self._asked(statement, more)
            yield list(result.current_rows)
            if more is None:
                return

    def pause(self, failures: int) -> None:
        """Waits as long as before another attempt, after so many that failed."""
        self._clock.sleep(self._wait_s(failures))

    def close(self) -> None:
        """Whatever is sent afterwards is refused. Idempotent."""
        self._closed = True

    def _asked(self, statement: Statement, page: bytes | None = None) -> Callable[[], Any]:
        """Sends a statement; what it gives waits for the answer at its first call and asks anew at each further one."""
        sent = [self._executed(statement, page)]
        return lambda: (sent.pop() if sent else self._executed(statement, page)).result()

    def _executed(self, statement: Statement, page: bytes | None = None) -> Any:
        """The future of a statement; an error in sending it is its result."""
        try:
            return self._session.execute_async(statement, paging_state=page)
        except Exception as error:
            return _Failed(error)

    def _send(self, sent: "_Sent", answered: "SimpleQueue[_Sent]") -> None:
        sent.future = self._executed(sent.statement)
        sent.future.add_callbacks(lambda _: answered.put(sent), lambda _: answered.put(sent))

    def again(self, call: Callable[[], _Result]) -> _Result:
        """The call's result, tried as `run` does."""
        self._refuse_closed()
        failures = 0
        while True:
            try:
                return call()
            except Exception as error:
                failures += 1
                failed = self._final(error, failures)
                if failed is not None:
                    raise failed from error
            finally:
                self._heard()
            self.pause(failures)

    def _final(self, error: Exception, failures: int) -> Exception | None:
        """What an error comes to; None when it is worth another attempt."""
        if not isinstance(error, DRIVER_ERRORS):
            return error
        if not is_retryable(error):
            return BackendRefused(f"Cassandra: {text(error)}")
        if self._closed or failures >= self._limits.attempts_max:
            return BackendUnavailable(f"Cassandra, after {failures} attempts: {text(error)}")
        return None

    def _wait_s(self, failures: int) -> float:
        return full_jitter(failures - 1, self._limits.retry_base_ms / 1e3, self._limits.retry_cap_ms / 1e3, self._rng.random())

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BackendRefused("the connection to Cassandra is closed")


class _Sent:
    """A statement on its way, or waiting to be sent again."""

    __slots__ = ("failures", "future", "number", "statement")

    def __init__(self, number: int, statement: Statement) -> None:
        self.number, self.statement = number, statement
        self.failures = 0
        self.future: Any = None

    def rows(self) -> list[Row]:
        rows: list[Row] = self.future.result().current_rows
        return rows


class _Failed:
    """In the place of a future whose statement could not be sent."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> Any:
        raise self._error

    def add_callbacks(self, _: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        failed(self._error)
