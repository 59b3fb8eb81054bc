"""The gRPC health service of a process that has no API of its own, and the question to any process whether it is ready."""

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from watertower.errors import AddressTaken, BackendUnavailable


class HealthServer:
    """Answers whether the process is ready. Not ready until told so."""

    def __init__(self, host: str, port: int) -> None:
        """Listens; `port` 0 takes a free one. Raises AddressTaken."""
        self._health = HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(1, "health"), options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.set_ready(False)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise AddressTaken(f"cannot listen on {host}:{port} for health: the port is taken; take another") from error
        self._server.start()

    def set_ready(self, ready: bool) -> None:
        self._health.set("", HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING)

    def stop(self) -> None:
        """Idempotent."""
        self._server.stop(None).wait()


def is_ready(target: str, timeout_s: float) -> bool:
    """What the process at HOST:PORT says of itself. Raises BackendUnavailable where none answers in time."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise BackendUnavailable(f"{target} does not answer: {error.code().name}") from error
    return bool(answer.status == HealthCheckResponse.SERVING)
