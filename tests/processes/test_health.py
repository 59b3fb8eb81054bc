"""Whether a process is ready, asked from outside."""

import signal
from pathlib import Path

import grpc
import pytest

from tests.calls import follow, health, reading, record, refusal, writing
from tests.commands import watertower
from watertower.testing.service import Service, free_port, wait_until
from watertower.v1 import reader_pb2


def test_a_projector_answers_where_it_is_told_to(tmp_path: Path) -> None:
    """Ready while it runs; nobody there before and after, which is not ready either."""
    target = f"127.0.0.1:{(port := free_port())}"
    with Service(tmp_path / "data", "projector", settings={"projector_health_port": port}) as projector:
        assert watertower("health", target, "--timeout-s", "0.5").code == 1
        projector.start()
        ready = watertower("health", target)
        assert (ready.code, ready.out) == (0, f"{target} is ready\n")
        assert projector.stop() == 0
        gone = watertower("health", target, "--timeout-s", "0.5")
        assert gone.code == 1
        assert "does not answer" in gone.err


def test_ingest_and_query_answer_on_their_ports(tmp_path: Path) -> None:
    """The same question, where their callers call."""
    with Service(tmp_path / "data").start() as service:
        assert watertower("health", service.write_target).code == 0
        assert watertower("health", service.read_target).code == 0


def test_alive_is_another_question(tmp_path: Path) -> None:
    """On every port; a service that is not there is said to be none."""
    settings = {"projector_health_port": (port := free_port())}
    with Service(tmp_path / "data", settings=settings).start() as service:
        for target in (service.write_target, service.read_target, f"127.0.0.1:{port}"):
            assert (health(target), health(target, "alive")) == ("SERVING", "SERVING")
        alive = watertower("health", service.read_target, "--service", "alive")
        assert (alive.code, alive.out) == (0, f"{service.read_target} is alive\n")
        nobody = watertower("health", service.read_target, "--service", "alife")
        assert nobody.code == 1
        assert "has no service 'alife'" in nobody.err


@pytest.mark.parametrize("command", ["ingest", "query", "query, native"])
def test_a_server_that_drains_is_alive_and_not_ready(tmp_path: Path, command: str) -> None:
    """From SIGTERM on, for as long as it takes calls."""
    role, _, native = command.partition(", ")
    with (
        Service(tmp_path / "data", "projector").start(),
        Service(tmp_path / "data", role, settings={"drain_ms": 3_600_000, "query_server": native or "grpcio"}) as service,
    ):
        service.start()
        target = service.write_target if role == "ingest" else service.read_target
        assert (health(target), health(target, "alive")) == ("SERVING", "SERVING")
        service.send(signal.SIGTERM)
        wait_until(lambda: health(target) == "NOT_SERVING", "it is not ready")
        assert health(target, "alive") == "SERVING"


def test_query_that_waits_for_its_store_is_alive_and_refuses(tmp_path: Path) -> None:
    """UNAVAILABLE with a reason, as when the store fails later; then it serves on the same port."""
    with Service(tmp_path / "data", "ingest").start(), Service(tmp_path / "data", "query") as query:
        query.start(ready=False)
        wait_until(lambda: health(query.read_target) == "NOT_SERVING", "it waits")
        assert health(query.read_target, "alive") == "SERVING"
        with reading(query.read_target) as stub, pytest.raises(grpc.RpcError) as refused:
            stub.GetCounts(reader_pb2.GetCountsRequest(entity="star", metrics=["METRIC_FOLLOWERS"]), timeout=5.0)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refusal(refused.value)[0] == "STORE_UNAVAILABLE"
        with Service(tmp_path / "data", "projector").start():
            query.wait_ready()
            assert (health(query.read_target), health(query.read_target, "alive")) == ("SERVING", "SERVING")
            assert query.stop() == 0


@pytest.mark.parametrize("role", ["ingest", "projector", "query"])
def test_a_role_that_waits_for_its_engines_is_alive(tmp_path: Path, role: str) -> None:
    """There is no Kafka and no Cassandra: a restart would not bring them. SIGTERM ends it all the same."""
    nobody, port = f"127.0.0.1:{free_port()}", free_port()
    settings = {"log": "kafka", "store": "cassandra", "kafka_bootstrap_servers": nobody, "cassandra_contact_points": nobody}
    settings |= {"projector_health_port": str(port), "kafka_connect_timeout_ms": "500", "cassandra_connect_timeout_ms": "500"}
    with Service(tmp_path / "data", role, settings=settings) as service:
        service.start(ready=False)
        target = {"ingest": service.write_target, "projector": f"127.0.0.1:{port}", "query": service.read_target}[role]
        wait_until(lambda: service.events("not_ready") and health(target) == "NOT_SERVING", "it waits")
        assert health(target, "alive") == "SERVING"
        if role == "ingest":
            with writing(target) as stub, pytest.raises(grpc.RpcError) as refused:
                record(stub, [follow("ann", "star")])
            assert refusal(refused.value)[0] == "LOG_UNAVAILABLE"
        assert service.stop() == 0
