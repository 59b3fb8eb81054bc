"""gRPC on another transport: pygrpc-native, whose HTTP/2 runs in Rust beside the interpreter, serves the same handlers as rpc.py.

Calls wait in the transport's queue until the event loop takes them, many at once, so the price of a hop is shared by a batch. What
memory can answer is answered right there; any other call becomes a task around the handler that grpcio would have run.

What this transport cannot do is in docs/operating.md: no TLS, no limit on a request before it is taken in, no limit on connections or
their age, and no `grpc-retry-pushback-ms`. The module needs the extra `native`; only query/process.py imports it, when it is asked for.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Never, TypeAlias

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from pygrpc_native import EVENT_CALL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from watertower.admission import Admission
from watertower.config import ServerSettings
from watertower.errors import CallRefused, Reason
from watertower.rpc import RpcServer, status_of
from watertower.shared_port import address_taken

BATCH_CALLS_MAX = 256
"""Calls that the event loop takes in one go; whatever else it has to do gets its turn in between."""

IO_THREADS = 1
"""Threads of the transport. One carries more calls than one interpreter answers."""

MEASURE_INTERVAL_S = 0.05
"""Seconds between two measurements of how long calls wait."""

WRITE_RETRY_FIRST_S, WRITE_RETRY_S_MAX = 0.001, 0.064
"""When a stream's client is behind, the next attempt to write comes after so long, at first and at most. (The transport does not tell
when there is room again; its own way to wait takes a thread for each such client.)"""

AnswerNow: TypeAlias = Callable[[bytes], bytes | None]
"""Bytes of a request to bytes of its answer, from memory alone; None where that is not possible, or where it is to be refused."""


class _Method(NamedTuple):
    path: str
    handler: Any  # a grpc.RpcMethodHandler
    now: AnswerNow | None

    def parse(self, payload: bytes) -> Any:
        return payload if self.handler.request_deserializer is None else self.handler.request_deserializer(payload)


class _Aborted(grpc.aio.AbortError):
    """Ends a handler whose call is to fail with this."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, str | bytes]]) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing


class _Call:
    """A call that a task answers: a rpc.CallContext, and as much of grpc.aio.ServicerContext as handlers of rpc.py use."""

    def __init__(self, front: NativeGrpcFront, number: int, payload: bytes, details: Any, clock_s: Callable[[], float]) -> None:
        """`details` are (metadata, peer, seconds left or None), as the transport gives them."""
        self.number = number
        self.payload = payload
        self._front = front
        self._metadata, self._peer, left_s = details
        self._deadline_s = None if left_s is None else clock_s() + left_s
        self._clock_s = clock_s
        self.task: asyncio.Task[None] | None = None
        self.serialize: Callable[[Any], bytes] | None = None
        self.on_done: list[Callable[[Any], None]] = []
        self._read = False

    def time_remaining(self) -> float | None:
        return None if self._deadline_s is None else max(0.0, self._deadline_s - self._clock_s())

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._metadata  # type: ignore[no-any-return] # as in the docstring

    def peer(self) -> str:
        return self._peer  # type: ignore[no-any-return] # the same

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.on_done.append(callback)

    async def read(self) -> Any:
        """The request, for a handler that takes it as a stream of one."""
        read, self._read = self._read, True
        return grpc.aio.EOF if read else self.payload

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str | bytes]] = ()) -> Never:
        raise _Aborted(code, details, trailing_metadata)

    async def write(self, message: Any) -> None:
        """One message of a stream, when its client has room for it."""
        data = message if self.serialize is None else self.serialize(message)
        wait_s = WRITE_RETRY_FIRST_S
        while (sent := self._front.stream_try_send(self.number, data)) == STREAM_FULL:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, WRITE_RETRY_S_MAX)
        if sent == STREAM_CLOSED:
            raise asyncio.CancelledError  # its client is gone; the transport will say so


