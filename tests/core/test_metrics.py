"""Counters, the page that shows them, and its limits."""

import math
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from watertower import metrics
from watertower.clock import SystemClock
from watertower.config import load
from watertower.counters import CallCounters, Durations
from watertower.errors import AddressTaken, StartRefused
from watertower.metrics import CATALOGUE, MetricsServer, Sample
from watertower.testing.service import wait_until


class Word:
    """As much of a role as the page looks at."""

    def __init__(self) -> None:
        self.is_ready = False
        self.places: dict[str, Any] = {}


@contextmanager
def shown(samples: Callable[[], Iterator[Sample]]) -> Iterator[tuple[Any, int]]:
    """The page of an ingest that has this to say; its role, and its port."""
    role: Any = Word()
    with MetricsServer("ingest", "127.0.0.1", 0, samples, SystemClock()).serving(role):
        yield role, role.places["metrics_port"]


def page(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def nothing() -> Iterator[Sample]:
    yield from ()


def test_a_duration_falls_into_the_first_class_that_holds_it() -> None:
    """A bound belongs to its class; what is longer than all is in the last."""
    durations = Durations((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.2, 5.0):
        durations.add(seconds)
    assert (durations.counts, durations.sum_s) == ([2, 1, 1], pytest.approx(5.35))


def test_calls_are_counted_by_method_status_and_reason() -> None:
    """A stream has no duration; a reason is counted besides the status."""
    calls = CallCounters(["Get"], ["Watch"])
    calls.end("Get", "OK", 0.01)
    calls.end("Get", "UNAVAILABLE", 0.01, "STOPPING")
    calls.end("Watch", "CANCELLED", 3_600.0)
    assert {key: count for key, count in calls.ended.items() if count} == {
        ("Get", "OK"): 1,
        ("Get", "UNAVAILABLE"): 1,
        ("Watch", "CANCELLED"): 1,
    }
    assert dict(calls.refused) == {"STOPPING": 1}
    assert {method: sum(durations.counts) for method, durations in calls.durations.items()} == {"Get": 2}


def test_success_and_faults_are_there_before_they_happen() -> None:
    """As 0, of every method: Prometheus sees no increase in what begins with 1, and an alert would miss the first fault."""
    calls = CallCounters(["Get"], ["Watch"])
    assert dict(calls.ended) == {(method, code): 0 for method in ("Get", "Watch") for code in ("OK", "INTERNAL")}


def test_the_page_shows_what_is_counted_when_it_is_asked() -> None:
    """Not what was counted before; classes of durations are cumulative, and a wait may be endless."""
    durations, state = Durations((0.001, 1.0)), {"queue": 1.0}

    def samples() -> Iterator[Sample]:
        yield "watertower_ingest_append_duration_seconds", (), durations
        yield "watertower_call_queue_seconds", (), state["queue"]
        yield "watertower_calls_total", ("RecordEvents", "OK"), 7

    with shown(samples) as (role, port):
        assert "watertower_call_queue_seconds 1.0\n" in page(port)
        for seconds in (0.0005, 0.5, 2.0):
            durations.add(seconds)
        state["queue"] = math.inf
        role.is_ready = True
        text = page(port)
    assert "watertower_call_queue_seconds +Inf\n" in text
    assert 'watertower_calls_total{code="OK",method="RecordEvents"} 7.0\n' in text
    assert "watertower_ready 1.0\n" in text
    found = re.findall(r'^watertower_ingest_append_duration_seconds_bucket\{le="(.*?)"\} (.*)$', text, re.MULTILINE)
    assert found == [("0.001", "1.0"), ("1.0", "2.0"), ("+Inf", "3.0")]
    assert "watertower_ingest_append_duration_seconds_count 3.0\n" in text
    with pytest.raises(urllib.error.URLError):
        page(port)


def test_there_is_only_the_one_page() -> None:
    """Whoever looks elsewhere is told so."""
    with shown(nothing) as (_, port), pytest.raises(urllib.error.HTTPError) as missing:
        page(port, "/")
    assert missing.value.code == 404
    missing.value.close()


def test_a_metric_that_nobody_described_is_a_fault() -> None:
    """It is seen by whoever asks, as 500, instead of being left out."""

    def samples() -> Iterator[Sample]:
        yield "watertower_invented", (), 1

    with shown(samples) as (_, port), pytest.raises(urllib.error.HTTPError) as fault:
        page(port)
    assert fault.value.code == 500
    fault.value.close()


def test_connections_that_say_nothing_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """SCRAPES_MAX at once, a further one is closed as it comes; each ends after SCRAPE_S_MAX, half a request or not."""
    monkeypatch.setattr(metrics, "SCRAPE_S_MAX", 2.0)
    with shown(nothing) as (_, port):
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(metrics.SCRAPES_MAX)]
        held[0].sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        with socket.create_connection(("127.0.0.1", port)) as further:
            further.settimeout(10)
            assert further.recv(1) == b""  # at once: those before it are not closed yet
        for connection in held:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        for connection in held:
            connection.settimeout(10)
            while connection.recv(4_096):  # to the half request it may say that it was bad
                pass
            connection.close()
        wait_until(lambda: _answers(port), "there is room again")


def _answers(port: int) -> bool:
    try:
        return "watertower_ready" in page(port)
    except OSError:
        return False


def test_a_port_that_is_taken_is_refused_by_the_name_of_its_setting() -> None:
    """Or an address that is not this machine's."""
    role: Any = Word()
    with shown(nothing) as (_, port):
        for role_name, host in (("query", "127.0.0.1"), ("projector", "192.0.2.1")):
            server = MetricsServer(role_name, host, port, nothing, SystemClock())
            with pytest.raises(AddressTaken, match=f"{host}:{port} for metrics.*set {role_name}_metrics_port"), server.serving(role):
                pass


def test_each_worker_must_have_a_port() -> None:
    """The last one's is in bounds, or the start is refused with the name of the setting."""
    assert load({"query_metrics_port": 65_534, "query_workers": 2}).query.metrics_port == 65_534
    with pytest.raises(StartRefused, match=r"query_metrics_port: 65534 with 3 workers goes past port 65535"):
        load({"query_metrics_port": 65_534, "query_workers": 3})


def test_names_follow_the_conventions_of_prometheus() -> None:
    """Counters end in _total, units are seconds and bytes, and names say whose they are."""
    for role, described in CATALOGUE.items():
        for name, (kind, labels, meaning) in described.items():
            assert re.fullmatch(rf"watertower_(ready|calls?_\w+|{role}_\w+)", name), name
            assert name.endswith("_total") == (kind == "counter"), name
            assert kind != "histogram" or name.endswith("_seconds"), name
            assert not re.search(r"_(ms|us|s|kb|mb)(_|$)", name), name
            assert set(labels) <= {"method", "code", "reason", "partition"}, name
            assert meaning, name
