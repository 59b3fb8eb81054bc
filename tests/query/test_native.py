"""What is particular to the native server: its limits, the answers given at once, and the starts that it refuses."""

import asyncio
import contextlib
import sys
from typing import Any

import grpc
import pytest
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
from tests.query.serving import refusal, served, until
from tests.query.test_servers import SOME, Stub, awaited, code_of, stubbed, unary
from tests.query.test_service import FOLLOWERS, filled
from watertower import rpc_native
from watertower.admission import WAITS_KEPT
from watertower.config import QuerySettings
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


def test_calls_come_in_by_the_same_doors() -> None:
    """query_calls_max under way: one more hears CALLS_FULL; every call that ends makes room. What memory has needs none."""

    async def run() -> None:
        async with served(filled(), calls_max=2) as s:
            hot = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
            await s.stub.GetCounts(hot)
            s.store.open.clear()
            held = [asyncio.ensure_future(awaited(s.stub.GetCounts(pb.GetCountsRequest(entity=e, metrics=[1])))) for e in ("a", "b")]
            await until(lambda: s.service.admission.calls == 2)
            refused = await refusal(s.stub.GetCounts(pb.GetCountsRequest(entity="c", metrics=[1])))
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLS_FULL")
            assert (await s.stub.GetCounts(hot)).values[0] == 42
            s.store.open.set()
            await asyncio.gather(*held)
            await until(lambda: s.service.admission.calls == 0)

    asyncio.run(run())


def test_where_reads_from_memory_are_shed_none_is_answered_past_the_doors() -> None:
    """The wait is measured on this server too, and what admission says of it counts for answers at once."""

    async def run() -> None:
        async with served(filled()) as s:
            hot = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
            await s.stub.GetCounts(hot)
            shedding = s.service.admission.shedding
            await until(lambda: len(shedding._waits) == WAITS_KEPT)
            s.server._measuring.cancel()  # type: ignore[attr-defined] # of NativeRpcServer
            for _ in range(WAITS_KEPT):
                shedding.observe(60.0)
            assert (await refusal(s.stub.GetCounts(hot))).reason == "OVERLOADED"
            for _ in range(WAITS_KEPT):
                shedding.observe(0.0)
            assert (await s.stub.GetCounts(hot)).values[0] == 42

    asyncio.run(run())


def test_calls_that_are_over_before_they_begin_leave_nothing_behind() -> None:
    """Cancelled in the same breath, while the store hangs: none of them counts as under way afterwards."""

    async def run() -> None:
        async with served(filled()) as s:
            s.store.open.clear()

            def attack() -> None:
                with Connection(s.port) as connection, contextlib.suppress(ConnectionError):  # after some resets the front has had enough
                    body = message(pb.GetCountsRequest(entity="late", metrics=[FOLLOWERS]).SerializeToString())
                    for stream in range(1, 200, 2):
                        head = frame(HEADERS, END_HEADERS, stream, headers(GET_COUNTS))
                        connection.send(head + frame(DATA, END_STREAM, stream, body))
                    for stream in range(1, 200, 2):
                        connection.send(frame(RESET, 0, stream, bytes((0, 0, 0, 8))))

            take: Any = s.server._take  # type: ignore[attr-defined] # of NativeRpcServer
            held: list[Any] = []
            s.server._take = lambda front, events: held.extend(events)  # type: ignore[attr-defined] # the same

            def over() -> set[int]:
                """Calls that have begun and ended; the front may say of one, or of both, a little later."""
                begun, ended = ({number for kind, number, *_ in held if (kind == EVENT_CALL) is begins} for begins in (True, False))
                return begun & ended

            async with asyncio.timeout(60):
                while not (those := over()):  # the front may see each reset before it has told of the call
                    await asyncio.to_thread(attack)
                    await asyncio.sleep(0.05)
            take(s.server._front, [event for event in held if event[1] in those])  # type: ignore[attr-defined] # both in one turn
            assert s.server._calls  # type: ignore[attr-defined] # the same
            await until(lambda: not s.server._calls, 60)  # type: ignore[attr-defined] # the same

    asyncio.run(run())


def test_metadata_above_the_limit_is_refused() -> None:
    """query_metadata_bytes_max: the call fails, and its connection goes on."""

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    async def run() -> None:
        async with stubbed(Stub(GetCounts=unary(echo)), metadata_bytes_max=4_000) as s:
            call = s.channel.unary_unary(SOME)
            assert await call(b"a", metadata=(("more", "x" * 1_000),)) == b"a"
            await code_of(call(b"b", metadata=(("more", "x" * 20_000),), timeout=20))
            assert await call(b"c") == b"c"

    asyncio.run(run())


def test_a_connection_is_told_its_limits() -> None:
    """query_streams_max and query_metadata_bytes_max in the SETTINGS that open it (RFC 9113, 6.5.2)."""

    async def run() -> None:
        async with stubbed(streams_max=7, metadata_bytes_max=4_000) as s:

            def settings() -> dict[int, int]:
                with Connection(s.port) as connection:
                    kind, _, _, body = connection.next_frame()
                    assert kind == SETTINGS
                    pairs = [body[at : at + 6] for at in range(0, len(body), 6)]
                    return {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}

            told = await asyncio.to_thread(settings)
            assert (told[3], told[6]) == (7, 4_000)

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
        server_of(Stub(), "127.0.0.1", 0, QuerySettings())  # type: ignore[arg-type] # a stub


def test_a_start_with_a_setting_that_it_cannot_do_is_refused() -> None:
    """By name, where it is set; its default binds nobody."""
    server_of(Stub(), "127.0.0.1", 0, QuerySettings())  # type: ignore[arg-type] # a stub
    with pytest.raises(StartRefused, match="query_connection_age_ms_max, query_connections_max"):
        server_of(Stub(), "127.0.0.1", 0, QuerySettings(connection_age_ms_max=1_000, connections_max=5))  # type: ignore[arg-type] # a stub


def test_a_call_that_a_stop_ends_hears_when_to_come_back() -> None:
    """Half to one and a half of query_retry_after_ms: a call that comes during the grace, and one that is not done at its end."""

    async def run() -> None:
        async with served(filled(), retry_after_ms=4_000) as s:
            request = pb.GetCountsRequest(entity="star", metrics=[FOLLOWERS])
            s.store.open.clear()
            held = asyncio.ensure_future(refusal(s.stub.GetCounts(request)))
            await until(lambda: s.store.concurrent == 1)
            stop = asyncio.create_task(s.server.stop(grace_s=3.0))
            await until(lambda: s.server._refusing)  # type: ignore[attr-defined] # of NativeRpcServer
            for refused in (await refusal(s.stub.GetCounts(request)), await held):
                assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
                s.assert_to_come_back(refused, 4_000)
            await stop

    asyncio.run(run())
