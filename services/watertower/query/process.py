"""Query as a process: the gRPC server around the service and its feed tail."""

import asyncio
from collections.abc import Awaitable
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING

import structlog

from watertower.config import QuerySettings, ServiceSettings
from watertower.errors import BackendRefused, StartRefused
from watertower.health import HealthServer
from watertower.query.service import SERVICE, QueryService
from watertower.query.warm import WarmList
from watertower.role import Role
from watertower.rpc import RpcServer

if TYPE_CHECKING:  # it brings a library that only a process with metrics loads
    from watertower.metrics import MetricsServer

EXIT_FAILED = 1
"""Exit code where a restart may help."""

NOT_IN_NATIVE = ("calls_pending_", "connection_", "connections_", "handshake_", "listeners", "ping_interval_", "receive_", "tls_")
"""How the names of settings begin that only grpcio can do."""


class QueryProcess:
    """Serves EngagementReader until its role is told to stop."""

    def __init__(
        self,
        service: QueryService,
        settings: ServiceSettings,
        limits: QuerySettings,
        held: ExitStack,
        warm: WarmList | None = None,
        shared_port: int = 0,
        stand_in: HealthServer | None = None,
        metrics: "MetricsServer | None" = None,
    ) -> None:
        """`held` is what the process has opened; it is closed at the end. `warm` is where what it had in memory outlives it.
        `shared_port`: it listens there beside other workers, instead of on a port of its own. `stand_in` may have that port until it
        listens itself, and has it while it warms up."""
        self._service, self._settings, self._limits, self._held, self._warm = service, settings, limits, held, warm
        self._shared_port, self._stand_in, self._metrics = shared_port, stand_in, metrics

    def run(self, role: Role) -> int:
        """Returns the exit code. Raises StartRefused when the address is taken; whatever ends the feed tail ends the process."""
        try:
            with self._metrics.serving(role) if self._metrics else nullcontext():
                asyncio.run(self._serve(role))
        except BackendRefused as error:
            # A reader may have met what the owner was just writing, as on a full disk. The next start looks again, and refuses damage.
            structlog.get_logger("watertower.query").error("reader_refused", reason=str(error))
            return EXIT_FAILED
        finally:
            self._held.close()
        return 0

    async def _serve(self, role: Role) -> None:
        server = server_of(
            self._service, self._settings.read_host, self._shared_port or self._settings.read_port, self._limits, bool(self._shared_port)
        )
        stop = role.stopping.event()
        try:
            await self._service.start()  # before anybody can ask; where it fails, another attempt finds the port free
            remembering = await self._warmed(stop)  # may take long, so the stand-in answers meanwhile
            if stop.is_set():
                return
            if self._stand_in is not None:
                self._stand_in.stop()
            port = await server.start()
            server.set_ready(True)
            role.ready(address=f"{self._settings.read_host}:{port}")
            self._service.failed.add_done_callback(lambda _: stop.set())
            await stop.wait()
            server.set_ready(False)
            if not self._service.failed.done():
                role.not_ready("stopping")
                await asyncio.sleep(self._settings.drain_ms / 1e3)
            await remembering
        finally:
            self._service.end_watches()
            await server.stop(self._settings.shutdown_grace_ms / 1e3)
            await self._service.stop()
        if self._service.failed.done():
            self._service.failed.result()

    async def _warmed(self, stop: asyncio.Event) -> Awaitable[None]:
        """Loads what the process before held; what goes on writing down what this one holds, until `stop`."""
        entities: list[str] = []
        if self._warm is not None:
            entities = await asyncio.to_thread(self._warm.read)
            if entities and self._stand_in is not None:
                self._stand_in.start()
            warming = asyncio.create_task(self._service.warm(entities, self._limits.warm_ms_max / 1e3))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({warming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not warming.done():
                warming.cancel()
                await asyncio.wait({warming})
            else:
                structlog.get_logger("watertower.query").info("warmed", entities=warming.result(), of=len(entities))
        return asyncio.create_task(self._remember(stop, entities))

    async def _remember(self, stop: asyncio.Event, before: list[str]) -> None:
        """`before`: what was remembered so far, and is not forgotten because a start was cold."""
        while self._warm is not None and not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.warm_interval_ms / 1e3):
                    await stop.wait()
            hottest = await self._service.hottest(self._limits.warm_entities_max)
            await asyncio.to_thread(self._warm.write, list(dict.fromkeys([*hottest, *before])))


def server_of(service: QueryService, host: str, port: int, limits: QuerySettings, shared_port: bool = False) -> RpcServer:
    """The server that is set. Raises StartRefused where it is not installed, or lacks what another setting asks for."""
    handlers, of, size, admission = [service.handler()], [SERVICE], limits.message_bytes_max, service.admission
    if limits.server == "grpcio":
        return RpcServer(host, port, handlers, of, size, limits, admission, shared_port)
    lacking = [f"query_{name}" for name in limits.model_fields_set if name.startswith(NOT_IN_NATIVE)]
    if lacking:
        raise StartRefused(
            f"query_server=native cannot do what is set by {', '.join(sorted(lacking))}; unset that, or set query_server=grpcio"
        )
    try:
        from watertower.rpc_native import NativeRpcServer
    except ModuleNotFoundError as error:
        raise StartRefused("query_server=native needs the package pygrpc-native: pip install 'watertower[native]'") from error
    now = {f"/{SERVICE}/GetCounts": service.get_counts_now}
    return NativeRpcServer(host, port, handlers, of, size, limits, admission, shared_port, now)
