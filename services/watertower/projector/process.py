"""The projector as a process: drives the steps, drains on stop."""

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import structlog

from watertower.config import ProjectorSettings, ServiceSettings
from watertower.errors import BackendUnavailable
from watertower.health import HealthServer
from watertower.ports import Clock
from watertower.projector.projector import Projector
from watertower.pulse import Pulse
from watertower.role import Role

if TYPE_CHECKING:  # it brings a library that only a process with metrics loads
    from watertower.metrics import MetricsServer

_REPORT_S = 10.0
"""Seconds between two log lines that say how much was applied."""

LAG_INTERVAL_S, LAG_RETRY_S = 1.0, 10.0
"""Seconds between two looks at the log's ends, for the metrics alone; and after one that the log did not answer."""


class ProjectorProcess:
    """Runs a projector until its role is told to stop."""

    def __init__(
        self,
        projector: Projector,
        settings: ServiceSettings,
        limits: ProjectorSettings,
        clock: Clock,
        held: ExitStack,
        pulse: Pulse,
        health: HealthServer | None = None,
        metrics: "MetricsServer | None" = None,
    ) -> None:
        """`held` is what the process has opened; it is closed at the end. `pulse` is that of the projector."""
        self._projector, self._settings, self._clock, self._held, self._health = projector, settings, clock, held, health
        self._stalled_s, self._pulse, self._metrics = limits.stalled_ms_max / 1e3, pulse, metrics
        self._look_at_s = 0.0
        self._logger = structlog.get_logger("watertower.projector")

    def run(self, role: Role) -> int:
        """Applies until told to stop, then what the log still holds, as far as the grace goes. Returns the exit code.

        Raises StartRefused, BackendRefused, BackendUnavailable.
        """
        watched = self._health.alive_where(lambda: self._pulse.age_s() <= self._stalled_s) if self._health else nullcontext()
        with self._held, watched, self._metrics.serving(role) if self._metrics else nullcontext():
            self._projector.start()
            role.ready(**({"health_port": self._health.port} if self._health else {}))
            self._say_ready(True)
            self._loop(role)
            self._say_ready(False)
            role.not_ready("stopping")
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
            if self._metrics is not None and now >= self._look_at_s:
                self._look_at_s = self._clock.monotonic_s() + (LAG_INTERVAL_S if self._behind() is not None else LAG_RETRY_S)
            if step.wait_s:
                self._pulse.beat(step.wait_s)
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
