"""The server's limits as callers meet them: what arrives too slowly, too large or too often, and how connections end."""

import asyncio
import contextlib
import math
import resource
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import grpc
import pytest

from tests.query.serving import Served, refusal, served, until
from watertower import transport
from watertower.config import QuerySettings
from watertower.errors import Reason
from watertower.testing.abuse import GREETING, call_data, call_headers, frame
from watertower.transport import (
    FILES_KEPT,
    LISTENER_CONNECTIONS_MIN,
    LISTENER_FILES,
    PING_STRIKES_MAX,
    PROBE_S_MAX,
    address,
    listener_count,
    listener_options,
)
from watertower.v1 import reader_pb2, reader_pb2_grpc

PATH = "/watertower.v1.EngagementReader/GetCounts"
READ = reader_pb2.GetCountsRequest(entity="star", metrics=["METRIC_FOLLOWERS"])
BATCH = reader_pb2.BatchGetCountsRequest(entities=["star"], metrics=["METRIC_FOLLOWERS"])
EDGES = reader_pb2.CheckEdgesRequest(actor="ann", kind="KIND_FOLLOW", subjects=["star"])
PING, GOAWAY = 6, 7
CALLS_AT_ONCE = 90


class Raw:
    """A connection on which a test speaks HTTP/2 itself, and what came back."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20.0)
        self.received = b""
        self.ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the server may have ended it: the test looks
            self.socket.sendall(data)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.socket.recv(65_536):
                self.received += data
        self.ended = True

    def kinds(self) -> Counter[int]:
        """How many frames of each kind came."""
        found: Counter[int] = Counter()
        at = 0
        while at + 9 <= len(self.received):
            found[self.received[at + 3]] += 1
            at += 9 + int.from_bytes(self.received[at : at + 3])
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(10.0)
        self.socket.close()


@contextlib.contextmanager
def raw(query: Served) -> Iterator[Raw]:
    connection = Raw(query.port)
    try:
        yield connection
    finally:
        connection.close()


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_half_a_request_is_not_waited_for() -> None:
    """After `receive_ms_max` the call ends with REQUEST_LATE, and is not in the process any more; others are answered meanwhile."""

    async def scenario() -> None:
        async with served(receive_ms_max=300) as query:
            with raw(query) as caller:
                caller.send(GREETING + call_headers(PATH, 1) + call_data(b"half", 1, claimed_bytes=100))
                await until(lambda: query.service.admission.calls == 1)
                assert (await query.stub.GetCounts(READ, timeout=5)).values
                await until(lambda: Reason.REQUEST_LATE.rule.encode() in caller.received)
                await until(lambda: query.service.admission.calls == 0)

    run(scenario)


def test_the_oldest_half_request_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than `RECEIVING_CALLS_MAX` calls that are arriving, the one that takes longest is ended: a good caller's is here at once."""
    monkeypatch.setattr(transport, "RECEIVING_CALLS_MAX", 3)

    async def scenario() -> None:
        async with served() as query:
            with raw(query) as caller:
                caller.send(GREETING)
                for stream in (1, 3, 5):
                    caller.send(call_headers(PATH, stream) + call_data(b"half", stream, claimed_bytes=100))
                await until(lambda: query.service.admission.calls == 3)
                assert (await query.stub.GetCounts(READ, timeout=5)).values
                await until(lambda: query.service.admission.calls == 2)
                await until(lambda: Reason.REQUEST_LATE.rule.encode() in caller.received)

    run(scenario)


def test_a_call_without_a_request_is_malformed() -> None:
    """Headers, and then nothing but the end: INVALID_ARGUMENT, not INTERNAL."""

    async def scenario() -> None:
        async with served() as query:
            with raw(query) as caller:
                caller.send(GREETING + call_headers(PATH, 1) + frame(0, 1, 1, b""))
                await until(lambda: Reason.MESSAGE_MALFORMED.rule.encode() in caller.received)

    run(scenario)


