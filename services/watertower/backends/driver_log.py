"""What the drivers of the engines log, in the service's own log.

Never below WARNING: at DEBUG they write passwords and payloads. Each kind of message is forwarded at most once in LOG_INTERVAL_S: they
repeat themselves with every attempt to connect.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from watertower.ports import Clock

LOG_INTERVAL_S = 10.0
"""Seconds during which a driver's log lines of one kind are forwarded only once."""


class DriverLog(logging.Handler):
    """Takes a driver's log lines from WARNING on. One per driver and process."""

    def __init__(self, driver: str, clock: Clock) -> None:
        super().__init__(logging.WARNING)
        self._driver, self._clock = driver, clock
        self._listeners: list[list[BaseException]] = []
        self._quiet_until: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._forward(record)
        except Exception:  # a driver's own threads must not end by what they say
            self.handleError(record)

    def _forward(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        for listener in self._listeners:
            listener += [argument for argument in arguments if isinstance(argument, BaseException)]
        kind, now = str(record.msg), self._clock.monotonic_s()
        if self._listeners or now < self._quiet_until.get(kind, 0.0):
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._quiet_until[kind] = now + LOG_INTERVAL_S
        error = {} if record.exc_info is None or record.exc_info[1] is None else {"error": repr(record.exc_info[1])}
        structlog.get_logger(f"watertower.{self._driver}").warning(
            f"{self._driver}_client",
            message=record.getMessage(),
            module=record.name,
            suppressed=self._suppressed.pop(kind, 0),
            **error,
        )

    @contextmanager
    def listen(self) -> Iterator[list[BaseException]]:
        """Collects the errors that the driver logs meanwhile, of all its clients; whoever listens reports them."""
        heard: list[BaseException] = []
        self._listeners.append(heard)
        try:
            yield heard
        finally:
            self._listeners = [listener for listener in self._listeners if listener is not heard]


_installed: dict[str, DriverLog] = {}
_lock = threading.Lock()


def driver_log(driver: str, clock: Clock) -> DriverLog:
    """The process's one of the driver whose loggers' names begin with `driver`, put in place at the first call."""
    with _lock:
        found = _installed.get(driver)
        if found is None:
            found = _installed[driver] = DriverLog(driver, clock)
            logger = logging.getLogger(driver)
            logger.setLevel(logging.WARNING)
            logger.propagate = False
            logger.addHandler(found)
        return found
