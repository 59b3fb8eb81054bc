"""What is particular to the native server: its limits, the answers given at once, and the starts that it refuses."""

import asyncio
import sys
from typing import Any

import grpc
import pytest
from pydantic import Field
from pygrpc_native import EVENT_CALL

from tests.query.fakes import FakeStore
from tests.query.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GET_COUNTS,
    HEADERS,
    RESET,
    SETTINGS,
    Connection,
    frame,
    headers,
    message,
)
from tests.query.serving import served, until
from tests.query.test_servers import SOME, Stub, code_of, stubbed, unary
from tests.query.test_service import FOLLOWERS, filled
from watertower import rpc_native
from watertower.config import QuerySettings, ServiceSettings
from watertower.errors import StartRefused
from watertower.query.process import server_of
from watertower.v1 import reader_pb2 as pb


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATERTOWER_QUERY_SERVER", "native")


def test_what_memory_has_is_answered_without_a_task() -> None:
    """One entity in memory: no handler runs. What is not in memory, asks for freshness, or is refused goes to the handler."""

    async def run() -> None:
        async with served(filled()) as s:
            begun: list[bytes] = []
            answer: Any = s.server._answer  # type: ignore[attr-defined] # of NativeRpcServer

            async def counted(front: Any, call: Any, method: Any) -> None:
                begun.append(call.payload)
                await answer(front, call, method)

            s.server._answer = counted  # type: ignore[attr-defined] # the same
            request = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
            cold = await s.stub.GetCounts(request)
            assert len(begun) == 1
            assert await s.stub.GetCounts(request) == cold
            assert len(begun) == 1
            asks = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS], min_position=cold.freshness.position)
            assert (await s.stub.GetCounts(asks)).values == cold.values
            asks = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
            asks.max_staleness.seconds = 60
            assert (await s.stub.GetCounts(asks)).values == cold.values
            assert len(begun) == 3

    asyncio.run(run())


def test_an_answer_from_memory_that_fails_is_tried_by_the_handler() -> None:
    """A fault there costs the other calls of the batch nothing."""

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    def broken(data: bytes) -> bytes | None:
        raise ValueError("a fault")

    async def run() -> None:
        stub = Stub(GetCounts=unary(echo))
        stub.get_counts_now = broken  # type: ignore[method-assign] # what is tested
        async with stubbed(stub) as s:
            calls = [s.channel.unary_unary(SOME)(str(number).encode()) for number in range(20)]
            assert [await call for call in calls] == [str(number).encode() for number in range(20)]

    asyncio.run(run())


def test_calls_above_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """CALLS_MAX under way: the next one hears RESOURCE_EXHAUSTED, and there is room again when one has ended."""
    monkeypatch.setattr(rpc_native, "CALLS_MAX", 2)
    go = asyncio.Event()
    begun: list[bytes] = []

    async def hold(request: bytes, context: Any) -> bytes:
        begun.append(request)
        await go.wait()
        return request

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(hold))) as s:
            call = s.channel.unary_unary(SOME)
            held = [call(b"a"), call(b"b")]
            await until(lambda: len(begun) == 2)
            assert await code_of(call(b"c")) is grpc.StatusCode.RESOURCE_EXHAUSTED
            go.set()
            assert [await one for one in held] == [b"a", b"b"]
            assert await call(b"d") == b"d"

    asyncio.run(run())


def test_calls_that_are_over_before_they_begin_leave_nothing_behind() -> None:
    """Cancelled in the same breath, while the store hangs: none of them counts as under way afterwards."""

    async def run() -> None:
        async with served(filled()) as s:
            s.store.open.clear()

            def attack() -> None:
                with Connection(s.port) as connection:
                    body = message(pb.GetCountsRequest(entity="late", metrics=[FOLLOWERS]).SerializeToString())
                    for stream in range(1, 200, 2):
                        head = frame(HEADERS, END_HEADERS, stream, headers(GET_COUNTS))
                        connection.send(head + frame(DATA, END_STREAM, stream, body))
                    for stream in range(1, 200, 2):
                        connection.send(frame(RESET, 0, stream, bytes((0, 0, 0, 8))))

            take: Any = s.server._take  # type: ignore[attr-defined] # of NativeRpcServer
            held: list[Any] = []
            s.server._take = lambda front, events: held.extend(events)  # type: ignore[attr-defined] # the same
            await asyncio.to_thread(attack)
            await until(lambda: len(held) > 1 and 2 * [kind for kind, *_ in held].count(EVENT_CALL) == len(held))
            take(s.server._front, held)  # type: ignore[attr-defined] # the calls and what ends them, in one turn
            assert s.server._calls  # type: ignore[attr-defined] # the same
            await until(lambda: not s.server._calls)  # type: ignore[attr-defined] # the same

    asyncio.run(run())


def test_metadata_above_the_limit_is_refused() -> None:
    """METADATA_BYTES_MAX: the call fails, and its connection goes on."""

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(echo))) as s:
            call = s.channel.unary_unary(SOME)
            assert await call(b"a", metadata=(("more", "x" * 8_000),)) == b"a"
            await code_of(call(b"b", metadata=(("more", "x" * (rpc_native.METADATA_BYTES_MAX + 1)),), timeout=20))
            assert await call(b"c") == b"c"

    asyncio.run(run())


def test_a_connection_is_told_its_limits() -> None:
    """STREAMS_MAX and METADATA_BYTES_MAX in the SETTINGS that open it (RFC 9113, 6.5.2)."""

    async def run() -> None:
        async with stubbed() as s:

            def settings() -> dict[int, int]:
                with Connection(s.port) as connection:
                    kind, _, _, body = connection.next_frame()
                    assert kind == SETTINGS
                    pairs = [body[at : at + 6] for at in range(0, len(body), 6)]
                    return {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}

            told = await asyncio.to_thread(settings)
            assert (told[3], told[6]) == (rpc_native.STREAMS_MAX, rpc_native.METADATA_BYTES_MAX)

    asyncio.run(run())


def test_more_calls_than_one_batch_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """BATCH_CALLS_MAX at a time, and none is left behind when the queue has run dry again and again."""
    monkeypatch.setattr(rpc_native, "BATCH_CALLS_MAX", 2)

    async def run() -> None:
        store = FakeStore()
        store.write("star", FOLLOWERS, 0, 7, 1, 1)
        async with served(store) as s:
            request = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
            for _ in range(20):
                answers = await asyncio.gather(*[s.stub.GetCounts(request) for _ in range(25)])
                assert {answer.values[0] for answer in answers} == {7}

    asyncio.run(run())


def test_a_start_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what to install."""
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    monkeypatch.delitem(sys.modules, "watertower.rpc_native")
    with pytest.raises(StartRefused, match=r"watertower\[native\]"):
        server_of(Stub(), ServiceSettings(read_port=0), QuerySettings())  # type: ignore[arg-type] # a stub


class Wider(QuerySettings):
    """With a setting that only grpcio can do."""

    connection_age_ms_max: int = Field(1_000)


def test_a_start_with_a_setting_that_it_cannot_do_is_refused() -> None:
    """By name, where it is set; its default binds nobody."""
    server_of(Stub(), ServiceSettings(read_port=0), Wider())  # type: ignore[arg-type] # a stub
    with pytest.raises(StartRefused, match="query_connection_age_ms_max"):
        server_of(Stub(), ServiceSettings(read_port=0), Wider(connection_age_ms_max=1))  # type: ignore[arg-type] # a stub
