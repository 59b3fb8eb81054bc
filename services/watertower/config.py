"""Every setting, in one catalogue: name, unit, default, bounds, meaning.

A setting comes from an option (`--set NAME=VALUE`, or an option of its own such as `--data`), else from the environment
(`WATERTOWER_` and the name in capitals), else from its default. `watertower config` prints the effective ones and where each came from;
docs/reference/settings.md lists them, and a test holds the two together.

Processes do not read Settings: bootstrap.py hands each the section that it needs.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from watertower.core.sharding import PARTITIONS_MAX
from watertower.errors import StartRefused

Port = Annotated[int, Field(ge=0, le=65_535)]
Positive = Annotated[int, Field(gt=0)]
OptionalPort = Annotated[int, Field(ge=-1, le=65_535)]
Milliseconds = Annotated[int, Field(gt=0, le=3_600_000)]

WORKERS_MAX = 64
"""Query processes on one port."""


class _Section(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServiceSettings(_Section):
    """What all processes share."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_")

    data: Path = Field(Path("watertower-data"), description="the data folder of the embedded back ends")
    log: Literal["sqlite", "kafka"] = Field("sqlite", description="the back end of the log; kafka carries the counts feed too")
    store: Literal["rocksdb", "cassandra"] = Field("rocksdb", description="the back end of the store; rocksdb carries the counts feed too")
    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)] = Field(
        8, description="partitions of the embedded log; fixed when the data folder is created"
    )
    write_host: str = Field("127.0.0.1", description="address that the writer binds")
    write_port: Port = Field(50051, description="port of the writer; 0 takes a free one")
    read_host: str = Field("127.0.0.1", description="address that the reader binds")
    read_port: Port = Field(50052, description="port of the reader; 0 takes a free one")
    metrics_host: str = Field("127.0.0.1", description="address that the metrics of each process bind")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity of log lines")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="log lines as JSON or for people; auto: for people on a terminal"
    )
    shutdown_grace_ms: Milliseconds = Field(10_000, description="ms that a process may take to drain after SIGTERM")
    drain_ms: Annotated[int, Field(ge=0, le=3_600_000)] = Field(
        0,
        description="ms after SIGTERM in which a server takes calls but says that it is not ready: what a load balancer takes to see it",
    )
    restart_base_ms: Milliseconds = Field(200, description="ms before the first restart of a role that died; doubles, with full jitter")
    restart_cap_ms: Milliseconds = Field(10_000, description="ms before a restart of a role, at most")


class ServerSettings(_Section):
    """Limits of a gRPC server: the same names, with the prefix of each section that has one."""

    calls_max: Positive = Field(
        20_000, description="calls in the process at once, arriving and going out included; more are refused with CALLS_FULL"
    )
    listeners_max: Annotated[int, Field(ge=1, le=64)] = Field(
        32,
        description="listeners on the port, each with its own queue: connections are spread over them, and the queues take turns; "
        "fewer where connections_max is below 256 times as many; one where the system is not Linux",
    )
    calls_pending_max: Positive = Field(
        250,
        description="calls of one listener that the process has not turned to yet; the transport refuses some above that, and all above "
        "twice as many",
    )
    receive_ms_max: Milliseconds = Field(10_000, description="ms that a request may take to arrive; then REQUEST_LATE")
    shed_first_ms: Milliseconds = Field(
        100, description="ms that calls wait for the process from which bulk is shed with OVERLOADED; all of it at twice that"
    )
    shed_last_ms: Milliseconds = Field(
        1_000, description="the same for what is shed last; the other classes of work lie between, at equal ratios"
    )
    retry_after_ms: Milliseconds = Field(500, description="ms that RetryInfo and the pushback metadata tell shed callers to wait")
    connections_max: Positive = Field(10_000, description="connections at once, each listener its share; more are closed as they come")
    streams_max: Positive = Field(100, description="calls at once on one connection; a client keeps more to itself")
    metadata_bytes_max: Positive = Field(8_192, description="bytes of a call's metadata; a call with more is refused by the transport")
    handshake_ms_max: Milliseconds = Field(10_000, description="ms in which a connection must have begun to speak HTTP/2")
    connection_age_ms_max: Milliseconds = Field(
        1_800_000, description="ms after which a connection is asked to end (less or more by up to a tenth), so that callers spread anew"
    )
    connection_age_grace_ms_max: Milliseconds = Field(60_000, description="ms for the calls on such a connection, then it is closed")
    connection_idle_ms_max: Milliseconds = Field(300_000, description="ms without a call after which a connection is asked to end")
    keepalive_ms: Milliseconds = Field(30_000, description="ms without a sign of life after which a client is pinged")
    keepalive_timeout_ms: Milliseconds = Field(10_000, description="ms without an answer to that, then the connection is closed")
    ping_interval_ms_min: Milliseconds = Field(
        10_000, description="ms between two pings of a client; for one that pings more often, the third time, the connection is closed"
    )

    @model_validator(mode="after")
    def _shed_in_order(self) -> Self:
        if self.shed_last_ms < self.shed_first_ms:
            raise ValueError(f"shed_last_ms: {self.shed_last_ms} is less than shed_first_ms, {self.shed_first_ms}")
        return self


