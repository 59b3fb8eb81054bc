"""What every server that can be set does with calls, whatever the handlers are; and what the native one does differently."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from tests.query.fakes import FakeStore
from tests.query.frames import GET_COUNTS
from tests.query.serving import refusal, served, until
from tests.query.test_service import FOLLOWERS, filled
from watertower.config import QuerySettings
from watertower.errors import StartRefused
from watertower.query.process import server_of
from watertower.query.service import SERVICE
from watertower.rpc import RpcServer
from watertower.v1 import reader_pb2 as pb

pytestmark = pytest.mark.usefixtures("each_server")

SOME, WATCH = f"/{SERVICE}/GetCounts", f"/{SERVICE}/WatchCounts"


class Stub:
    """A service whose methods a test writes."""

    def __init__(self, **handlers: Any) -> None:
        self._handlers = handlers

    admission: Any = None

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(SERVICE, self._handlers)

    def get_counts_now(self, data: bytes) -> bytes | None:
        return None


class Stubbed(NamedTuple):
    server: RpcServer
    channel: grpc.aio.Channel
    port: int


@asynccontextmanager
async def stubbed(stub: Any = None, **settings: Any) -> AsyncIterator[Stubbed]:
    server = server_of(stub or Stub(), "127.0.0.1", 0, QuerySettings(**settings))
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Stubbed(server, channel, port)
    finally:
        await server.stop(0.1)


def unary(behaviour: Callable[[bytes, Any], Awaitable[bytes]]) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour)


async def code_of(call: Any) -> grpc.StatusCode:
    """What a call failed with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_follows_readiness(service: str) -> None:
    """NOT_SERVING until told so, and again afterwards; an unknown service is NOT_FOUND."""

    async def run() -> None:
        async with stubbed() as s:
            check = HealthStub(s.channel).Check
            for ready in (False, True, False):
                s.server.set_ready(ready)
                status = (await check(HealthCheckRequest(service=service))).status
                assert status == (HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING)
            assert await code_of(check(HealthCheckRequest(service="nobody"))) is grpc.StatusCode.NOT_FOUND

    asyncio.run(run())


def test_a_watcher_of_health_sees_changes_and_does_not_hold_up_the_end() -> None:
    """A stream of what changes; a stop with a grace of a minute ends it at once, with UNAVAILABLE."""

    async def run() -> None:
        async with stubbed() as s:
            watch = HealthStub(s.channel).Watch(HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            s.server.set_ready(True)
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            async with asyncio.timeout(30):
                await s.server.stop(grace_s=60)
            assert await code_of(_to_the_end(watch)) is grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


def test_reflection_names_the_services() -> None:
    """A generic client finds the reader, health and reflection, and the file that describes the reader."""

    async def run() -> None:
        async with stubbed() as s:
            asked = [ServerReflectionRequest(list_services=""), ServerReflectionRequest(file_containing_symbol=SERVICE)]
            stream = ServerReflectionStub(s.channel).ServerReflectionInfo(iter(asked))
            names = {service.name for service in (await stream.read()).list_services_response.service}
            files = (await stream.read()).file_descriptor_response.file_descriptor_proto
            assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
            assert any(b"watertower/v1/reader.proto" in file for file in files)

    asyncio.run(run())


def test_an_unknown_method_is_unimplemented() -> None:
    """Of the service and of no service; and one that the API has but this process does not."""

    async def run() -> None:
        async with stubbed() as s:
            for path in (f"/{SERVICE}/GetCountsTwice", "/no.Service/Get", WATCH):
                assert await code_of(s.channel.unary_unary(path)(b"", timeout=20)) is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(run())


def test_a_port_that_is_taken_is_refused_by_name() -> None:
    """A second server on the port does not start, and says which address it wanted."""

    async def run() -> None:
        async with stubbed() as s:
            second = server_of(Stub(), "127.0.0.1", s.port, QuerySettings())  # type: ignore[arg-type] # a stub
            with pytest.raises(StartRefused, match=f"127.0.0.1:{s.port}"):
                await second.start()
            await second.stop(0)

    asyncio.run(run())


def test_a_request_above_the_limit_is_refused_and_one_at_it_is_not() -> None:
    """query_message_bytes_max, to the byte: RESOURCE_EXHAUSTED."""

    async def size(request: bytes, context: Any) -> bytes:
        return str(len(request)).encode()

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(size)), message_bytes_max=100_000) as s:
            call = s.channel.unary_unary(SOME)
            assert await call(bytes(100_000)) == b"100000"
            assert await code_of(call(bytes(100_001))) is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


