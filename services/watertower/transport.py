"""What a gRPC server is told about its connections, how long its calls wait, and requests that do not arrive."""

import asyncio
import math
import os
import resource
import secrets
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import accumulate
from typing import Any

import grpc

from watertower.config import ServerSettings
from watertower.errors import CallRefused, Reason, Violation

PROBE_INTERVAL_S = 0.05
"""Seconds between two measurements of how long calls wait."""

PROBE_S_MAX = 5.0
"""Seconds after which a call of the probe is given up."""

PROBED = "/watertower.Probe/Nothing"
"""The method that the probe calls. No server has it, so it is answered without work."""

RECEIVING_CALLS_MAX = 1_000
"""Calls whose request is arriving, at once; of more, the one that has been arriving longest is ended."""

LISTENER_CONNECTIONS_MIN = 256
"""Connections that a listener must be allowed to have: chance spreads fewer too unevenly."""

UNTAKEN_S_MAX = 10
"""Seconds after which the transport gives up a call that the process has not turned to."""

PING_STRIKES_MAX = 2
"""Pings that come too early and are forgiven."""

FILES_KEPT = 256
"""Open files that the process keeps for other things than connections and listeners."""

LISTENER_FILES = 4
"""Open files of a listener: its port, where it is probed, and both ends of the probe's connection."""


def address(host: str, port: int) -> str:
    """HOST:PORT as gRPC reads it: an IPv6 address is bracketed."""
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{bracketed}:{port}"


