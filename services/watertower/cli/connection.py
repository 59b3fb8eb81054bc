"""Calls to a Watertower service: channels, deadlines, retries, and errors that say what to do.

A retry sends the identical request (an event keeps its occurred_at), waits at least as long as the server asks, adds full jitter, and
ends after a bounded time.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from watertower.cli.options import DEFAULT_READ_TARGET, DEFAULT_WRITE_TARGET
from watertower.cli.output import CommandFailed, usage
from watertower.core.backoff import full_jitter
from watertower.ports import Clock

PUSHBACK_KEY = "grpc-retry-pushback-ms"
STATUS_KEY = "grpc-status-details-bin"

RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by a server that stops, of a call that it has received and not begun; nobody here cancels
)
"""After these the identical call may be sent again."""

_CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),  # ours are counted, jittered and bounded
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Server(NamedTuple):
    """One of a service's two servers, as a command is told of it."""

    name: str
    option: str  # that gives the address
    default: str
    address: str


def writer(address: str) -> Server:
    """The writer at HOST:PORT. Raises CommandFailed (usage) for what is no address."""
    return _checked(Server("writer", "--write-target", DEFAULT_WRITE_TARGET, address))


def reader(address: str) -> Server:
    """The reader at HOST:PORT. Raises CommandFailed (usage) for what is no address."""
    return _checked(Server("reader", "--read-target", DEFAULT_READ_TARGET, address))


def _checked(server: Server) -> Server:
    host, colon, port = server.address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65_536:
        raise usage(f"{server.option} {server.address}: must be HOST:PORT, as in {server.default}")
    return server


class RetryPolicy(NamedTuple):
    """Bounds of one call with its retries."""

    deadline_s: float = 10.0  # of one attempt
    total_s: float = 30.0  # no attempt starts later than this after the first one
    attempts_max: int = 1_000
    base_s: float = 0.05
    cap_s: float = 2.0


READ_POLICY = RetryPolicy(total_s=2.0)
"""A person waits for the answer."""


class CallFailed(CommandFailed):
    """A call that was refused, or whose retries ran out. `violations` are (field, rule) pairs of a refused request."""

    def __init__(self, message: str, status: grpc.StatusCode, reason: str, violations: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, status=status.name, reason=reason)
        self.status = status
        self.reason = reason
        self.violations = tuple(violations)


class _Details(NamedTuple):
    """What a failed call carries besides its code."""

    reason: str
    violations: list[tuple[str, str]]
    retry_after_s: float | None
    no_retry: bool  # a negative or unreadable pushback: the server does not want this call again


def open_channel(server: Server) -> grpc.Channel:
    """A channel to a server; connects at the first call."""
    return grpc.insecure_channel(server.address, options=_CHANNEL_OPTIONS)


def call(
    method: Callable[..., Any],
    request: Any,
    server: Server,
    policy: RetryPolicy,
    clock: Clock,
    rng: random.Random,
    give_up: Callable[[], bool] = lambda: False,
) -> Any:
    """The answer of one unary call. Retries what is RETRYABLE within `policy`, until `give_up`
    says so. Raises CallFailed."""
    started = clock.monotonic_s()
    attempt = 0
    while True:
        try:
            return method(request, timeout=policy.deadline_s)
        except grpc.RpcError as error:
            details = _details(error)
            wait_s = (details.retry_after_s or 0.0) + full_jitter(attempt, policy.base_s, policy.cap_s, rng.random())
            attempt += 1
            over = attempt >= policy.attempts_max or clock.monotonic_s() + wait_s - started > policy.total_s
            if error.code() not in RETRYABLE or details.no_retry or over or give_up():
                raise _failure(error, details, server) from error
        clock.sleep(wait_s)


def _details(error: grpc.RpcError) -> _Details:
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    trailing: Any = error.trailing_metadata()  # the published types of an item are not those of the pairs that it is
    metadata: dict[str, str | bytes] = dict(trailing or ())
    details = _Details("", [], None, False)
    encoded = metadata.get(STATUS_KEY)
    if isinstance(encoded, bytes):
        status = status_pb2.Status()
        try:
            status.ParseFromString(encoded)
        except DecodeError:
            status.Clear()
        for packed in status.details:
            info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                details = details._replace(reason=info.reason)
            elif packed.Unpack(bad):
                details.violations.extend((v.field, v.description) for v in bad.field_violations)
            elif packed.Unpack(retry):
                details = details._replace(retry_after_s=max(0.0, retry.retry_delay.ToMicroseconds() / 1e6))
    pushback = metadata.get(PUSHBACK_KEY)
    if pushback is not None:
        text = pushback.decode("ascii", "replace") if isinstance(pushback, bytes) else pushback
        if text.isdigit():
            details = details._replace(retry_after_s=max(details.retry_after_s or 0.0, int(text) / 1e3))
        else:
            details = details._replace(no_retry=True)
    return details


def _failure(error: grpc.RpcError, details: _Details, server: Server) -> CallFailed:
    code, target = error.code(), server.address
    said = " ".join((error.details() or "").split())
    if code is grpc.StatusCode.UNAVAILABLE and not details.reason:
        message = f"nothing answers at {target}: start it with `watertower serve`, or name its address ({server.option})"
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        other = "reader" if server.name == "writer" else "writer"
        message = (
            f"what answers at {target} is not the {server.name} of Watertower: it is the {other}, or another service; name the address of "
            f"the {server.name} with {server.option}, as in {server.default}"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"{target} did not answer in time: it is overloaded or stuck; try again, or look at its log"
    elif code in RETRYABLE:
        message = f"{target} cannot take the call now: {said}"
    else:
        message = f"{target} refused the call: {said}"
    return CallFailed(message, code, details.reason, details.violations)
