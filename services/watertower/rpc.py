"""gRPC as every process serves it: a handler that turns refusals into rich errors, and a server with health and reflection."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Never, Protocol, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from structlog.typing import FilteringBoundLogger

from watertower.errors import AddressTaken, BackendRefused, BackendUnavailable, CallRefused, Reason, Violation

ERROR_DOMAIN = "watertower.v1"
"""The `domain` of every google.rpc.ErrorInfo."""

DETAILS_VIOLATIONS_MAX = 20
"""Broken rules that google.rpc.BadRequest spells out; ErrorInfo's metadata says how many there are (`violations`)."""

ANSWER_AHEAD_SHARE, ANSWER_AHEAD_S_MAX = 0.1, 0.3
"""How long before its deadline a call is told that a back end has not answered: this share of the time that it has left, so many seconds
at most. It then hears UNAVAILABLE and when to come back, instead of nothing."""


class CallContext(Protocol):
    """What a method may ask about its call, whichever server it came through."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None where there is none."""

    def invocation_metadata(self) -> Iterable[Any] | None:
        """Pairs of a key and a value: str, or bytes where the key ends in `-bin`."""

    def peer(self) -> str:
        """Whose connection it is, as in `ipv4:127.0.0.1:50000`."""


Method: TypeAlias = "tuple[type[Message], Callable[[Any, CallContext], Awaitable[Message | bytes]]]"
"""The type of the request, and what answers it: with a message or, for a hot path, with the bytes of one."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def patience_s(left_s: float) -> float:
    """How long a back end may take for a call with so many seconds left."""
    return left_s - min(left_s * ANSWER_AHEAD_SHARE, ANSWER_AHEAD_S_MAX)


def service_handler(
    service: str, methods: Mapping[str, Method], log: FilteringBoundLogger, *, unavailable: Reason, retry_after_s: float
) -> grpc.GenericRpcHandler:
    """The unary methods (by name) of one service (by its full name).

    A method may raise CallRefused; an error of a back end becomes a refusal for the reason `unavailable`, to be repeated after
    `retry_after_s`; anything else is logged and becomes INTERNAL without a word about what it was.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, (request_type, answer) in methods.items():
        behaviour = _behaviour(f"{service}/{name}", answer, log, unavailable, retry_after_s)
        handlers[name] = grpc.unary_unary_rpc_method_handler(
            behaviour, request_deserializer=_parser(request_type), response_serializer=None
        )
    return grpc.method_handlers_generic_handler(service, handlers)


def _parser(request_type: type[Message]) -> Callable[[bytes], Message | None]:
    """A deserializer that gives None for bytes that are no such message. (An error here would become INTERNAL: not the caller's fault.)"""
    parse = request_type.FromString

    def parse_or_none(data: bytes) -> Message | None:
        try:
            return parse(data)
        except Exception:  # whatever the parser dislikes, the bytes are at fault
            return None

    return parse_or_none


def _behaviour(
    name: str,
    answer: Callable[[Any, Any], Awaitable[Message | bytes]],
    log: FilteringBoundLogger,
    unavailable: Reason,
    retry_after_s: float,
) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def behaviour(request: Message | None, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        try:
            if request is None:
                raise CallRefused.of([Violation("", Reason.MESSAGE_MALFORMED)])
            response = await answer(request, context)
            return response if isinstance(response, bytes) else response.SerializeToString()
        except CallRefused as error:
            return await _abort(context, error)
        except (BackendUnavailable, BackendRefused) as error:
            # The one passes by itself, the other when an operator has seen to it; for the caller both are the same.
            log.warning("call_backend_failed", method=name, error=str(error), passes=isinstance(error, BackendUnavailable))
            return await _abort(context, CallRefused(unavailable, retry_after_s=retry_after_s))
        except grpc.aio.AbortError:
            raise
        except Exception:
            log.exception("call_failed", method=name)
            return await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return behaviour


async def _abort(context: "grpc.aio.ServicerContext[Any, Any]", refusal: CallRefused) -> Never:
    await context.abort(_CODES[refusal.reason.status.value], str(refusal), _trailing_metadata(refusal))


def status_of(refusal: CallRefused) -> RpcStatus:
    """The google.rpc.Status of a refusal: ErrorInfo, then BadRequest and RetryInfo where they apply."""
    info = ErrorInfo(domain=ERROR_DOMAIN, reason=refusal.reason.name)
    details: list[Message] = [info]
    if refusal.violations:
        info.metadata["violations"] = str(len(refusal.violations))
        details.append(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(field=field, description=reason.rule, reason=reason.name)
                    for field, reason in refusal.violations[:DETAILS_VIOLATIONS_MAX]
                ]
            )
        )
    if refusal.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(_milliseconds(refusal.retry_after_s))
        details.append(RetryInfo(retry_delay=delay))
    status = RpcStatus(code=refusal.reason.status.value, message=str(refusal))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _trailing_metadata(refusal: CallRefused) -> tuple[tuple[str, str | bytes], ...]:
    details = ("grpc-status-details-bin", status_of(refusal).SerializeToString())
    if refusal.retry_after_s is None:
        return (details,)
    # Stock clients do not read RetryInfo; their own retries obey this.
    return (details, ("grpc-retry-pushback-ms", str(_milliseconds(refusal.retry_after_s))))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)


class Health(health_aio.HealthServicer):  # type: ignore[misc] # the package ships no types
    """Health, whose watchers do not hold up the end of the server."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()
        self._ended = False

    async def Watch(self, request: HealthCheckRequest, context: Any) -> None:  # noqa: N802 - gRPC's name
        watch = asyncio.get_running_loop().create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await watch
        except asyncio.CancelledError:
            # A handler that is merely cancelled leaves its call open.
            if self._ended:
                await context.abort(grpc.StatusCode.UNAVAILABLE, Reason.STOPPING.rule)
            raise
        finally:
            self._watches.discard(watch)

    def end_watches(self) -> None:
        self._ended = True
        for watch in self._watches:
            watch.cancel()


class RpcServer:
    """A gRPC server on one port, with health and reflection. Not ready until told so."""

    def __init__(
        self, host: str, port: int, handlers: Sequence[grpc.GenericRpcHandler], services: Sequence[str], message_bytes_max: int
    ) -> None:
        """`port` 0 takes a free one; `services` are the full names behind `handlers`; `message_bytes_max` bounds a request."""
        self._host = host
        self._port = port
        self._handlers = handlers
        self._services = services
        self._message_bytes_max = message_bytes_max
        self._health = Health()
        self._server: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens; the port. Raises AddressTaken where that is not possible."""
        options = [
            # Off, or a second process would take half of the calls of the first instead of being refused.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._message_bytes_max),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(tuple(self._handlers))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME], server)
        try:
            port = server.add_insecure_port(self._address())
        except RuntimeError as error:
            raise self._address_taken() from error
        await self._say(HealthCheckResponse.NOT_SERVING)
        await server.start()
        self._server = server
        return port

    def set_ready(self, ready: bool) -> None:
        """Says so to whoever asks for the health of the server or of one of its services."""
        task = asyncio.get_running_loop().create_task(self._say(HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, waits for those under way for `grace_s` at most, ends the rest. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await self._say(HealthCheckResponse.NOT_SERVING)
            self._health.end_watches()
            await server.stop(grace_s)

    def _address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host and not self._host.startswith("[") else self._host
        return f"{host}:{self._port}"

    def _address_taken(self) -> AddressTaken:
        return AddressTaken(
            f"cannot listen on {self._address()}: the port is taken, or the address is not one of this machine; "
            "stop what holds the port, or take another"
        )

    async def _say(self, status: int) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)
