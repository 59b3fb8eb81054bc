"""gRPC as every process serves it: a handler that turns refusals into rich errors, and a server with health and reflection."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, Never, Protocol, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from structlog.typing import FilteringBoundLogger

from watertower.admission import Admission
from watertower.config import ServerSettings
from watertower.counters import CallCounters
from watertower.errors import BackendRefused, BackendUnavailable, CallRefused, Reason, Violation
from watertower.health import ALIVE
from watertower.shared_port import address_taken, held_port
from watertower.transport import Listener, Probe, address, listener_count, listener_options, receive

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

Answers: TypeAlias = "Callable[[Any, CallContext], AsyncGenerator[bytes, None]]"
Stream: TypeAlias = "tuple[type[Message], Answers]"
"""The type of the request, and what answers it, again and again, with the bytes of messages."""

ENDED = "the server ends this call"
"""The message of a cancellation with which a stream's own side ends it: its caller hears STOPPING."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def patience_s(left_s: float) -> float:
    """How long a back end may take for a call with so many seconds left."""
    return left_s - min(left_s * ANSWER_AHEAD_SHARE, ANSWER_AHEAD_S_MAX)


def service_handler(
    service: str,
    methods: Mapping[str, Method],
    log: FilteringBoundLogger,
    *,
    unavailable: Reason,
    retry_after_s: float,
    streams: Mapping[str, Stream] | None = None,
    admission: Admission | None = None,
    counters: CallCounters | None = None,
) -> grpc.GenericRpcHandler:
    """The methods (by name) of one service (by its full name): with one answer, and with a stream of them.

    A method may raise CallRefused; an error of a back end becomes a refusal for the reason `unavailable`, to be repeated after
    `retry_after_s`; anything else is logged and becomes INTERNAL without a word about what it was. `admission` decides who is let in,
    and `counters` are told how calls ended.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    uniform = (lambda: 0.5) if admission is None else admission.uniform
    refusals, doors = _Refusals(log, unavailable, retry_after_s, uniform), _Doors(admission)
    counted = counters or CallCounters((), ())
    for name, (request_type, answer) in methods.items():
        behaviour = _behaviour(f"{service}/{name}", _parser(request_type), answer, refusals, doors, counted)
        # To the caller it is a unary method. Taken as a stream of one request, it is in our hands before the request has arrived.
        handlers[name] = grpc.stream_unary_rpc_method_handler(behaviour, request_deserializer=None, response_serializer=None)
    for name, (request_type, answers) in (streams or {}).items():
        stream = _stream(f"{service}/{name}", _parser(request_type), answers, refusals, doors, counted)
        handlers[name] = grpc.stream_stream_rpc_method_handler(stream, request_deserializer=None, response_serializer=None)
    return grpc.method_handlers_generic_handler(service, handlers)


def _parser(request_type: type[Message]) -> Callable[[bytes], Message]:
    parse = request_type.FromString

    def parse_or_refuse(data: bytes) -> Message:
        try:
            return parse(data)
        except Exception:  # whatever the parser dislikes, the bytes are at fault
            raise CallRefused.of([Violation("", Reason.MESSAGE_MALFORMED)]) from None

    return parse_or_refuse


class _Doors:
    """How calls come in. Without an admission, all do."""

    def __init__(self, admission: Admission | None) -> None:
        self._admission = admission
        # The published type of a callback takes no argument; it is given the context.
        self._depart: Any = None if admission is None else admission.depart

    async def receive(self, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        """The bytes of the request. Raises CallRefused."""
        if self._admission is None:
            return await receive(context)
        self._admission.arrive()
        context.add_done_callback(self._depart)
        return await self._admission.receiving.receive(context)

    async def enter(self, name: str, request_bytes: int, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """The request is here. Raises CallRefused."""
        if self._admission is None:
            return

        def left_s() -> float:
            left_s: float | None = context.time_remaining()
            return math.inf if left_s is None else left_s

        if self._admission.enter(name.rpartition("/")[2], request_bytes, left_s()):
            await self._admission.turn(left_s)


class _Refusals:
    """Ends calls that failed, as their callers should hear of it."""

    def __init__(self, log: FilteringBoundLogger, unavailable: Reason, retry_after_s: float, uniform: Callable[[], float]) -> None:
        self._log, self._unavailable, self.retry_after_s, self._uniform = log, unavailable, retry_after_s, uniform

    async def refuse(self, ending: "_Ending", error: Exception, context: "grpc.aio.ServicerContext[Any, Any]") -> Never:
        if isinstance(error, grpc.aio.AbortError):
            ending.end(grpc.StatusCode.UNKNOWN)
            raise error
        if isinstance(error, BackendUnavailable | BackendRefused):
            # The one passes by itself, the other when an operator has seen to it; for the caller both are the same.
            self._log.warning("call_backend_failed", method=ending.name, error=str(error), passes=isinstance(error, BackendUnavailable))
            error = CallRefused(self._unavailable, retry_after_s=self.retry_after_s)
        if isinstance(error, CallRefused):
            ending.end(_CODES[error.reason.status.value], error.reason.name)
            await _abort(context, self._spread(error))
        ending.end(grpc.StatusCode.INTERNAL)
        self._log.error("call_failed", method=ending.name, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    def _spread(self, refusal: CallRefused) -> CallRefused:
        """Half to one and a half of the time at random: stock clients come back exactly when they are told, all that were told the same
        together."""
        if refusal.retry_after_s is None:
            return refusal
        return CallRefused(refusal.reason, refusal.violations, refusal.retry_after_s * (0.5 + self._uniform()))


class _Ending:
    """Around a call: counts how it ended, once, before its caller hears of it. Where nobody says so, the caller was gone or its deadline
    passed."""

    __slots__ = ("_began_s", "_counted", "_counters", "_loop", "name")

    def __init__(self, name: str, counters: CallCounters) -> None:
        """`name` as in `service/method`."""
        self.name, self._counters = name, counters
        self._counted = False

    def __enter__(self) -> "_Ending":
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        return self

    def end(self, status: grpc.StatusCode, reason: str = "") -> None:
        """It ends with `status`; `reason` where it is refused."""
        self._counted = True
        self._counters.end(self.name.rpartition("/")[2], status.name, self._loop.time() - self._began_s, reason)

    def __exit__(self, *_: object) -> None:
        if not self._counted:
            self.end(grpc.StatusCode.CANCELLED)


def _behaviour(
    name: str,
    parse: Callable[[bytes], Message],
    answer: Callable[[Any, Any], Awaitable[Message | bytes]],
    refusals: _Refusals,
    doors: _Doors,
    counters: CallCounters,
) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def behaviour(_: object, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        with _Ending(name, counters) as ending:
            try:
                data = await doors.receive(context)
                await doors.enter(name, len(data), context)
                response = await answer(parse(data), context)
                data = response if isinstance(response, bytes) else response.SerializeToString()
            except Exception as error:
                await refusals.refuse(ending, error, context)
            ending.end(grpc.StatusCode.OK)
            return data

    return behaviour


def _stream(
    name: str,
    parse: Callable[[bytes], Message],
    answers: Callable[[Any, Any], AsyncGenerator[bytes, None]],
    refusals: _Refusals,
    doors: _Doors,
    counters: CallCounters,
) -> Callable[[Any, Any], Awaitable[None]]:
    async def behaviour(_: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        with _Ending(name, counters) as ending:
            try:
                data = await doors.receive(context)
                await doors.enter(name, len(data), context)
                async with aclosing(answers(parse(data), context)) as responses:
                    async for response in responses:
                        await context.write(response)  # returns when there is room on the way to the caller
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if error.args != (ENDED,) or task is None:
                    raise
                task.uncancel()
                await refusals.refuse(ending, CallRefused(Reason.STOPPING, retry_after_s=refusals.retry_after_s), context)
            except Exception as error:
                await refusals.refuse(ending, error, context)
            ending.end(grpc.StatusCode.OK)

    return behaviour


class NotYet(grpc.GenericRpcHandler):
    """Refuses every call of a service whose process waits for a back end: for a synchronous server, in its place."""

    def __init__(self, service: str, unavailable: Reason, retry_after_s: float, uniform: Callable[[], float]) -> None:
        """Callers are told to come back after half to one and a half of `retry_after_s`; `uniform` gives numbers in [0, 1)."""
        self._prefix = f"/{service}/"
        self._unavailable, self._retry_after_s, self._uniform = unavailable, retry_after_s, uniform

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._refuse) if call.method.startswith(self._prefix) else None

    def _refuse(self, _: bytes, context: Any) -> Never:
        refusal = CallRefused(self._unavailable, retry_after_s=self._retry_after_s * (0.5 + self._uniform()))
        context.set_trailing_metadata(_trailing_metadata(refusal))
        context.abort(_CODES[refusal.reason.status.value], str(refusal))
        raise refusal  # abort has raised


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


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # the package ships no types
    """The standard health service. (That of the package forgets all watchers of a service when one of them leaves.)"""

    def __init__(self) -> None:
        # An answer comes from the event loop: that there is one is what is asked.
        self._status: dict[str, int] = {ALIVE: HealthCheckResponse.SERVING}
        self._news: set[asyncio.Event] = set()  # of each watcher
        self._ended = False

    async def set(self, service: str, status: int) -> None:
        """Tells all who watch it."""
        self._status[service] = status
        self._tell()

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802 - gRPC's name
        if request.service not in self._status:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return HealthCheckResponse(status=self._status[request.service])

    async def Watch(self, request: HealthCheckRequest, context: Any) -> None:  # noqa: N802 - gRPC's name
        news, last = asyncio.Event(), -1
        self._news.add(news)
        try:
            while not self._ended:
                news.clear()
                status = self._status.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
                if status != last:
                    await context.write(HealthCheckResponse(status=status))
                    last = status
                await news.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, Reason.STOPPING.rule)
        finally:
            self._news.discard(news)

    def end_watches(self) -> None:
        """Or they would hold up the end of the server."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        for news in self._news:
            news.set()


