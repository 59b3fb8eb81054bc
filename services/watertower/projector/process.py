"""The projector as a process: drives the steps, drains on stop."""

from contextlib import ExitStack

import structlog

from watertower.config import ServiceSettings
from watertower.ports import Clock
from watertower.projector.projector import Projector
from watertower.role import Role

_REPORT_S = 10.0
"""Seconds between two log lines that say how much was applied."""


class ProjectorProcess:
    """Runs a projector until its role is told to stop."""

    def __init__(self, projector: Projector, settings: ServiceSettings, clock: Clock, held: ExitStack) -> None:
        """`held` is what the process has opened; it is closed at the end."""
        self._projector, self._settings, self._clock, self._held = projector, settings, clock, held
        self._logger = structlog.get_logger("watertower.projector")

    def run(self, role: Role) -> int:
        """Applies until told to stop, then what the log still holds, as far as the grace goes. Returns the exit code.

        Raises StartRefused, BackendRefused, BackendUnavailable.
        """
        with self._held:
            self._projector.start()
            role.ready()
            self._loop(role)
            self._drain()
            self._projector.close()
        return 0

    def _loop(self, role: Role) -> None:
        stopped = 0
        events, reported_at = 0, self._clock.monotonic_s()
        while not role.stopping.is_set():
            step = self._projector.step()
            events += step.events
            now = self._clock.monotonic_s()
            if events and now - reported_at >= _REPORT_S:
                self._logger.info("applied", events=events, per_s=round(events / (now - reported_at)))
                events, reported_at = 0, now
            if len(self._projector.stopped) != stopped:
                stopped = len(self._projector.stopped)
                role.not_ready("; ".join(f"partition {p}: {reason}" for p, reason in self._projector.stopped.items()))
            if step.wait_s:
                role.stopping.wait(step.wait_s)

    def _drain(self) -> None:
        deadline = self._clock.monotonic_s() + self._settings.shutdown_grace_ms / 1e3
        while self._clock.monotonic_s() < deadline and not self._projector.step().wait_s:
            pass