class IngestSettings(ServerSettings):
    """Limits of the write side."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_INGEST_")

    message_bytes_max: Positive = Field(1_048_576, description="bytes of one request; a larger one is refused by the transport")
    record_events_max: Annotated[int, Field(ge=1, le=100_000)] = Field(4_000, description="events in one log record")
    record_bytes_max: Positive = Field(921_600, description="bytes of ids in one log record, about")
    queue_events_max: Positive = Field(100_000, description="events waiting for the log; a call above that is shed with QUEUE_FULL")
    queue_bytes_max: Positive = Field(67_108_864, description="bytes of ids waiting for the log; a call above that is shed with QUEUE_FULL")
    shed_first_ms: Milliseconds = Field(
        500, description="ms that calls wait for the process from which bulk writes are shed with OVERLOADED; all of them at twice that"
    )
    shed_last_ms: Milliseconds = Field(5_000, description="the end of the thresholds; small writes are shed where the middle one lies")
    clock_ahead_ms_max: Milliseconds = Field(5_000, description="ms that occurred_at may be ahead of this process's clock")
    metrics_port: OptionalPort = Field(-1, description="port of ingest's metrics for Prometheus; 0 takes a free one, -1 is none")
    truncate_interval_ms: Milliseconds = Field(1_000, description="ms between two truncations of the log behind what is applied")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(5, description="scheduling niceness: a surge of writes gives way to reads")


class ProjectorSettings(_Section):
    """Limits of the path from the log to the store."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_PROJECTOR_")

    flush_events_max: Positive = Field(10_000, description="events that one flush covers, about: it takes whole records")
    flush_records_max: Positive = Field(1_000, description="log records that one flush covers")
    flush_bytes_max: Positive = Field(8_388_608, description="bytes of log records that one flush covers")
    poll_idle_ms: Milliseconds = Field(5, description="ms between two looks at a log that has nothing new")
    heartbeat_ms: Milliseconds = Field(250, description="ms between two messages on the feed that say that nothing happened")
    feed_messages_max: Positive = Field(1_000, description="messages kept on the embedded feed; a reader further behind re-reads")
    retry_base_ms: Milliseconds = Field(50, description="ms before the first retry of a failed flush; doubles, with full jitter")
    retry_cap_ms: Milliseconds = Field(5_000, description="ms before a retry of a failed flush, at most")
    write_buffer_bytes: Positive = Field(16_777_216, description="bytes of one memtable of the embedded store (two at most)")
    block_cache_bytes: Positive = Field(33_554_432, description="bytes of the block cache of the embedded store, per process")
    health_host: str = Field("127.0.0.1", description="address that the projector's health service binds")
    health_port: OptionalPort = Field(-1, description="port of the projector's gRPC health service; 0 takes a free one, -1 is none")
    metrics_port: OptionalPort = Field(-1, description="port of the projector's metrics for Prometheus; 0 takes a free one, -1 is none")
    stalled_ms_max: Milliseconds = Field(
        60_000, description="ms without a step, or an answer of the store, after which the projector says that it is not alive"
    )
    nice: Annotated[int, Field(ge=0, le=19)] = Field(10, description="scheduling niceness: a surge of writes gives way to reads")


