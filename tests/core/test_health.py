"""The health service of processes without an API, or without it yet."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import health, reading, refusal
from watertower.errors import AddressTaken, BackendUnavailable, Reason
from watertower.health import HEALTH_CALLS_MAX, HealthServer, is_serving
from watertower.pulse import Pulse
from watertower.query.service import SERVICE
from watertower.rpc import NotYet
from watertower.testing.clock import FakeClock
from watertower.testing.service import free_port, wait_until
from watertower.v1 import reader_pb2


@contextmanager
def serving(server: HealthServer) -> Iterator[str]:
    server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        server.stop()


def test_ready_and_alive_are_two_questions() -> None:
    """Not ready until told so; alive until what it is told to ask says no, and again when it says yes."""
    turning = threading.Event()
    with serving(server := HealthServer("127.0.0.1", 0)) as target:
        assert (health(target), health(target, "alive")) == ("NOT_SERVING", "SERVING")
        server.set_ready(True)
        with server.alive_where(turning.is_set):
            wait_until(lambda: health(target, "alive") == "NOT_SERVING", "it is not alive")
            assert health(target) == "SERVING"
            turning.set()
            wait_until(lambda: health(target, "alive") == "SERVING", "it is alive again")
            turning.clear()
            wait_until(lambda: health(target, "alive") == "NOT_SERVING", "it is not alive again")
        wait_until(lambda: health(target, "alive") == "SERVING", "nobody looks any more")
        assert is_serving(target, 5.0, "alive")
        with pytest.raises(BackendUnavailable, match="has no service 'alife'"):
            is_serving(target, 5.0, "alife")


def test_who_watches_hears_that_it_is_not_alive() -> None:
    """Without asking again."""
    turning = threading.Event()
    with serving(server := HealthServer("127.0.0.1", 0)) as target, grpc.insecure_channel(target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="alive"), timeout=30.0)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with server.alive_where(turning.is_set):
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


class Held(grpc.GenericRpcHandler):
    """Answers nothing until the test says so."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _, __: self.goes_on.wait(60) and b"") if call.method == "/held/held" else None


def test_calls_at_once_are_limited() -> None:
    """One more than HEALTH_CALLS_MAX is refused by the transport, and there is room again when they end."""
    held = Held()
    with serving(HealthServer("127.0.0.1", 0, [held])) as target, grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary("/held/held")
        try:
            calls = [call.future(b"", timeout=60.0) for _ in range(HEALTH_CALLS_MAX + 1)]
            wait_until(lambda: any(one.done() for one in calls), "one is refused")
            assert [one.code() for one in calls if one.done()] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        finally:
            held.goes_on.set()
        wait_until(lambda: sum(one.code() is grpc.StatusCode.OK for one in calls) == HEALTH_CALLS_MAX, "the others are answered")
        assert health(target) == "NOT_SERVING"


def test_in_the_place_of_a_server_its_calls_are_refused_as_it_would() -> None:
    """UNAVAILABLE with the reason and when to come back, whatever the method: not UNIMPLEMENTED, after which callers do not come back."""
    server = HealthServer("127.0.0.1", 0, [NotYet(SERVICE, Reason.STORE_UNAVAILABLE, 0.5, lambda: 0.5)])
    with serving(server) as target, reading(target) as stub:
        get = reader_pb2.GetCountsRequest(entity="star", metrics=["METRIC_FOLLOWERS"])
        watch = reader_pb2.WatchCountsRequest(entities=["star"], metrics=["METRIC_FOLLOWERS"])
        for call in (lambda: stub.GetCounts(get, timeout=5.0), lambda: next(stub.WatchCounts(watch, timeout=5.0))):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refusal(refused.value) == ("STORE_UNAVAILABLE", 0.5)
        assert (health(target), health(target, "alive")) == ("NOT_SERVING", "SERVING")


def test_it_lets_go_of_its_port_when_it_stops() -> None:
    """At once, with connections open: the server for which it stood in has it next."""
    port = free_port()
    for _ in range(30):
        server = HealthServer("127.0.0.1", port)
        with serving(server) as target:
            assert health(target) == "NOT_SERVING"
            with pytest.raises(AddressTaken, match=f":{port}: the port is taken.*for health"):
                HealthServer("127.0.0.1", port).start()
        server.stop()  # idempotent


def test_a_pulse_counts_a_wait_as_turning() -> None:
    """Its age begins when the wait is over."""
    clock = FakeClock()
    pulse = Pulse(clock)
    clock.advance(5.0)
    assert pulse.age_s() == 5.0
    pulse.beat(3.0)
    assert pulse.age_s() == -3.0
    clock.advance(4.0)
    assert pulse.age_s() == 1.0