def listener_count(limits: ServerSettings | None) -> int:
    """How many listeners share the port of a process. Only Linux spreads connections over them."""
    if limits is None or sys.platform != "linux":
        return 1
    return max(1, min(limits.listeners_max, _connections_max(limits) // LISTENER_CONNECTIONS_MIN))


def listener_options(message_bytes_max: int, limits: ServerSettings | None, shared_port: bool, listeners: int = 1) -> list[tuple[str, int]]:
    """gRPC's channel arguments (grpc/impl/channel_arg_names.h says what each means, and its unit) for one of so many listeners of a
    process. Without `limits`, gRPC's defaults."""
    options = [
        # Only where somebody holds the port (shared_port.py), or a second service would take half of the calls instead of being refused.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_receive_message_length", message_bytes_max),
    ]
    if limits is not None:
        options += [
            ("grpc.max_allowed_incoming_connections", _connections_max(limits) // listeners),
            ("grpc.max_concurrent_streams", limits.streams_max),
            # On, gRPC refuses calls of a client that keeps to this: it counts calls that were answered and are not yet cleared away. Of 64
            # at once on one connection a few in a thousand were UNAVAILABLE.
            ("grpc.http.overload_protection", 0),
            ("grpc.max_metadata_size", limits.metadata_bytes_max),
            ("grpc.absolute_max_metadata_size", limits.metadata_bytes_max),
            ("grpc.server_handshake_timeout_ms", limits.handshake_ms_max),
            ("grpc.max_connection_age_ms", limits.connection_age_ms_max),
            ("grpc.max_connection_age_grace_ms", limits.connection_age_grace_ms_max),
            ("grpc.max_connection_idle_ms", limits.connection_idle_ms_max),
            ("grpc.keepalive_time_ms", limits.keepalive_ms),
            ("grpc.keepalive_timeout_ms", limits.keepalive_timeout_ms),
            # Or a ping has a minute, however short the keepalive's timeout is. (In grpc's chttp2/transport/internal.h.)
            ("grpc.http2.ping_timeout_ms", limits.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", limits.ping_interval_ms_min),
            ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
            ("grpc.server.max_pending_requests", limits.calls_pending_max),
            ("grpc.server.max_pending_requests_hard_limit", 2 * limits.calls_pending_max),
            ("grpc.server_max_unrequested_time_in_server", UNTAKEN_S_MAX),
        ]
    return options


def _connections_max(limits: ServerSettings) -> int:
    """As many as are wanted, or as the process may have files open: a server that runs out of them cannot take any."""
    kept = FILES_KEPT + LISTENER_FILES * limits.listeners_max
    wanted = limits.connections_max + kept
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(limits.connections_max, soft - kept))


class Receiving:
    """The calls whose request is arriving. A good caller's is here at once; one that sends half a request must not be kept."""

    def __init__(self, receive_s_max: float) -> None:
        self._receive_s_max = receive_s_max
        self._arriving: dict[asyncio.Task[Any], float] = {}  # since when, the oldest first
        self._late: set[asyncio.Task[Any]] = set()

    async def receive(self, context: Any) -> bytes:
        """The bytes of a call's request. Raises CallRefused: REQUEST_LATE, MESSAGE_MALFORMED where the caller sends none."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is a task")
        if len(self._arriving) >= RECEIVING_CALLS_MAX:
            self._end(next(iter(self._arriving)))
        self._arriving[task] = loop.time()
        try:
            return await receive(context)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise CallRefused(Reason.REQUEST_LATE) from None
        finally:
            self._arriving.pop(task, None)

    def end_late(self, now_s: float) -> None:
        """Ends the calls that have been arriving for too long; `now_s` by the event loop."""
        while self._arriving:
            task, since_s = next(iter(self._arriving.items()))
            if now_s - since_s < self._receive_s_max:
                return
            self._end(task)

    def _end(self, task: "asyncio.Task[Any]") -> None:
        del self._arriving[task]
        self._late.add(task)
        task.cancel()


async def receive(context: Any) -> bytes:
    """The bytes of a call's request, however long they take."""
    data = await context.read()
    if data is grpc.aio.EOF:
        raise CallRefused.of([Violation("", Reason.MESSAGE_MALFORMED)])
    return bytes(data)


class Listener(grpc.GenericRpcHandler):
    """One gRPC server of those that share a process's port: what tells how many calls it took, and where it is asked how long they wait."""

    def __init__(self, server: grpc.aio.Server, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.server = server
        self.calls = 0
        """Calls that it took since somebody set this to 0."""
        self._handlers = handlers
        # In Linux's abstract namespace: as near as 127.0.0.1, and nothing is left behind by a process that was killed.
        self.probed_at = f"unix-abstract:watertower-{os.getpid()}-{secrets.token_hex(8)}" if sys.platform == "linux" else "127.0.0.1:0"
        server.add_generic_rpc_handlers((self,))

    def listen_for_probe(self) -> None:
        """Before the server starts."""
        port = self.server.add_insecure_port(self.probed_at)
        self.probed_at = self.probed_at.replace(":0", f":{port}")

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """gRPC's question for what handles a call."""
        if details.method == PROBED:
            return None
        self.calls += 1
        return next((found for handler in self._handlers if (found := handler.service(details)) is not None), None)


class Probe:
    """Measures how long a call waits until the process turns to it, by calling the server itself.

    The wait is nowhere else to be seen: grpc.aio takes one call of each listener a turn of the event loop, and what it has not taken waits
    inside gRPC. With 512 callers and calls that waited 430 ms, the event loop was 0.5 ms late. So a call goes through the same queue, at
    an address of its own that no other process can be connected to in its place. It is the queue of a call drawn from those that were taken
    since the last time, so what is measured is what calls wait. A queue that one connection has filled is measured now and then among the
    short ones of the others, and sheds nothing as long as those are most (the least of the last waits counts, admission.py).
    """

    def __init__(self, observe: Callable[[float], None], each: Callable[[float], None], uniform: Callable[[], float]) -> None:
        """`observe` is told each wait, seconds; `each` is called between two measurements, with the event loop's time; `uniform` gives
        numbers in [0, 1)."""
        self._observe, self._each, self._uniform = observe, each, uniform
        self._task: asyncio.Task[None] | None = None

    def start(self, listeners: Sequence[Listener]) -> None:
        """After they have started."""
        self._task = asyncio.create_task(self._run(listeners))

    async def stop(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, listeners: Sequence[Listener]) -> None:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as channels:
            ways: dict[str, Any] = {}
            while True:
                asked_at = self._of_a_call(listeners).probed_at
                if (way := ways.get(asked_at)) is None:
                    channel = await channels.enter_async_context(grpc.aio.insecure_channel(asked_at))
                    way = ways[asked_at] = channel.unary_unary(PROBED)
                sent_s = loop.time()
                call = asyncio.ensure_future(self._taken(way))
                try:
                    while not call.done():
                        await asyncio.wait({call}, timeout=PROBE_INTERVAL_S)
                        self._each(loop.time())
                finally:
                    call.cancel()
                self._observe(loop.time() - sent_s if call.result() else math.inf)
                await asyncio.sleep(PROBE_INTERVAL_S)

    def _of_a_call(self, listeners: Sequence[Listener]) -> Listener:
        """The listener of one of the calls that were taken since the last time; without any, of whatever comes."""
        upto = list(accumulate(listener.calls for listener in listeners))
        for listener in listeners:
            listener.calls = 0
        return listeners[min(bisect_right(upto, self._uniform() * upto[-1]), len(listeners) - 1)]

    @staticmethod
    async def _taken(nothing: Any) -> bool:
        """Whether the process turned to the call."""
        try:
            await nothing(b"", timeout=PROBE_S_MAX)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
        except Exception:  # whatever it is, the measuring goes on
            return False
        return True