def test_a_handler_sees_its_call() -> None:
    """The time that is left, metadata (bytes where the key says so), and whose connection it is."""

    async def tell(request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        left_s = context.time_remaining()
        assert metadata["traceparent"] == "00-ab"
        assert metadata["some-bin"] == b"\x00\xff"
        assert context.peer().startswith("ipv4:127.0.0.1:")
        return b"none" if left_s is None else b"soon" if 20 < left_s < 31 else b"wrong"

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(tell))) as s:
            call = s.channel.unary_unary(SOME)
            metadata = (("traceparent", "00-ab"), ("some-bin", b"\x00\xff"))
            assert await call(b"", metadata=metadata) == b"none"
            assert await call(b"", metadata=metadata, timeout=30) == b"soon"

    asyncio.run(run())


def test_a_handler_may_take_its_request_as_a_stream_of_one() -> None:
    """It reads the bytes, then the end; what it wants done at the end is done."""
    done: list[object] = []

    async def read(_: object, context: Any) -> bytes:
        context.add_done_callback(done.append)
        first = await context.read()
        assert await context.read() is grpc.aio.EOF
        return bytes(first)

    async def run() -> None:
        async with stubbed(Stub(GetCounts=grpc.stream_unary_rpc_method_handler(read))) as s:
            assert await s.channel.unary_unary(SOME)(b"request") == b"request"
            await until(lambda: len(done) == 1)

    asyncio.run(run())


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_caller_that_is_gone_ends_its_handler(end: str) -> None:
    """By cancelling, or because the deadline passed: nobody works for it any longer."""
    ended: list[str] = []
    began = asyncio.Event()

    async def hang(request: bytes, context: Any) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")
        return b""

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(hang))) as s:
            call = s.channel.unary_unary(SOME)(b"", timeout=20 if end == "cancel" else 0.5)
            await began.wait()
            if end == "cancel":
                call.cancel()
            await until(lambda: ended == ["ended"])

    asyncio.run(run())


def test_stopping_waits_for_calls_under_way_and_takes_no_new_ones() -> None:
    """A call that is answered within the grace is answered; one that comes meanwhile is not."""
    began, go = asyncio.Event(), asyncio.Event()

    async def hold(request: bytes, context: Any) -> bytes:
        if not request:
            began.set()
            await go.wait()
        return b"answer"

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(hold))) as s:
            call = s.channel.unary_unary(SOME)
            held = asyncio.ensure_future(awaited(call(b"")))
            await began.wait()
            stop = asyncio.create_task(s.server.stop(grace_s=60))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _without_end(call, b"probe")
            # The second one where it was received and not begun: docs/reference/errors.md.
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert not stop.done()
            go.set()
            assert await held == b"answer"
            await stop
            await s.server.stop(grace_s=60)

    asyncio.run(run())


async def awaited(call: Any) -> Any:
    return await call


async def _without_end(call: Any, request: bytes) -> None:
    """Calls again and again, until one fails."""
    async with asyncio.timeout(20):
        while True:
            await call(request)


async def _to_the_end(stream: Any) -> list[bytes]:
    """The messages that are left."""
    messages: list[bytes] = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