class RpcServer:
    """A gRPC server on one port, with health and reflection. Not ready until told so.

    It is several listeners, and a connection belongs to one of them: grpc.aio takes the calls of a listener in order, so what one
    connection brings at once would come before whatever others bring next. Between listeners calls take turns, as in stochastic fairness
    queueing (P. McKenney, INFOCOM 1990).
    """

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
    ) -> None:
        """`port` 0 takes a free one; `services` are the full names behind `handlers`; `message_bytes_max` bounds a request, `limits` the
        connections. `admission` is told how long calls wait. `shared_port`: several processes listen on the port."""
        self._host = host
        self._port = port
        self._handlers = handlers
        self._services = services
        self._count = listener_count(limits)
        self._options = listener_options(message_bytes_max, limits, shared_port or self._count > 1, self._count)
        self._shared_port = shared_port
        self._probe = None if admission is None else Probe(admission.shedding.observe, admission.receiving.end_late, admission.uniform)
        self._health = _Health()
        self._listeners: list[Listener] = []
        self._held = ExitStack()  # the port
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens; the port. Raises AddressTaken where that is not possible."""
        port = self._port
        with ExitStack() as held:
            if self._count > 1 and not self._shared_port:  # for our listeners only
                port = held.enter_context(held_port(self._host, port))
            listeners = []
            for _ in range(self._count):
                listener = self._listener()
                try:
                    port = listener.server.add_insecure_port(address(self._host, port))
                except RuntimeError as error:
                    raise address_taken(self._address()) from error
                listeners.append(listener)
            await self._say(HealthCheckResponse.NOT_SERVING)
            self._listeners = listeners  # for `stop`, should one of them not start
            for listener in listeners:
                await listener.server.start()
            self._held = held.pop_all()
        if self._probe is not None:
            self._probe.start(listeners)
        return port

    def _listener(self) -> Listener:
        server = grpc.aio.server(options=self._options)
        listener = Listener(server, self._handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME], server)
        if self._probe is not None:
            listener.listen_for_probe()
        return listener

    def set_ready(self, ready: bool) -> None:
        """Says so to whoever asks for the health of the server or of one of its services."""
        task = asyncio.get_running_loop().create_task(self._say(HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, waits for those under way for `grace_s` at most, ends the rest. Idempotent."""
        listeners, self._listeners = self._listeners, []
        if listeners:
            await self._say(HealthCheckResponse.NOT_SERVING)
            self._health.end_watches()
            if self._probe is not None:
                await self._probe.stop()
            self._held.close()  # whoever comes next finds the port free as soon as nobody listens
            await asyncio.gather(*(listener.server.stop(grace_s) for listener in listeners))

    def _address(self) -> str:
        return address(self._host, self._port)

    async def _say(self, status: int) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)
