"""A command's calls to a Watertower service: channels, deadlines, retries, and errors that say what to do.

A retry sends the identical request (an event keeps its occurred_at), waits at least as long as the server asks, adds full jitter, and
ends after a bounded time.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from watertower.cli.options import DEFAULT_READ_TARGET, DEFAULT_WRITE_TARGET
from watertower.cli.output import CommandFailed, usage
from watertower.client.channels import CONNECT_TIMEOUT_MS
from watertower.client.errors import Refusal, refusal_of
from watertower.client.retries import wait_s
from watertower.ports import Clock

_CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),  # ours are counted, jittered and bounded
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # for all its name, it is that
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
    """The answer of one unary call. Retries what may pass within `policy`, until `give_up`
    says so. Raises CallFailed."""
    started = clock.monotonic_s()
    attempt = 0
    while True:
        try:
            return method(request, timeout=policy.deadline_s)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            pause_s = wait_s(refusal, attempt, policy.base_s, policy.cap_s, rng.random())
            attempt += 1
            over = attempt >= policy.attempts_max or clock.monotonic_s() + (pause_s or 0.0) - started > policy.total_s
            if pause_s is None or over or give_up():
                raise _failure(refusal, server) from error
        clock.sleep(pause_s)


def _failure(refusal: Refusal, server: Server) -> CallFailed:
    code, said, target = refusal.status, refusal.said, server.address
    if code is grpc.StatusCode.UNAVAILABLE and not refusal.reason:
        message = f"nothing answers at {target}: start it with `watertower serve`, or name its address ({server.option})"
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        other = "reader" if server.name == "writer" else "writer"
        message = (
            f"what answers at {target} is not the {server.name} of Watertower: it is the {other}, or another service; name the address of "
            f"the {server.name} with {server.option}, as in {server.default}"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"{target} did not answer in time: it is overloaded or stuck; try again, or look at its log"
    elif refusal.retryable or code is grpc.StatusCode.UNAVAILABLE or code is grpc.StatusCode.CANCELLED:
        message = f"{target} cannot take the call now: {said}"
    else:
        message = f"{target} refused the call: {said}"
    return CallFailed(message, code, refusal.reason, [(violation.field, violation.rule) for violation in refusal.violations])
