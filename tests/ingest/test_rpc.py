"""The server around every service: health, reflection, ports."""

import asyncio
import time

import grpc
import pytest
import structlog
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from tests.ingest.harness import METHOD, HeldLog, follow, refusal, request, serving, until
from watertower.errors import CallRefused, Reason, StartRefused, Violation
from watertower.ingest.service import SERVICE
from watertower.rpc import RpcServer, _Refusals, service_handler
from watertower.v1.writer_pb2 import RecordEventsRequest


async def health(channel: grpc.aio.Channel, service: str) -> int:
    answer = await HealthStub(channel).Check(HealthCheckRequest(service=service))
    return int(answer.status)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_follows_readiness(service: str) -> None:
    """NOT_SERVING until told so, and again afterwards; for the server and for each service."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            assert await health(ingest.channel, service) == HealthCheckResponse.NOT_SERVING
            ingest.server.set_ready(True)
            assert await health(ingest.channel, service) == HealthCheckResponse.SERVING
            ingest.server.set_ready(False)
            assert await health(ingest.channel, service) == HealthCheckResponse.NOT_SERVING

    asyncio.run(scenario())


def test_a_watcher_of_health_does_not_hold_up_the_end() -> None:
    """Stopping with a grace of a minute ends an open Watch at once, with UNAVAILABLE."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            watch = HealthStub(ingest.channel).Watch(HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            ingest.server.set_ready(True)
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            start = time.monotonic()
            await ingest.server.stop(grace_s=60)
            assert time.monotonic() - start < 30
            refused = await refusal(_end_of(watch))
            assert refused.code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_a_watcher_that_leaves_takes_nobody_with_it() -> None:
    """Whoever else watches the same service goes on hearing of it."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            leaving, staying = (HealthStub(ingest.channel).Watch(HealthCheckRequest(service=SERVICE)) for _ in range(2))
            for watch in (leaving, staying):
                assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            leaving.cancel()
            await until(lambda: len(ingest.server._health._news) == 1)
            ingest.server.set_ready(True)
            assert (await staying.read()).status == HealthCheckResponse.SERVING
            staying.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(("uniform", "told_s"), [(0.0, 1.0), (0.5, 2.0), (0.999, 2.998)])
def test_refused_callers_are_told_times_of_their_own(uniform: float, told_s: float) -> None:
    """Half to one and a half of the time, at random; a caller that broke a rule is told none."""
    refusals = _Refusals(structlog.get_logger(), Reason.LOG_UNAVAILABLE, 2.0, lambda: uniform)
    assert refusals._spread(CallRefused(Reason.QUEUE_FULL, retry_after_s=2.0)).retry_after_s == pytest.approx(told_s)
    assert refusals._spread(CallRefused.of([Violation("", Reason.MESSAGE_MALFORMED)])).retry_after_s is None


async def _end_of(watch: "grpc.aio.UnaryStreamCall[HealthCheckRequest, HealthCheckResponse]") -> None:
    while await watch.read() is not grpc.aio.EOF:
        pass


def test_stopping_waits_for_calls_under_way() -> None:
    """A call that the log holds back is answered when it lands within the grace, although the server takes no new ones."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            call = asyncio.ensure_future(ingest.stub.RecordEvents(request(follow())))
            await until(lambda: len(log.records) == 1)
            stop = asyncio.create_task(ingest.server.stop(grace_s=60))
            await asyncio.sleep(0)
            assert not stop.done()
            log.records[0].land()
            assert (await call).write_token
            await stop
            await ingest.server.stop(grace_s=60)

    asyncio.run(scenario())


def test_reflection_names_the_services_and_their_files() -> None:
    """A generic client finds EngagementWriter, health and reflection, and the file that describes the writer."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            stub = ServerReflectionStub(ingest.channel)
            stream = stub.ServerReflectionInfo(
                iter([ServerReflectionRequest(list_services=""), ServerReflectionRequest(file_containing_symbol=SERVICE)])
            )
            names = {service.name for service in (await stream.read()).list_services_response.service}
            files = (await stream.read()).file_descriptor_response.file_descriptor_proto
        assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert any(b"watertower/v1/writer.proto" in file for file in files)

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_refused_by_name() -> None:
    """A second server on the port does not start, and says which address it wanted."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            second = RpcServer("127.0.0.1", ingest.port, [], [], 1_000)
            with pytest.raises(StartRefused, match=f"127.0.0.1:{ingest.port}"):
                await second.start()
            await second.stop(0)

    asyncio.run(scenario())


def test_an_unknown_method_is_unimplemented() -> None:
    """Not INTERNAL, not a hang."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            refused = await refusal(ingest.channel.unary_unary(METHOD + "Twice")(b""))
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


def test_a_method_may_answer_with_ready_bytes() -> None:
    """What is encoded already is sent as it is."""

    async def scenario() -> None:
        async def ready(request: RecordEventsRequest, context: object) -> bytes:
            return b"ready"

        handler = service_handler(
            "a.Service", {"Get": (RecordEventsRequest, ready)}, structlog.get_logger(), unavailable=Reason.LOG_UNAVAILABLE, retry_after_s=1
        )
        server = RpcServer("127.0.0.1", 0, [handler], [], 1_000)
        port = await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary("/a.Service/Get")(b"") == b"ready"
        await server.stop(0)

    asyncio.run(scenario())
