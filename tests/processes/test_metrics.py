"""Metrics of real processes, scraped while they work."""

import contextlib
import re
import socket
from pathlib import Path

import grpc
import pytest

from tests.calls import counts_request, follow, reading, record, wait_visible, writing
from tests.commands import watertower
from watertower.metrics import CATALOGUE
from watertower.testing.service import Service, free_port, wait_until
from watertower.v1 import writer_pb2

EVENTS = 300
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def scrape(port: int) -> dict[str, float]:
    """Every sample of a process by its name, with its labels as the page has them."""
    from tests.core.test_metrics import page

    return {name + (f"{{{labels}}}" if labels else ""): float(value) for name, labels, value in SAMPLE.findall(page(port))}


def ports(service: Service) -> dict[str, int]:
    """Where the metrics of each role are, as it said."""
    return {event["child"]: event["metrics_port"] for event in service.events("role_ready") if "metrics_port" in event}


@pytest.mark.parametrize("server", ["grpcio", "native"])
def test_every_metric_is_there_and_says_what_happened(tmp_path: Path, server: str) -> None:
    """Every documented name of every role, scraped while and after a small load goes through; the numbers are those of the load."""
    settings = {f"{role}_metrics_port": 0 for role in CATALOGUE} | {"query_server": server}
    with Service(tmp_path / "data", settings=settings).start() as service:
        found = ports(service)
        with writing(service.write_target) as writer, reading(service.read_target) as reader:
            for at in range(0, EVENTS, 100):
                token = record(writer, [follow(f"fan-{n}", "star") for n in range(at, at + 100)])
                assert all(scrape(port)["watertower_ready"] == 1 for port in found.values())
            wait_visible(service.read_target, token.offsets)
            for _ in range(2):
                reader.BatchGetCounts(counts_request(["star", "fan-0"]), timeout=5.0)
            with pytest.raises(grpc.RpcError):
                writer.RecordEvents(writer_pb2.RecordEventsRequest(), timeout=5.0)
            with pytest.raises(grpc.RpcError):
                reader.BatchGetCounts(counts_request([]), timeout=5.0)
        wait_until(lambda: _lag(scrape(found["projector"])) == 0, "nothing waits")
        seen = {role: scrape(port) for role, port in found.items()}
        for role, described in CATALOGUE.items():
            names = {re.sub(r"\{.*", "", sample) for sample in seen[role]}
            missing = [name for name, of in described.items() if name + ("_bucket" if of.kind == "histogram" else "") not in names]
            assert missing == [], role
            assert "process_resident_memory_bytes" in names
        assert seen["ingest"]["watertower_ingest_events_acknowledged_total"] == EVENTS
        assert seen["projector"]["watertower_projector_events_applied_total"] == EVENTS
        assert seen["ingest"]["watertower_ingest_records_appended_total"] >= EVENTS / 100
        assert seen["ingest"]['watertower_calls_total{code="OK",method="RecordEvents"}'] == EVENTS / 100
        assert seen["ingest"]['watertower_calls_refused_total{reason="EVENTS_COUNT"}'] == 1
        assert seen["query"]['watertower_calls_total{code="INVALID_ARGUMENT",method="BatchGetCounts"}'] == 1
        assert seen["query"]["watertower_query_read_hits_total"] >= 2
        assert seen["projector"]["watertower_projector_partitions_owned"] == 8
        assert seen["query"]["watertower_query_feed_age_seconds"] < 60
        assert service.stop() == 0


def _lag(seen: dict[str, float]) -> float:
    lags = [value for name, value in seen.items() if name.startswith("watertower_projector_lag_records")]
    return sum(lags) if len(lags) == 8 else -1


def two_free_ports() -> int:
    """The first of two ports in a row that nobody holds now."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


def test_each_worker_has_the_next_port_and_counts_for_itself(tmp_path: Path) -> None:
    """Calls go to one of them; together they have counted all. One that is started again has its port again."""
    first = two_free_ports()
    with Service(tmp_path / "data", settings={"query_workers": 2, "query_metrics_port": first, "restart_base_ms": 50}) as service:
        service.start()
        assert {name: port for name, port in ports(service).items() if name.startswith("query")} == {"query-1": first, "query-2": first + 1}

        def answered() -> list[float]:
            return [scrape(port)['watertower_calls_total{code="OK",method="BatchGetCounts"}'] for port in (first, first + 1)]

        calls = 0
        while min(answered()) < 1 and calls < 200:  # a connection each: the system spreads them
            with reading(service.read_target) as reader:
                reader.BatchGetCounts(counts_request(["star"]), timeout=5.0)
            calls += 1
        assert min(answered()) >= 1
        assert sum(answered()) == calls
        assert service.kill("query-2")
        wait_until(lambda: len([e for e in service.events("role_ready") if e["child"] == "query-2"]) == 2, "it is ready again")
        assert ports(service)["query-2"] == first + 1
        assert scrape(first + 1)['watertower_calls_total{code="OK",method="BatchGetCounts"}'] == 0
        assert service.stop() == 0


def test_a_port_for_two_is_refused_at_the_start(tmp_path: Path) -> None:
    """By the name of the setting, with exit code 3 of serve, instead of a role without metrics."""
    port = free_port()
    ran = watertower(
        *("serve", "--data", tmp_path / "data", "--write-port", "0", "--read-port", "0"),
        *("--set", f"ingest_metrics_port={port}", "--set", f"projector_metrics_port={port}"),
    )
    assert ran.code == 3
    assert re.search(rf"cannot listen on 127.0.0.1:{port} for metrics: .*set (ingest|projector)_metrics_port", ran.err.splitlines()[-1])


def test_by_default_there_is_no_such_port(tmp_path: Path) -> None:
    """Nothing listens that nobody asked for."""
    with Service(tmp_path / "data").start() as service:
        assert [event for event in service.events("role_ready") if "metrics_port" in event] == []