class QuerySettings(ServerSettings):
    """Limits of the read side."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_QUERY_")

    server: Literal["grpcio", "native"] = Field(
        "grpcio", description="the gRPC server; native is faster and has fewer limits: behind a mesh or on loopback only"
    )
    message_bytes_max: Positive = Field(1_048_576, description="bytes of one request; a larger one is refused by the transport")
    shed_last_ms: Milliseconds = Field(
        4_000, description="the same for reads from memory, which go last; the other classes of work lie between, at equal ratios"
    )
    cache_bytes_max: Positive = Field(
        268_435_456, description="bytes of counts kept in memory, about; what was read longest ago goes first"
    )
    cache_age_ms_max: Milliseconds = Field(
        60_000, description="ms after which an entry is loaded again, feed or not (less up to a fifth, at random)"
    )
    unknown_age_ms_max: Milliseconds = Field(1_000, description="ms that an unknown entity is remembered as zero")
    stale_age_ms_max: Milliseconds = Field(
        3_600_000, description="ms after its load up to which an entry may stand in, marked stale, while the store cannot be read"
    )
    freshness_wait_ms_max: Milliseconds = Field(
        2_000, description="ms that a call waits to be as fresh as it asks (min_position, max_staleness); then it is told that it is not"
    )
    freshness_waiting_max: Positive = Field(10_000, description="calls that wait to be as fresh as they ask; above that none waits")
    loads_concurrent_max: Positive = Field(4, description="store reads under way at once")
    loads_waiting_max: Positive = Field(
        10_000, description="store reads waiting; a call above that is shed with READS_FULL; below 1,000 a cold batch may never fit"
    )
    load_wait_ms_max: Milliseconds = Field(
        1_000, description="ms that a read waits for the store where memory has the last known values; then it gives those, marked stale"
    )
    warm_entities_max: Annotated[int, Field(ge=0)] = Field(
        10_000,
        description="entities, those read last, that the next start loads before it is ready; 0: none",
    )
    warm_file: Path | None = Field(
        None, description="file for that; by default query-warm in the data folder, and without one (store=cassandra) nothing is kept"
    )
    warm_interval_ms: Milliseconds = Field(60_000, description="ms between two writes of that file; it is also written at the end")
    warm_ms_max: Milliseconds = Field(10_000, description="ms that a start takes for loading, at most")
    watch_interval_ms: Milliseconds = Field(200, description="ms between two messages of a watch, at least")
    watch_heartbeat_ms: Milliseconds = Field(1_000, description="ms after which a watch without changes says how fresh it is")
    watches_max: Positive = Field(1_000, description="watches open at once; above that WATCHES_FULL")
    watches_per_caller_max: Positive = Field(100, description="watches open at once of one address, as of a proxy; above that WATCHES_FULL")
    watched_entities_max: Positive = Field(20_000, description="entities in all open watches; above that WATCHES_FULL")
    tail_interval_ms: Milliseconds = Field(20, description="ms between two looks at the counts feed")
    stale_after_ms: Milliseconds = Field(10_000, description="ms that as_of may lie behind before answers are marked stale")
    workers: Annotated[int, Field(ge=1, le=WORKERS_MAX)] = Field(1, description="query processes on the one port")
    metrics_port: OptionalPort = Field(
        -1, description="port of query's metrics for Prometheus, of the next workers the next ports; 0 takes free ones, -1 is none"
    )
    store_calls_max: Positive = Field(
        64, description="calls of one method that reads the store under way at once; the next ones wait in order"
    )
    store_queue_ms_max: Milliseconds = Field(500, description="ms that such a call waits for its turn; then CALLS_FULL")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(0, description="scheduling niceness")

    @model_validator(mode="after")
    def _a_metrics_port_for_each_worker(self) -> Self:
        if self.metrics_port > 0 and self.metrics_port + self.workers - 1 > 65_535:
            raise ValueError(f"metrics_port: {self.metrics_port} with {self.workers} workers goes past port 65535: each has the next one")
        return self


class _EngineSection(_Section):
    """How to log in to an engine. The password comes from a file or from the environment, and is shown nowhere."""

    user: str = Field("", description="user name; empty: no authentication")
    password: SecretStr = Field(SecretStr(""), description="password of the user; better given as password_file")
    password_file: Path | None = Field(None, description="file that holds the password, as a mounted secret; wins over password")
    ca_file: Path | None = Field(None, description="PEM file with the certificates of the authorities that are trusted")

    @model_validator(mode="after")
    def _files_can_be_read(self) -> Self:
        for name in ("password_file", "ca_file"):
            path: Path | None = getattr(self, name)
            if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
                raise ValueError(f"{name}: {path} is no file that can be read")
        if self.user and not self.secret():
            raise ValueError("user: needs password_file or password")
        return self

    def secret(self) -> str:
        """The password."""
        if self.password_file is not None:
            return self.password_file.read_text().rstrip("\n")
        return self.password.get_secret_value()


class KafkaSettings(_EngineSection):
    """How to reach Kafka, and what is asked of it. Used where `log` is kafka."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_KAFKA_")

    bootstrap_servers: str = Field("127.0.0.1:9092", description="brokers to begin with, HOST:PORT joined by commas")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = Field(
        "watertower", description="what the names of topics and groups begin with"
    )
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="whether the connection is encrypted (ssl) and authenticated (sasl)"
    )
    sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = Field(
        "SCRAM-SHA-512", description="how user and password are shown to the broker"
    )
    generation: Annotated[int, Field(ge=1)] = Field(1, description="generation of the rows made from this log, as the store has it")
    compression: Literal["none", "gzip", "lz4"] = Field("lz4", description="compression of the records")
    connect_timeout_ms: Milliseconds = Field(5_000, description="ms to reach a broker when a process starts")
    request_timeout_ms: Milliseconds = Field(3_000, description="ms that a broker may take for one answer")
    delivery_timeout_ms: Milliseconds = Field(5_000, description="ms after which a record that is not acknowledged has failed")
    session_timeout_ms: Milliseconds = Field(
        10_000, description="ms without a sign of life after which a projector's partitions go to others"
    )
    heartbeat_ms: Milliseconds = Field(2_000, description="ms between two signs of life of a projector")
    flush_ms_max: Milliseconds = Field(120_000, description="ms that a projector may be busy before its partitions go to others")
    prefetch_bytes: Positive = Field(16_777_216, description="bytes of records that a projector holds ready, about")
    replication_factor: Annotated[int, Field(ge=-1, le=100)] = Field(
        -1, description="copies of each record, when the topics are created; -1: the broker's default"
    )
    log_retention_h: Positive = Field(168, description="hours that the log is kept, when the topics are created")
    feed_retention_h: Positive = Field(1, description="hours that the counts feed is kept, when the topics are created")


