"""The end of a server under traffic: readiness goes first, and no call that was begun is lost."""

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import follow, reading, record, refusal, wait_visible, writing
from watertower.core.positions import decode_position
from watertower.testing.service import Service
from watertower.v1 import reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc

CALLERS = 8
READ = reader_pb2.GetCountsRequest(entity="star", metrics=["METRIC_FOLLOWERS"])


class Seen(NamedTuple):
    """What the callers saw: how their calls ended, how many were begun after the server had said that it is not ready, and the offset up
    to which writes were acknowledged, per partition."""

    codes: Counter[str]
    begun_late: int
    acknowledged: dict[int, int]


async def traffic(service: Service, role: str, heed_health: bool) -> Seen:
    """Constant calls of `CALLERS` callers to the role, which is told to end meanwhile. With `heed_health` they stop beginning calls when it
    says that it is not ready, as behind a load balancer; otherwise each goes on until the server is gone."""
    target = service.write_target if role == "ingest" else service.read_target
    ready, ended = asyncio.Event(), asyncio.Event()
    ready.set()
    codes: Counter[str] = Counter()
    acknowledged: dict[int, int] = {}
    late = 0

    async def call(stub: Any, number: int) -> None:
        if role == "query":
            await stub.GetCounts(READ, timeout=5.0)
            return
        answer = await stub.RecordEvents(writer_pb2.RecordEventsRequest(events=[follow(f"fan-{number}", "star").message()]), timeout=5.0)
        for partition, offset in decode_position(answer.write_token).offsets.items():
            acknowledged[partition] = max(offset, acknowledged.get(partition, -1))

    async def caller(caller_number: int) -> None:
        nonlocal late
        number = caller_number
        async with grpc.aio.insecure_channel(
            target, options=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub = (reader_pb2_grpc.EngagementReaderStub if role == "query" else writer_pb2_grpc.EngagementWriterStub)(channel)
            while not (ended.is_set() or (heed_health and not ready.is_set())):
                number += CALLERS
                late += not ready.is_set()
                try:
                    await call(stub, number)
                    codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1
                    await asyncio.sleep(0.02)

    async def watch_health() -> None:
        async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    ready.clear()
                    return
                await asyncio.sleep(0.01)

    callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    health = asyncio.create_task(watch_health())
    async with asyncio.timeout(60.0):
        while codes["OK"] < 200:  # noqa: ASYNC110 - the callers count
            await asyncio.sleep(0.01)
        service.send(signal.SIGTERM)
        await health
        code = await asyncio.to_thread(service.wait_ended)
        assert code == 0
        ended.set()
        await asyncio.gather(*callers)
    return Seen(codes, late, acknowledged)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["ingest", "query"])
@pytest.mark.parametrize("heed_health", [True, False], ids=["balanced", "stubborn"])
def test_no_call_that_was_begun_is_lost(tmp_path: Path, role: str, heed_health: bool) -> None:
    """SIGTERM under traffic. Callers that heed readiness, as a load balancer does, see not one error: it goes off `drain_ms` before
    anything ends. Those that do not are still answered in that time; later they see only what may be repeated, and no write that was
    acknowledged is missing."""
    data = tmp_path / "data"
    with Service(data, "projector") as projector, Service(data, role, settings={"drain_ms": 1_500}) as service:
        projector.start()
        service.start()
        seen = asyncio.run(traffic(service, role, heed_health))
        print(role, seen.codes, seen.begun_late)
        if heed_health:
            assert set(seen.codes) == {"OK"}
        else:
            assert seen.begun_late > 0
            assert set(seen.codes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
        if role == "ingest":
            with Service(data, "query") as query:
                query.start()
                wait_visible(query.read_target, seen.acknowledged)
                with Service(data, "ingest") as again:  # it goes on where the other one ended
                    again.start()
                    with writing(again.write_target) as writer:
                        wait_visible(query.read_target, record(writer, [follow("ann", "star")]).offsets)
        assert projector.stop() == 0


@pytest.mark.slow
def test_a_watch_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """SIGTERM ends an open watch with UNAVAILABLE and STOPPING, long before the grace of the calls is over."""
    data = tmp_path / "data"
    with Service(data, "projector") as projector, Service(data, "query", settings={"shutdown_grace_ms": 60_000}) as service:
        projector.start()
        service.start()
        with reading(service.read_target) as stub:
            watch = stub.WatchCounts(reader_pb2.WatchCountsRequest(entities=["star"], metrics=["METRIC_FOLLOWERS"]))
            assert len(next(watch).counts) == 1
            service.send(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as ended:
                for _ in watch:
                    pass
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refusal(ended.value)[0] == "STOPPING"
        assert service.wait_ended() == 0  # its own patience is half of the grace
        assert projector.stop() == 0
