"""The projector as a process: drives the steps, drains on stop."""

from contextlib import ExitStack

import structlog

from watertower.config import ServiceSettings
from watertower.errors import BackendUnavailable
from watertower.health import HealthServer
from watertower.ports import Clock
from watertower.projector.projector import Projector
from watertower.role import Role

_REPORT_S = 10.0
"""Seconds between two log lines that say how much was applied."""


class ProjectorProcess:
    """Runs a projector until its role is told to stop."""

    def __init__(
        self, projector: Projector, settings: ServiceSettings, clock: Clock, held: ExitStack, health: HealthServer | None = None
    ) -> None:
        """`held` is what the process has opened; it is closed at the end."""
        self._projector, self._settings, self._clock, self._held, self._health = projector, settings, clock, held, health
        self._logger = structlog.get_logger("watertower.projector")

    def run(self, role: Role) -> int:
        """Applies until told to stop, then what the log still holds, as far as the grace goes. Returns the exit code.

        Raises StartRefused, BackendRefused, BackendUnavailable.
        """
        with self._held:
            self._projector.start()
            role.ready(**({"health_port": self._health.port} if self._health else {}))
            self._say_ready(True)
            self._loop(role)
            self._drain()
            self._projector.close()
        return 0

    def _loop(self, role: Role) -> None:
        stopped: set[int] = set()
        events, reported_at = 0, self._clock.monotonic_s()
        while not role.stopping.is_set():
            step = self._projector.step()
            events += step.events
            now = self._clock.monotonic_s()
            if events and now - reported_at >= _REPORT_S:
                self._logger.info("applied", events=events, per_s=round(events / (now - reported_at)), behind_records=self._behind())
                events, reported_at = 0, now
            if self._projector.stopped.keys() != stopped:
                stopped = set(self._projector.stopped)
                self._say_ready(not stopped)
                if stopped:
                    role.not_ready("; ".join(f"partition {p}: {reason}" for p, reason in self._projector.stopped.items()))
                else:  # another member of the group has them now
                    role.ready()
            if step.wait_s:
                role.stopping.wait(step.wait_s)

    def _behind(self) -> int | None:
        """Records that wait in the log, about; None while it does not answer."""
        try:
            return sum(self._projector.behind().values())
        except BackendUnavailable:
            return None

    def _say_ready(self, ready: bool) -> None:
        if self._health is not None:
            self._health.set_ready(ready)

    def _drain(self) -> None:
        deadline = self._clock.monotonic_s() + self._settings.shutdown_grace_ms / 1e3
        while self._clock.monotonic_s() < deadline and not self._projector.step().wait_s:
            pass