class NativeRpcServer(RpcServer):
    """An RpcServer on pygrpc-native. Unary and server-streaming methods; on Linux, reflection from a grpcio server behind it."""

    def __init__(
        self,
        host: str,
        port: int,
        handlers: Sequence[grpc.GenericRpcHandler],
        services: Sequence[str],
        message_bytes_max: int,
        limits: ServerSettings | None = None,
        admission: Admission | None = None,
        shared_port: bool = False,
        answers_now: Mapping[str, AnswerNow] | None = None,
    ) -> None:
        """As RpcServer; `answers_now` by full method, as in `/watertower.v1.EngagementReader/GetCounts`. Of `limits`, those of metadata,
        keepalive and the calls of a connection are kept. `services` must be described in the default descriptor pool, where their
        methods are looked up."""
        super().__init__(host, port, handlers, services, message_bytes_max, limits, admission, shared_port)
        self._message_bytes_max = message_bytes_max
        self._limits, self._admission = limits, admission
        self._retry_after_s = (limits or ServerSettings.model_construct()).retry_after_ms / 1e3
        self._answers_now = answers_now or {}
        self._log = structlog.get_logger("watertower.rpc")
        self._methods: list[_Method] = []
        self._calls: dict[int, _Call] = {}
        self._front: NativeGrpcFront | None = None
        self._refusing = False
        self._behind: grpc.aio.Server | None = None
        self._measuring: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens; the port. Raises AddressTaken where that is not possible."""
        try:
            front = NativeGrpcFront(
                self._address(),
                [],
                io_threads=IO_THREADS,
                call_details=True,
                delay_stream_headers=True,
                reuse_port=self._shared_port,
                **_connection_limits(self._limits),
            )
        except OSError as error:
            raise address_taken(self._address()) from error
        self._front = front
        self._methods = self._served()
        front.add_methods([(method.path, method.handler.response_streaming) for method in self._methods])
        if sys.platform == "linux":
            await self._start_behind(front)
        await self._say(HealthCheckResponse.NOT_SERVING)
        front.start()
        if self._admission is not None:
            self._measuring = asyncio.create_task(self._measure(self._admission))
        threading.Thread(target=self._wait_for_calls, args=(front, asyncio.get_running_loop()), name="native-calls", daemon=True).start()
        return front.bound_port

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls with STOPPING, waits for those under way for `grace_s` at most, ends the rest. Idempotent."""
        front, self._front = self._front, None
        if front is None:
            return
        await self._say(HealthCheckResponse.NOT_SERVING)
        self._refusing = True
        self._health.end_watches()
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._behind is not None:
            await self._behind.stop(0)
        if self._measuring is not None:
            self._measuring.cancel()
        await asyncio.to_thread(front.close)

    def _served(self) -> list[_Method]:
        """Every method of every service, with what answers it."""
        registrar = _Registrar()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        handlers = [*self._handlers, *registrar.handlers]
        found: list[_Method] = []
        for service in (*self._services, HEALTH_SERVICE):
            for described in descriptor_pool.Default().FindServiceByName(service).methods:
                path = f"/{service}/{described.name}"
                looked_up = (handler.service(_Looked(path)) for handler in handlers)
                found += [_Method(path, handler, self._answers_now.get(path)) for handler in looked_up if handler is not None]
        return found

    async def _start_behind(self, front: NativeGrpcFront) -> None:
        """Reflection has a stream of requests, which the transport forwards to a grpcio server, and so whatever it does not know."""
        # In Linux's abstract namespace nothing is left behind by a process that is killed.
        name = f"watertower-{os.getpid()}-{front.bound_port}"
        self._behind = grpc.aio.server(options=[("grpc.max_receive_message_length", self._message_bytes_max)])
        reflection.enable_server_reflection([*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME], self._behind)
        self._behind.add_insecure_port(f"unix-abstract:{name}")
        await self._behind.start()
        front.set_fallback(f"\0{name}")

    async def _measure(self, admission: Admission) -> None:
        """How long calls wait: what has come lies in the event loop's own queue, in order, so a turn of it is what a call waits."""
        loop = asyncio.get_running_loop()
        while True:
            asked_s = loop.time()
            await asyncio.sleep(0)
            admission.shedding.observe(loop.time() - asked_s)
            await asyncio.sleep(MEASURE_INTERVAL_S)

    def _wait_for_calls(self, front: NativeGrpcFront, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: hands over what has come. While the event loop is busy it waits for the interpreter, and more comes."""
        while (events := front.recv_batch_details(BATCH_CALLS_MAX)) is not None:
            try:
                loop.call_soon_threadsafe(self._take, front, events)
            except RuntimeError:  # the loop was closed without a stop
                return

    def _take(self, front: NativeGrpcFront, events: Sequence[Any]) -> None:
        for kind, number, method, payload, _, details in events:
            if kind == EVENT_CALL:
                try:
                    self._begin(front, number, self._methods[method], payload, details)
                except Exception:  # the other calls of the batch must not suffer
                    self._log.exception("call_failed", method=method)
                    front.fail(number, grpc.StatusCode.INTERNAL.value[0], "internal error")
            elif (call := self._calls.get(number)) is not None and call.task is not None:
                call.task.cancel()  # its client is gone, or its deadline passed

    def _begin(self, front: NativeGrpcFront, number: int, method: _Method, payload: bytes, details: Any) -> None:
        if len(payload) > self._message_bytes_max:
            text = f"the message has {len(payload)} bytes, and at most {self._message_bytes_max} are taken"
            front.fail(number, _RESOURCE_EXHAUSTED, text)
        elif self._refusing:
            self._fail(front, number, self._stopping())
        elif method.now is not None and (answer := self._now(method, payload)) is not None:
            front.respond(number, answer)
        else:
            loop = asyncio.get_running_loop()
            call = self._calls[number] = _Call(front, number, payload, details, loop.time)
            call.task = loop.create_task(self._answer(front, call, method))
            call.task.add_done_callback(lambda _: self._ended(call))  # no `finally`: a task that is cancelled at once never begins

    def _ended(self, call: _Call) -> None:
        del self._calls[call.number]
        for callback in call.on_done:
            callback(call)

    def _now(self, method: _Method, payload: bytes) -> bytes | None:
        try:
            return method.now(payload) if method.now is not None else None
        except Exception:
            # The handler meets it again, or does not; the other calls of the batch must not suffer.
            self._log.exception("call_failed", method=method.path)
            return None

    async def _answer(self, front: NativeGrpcFront, call: _Call, method: _Method) -> None:
        handler, call.serialize = method.handler, method.handler.response_serializer
        try:
            if handler.request_streaming:  # of one request, which the handler reads
                request, behaviour = None, handler.stream_stream or handler.stream_unary
            else:
                request, behaviour = method.parse(call.payload), handler.unary_stream or handler.unary_unary
            response = await behaviour(request, call)
            if handler.response_streaming:  # it has written by itself
                front.stream_end(call.number)
            else:
                front.respond(call.number, response if call.serialize is None else call.serialize(response))
        except _Aborted as error:
            self._fail(front, call.number, error)
        except asyncio.CancelledError:
            self._fail(front, call.number, self._stopping())  # nothing where the call is over anyway
            raise
        except Exception:
            self._log.exception("call_failed", method=method.path)
            front.fail(call.number, grpc.StatusCode.INTERNAL.value[0], "internal error")

    def _stopping(self) -> _Aborted:
        # As rpc.py spreads refusals: all who hear this hear it together.
        share = 0.5 if self._admission is None else self._admission.uniform()
        refusal = CallRefused(Reason.STOPPING, retry_after_s=self._retry_after_s * (0.5 + share))
        return _Aborted(grpc.StatusCode.UNAVAILABLE, str(refusal), [(_DETAILS, status_of(refusal).SerializeToString())])

    def _fail(self, front: NativeGrpcFront, number: int, error: _Aborted) -> None:
        # The transport refuses names of gRPC's own, but for the details: the pushback stays behind, and RetryInfo says the same.
        trailing = [(key, value) for key, value in error.trailing if not key.startswith("grpc-") or key == _DETAILS]
        front.fail(number, error.code.value[0], error.details, trailing)


_DETAILS = "grpc-status-details-bin"
_RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def _connection_limits(limits: ServerSettings | None) -> dict[str, Any]:
    if limits is None:
        return {}
    return {
        "keepalive_time_ms": limits.keepalive_ms,
        "keepalive_timeout_ms": limits.keepalive_timeout_ms,
        "max_concurrent_streams": limits.streams_max,
        "max_metadata_size": limits.metadata_bytes_max,
    }


class _Looked(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Registrar:
    """What generated code adds its handlers to."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The same ones again."""
