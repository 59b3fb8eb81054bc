"""A gRPC server that refuses calls as a test says, and passes the others on. With reflection, which grpcurl asks for."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple

import grpc
from grpc_reflection.v1alpha import reflection

from watertower.clock import SystemClock
from watertower.errors import CallRefused, Reason
from watertower.rpc import status_of
from watertower.v1 import reader_pb2, writer_pb2

SERVICES = tuple(service.full_name for file in (writer_pb2.DESCRIPTOR, reader_pb2.DESCRIPTOR) for service in file.services_by_name.values())
STREAMS = ("/watertower.v1.EngagementReader/WatchCounts",)

_clock = SystemClock()
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Answer = Callable[[str, bytes], bytes]
"""(full name of the method, request) -> response."""


class Refusal(NamedTuple):
    """One refusal as the service gives it: with its details and, if the call is worth repeating, when."""

    reason: Reason
    retry_after_ms: int | None = None


class Seen(NamedTuple):
    """One attempt of a caller."""

    method: str
    request: bytes
    at_s: float
    previous_attempts: int
    left_s: float | None  # of its deadline; None without one


class Scripted(grpc.GenericRpcHandler):
    """Use with `with`. `refusals` are used up one an attempt; `lasting` refuses everything; what is left is answered by `answer`."""

    def __init__(self, answer: Answer = lambda method, request: b"") -> None:
        self.refusals: list[Refusal] = []
        self.lasting: Refusal | None = None
        self.seen: list[Seen] = []
        self._answer = answer
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=[("grpc.so_reuseport", 0)])
        reflection.enable_server_reflection([*SERVICES, reflection.SERVICE_NAME], self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        name = details.method
        if not name.startswith(tuple(f"/{service}/" for service in SERVICES)):
            return None

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            self._attempt(name, request, context)
            return self._answer(name, request)

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            yield unary(request, context)

        if name in STREAMS:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _attempt(self, method: str, request: bytes, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        left_s = context.time_remaining()
        previous = int(metadata.get("grpc-previous-rpc-attempts", "0"))
        with self._lock:
            self.seen.append(Seen(method, request, _clock.monotonic_s(), previous, left_s))
            refusal = self.lasting or (self.refusals.pop(0) if self.refusals else None)
        if refusal is None:
            return
        reason, retry_after_ms = refusal
        refused = CallRefused(reason, retry_after_s=None if retry_after_ms is None else retry_after_ms / 1e3)
        trailing: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status_of(refused).SerializeToString())]
        if retry_after_ms is not None:
            trailing.append(("grpc-retry-pushback-ms", str(retry_after_ms)))
        context.set_trailing_metadata(tuple(trailing))
        context.abort(_CODES[reason.status.value], str(refused))

    def gaps_s(self) -> list[float]:
        """Seconds between the attempts, in order."""
        return [later.at_s - earlier.at_s for earlier, later in zip(self.seen, self.seen[1:], strict=False)]

    def __enter__(self) -> "Scripted":
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop(None).wait()


@contextmanager
def passing_on(target: str) -> Iterator[Scripted]:
    """One in front of a real server."""
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:

        def answer(method: str, request: bytes) -> bytes:
            answered: bytes = channel.unary_unary(method)(request, timeout=10.0)
            return answered

        with Scripted(answer) as scripted:
            yield scripted
