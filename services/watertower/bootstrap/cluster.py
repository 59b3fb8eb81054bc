"""The back ends of a cluster: the log and the counts feed in Kafka, the store in Cassandra."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from watertower.backends.cassandra import CassandraConnection, CassandraReader, CassandraScanner, CassandraSettings, CassandraStore, migrate
from watertower.backends.kafka_client import KafkaSettings
from watertower.backends.kafka_dead_letters import DeadLetter, dead_letters
from watertower.backends.kafka_feed import KafkaFeed, KafkaFeedReader
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.backends.kafka_topics import TopicsPlan, create_topics, log_identity
from watertower.backends.kafka_writer import KafkaLogWriter
from watertower.clock import SystemClock
from watertower.config import Settings
from watertower.errors import StartRefused
from watertower.ports import CountsFeed, FeedReader, LogReader, LogWriter, Store, StoreIdentity, StoreReader, StoreScanner

_HOUR_MS = 3_600_000


def log_writer(settings: Settings, opened: ExitStack) -> tuple[LogWriter, int]:
    """The log, for any number of ingests, and the generation of the rows that are made from it."""
    log = KafkaLogWriter(_kafka(settings), SystemClock())
    opened.callback(log.close)
    return log, settings.kafka.generation


def projector_side(settings: Settings, opened: ExitStack, beat: Callable[[], None]) -> tuple[LogReader, Store, CountsFeed]:
    """The log, the store and the feed, for one of up to as many projectors as there are partitions. `beat` is called with every answer
    of the store: a flush may take many of them."""
    kafka = _kafka(settings)
    store = CassandraStore(_connected(settings, opened, beat))
    _refuse_another_generation(settings, store.identity)
    feed = KafkaFeed(kafka, SystemClock(), _random(), store.identity.log.partitions)
    opened.callback(feed.close)
    log = KafkaLogReader(kafka, SystemClock())  # last: from here on the group counts on this process
    opened.callback(log.close)
    return log, store, feed


def query_side(settings: Settings, opened: ExitStack) -> tuple[StoreReader, FeedReader]:
    """The store and the feed, for any number of query processes."""
    store = CassandraReader(_connected(settings, opened))
    _refuse_another_generation(settings, store.identity)
    feed = KafkaFeedReader(_kafka(settings), SystemClock(), store.identity.log.partitions)
    opened.callback(feed.close)
    return store, feed


def scanner(settings: Settings, opened: ExitStack) -> StoreScanner:
    """All rows; of one moment only while nobody writes."""
    return CassandraScanner(_connected(settings, opened))


def make_topics(settings: Settings, partitions: int) -> dict[str, bool]:
    """Makes the topics that are missing. Returns their names, True for those made now. Raises StartRefused, BackendUnavailable."""
    plan = TopicsPlan(
        partitions=partitions,
        replication_factor=settings.kafka.replication_factor,
        log_retention_ms=settings.kafka.log_retention_h * _HOUR_MS,
        feed_retention_ms=settings.kafka.feed_retention_h * _HOUR_MS,
    )
    return create_topics(_kafka(settings), plan, SystemClock())


def make_tables(settings: Settings) -> tuple[StoreIdentity, list[str]]:
    """Makes the tables that are missing, for the rows of the log that is there. Returns which rows these are, and the names of the
    migrations that were applied. Raises StartRefused, BackendUnavailable."""
    identity = StoreIdentity(log_identity(_kafka(settings), SystemClock()), settings.kafka.generation)
    replication = {centre: int(copies) for centre, _, copies in (one.partition(":") for one in settings.cassandra.replication.split(","))}
    with ExitStack() as opened:
        done = migrate(_connected(settings, opened), identity, replication)
    return identity, [f"{migration.number:04} {migration.name}" for migration in done]


def letters(settings: Settings) -> Iterator[DeadLetter]:
    """The records of the log that were set aside. Raises StartRefused, BackendUnavailable."""
    return dead_letters(_kafka(settings), SystemClock())


def _kafka(settings: Settings) -> KafkaSettings:
    chosen = settings.kafka
    return KafkaSettings(
        bootstrap_servers=chosen.bootstrap_servers,
        prefix=chosen.prefix,
        security_protocol=chosen.security_protocol.upper(),
        sasl_mechanism=chosen.sasl_mechanism,
        sasl_username=chosen.user,
        sasl_password=chosen.secret(),
        ssl_ca_file=str(chosen.ca_file or ""),
        connect_timeout_ms=chosen.connect_timeout_ms,
        request_timeout_ms=chosen.request_timeout_ms,
        delivery_timeout_ms=chosen.delivery_timeout_ms,
        compression=chosen.compression,
        group_session_timeout_ms=chosen.session_timeout_ms,
        group_heartbeat_ms=chosen.heartbeat_ms,
        group_poll_ms_max=chosen.flush_ms_max,
        prefetch_bytes=chosen.prefetch_bytes,
    )


def _connected(settings: Settings, opened: ExitStack, heard: Callable[[], None] = lambda: None) -> CassandraConnection:
    chosen = settings.cassandra
    hosts, ports = [], set()
    for point in chosen.contact_points.split(","):
        host, _, port = point.strip().rpartition(":")
        if not host or not port.isdigit():
            raise StartRefused(f"cassandra_contact_points: {point!r} must be HOST:PORT")
        hosts.append(host)
        ports.add(int(port))
    if len(ports) > 1:
        raise StartRefused("cassandra_contact_points: all nodes must have the same port")
    connection = CassandraConnection(
        CassandraSettings(
            contact_points=tuple(hosts),
            port=ports.pop(),
            local_dc=chosen.local_datacenter,
            keyspace=chosen.keyspace,
            user=chosen.user,
            password=chosen.secret(),
            ca_file=chosen.ca_file,
            connect_timeout_ms=chosen.connect_timeout_ms,
            request_timeout_ms=chosen.request_timeout_ms,
            requests_in_flight_max=chosen.requests_in_flight_max,
            attempts_max=chosen.attempts_max,
            retry_base_ms=chosen.retry_base_ms,
            retry_cap_ms=chosen.retry_cap_ms,
        ),
        SystemClock(),
        _random(),
        heard,
    )
    opened.callback(connection.close)
    return connection


def _random() -> random.Random:
    return random.Random()  # noqa: S311 - jitter, not secrets


def _refuse_another_generation(settings: Settings, identity: StoreIdentity) -> None:
    if identity.generation != settings.kafka.generation:
        raise StartRefused(
            f"kafka_generation is {settings.kafka.generation} and the rows in Cassandra are of generation {identity.generation}: give all "
            "processes the generation of the rows, or the keyspace of the rows of theirs"
        )
