"""Query as a process: the gRPC server around the service and its feed tail."""

import asyncio
from contextlib import ExitStack

import structlog

from watertower.config import QuerySettings, ServiceSettings
from watertower.errors import BackendRefused
from watertower.query.service import SERVICE, QueryService
from watertower.role import Role
from watertower.rpc import RpcServer

EXIT_FAILED = 1
"""Exit code where a restart may help."""


class QueryProcess:
    """Serves EngagementReader until its role is told to stop."""

    def __init__(
        self, service: QueryService, settings: ServiceSettings, limits: QuerySettings, held: ExitStack, shared_port: int = 0
    ) -> None:
        """`held` is what the process has opened; it is closed at the end. `shared_port`: it listens there beside other workers, instead of
        on a port of its own."""
        self._service, self._settings, self._limits, self._held = service, settings, limits, held
        self._shared_port = shared_port

    def run(self, role: Role) -> int:
        """Returns the exit code. Raises StartRefused when the address is taken; whatever ends the feed tail ends the process."""
        try:
            asyncio.run(self._serve(role))
        except BackendRefused as error:
            # A reader may have met what the owner was just writing, as on a full disk. The next start looks again, and refuses damage.
            structlog.get_logger("watertower.query").error("reader_refused", reason=str(error))
            return EXIT_FAILED
        finally:
            self._held.close()
        return 0

    async def _serve(self, role: Role) -> None:
        server = RpcServer(
            self._settings.read_host,
            self._shared_port or self._settings.read_port,
            [self._service.handler()],
            [SERVICE],
            message_bytes_max=self._limits.message_bytes_max,
            limits=self._limits,
            admission=self._service.admission,
            shared_port=bool(self._shared_port),
        )
        stop = role.stopping.event()
        try:
            await self._service.start()  # before anybody can ask; where it fails, another attempt finds the port free
            port = await server.start()
            server.set_ready(True)
            role.ready(address=f"{self._settings.read_host}:{port}")
            self._service.failed.add_done_callback(lambda _: stop.set())
            await stop.wait()
            server.set_ready(False)
            if not self._service.failed.done():
                role.not_ready("stopping")
                await asyncio.sleep(self._settings.drain_ms / 1e3)
        finally:
            await server.stop(self._settings.shutdown_grace_ms / 1e3)
            await self._service.stop()
        if self._service.failed.done():
            self._service.failed.result()