class CassandraSettings(_EngineSection):
    """How to reach Cassandra, and what is asked of it. Used where `store` is cassandra."""

    model_config = SettingsConfigDict(env_prefix="WATERTOWER_CASSANDRA_")

    contact_points: str = Field("127.0.0.1:9042", description="nodes to begin with, HOST:PORT joined by commas, one port for all")
    local_datacenter: str = Field("datacenter1", description="data centre of this process's nodes: all projectors of a log are in one")
    keyspace: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")] = Field("watertower", description="keyspace of the tables")
    replication: Annotated[str, Field(pattern=r"^[\w.-]+:[1-9]\d?(,[\w.-]+:[1-9]\d?)*$")] = Field(
        "datacenter1:1", description="copies per data centre, DC:COPIES joined by commas, when the keyspace is created"
    )
    connect_timeout_ms: Milliseconds = Field(5_000, description="ms to reach a node when a process starts")
    request_timeout_ms: Milliseconds = Field(5_000, description="ms that a node may take for one statement")
    requests_in_flight_max: Positive = Field(32, description="statements under way at once, per flush or read")
    attempts_max: Positive = Field(5, description="times that one statement is tried before the flush or read fails")
    retry_base_ms: Milliseconds = Field(50, description="ms before the first retry of a statement; doubles, with full jitter")
    retry_cap_ms: Milliseconds = Field(2_000, description="ms before a retry of a statement, at most")


