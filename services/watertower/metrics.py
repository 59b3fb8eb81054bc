"""What Prometheus sees of a process: the catalogue of metrics, what each role has to say, and the page /metrics.

Nothing is counted here. The objects of a process count as they work (counters.py), and are read when the page is asked for, in a thread:
by single looks at numbers, or at copies that the interpreter makes in one go.
"""

import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Literal, NamedTuple, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from watertower.admission import Admission
from watertower.counters import CallCounters, Durations
from watertower.errors import AddressTaken
from watertower.ingest.service import IngestService
from watertower.ports import Clock
from watertower.projector.projector import Projector
from watertower.query.service import QueryService
from watertower.role import Role

SCRAPES_MAX = 4
"""Connections for metrics at once; a further one is closed as it comes."""

SCRAPE_S_MAX = 5.0
"""Seconds that such a connection may take, then it is closed."""


LOOK_INTERVAL_S = 0.1
"""Seconds between two looks whether one has, or whether the process ends."""


class Described(NamedTuple):
    """A metric as it is documented."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


_READY = {"watertower_ready": Described("gauge", (), "1 while the process is ready, as its gRPC health says; else 0")}

_CALLS = {
    "watertower_calls_total": Described(
        "counter",
        ("method", "code"),
        "calls that ended, by gRPC status; CANCELLED: the caller was gone, or its deadline passed, before there was an answer",
    ),
    "watertower_calls_refused_total": Described("counter", ("reason",), "those of them that were refused, by the reason in errors.md"),
    "watertower_call_duration_seconds": Described(
        "histogram", ("method",), "from the moment when the process turned to a call to its answer, without streams"
    ),
    "watertower_calls_under_way": Described("gauge", (), "calls in the process now"),
    "watertower_call_queue_seconds": Described("gauge", (), "how long calls wait now until the process turns to them; what it sheds by"),
}

CATALOGUE: dict[str, dict[str, Described]] = {
    "ingest": {
        **_READY,
        **_CALLS,
        "watertower_ingest_events_acknowledged_total": Described("counter", (), "events of calls that were answered with OK"),
        "watertower_ingest_records_appended_total": Described("counter", (), "records that are durable in the log"),
        "watertower_ingest_appended_bytes_total": Described("counter", (), "bytes of them"),
        "watertower_ingest_append_failures_total": Described("counter", (), "records that the log did not acknowledge"),
        "watertower_ingest_append_duration_seconds": Described("histogram", (), "how long a record took until it was durable"),
        "watertower_ingest_queue_events": Described("gauge", (), "events that wait for the log or are on their way into it"),
        "watertower_ingest_queue_bytes": Described("gauge", (), "bytes of their ids"),
    },
    "projector": {
        **_READY,
        "watertower_projector_events_applied_total": Described("counter", (), "events applied to the store"),
        "watertower_projector_flush_duration_seconds": Described(
            "histogram", (), "how long a flush took: what it read, wrote and published"
        ),
        "watertower_projector_flush_failures_total": Described(
            "counter", (), "steps that the log, the store or the feed did not take; each is tried again"
        ),
        "watertower_projector_partitions_owned": Described("gauge", (), "partitions that this process applies"),
        "watertower_projector_partitions_stopped": Described(
            "gauge", (), "those of them that do not go on (`partition_stopped` in the log)"
        ),
        "watertower_projector_lag_records": Described(
            "gauge", ("partition",), "records in the log that are not applied, when the log was last asked: once a second while it answers"
        ),
        "watertower_projector_applied_age_seconds": Described(
            "gauge", ("partition",), "how long ago the moment is up to which everything acknowledged is applied"
        ),
    },
    "query": {
        **_READY,
        **_CALLS,
        "watertower_query_feed_age_seconds": Described(
            "gauge", (), "how far `as_of` of an answer from memory lies behind now; not there until every partition was heard of"
        ),
        "watertower_query_cached_entities": Described("gauge", (), "entities in memory"),
        "watertower_query_cached_bytes": Described(
            "gauge", (), "bytes that they take, by the estimate that `query_cache_bytes_max` bounds"
        ),
        "watertower_query_read_hits_total": Described("counter", (), "entities looked up, by calls and watches, that were in memory"),
        "watertower_query_read_misses_total": Described("counter", (), "entities looked up that had to be read from the store first"),
        "watertower_query_store_reads_total": Described(
            "counter", (), "reads of the store that were begun: of an entity, a page of a list, a subject to check"
        ),
        "watertower_query_store_read_failures_total": Described("counter", (), "those of them that failed"),
        "watertower_query_store_reads_waiting": Described("gauge", (), "reads that wait for their turn"),
        "watertower_query_stale_answers_total": Described("counter", (), "answers, and messages of watches, that said `stale`"),
        "watertower_query_watches_open": Described("gauge", (), "watches open now"),
    },
}
"""Every metric of each role by its name."""

Sample: TypeAlias = tuple[str, tuple[str, ...], float | Durations]
"""The name of a metric, the values of its labels, and its own."""

Samples: TypeAlias = Callable[[], Iterable[Sample]]


def ingest_samples(service: IngestService) -> Iterator[Sample]:
    """What ingest has to say."""
    appends = service.appends
    yield from _of_calls(service.calls, service.admission)
    yield "watertower_ingest_events_acknowledged_total", (), service.acknowledged
    yield "watertower_ingest_records_appended_total", (), appends.records
    yield "watertower_ingest_appended_bytes_total", (), appends.bytes
    yield "watertower_ingest_append_failures_total", (), appends.failures
    yield "watertower_ingest_append_duration_seconds", (), appends.durations
    yield "watertower_ingest_queue_events", (), service.queue_events
    yield "watertower_ingest_queue_bytes", (), service.queue_bytes


def projector_samples(projector: Projector, clock: Clock) -> Iterator[Sample]:
    """What the projector has to say."""
    counters, as_of = projector.counters, dict(projector.as_of)
    yield "watertower_projector_events_applied_total", (), counters.events
    yield "watertower_projector_flush_duration_seconds", (), counters.durations
    yield "watertower_projector_flush_failures_total", (), counters.failures
    yield "watertower_projector_partitions_owned", (), len(as_of)
    yield "watertower_projector_partitions_stopped", (), len(projector.stopped)
    for partition, records in projector.lag.items():
        yield "watertower_projector_lag_records", (str(partition),), records
    for partition, as_of_us in as_of.items():
        if as_of_us:  # 0: it has not been looked at yet
            yield "watertower_projector_applied_age_seconds", (str(partition),), _age_s(clock, as_of_us)


def query_samples(service: QueryService, clock: Clock) -> Iterator[Sample]:
    """What a query process has to say."""
    entities, size = service.cached
    reads = service.store_reads
    yield from _of_calls(service.calls, service.admission)
    if as_of_us := service.as_of_us:
        yield "watertower_query_feed_age_seconds", (), _age_s(clock, as_of_us)
    yield "watertower_query_cached_entities", (), entities
    yield "watertower_query_cached_bytes", (), size
    yield "watertower_query_read_hits_total", (), service.hits
    yield "watertower_query_read_misses_total", (), service.misses
    yield "watertower_query_store_reads_total", (), reads.begun
    yield "watertower_query_store_read_failures_total", (), reads.failed
    yield "watertower_query_store_reads_waiting", (), reads.waiting
    yield "watertower_query_stale_answers_total", (), service.stale_answers
    yield "watertower_query_watches_open", (), service.watches_open


def _of_calls(calls: CallCounters, admission: Admission) -> Iterator[Sample]:
    for (method, code), count in dict(calls.ended).items():
        yield "watertower_calls_total", (method, code), count
    for reason, count in dict(calls.refused).items():
        yield "watertower_calls_refused_total", (reason,), count
    for method, durations in calls.durations.items():
        yield "watertower_call_duration_seconds", (method,), durations
    yield "watertower_calls_under_way", (), admission.calls
    yield "watertower_call_queue_seconds", (), admission.shedding.queue_s


def _age_s(clock: Clock, at_us: int) -> float:
    return max(0.0, (clock.now_us() - at_us) / 1e6)


class _Collector(Collector):
    def __init__(self, catalogue: Mapping[str, Described], samples: Samples) -> None:
        self._catalogue, self._samples = catalogue, samples

    def collect(self) -> Iterator[Metric]:
        families = {name: _FAMILIES[of.kind](name, of.meaning, labels=of.labels) for name, of in self._catalogue.items()}
        for name, labels, value in self._samples():
            if isinstance(value, Durations):
                families[name].add_metric(labels, buckets=_buckets(value), sum_value=value.sum_s)
            else:
                families[name].add_metric(labels, value)
        yield from families.values()


_FAMILIES: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """By upper bound, how many were at most as long."""
    total, buckets = 0, []
    for bound_s, count in zip((*durations.bounds_s, math.inf), list(durations.counts), strict=True):
        total += count
        buckets.append((_bound(bound_s), float(total)))
    return buckets


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == math.inf else repr(seconds)


class MetricsServer:
    """The page /metrics of one role on a port of its own."""

    def __init__(self, role: str, host: str, port: int, samples: Samples, clock: Clock) -> None:
        """`port` 0 takes a free one. `role` is one of CATALOGUE."""
        self._name, self._host, self._port, self._samples, self._clock = role, host, port, samples, clock

    @contextmanager
    def serving(self, role: Role) -> Iterator[None]:
        """Serves until the block ends; the role's word that it is ready says on which port. Raises AddressTaken."""

        def samples() -> Iterator[Sample]:
            yield "watertower_ready", (), role.is_ready
            yield from self._samples()

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(CATALOGUE[self._name], samples))
        ProcessCollector(registry=registry)
        try:
            server = _listening(self._host, self._port, self._clock)
        except OSError as error:
            raise AddressTaken(
                f"cannot listen on {self._host}:{self._port} for metrics: {error.strerror or error}; "
                f"set {self._name}_metrics_port to a port that is free, or metrics_host to an address of this machine"
            ) from error
        server.set_app(_only_metrics(make_wsgi_app(registry)))
        thread = threading.Thread(target=server.serve_forever, args=(LOOK_INTERVAL_S,), name="metrics", daemon=True)
        thread.start()
        role.places["metrics_port"] = server.server_port
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


def _only_metrics(page: Any) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/metrics":
            return page(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there is only /metrics\n"]

    return app


def _listening(host: str, port: int, clock: Clock) -> "_Server":
    family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    bound = type("_BoundServer", (_Server,), {"address_family": family})
    server: _Server = bound(address[:2], clock)
    return server


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, so that one that says nothing holds up no other; few, and each for a while only."""

    daemon_threads = True

    def __init__(self, address: Any, clock: Clock) -> None:
        self._clock = clock
        self._since_s: dict[Any, float] = {}  # of each open connection
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # that of HTTPServer asks the name service who we are
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._since_s) >= SCRAPES_MAX:
            super().shutdown_request(request)
            return
        self._since_s[request] = self._clock.monotonic_s()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Every LOOK_INTERVAL_S."""
        for request, since_s in dict(self._since_s).items():
            if self._clock.monotonic_s() - since_s >= SCRAPE_S_MAX:
                with suppress(OSError):  # it is gone
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked is gone, or was too slow."""
        structlog.get_logger("watertower.metrics").debug("scrape_failed", exc_info=True)