def test_calls_in_the_process_are_bounded_and_the_rest_is_told_when_to_come() -> None:
    """Calls that wait for a store that hangs fill `calls_max`; the next is refused with CALLS_FULL and pushback, before its request is
    parsed. When the store answers, calls are taken again."""

    async def scenario() -> None:
        async with served(calls_max=3, store_calls_max=10) as query:
            query.store.open.clear()
            waiting = [asyncio.ensure_future(query.stub.CheckEdges(EDGES, timeout=20)) for _ in range(3)]
            await until(lambda: query.service.admission.calls == 3)
            refused = await refusal(query.channel.unary_unary(PATH)(b"\xff"))
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLS_FULL")
            assert refused.retry_ms
            assert refused.pushback_ms == str(refused.retry_ms)
            query.store.open.set()
            await asyncio.gather(*waiting)
            await until(lambda: query.service.admission.calls == 0)
            assert (await query.stub.GetCounts(READ, timeout=5)).values

    run(scenario)


def test_a_method_that_waits_for_the_store_leaves_room_for_the_others() -> None:
    """`store_calls_max` of one method are under way, a further one waits `store_queue_ms_max` and is refused; counts are served."""

    async def scenario() -> None:
        async with served(store_calls_max=2, store_queue_ms_max=200) as query:
            assert (await query.stub.GetCounts(READ, timeout=5)).values
            query.store.open.clear()
            waiting = [asyncio.ensure_future(query.stub.CheckEdges(EDGES, timeout=20)) for _ in range(2)]
            await until(lambda: query.service.admission.calls == 2)
            refused = await refusal(query.stub.CheckEdges(EDGES, timeout=5))
            assert refused.reason == "CALLS_FULL"
            late = await refusal(query.stub.CheckEdges(EDGES, timeout=5))
            assert late.reason == "CALLS_FULL"
            assert (await query.stub.GetCounts(READ, timeout=5)).values
            query.store.open.set()
            await asyncio.gather(*waiting)
            assert len((await query.stub.CheckEdges(EDGES, timeout=5)).active) == 1

    run(scenario)


