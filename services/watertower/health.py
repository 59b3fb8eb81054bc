"""The gRPC health service of a process that does not serve an API, or not yet, and the question to any process how it is."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from watertower.errors import AddressTaken, BackendUnavailable
from watertower.transport import address

ALIVE = "alive"
"""The name under which a process says whether it does anything at all, ready or not. Only where it does not, a restart helps."""

ALIVE_INTERVAL_S = 1.0
"""Seconds between two looks whether the process is alive."""

HEALTH_CALLS_MAX = 100
"""Calls that this server has not answered, watches of the health service aside; more are refused by the transport."""


def _always() -> bool:
    return True


class HealthServer:
    """Answers whether the process is ready and alive, from a thread of its own: not ready until told so, alive unless told how to look."""

    def __init__(
        self,
        host: str,
        port: int,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        options: Sequence[tuple[str, int]] = (("grpc.so_reuseport", 0),),
    ) -> None:
        """`port` 0 takes a free one. `handlers` answer what else is called, `options` are gRPC's channel arguments."""
        self.port = port
        self._host, self._handlers, self._options = host, handlers, options
        self._health = HealthServicer()
        self._alive: Callable[[], bool] = _always
        self._server: grpc.Server | None = None
        self._stopped = threading.Event()
        self.set_ready(False)
        self._health.set(ALIVE, HealthCheckResponse.SERVING)

    def start(self) -> None:
        """Listens, if it does not yet. Raises AddressTaken."""
        if self._server is not None:
            return
        pool = ThreadPoolExecutor(1, "health")
        server = grpc.server(pool, list(self._handlers), options=self._options, maximum_concurrent_rpcs=HEALTH_CALLS_MAX)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        where = address(self._host, self.port)
        try:
            self.port = server.add_insecure_port(where)
        except RuntimeError as error:
            raise AddressTaken(f"cannot listen on {where}: the port is taken, or the address is not this machine's (for health)") from error
        server.start()
        self._server = server
        threading.Thread(target=self._look, name="health-alive", daemon=True).start()

    def set_ready(self, ready: bool) -> None:
        self._health.set("", HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING)

    @contextmanager
    def alive_where(self, alive: Callable[[], bool]) -> Iterator[None]:
        """Until the block ends it is alive where this says so, which is asked in a thread."""
        self._alive = alive
        try:
            yield
        finally:
            self._alive = _always

    def stop(self) -> None:
        """Lets go of the port. Idempotent."""
        server, self._server = self._server, None
        self._stopped.set()
        if server is not None:
            server.stop(None).wait()

    def _look(self) -> None:
        said = True
        while not self._stopped.wait(ALIVE_INTERVAL_S):
            if (alive := self._alive()) != said:  # who watches would hear it again
                said = alive
                self._health.set(ALIVE, HealthCheckResponse.SERVING if alive else HealthCheckResponse.NOT_SERVING)


def is_serving(target: str, timeout_s: float, service: str = "") -> bool:
    """What the process at HOST:PORT says of itself: "" whether it is ready, ALIVE whether it is alive, or the full name of a service.

    Raises BackendUnavailable where none answers in time, or it has no such service."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise BackendUnavailable(f"{target} has no service {service!r}: ask for '', 'alive', or a service of its API") from error
            raise BackendUnavailable(f"{target} does not answer: {error.code().name}") from error
    return bool(answer.status == HealthCheckResponse.SERVING)
