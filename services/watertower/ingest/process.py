"""Ingest as a process: the gRPC server around the service, drained on stop."""

import asyncio
import contextlib
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from watertower.config import IngestSettings, ServiceSettings
from watertower.health import HealthServer
from watertower.ingest.service import SERVICE, IngestService
from watertower.role import Role
from watertower.rpc import RpcServer

if TYPE_CHECKING:  # it brings a library that only a process with metrics loads
    from watertower.metrics import MetricsServer


class IngestProcess:
    """Serves EngagementWriter until its role is told to stop."""

    def __init__(
        self,
        service: IngestService,
        settings: ServiceSettings,
        limits: IngestSettings,
        held: ExitStack,
        stand_in: HealthServer | None = None,
        metrics: "MetricsServer | None" = None,
    ) -> None:
        """`held` is what the process has opened; it is closed at the end. `stand_in` may have its port until it listens itself."""
        self._service, self._settings, self._limits, self._held = service, settings, limits, held
        self._stand_in, self._metrics = stand_in, metrics

    def run(self, role: Role) -> int:
        """Returns the exit code. Raises StartRefused when the address is taken."""
        with self._held, self._metrics.serving(role) if self._metrics else nullcontext():
            asyncio.run(self._serve(role))
        return 0

    async def _serve(self, role: Role) -> None:
        server = RpcServer(
            self._settings.write_host,
            self._settings.write_port,
            [self._service.handler()],
            [SERVICE],
            message_bytes_max=self._limits.message_bytes_max,
            limits=self._limits,
            admission=self._service.admission,
        )
        stop = role.stopping.event()
        if self._stand_in is not None:
            self._stand_in.stop()
        port = await server.start()
        server.set_ready(True)
        role.ready(address=f"{self._settings.write_host}:{port}")
        await stop.wait()
        server.set_ready(False)
        role.not_ready("stopping")
        await asyncio.sleep(self._settings.drain_ms / 1e3)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._settings.shutdown_grace_ms / 1e3  # one grace for all that follows: a pod has no more
        with contextlib.suppress(TimeoutError):  # a log that hangs must not keep the process: what waits is not acknowledged
            await asyncio.wait_for(self._service.drain(), end_s - loop.time())
        await server.stop(max(0.0, end_s - loop.time()))