class Settings(NamedTuple):
    """All sections."""

    service: ServiceSettings
    ingest: IngestSettings
    projector: ProjectorSettings
    query: QuerySettings
    kafka: KafkaSettings
    cassandra: CassandraSettings


class EffectiveSetting(NamedTuple):
    """One setting as it came out."""

    name: str  # as in `--set`: "ingest_queue_events_max"
    value: Any
    source: str  # "option", "environment NAME" or "default"
    description: str


SECTIONS: dict[str, type[_Section]] = {
    "": ServiceSettings,
    "ingest_": IngestSettings,
    "projector_": ProjectorSettings,
    "query_": QuerySettings,
    "kafka_": KafkaSettings,
    "cassandra_": CassandraSettings,
}


def catalogue() -> dict[str, tuple[type[_Section], str]]:
    """Every setting's name with its section and its field there."""
    return {prefix + field: (section, field) for prefix, section in SECTIONS.items() for field in section.model_fields}


def load(options: Mapping[str, Any]) -> Settings:
    """Settings from options (by name; None means "not given"), environment and defaults.

    Raises StartRefused naming each setting that is unknown or breaks its rule, options and environment alike.
    """
    known = catalogue()
    problems = [f"{name}: there is no such setting (see `watertower config`)" for name in options if name not in known]
    problems += [
        f"{variable}: there is no such setting (see `watertower config`)"
        for variable in os.environ
        if variable.startswith("WATERTOWER_")
        and variable not in _NOT_SETTINGS
        and variable.removeprefix("WATERTOWER_").lower() not in known
        and not _of_kubernetes(variable)
    ]
    given: dict[type[_Section], dict[str, Any]] = {section: {} for section in SECTIONS.values()}
    for name, value in options.items():
        if name in known and value is not None:
            section, field = known[name]
            given[section][field] = value
    sections: list[Any] = []
    for prefix, section in SECTIONS.items():
        try:
            sections.append(section(**given[section]))
        except ValidationError as error:
            for found in error.errors(include_url=False):
                name = ".".join(map(str, found["loc"]))  # empty where a rule is about several: its message names them
                problems.append(f"{prefix}{name}: {found['msg']}" if name else f"{prefix}{found['msg'].removeprefix('Value error, ')}")
    if problems:
        raise StartRefused("settings: " + "; ".join(problems))
    return Settings(*sections)


def effective(settings: Settings, options: Mapping[str, Any]) -> list[EffectiveSetting]:
    """Every setting with its value and where it came from."""
    rows = []
    environment = {name.upper() for name in os.environ}
    for (prefix, section), values in zip(SECTIONS.items(), settings, strict=True):
        for field, info in section.model_fields.items():
            name = prefix + field
            variable = "WATERTOWER_" + name.upper()
            source = "option" if options.get(name) is not None else f"environment {variable}" if variable in environment else "default"
            rows.append(EffectiveSetting(name, getattr(values, field), source, info.description or ""))
    return rows


def _of_kubernetes(variable: str) -> bool:
    """Whether Kubernetes sets it in every pod beside a Service whose name begins with "watertower"."""
    return _SERVICE_LINK.search(variable) is not None or (variable.endswith("_PORT") and "://" in os.environ[variable])


_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")

# Variables of the same prefix that steer clients, tests and the supervisor's own children; they are no settings.
_NOT_SETTINGS = {
    "WATERTOWER_REQUIRE_ENGINES",
    "WATERTOWER_ENGINES_CACHE",
    "WATERTOWER_KUBERNETES_CACHE",
    "WATERTOWER_TEST_ENGINES",
    "WATERTOWER_TEST_KAFKA",
    "WATERTOWER_TEST_CASSANDRA",
    "WATERTOWER_TEST_DATA",
    "WATERTOWER_TEST_SEED",
    "WATERTOWER_FAILPOINTS",
    "WATERTOWER_NOTIFY_FD",
    "WATERTOWER_SHARED_PORT",
    "WATERTOWER_WORKER",
    "WATERTOWER_WRITE_TARGET",
    "WATERTOWER_READ_TARGET",
}