def test_what_is_not_done_within_the_grace_is_ended() -> None:
    """The server stops although a handler hangs; its caller is told, and the handler's `finally` has run."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: bytes, context: Any) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(hang))) as s:
            call = asyncio.ensure_future(awaited(s.channel.unary_unary(SOME)(b"")))
            await began.wait()
            async with asyncio.timeout(30):
                await s.server.stop(grace_s=0.05)
                await ended.wait()
            assert await code_of(call) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    asyncio.run(run())


def test_a_slow_reader_of_a_stream_holds_up_its_own_stream_only() -> None:
    """What it does not read is not made for it; when it reads, nothing is missing; others are answered meanwhile."""
    made = 0
    size, count = 100_000, 200

    async def write(request: bytes, context: Any) -> None:
        nonlocal made
        for number in range(count):
            await context.write(number.to_bytes(2, "big") + bytes(size))
            made = number + 1

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    async def run() -> None:
        stub = Stub(GetCounts=unary(echo), WatchCounts=grpc.unary_stream_rpc_method_handler(write))
        async with stubbed(stub) as s, grpc.aio.insecure_channel(f"127.0.0.1:{s.port}") as other:
            stream = s.channel.unary_stream(WATCH)(b"")
            assert await stream.read() == bytes(size + 2)
            for number in range(200):
                assert await other.unary_unary(SOME)(str(number).encode()) == str(number).encode()
            assert made < count
            assert [int.from_bytes(message[:2], "big") for message in await _to_the_end(stream)] == list(range(1, count))

    asyncio.run(run())


def test_a_stream_may_end_in_a_refusal() -> None:
    """After the messages that were written, with code, text and details."""

    async def write(request: bytes, context: Any) -> None:
        await context.write(b"one")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "é stopping", (("grpc-status-details-bin", b"\x08\x0e"),))

    async def run() -> None:
        async with stubbed(Stub(WatchCounts=grpc.unary_stream_rpc_method_handler(write))) as s:
            stream = s.channel.unary_stream(WATCH)(b"")
            assert await stream.read() == b"one"
            assert await code_of(stream.read()) is grpc.StatusCode.UNAVAILABLE
            assert await stream.details() == "é stopping"
            assert dict(await stream.trailing_metadata())["grpc-status-details-bin"] == b"\x08\x0e"

    asyncio.run(run())


def test_stock_clients_are_told_when_to_come_back(each_server: str, request: pytest.FixtureRequest) -> None:
    """grpc-retry-pushback-ms, which their own retries obey, beside the RetryInfo that they do not read."""
    if each_server == "native":
        request.applymarker(pytest.mark.xfail(strict=True, reason="pygrpc-native 0.5 refuses metadata of gRPC's own names"))

    async def run() -> None:
        async with served(filled(), loads_concurrent_max=1, loads_waiting_max=1) as s:
            s.store.open.clear()
            calls = []
            for number, condition in enumerate((lambda: s.store.concurrent == 1, lambda: s.service._reads.counters.waiting == 1)):
                calls.append(asyncio.ensure_future(awaited(s.stub.GetCounts(pb.GetCountsRequest(entity=f"e{number}", metrics=[1])))))
                await until(condition)
            refused = await refusal(s.stub.GetCounts(pb.GetCountsRequest(entity="late", metrics=[1])))
            s.store.open.set()
            await asyncio.gather(*calls)
            assert refused.reason == "READS_FULL"
            assert refused.retry_ms
            assert refused.pushback_ms == str(refused.retry_ms)

    asyncio.run(run())


def test_a_burst_is_answered_each_to_its_caller() -> None:
    """A hundred calls at once, ten times, of cached and unknown entities, broken rules and garbage: everybody gets the own answer."""

    async def run() -> None:
        store = FakeStore()
        for number in range(100):
            store.write(f"e{number}", FOLLOWERS, 0, number, number, 1)
        async with served(store) as s:
            raw = s.channel.unary_unary(GET_COUNTS)

            async def ask(number: int) -> object:
                if number % 10 == 8:
                    return await code_of(raw(b"\xff\xff"))
                if number % 10 == 9:
                    return await code_of(s.stub.GetCounts(pb.GetCountsRequest(entity="", metrics=[FOLLOWERS])))
                return (await s.stub.GetCounts(pb.GetCountsRequest(entity=f"e{number % 100}", metrics=[FOLLOWERS]))).values[0]

            for _ in range(10):
                answers = await asyncio.gather(*map(ask, range(100)))
                for number, answer in enumerate(answers):
                    assert answer == (grpc.StatusCode.INVALID_ARGUMENT if number % 10 >= 8 else number % 100)

    asyncio.run(run())