@pytest.mark.slow
def test_overload_is_measured_where_calls_wait() -> None:
    """While the event loop has no time, the probe sees how long a call waits; bulk is refused then and told when to come back, and
    afterwards it is served again."""

    async def scenario() -> None:
        async with served(shed_first_ms=20, shed_last_ms=5_000) as query:
            bulk = reader_pb2.BatchGetCountsRequest(entities=[f"e{n}" for n in range(1_000)], metrics=["METRIC_FOLLOWERS"])
            busy = True

            async def block() -> None:
                while busy:
                    time.sleep(0.2)  # noqa: ASYNC251 - that is what this test is about
                    await asyncio.sleep(0)

            blocking = asyncio.create_task(block())
            await until(lambda: query.service.admission.shedding.queue_s > 0.17)
            await asyncio.sleep(0)
            refused = await refusal(query.stub.BatchGetCounts(bulk, timeout=20))
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert refused.retry_ms
            assert (await query.stub.GetCounts(READ, timeout=20)).values  # last to go
            busy = False
            await blocking
            await until(lambda: query.service.admission.shedding.level == 0)
            assert len((await query.stub.BatchGetCounts(bulk, timeout=20)).counts) == 1_000

    run(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one listener")
@pytest.mark.parametrize("listeners", [1, 64])
def test_what_one_connection_brings_at_once_does_not_come_first(listeners: int) -> None:
    """A connection begins `CALLS_AT_ONCE` calls; some others then have one each. With one listener those come last. With many, most of them
    have their turn at once: not those that by chance share the listener."""

    async def scenario() -> None:
        async with served(listeners_max=listeners, connections_max=64 * LISTENER_CONNECTIONS_MIN) as query:
            admission = query.service.admission
            arrive, enter = admission.arrive, admission.enter
            arrived: list[None] = []
            before: list[int] = []  # calls that had arrived when a whole request was there

            def arriving() -> None:
                arrived.append(None)
                arrive()

            def entering(method: str, request_bytes: int, left_s: float) -> bool:
                before.append(len(arrived))
                return enter(method, request_bytes, left_s)

            admission.arrive, admission.enter = arriving, entering  # type: ignore[method-assign]
            channels = [grpc.insecure_channel(query.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(9)]
            stubs = [reader_pb2_grpc.EngagementReaderStub(channel) for channel in channels]
            with ThreadPoolExecutor(len(stubs)) as pool, raw(query) as caller:
                loop = asyncio.get_running_loop()
                await asyncio.gather(*(loop.run_in_executor(pool, partial(stub.GetCounts, READ, timeout=20)) for stub in stubs))  # connects
                caller.send(GREETING)
                await until(lambda: bool(caller.received))
                arrived.clear()
                before.clear()
                streams = range(1, 2 * CALLS_AT_ONCE, 2)
                caller.send(b"".join(call_headers(PATH, stream) + call_data(b"half", stream, claimed_bytes=100) for stream in streams))
                time.sleep(0.3)  # noqa: ASYNC251 - they are here; the process has had no time
                calls = [loop.run_in_executor(pool, partial(stub.GetCounts, READ, timeout=20)) for stub in stubs]
                time.sleep(0.5)  # noqa: ASYNC251 - and so are the others
                await asyncio.gather(*calls)
            for channel in channels:
                channel.close()
            assert len(before) == len(stubs)
            if listeners == 1:
                assert min(before) > CALLS_AT_ONCE
            else:
                assert median(before) < CALLS_AT_ONCE / 2

    run(scenario)


def test_listeners_share_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each must be allowed enough of them; together they take no more than `connections_max`."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100_000, 100_000))
    assert listener_count(None) == 1
    for connections, wanted, expected in ((10_000, 32, 32), (10_000, 1, 1), (5, 32, 1), (1_024, 32, 4)):
        limits = QuerySettings(connections_max=connections, listeners_max=wanted)
        count = listener_count(limits)
        assert count == (expected if sys.platform == "linux" else 1)
        options = dict(listener_options(1_000, limits, True, count))
        assert connections - count < count * options["grpc.max_allowed_incoming_connections"] <= connections


@pytest.mark.slow
def test_the_probe_asks_where_calls_wait() -> None:
    """At the listener of a call drawn from those that were taken; the probe's own are none of them."""

    async def scenario() -> None:
        listeners = [transport.Listener(grpc.aio.server(), []) for _ in range(3)]
        for listener in listeners:
            listener.listen_for_probe()
            await listener.server.start()
        asked: list[int] = []
        for number, listener in enumerate(listeners):
            service = listener.service

            def asking(details: Any, number: int = number, service: Any = service) -> Any:
                asked.append(number)
                return service(details)

            listener.service = asking  # type: ignore[method-assign]
        waits: list[float] = []
        drawn = [0.32, 0.34]  # of three calls, the first and the second
        for number, listener in enumerate(listeners):
            listener.calls = number
        probe = transport.Probe(waits.append, lambda now_s: None, lambda: drawn.pop(0) if drawn else 0.99)
        probe.start(listeners)
        await until(lambda: len(waits) == 1)
        assert asked == [1]
        assert [listener.calls for listener in listeners] == [0, 0, 0]
        listeners[1].calls, listeners[2].calls = 1, 2
        await until(lambda: len(waits) == 2)
        assert asked == [1, 2]
        await until(lambda: len(waits) == 3)  # nobody has called
        assert max(waits) < PROBE_S_MAX
        await probe.stop()
        for listener in listeners:
            await listener.server.stop(0)

    run(scenario)


def test_a_caller_that_does_not_keep_to_the_streams_has_no_more_of_them() -> None:
    """Of 200 calls at once on one connection as many are taken in as `streams_max` says; the others are refused."""

    async def scenario() -> None:
        async with served(streams_max=20) as query:
            with raw(query) as caller:
                caller.send(GREETING)
                await until(lambda: bool(caller.received))
                for stream in range(1, 401, 2):
                    caller.send(call_headers(PATH, stream) + call_data(b"half", stream, claimed_bytes=100))
                await until(lambda: caller.received.count(b"\0\0\4\3\0") >= 180)  # RST_STREAM, at most a few of them by chance
                await until(lambda: query.service.admission.calls == 20)

    run(scenario)


@pytest.mark.slow
def test_a_caller_that_keeps_to_the_streams_is_never_refused() -> None:
    """90 calls at once on one connection where it may have 100, all answered in the same breath, again and again."""

    async def scenario() -> None:
        answering: list[asyncio.Future[None]] = []

        async with served() as query, asyncio.timeout(60):
            look = query.service._look

            async def together(*arguments: Any) -> Any:
                answering.append(asyncio.get_running_loop().create_future())
                if len(answering) == CALLS_AT_ONCE:
                    for waiting in answering:
                        waiting.set_result(None)
                    answering.clear()
                else:
                    await answering[-1]
                return await look(*arguments)

            query.service._look = together  # type: ignore[method-assign]
            with grpc.insecure_channel(f"127.0.0.1:{query.port}", options=[("grpc.enable_retries", 0)]) as channel:
                stub = reader_pb2_grpc.EngagementReaderStub(channel)

                def caller() -> None:
                    for _ in range(150):
                        stub.BatchGetCounts(BATCH, timeout=20)

                with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
                    loop = asyncio.get_running_loop()
                    await asyncio.gather(*(loop.run_in_executor(pool, caller) for _ in range(CALLS_AT_ONCE)))

    run(scenario)


@pytest.mark.slow
def test_calls_that_the_process_does_not_turn_to_are_bounded() -> None:
    """Above twice `calls_pending_max` the transport refuses calls by itself, while the process has no time even for that; and what it has
    not turned to after `UNTAKEN_S_MAX` it gives up."""

    async def scenario() -> None:
        codes: Counter[str] = Counter()

        def call() -> None:
            try:
                stub.GetCounts(READ, timeout=20)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1

        async with served(calls_pending_max=5) as query:
            with grpc.insecure_channel(f"127.0.0.1:{query.port}", options=[("grpc.enable_retries", 0)]) as channel:
                stub = reader_pb2_grpc.EngagementReaderStub(channel)
                await asyncio.to_thread(call)
                callers = [threading.Thread(target=call) for _ in range(40)]
                for caller in callers:
                    caller.start()
                time.sleep(2.0)  # noqa: ASYNC251 - the process has no time
                refused = codes["CANCELLED"]
                await asyncio.to_thread(lambda: [caller.join() for caller in callers])
        assert refused >= 40 - 2 * 5 - 2  # one or two are taken before
        assert codes["OK"] >= 5

    run(scenario)


@pytest.mark.slow
def test_an_untaken_call_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `UNTAKEN_S_MAX` seconds: nobody finds a queue of calls that are long forgotten."""
    monkeypatch.setattr(transport, "UNTAKEN_S_MAX", 1)

    async def scenario() -> None:
        codes: Counter[str] = Counter()

        def call() -> None:
            try:
                stub.GetCounts(READ, timeout=30)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1

        async with served() as query:
            with grpc.insecure_channel(f"127.0.0.1:{query.port}", options=[("grpc.enable_retries", 0)]) as channel:
                stub = reader_pb2_grpc.EngagementReaderStub(channel)
                await asyncio.to_thread(call)
                callers = [threading.Thread(target=call) for _ in range(10)]
                for caller in callers:
                    caller.start()
                time.sleep(3.0)  # noqa: ASYNC251 - the process has no time
                await asyncio.to_thread(lambda: [caller.join() for caller in callers])
        print(codes)
        assert sum(codes.values()) == 11
        assert codes["OK"] < 11

    run(scenario)


def test_a_connection_has_so_many_calls_at_once() -> None:
    """The server says `streams_max` in its settings; a call beyond it waits at the client, and is answered when one of them ends."""

    async def scenario() -> None:
        async with served(streams_max=2) as query:
            query.store.open.clear()
            waiting = [asyncio.ensure_future(query.stub.CheckEdges(EDGES, timeout=20)) for _ in range(2)]
            await until(lambda: query.service.admission.calls == 2)
            third = asyncio.ensure_future(query.stub.GetCounts(READ, timeout=20))
            await asyncio.wait([third], timeout=0.3)
            assert not third.done()
            assert query.service.admission.calls == 2
            query.store.open.set()
            await asyncio.gather(third, *waiting)

    run(scenario)


def test_a_call_with_too_much_metadata_is_refused() -> None:
    """Above `metadata_bytes_max` by the transport; just below it the call is served."""

    async def scenario() -> None:
        async with served(metadata_bytes_max=4_096) as query:
            assert (await query.stub.GetCounts(READ, timeout=5, metadata=(("x", "a" * 3_000),))).values
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await query.stub.GetCounts(READ, timeout=5, metadata=(("x", "a" * 4_096),))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


@pytest.mark.parametrize("limit", ["connection_age_ms_max", "connection_idle_ms_max"])
def test_connections_are_asked_to_end(limit: str) -> None:
    """After `connection_age_ms_max`, and after `connection_idle_ms_max` without a call: GOAWAY, and then the end."""

    async def scenario() -> None:
        async with served(**{limit: 500}) as query:
            with raw(query) as caller:
                caller.send(GREETING)
                await until(lambda: caller.kinds()[GOAWAY] > 0)
                await until(lambda: (caller.send(_ping(False)), caller.ended)[1])

    run(scenario)


def test_calls_on_an_old_connection_have_a_grace() -> None:
    """After `connection_age_grace_ms_max` a connection whose calls do not end is closed under them: UNAVAILABLE, to be repeated."""

    async def scenario() -> None:
        async with served(connection_age_ms_max=300, connection_age_grace_ms_max=300, started=True) as query:
            query.store.open.clear()
            started = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await query.stub.CheckEdges(EDGES, timeout=20)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - started < 15
            query.store.open.set()

    run(scenario)


def test_a_client_that_does_not_answer_pings_is_let_go() -> None:
    """After `keepalive_ms` without a sign of life it is pinged, also without calls; `keepalive_timeout_ms` later the connection ends."""

    async def scenario() -> None:
        async with served(keepalive_ms=300, keepalive_timeout_ms=300) as query:
            with raw(query) as caller:
                caller.send(GREETING)
                await until(lambda: caller.kinds()[PING] > 0)
                await until(lambda: caller.ended)

    run(scenario)


def test_a_client_that_pings_all_the_time_is_let_go() -> None:
    """`PING_STRIKES_MAX` pings that come sooner than `ping_interval_ms_min` are forgiven; one that keeps to it is served."""

    async def scenario() -> None:
        async with served(ping_interval_ms_min=1_000) as query:
            with raw(query) as caller:
                caller.send(GREETING)
                for _ in range(PING_STRIKES_MAX + 2):
                    caller.send(_ping(False))
                await until(lambda: caller.ended)
                assert b"too_many_pings" in caller.received

    run(scenario)


def test_connections_leave_files_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have as many files open as its connections, its listeners and `FILES_KEPT` need; where it may not, it takes fewer
    connections, and has fewer listeners."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    kept = FILES_KEPT + 4 * LISTENER_FILES
    for limits, connections, listeners, wanted in (
        ((1_024, 100_000), 1_250, 4, (5_000 + kept, 100_000)),
        ((1_024, 1_024), (1_024 - kept) // 2, 2, (1_024, 1_024)),
        ((100_000, 100_000), 1_250, 4, None),
        ((kept + 10, kept + 10), 10, 1, (kept + 10, kept + 10)),
        ((kept - 10, kept - 10), 1, 1, (kept - 10, kept - 10)),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        settings = QuerySettings(connections_max=5_000, listeners_max=4)
        assert listener_count(settings) == (listeners if sys.platform == "linux" else 1)
        raised.clear()
        options = dict(listener_options(1_000, settings, False, listeners))
        assert options["grpc.max_allowed_incoming_connections"] == connections
        assert raised == ([] if wanted is None else [wanted])


@pytest.mark.slow
def test_the_probe_gives_up_a_call_in_time() -> None:
    """A server that takes no call for `PROBE_S_MAX` is measured as one with an endless queue, not waited for."""

    async def scenario() -> None:
        waits: list[float] = []
        probe = transport.Probe(waits.append, lambda now_s: None, lambda: 0.0)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            listener = transport.Listener(grpc.aio.server(), [])
            listener.probed_at = f"127.0.0.1:{silent.getsockname()[1]}"
            probe.start([listener])
            await until(lambda: bool(waits), PROBE_S_MAX * 4)
            assert waits == [math.inf]
            await probe.stop()

    run(scenario)


def _ping(ack: bool) -> bytes:
    return frame(PING, int(ack), 0, struct.pack(">Q", 7))


@pytest.mark.parametrize(
    ("host", "said"), [("127.0.0.1", "127.0.0.1:5"), ("::1", "[::1]:5"), ("[::1]", "[::1]:5"), ("localhost", "localhost:5")]
)
def test_an_address_is_said_as_grpc_reads_it(host: str, said: str) -> None:
    """One of IPv6 is bracketed, or gRPC takes its end for the port."""
    assert address(host, 5) == said
