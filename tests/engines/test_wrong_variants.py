"""On real engines, under fixed schedules: what the design forbids fails, and the product does not.

Each run of a schedule has a partition of the log of its own, with accounts of its own, so that all of them share one keyspace.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
from structlog.testing import capture_logs

from tests.contract.cassandra_harness import connect
from tests.contract.kafka_harnesses import CLOCK, new_settings
from tests.engines.schedules import SCHEDULES, append, events_of, recount, seen, violation
from tests.engines.wrong_variants import REORDERED, RIGHT, WRONG, Variant
from watertower.backends.cassandra import CassandraConnection, CassandraScanner, CassandraSettings, CassandraStore, migrate
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.backends.kafka_topics import TopicsPlan, create_topics, log_identity
from watertower.backends.kafka_writer import KafkaLogWriter
from watertower.backends.memory_log import MemoryLog
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, unique_name
from watertower.testing.engines.fixtures import engine_or_skip

REQUEST_MS = 5_000
"""ms of one attempt of a statement: the nodes share their machine."""

IDENTITY = LogIdentity("0123456789abcdef" * 2, 128)


@contextlib.contextmanager
def keyspace(engine: CassandraEngine, identity: LogIdentity) -> Iterator[CassandraConnection]:
    """A connection to a keyspace of its own, gone at the end."""
    points = [node.address.partition(":") for node in engine.nodes]
    name = unique_name("variants")
    connection = connect(
        CassandraSettings(
            tuple(host for host, _, _ in points), int(points[0][2]), engine.local_datacenter, name, request_timeout_ms=REQUEST_MS
        )
    )
    try:
        migrate(connection, StoreIdentity(identity, 1), {engine.local_datacenter: min(len(engine.nodes), 3)})
        yield connection
        connection.query(f"DROP KEYSPACE IF EXISTS {name}")
    finally:
        connection.close()


class Bench:
    """A log in memory, rows in Cassandra, and partitions that nobody used."""

    def __init__(self, connection: CassandraConnection) -> None:
        self._connection = connection
        self._log = MemoryLog(IDENTITY)
        self._partitions = itertools.count()

    def violations(self, variant: Variant) -> Iterator[tuple[str, str]]:
        """(schedule, what came out wrong) of each schedule."""
        with contextlib.ExitStack() as patched:
            for owner, name, replacement in variant.patches:
                patched.enter_context(patch.object(owner, name, replacement))
            for schedule in SCHEDULES:
                partition = next(self._partitions)
                events = events_of(partition, IDENTITY.partitions)
                append(self._log, partition, events)
                scanner = CassandraScanner(self._connection)
                yield (
                    schedule,
                    violation(schedule, partition, self._log, lambda: CassandraStore(self._connection), scanner, events, variant.projector),
                )


@pytest.fixture(scope="module")
def bench(cassandra_engine: CassandraEngine) -> Iterator[Bench]:
    with keyspace(cassandra_engine, IDENTITY) as connection:
        yield Bench(connection)


@pytest.mark.slow
@pytest.mark.parametrize("variant", WRONG, ids=[variant.name for variant in WRONG])
def test_a_wrong_flush_is_caught(bench: Bench, variant: Variant) -> None:
    """Within the twenty schedules, by rows that differ from a recount or by the alarm."""
    caught = next(((schedule, wrong) for schedule, wrong in bench.violations(variant) if wrong), None)
    print(f"{variant.name}: {caught}")
    assert caught is not None


@pytest.mark.slow
@pytest.mark.parametrize("variant", [RIGHT, REORDERED], ids=lambda variant: variant.name)
def test_the_right_flush_passes_every_schedule(bench: Bench, variant: Variant) -> None:
    """The product, and the same order written out as the wrong ones are: it is the change in them that is caught."""
    assert len(SCHEDULES) <= 20
    assert [(schedule, wrong) for schedule, wrong in bench.violations(variant) if wrong] == []


@pytest.mark.slow
def test_a_zombie_on_kafka_and_cassandra(cassandra_engine: CassandraEngine, kafka_engine: KafkaEngine) -> None:
    """The log in a real broker: the right flush passes, and one whose edges go first is caught, as with the log in memory."""
    settings = replace(new_settings(kafka_engine), request_timeout_ms=30_000)
    create_topics(settings, TopicsPlan(2), CLOCK)
    identity = log_identity(settings, CLOCK)
    schedules = {0: ("A:edges B B B A", RIGHT), 1: ("A:edges A! B B", WRONG[0])}
    with keyspace(cassandra_engine, identity) as connection:
        writer = KafkaLogWriter(settings, CLOCK)
        log = KafkaLogReader(settings, CLOCK)
        try:
            found = {}
            for partition, (schedule, variant) in schedules.items():
                events = events_of(partition, identity.partitions)
                append(writer, partition, events)
                found[partition] = violation(
                    schedule, partition, log, lambda: CassandraStore(connection), CassandraScanner(connection), events, variant.projector
                )
        finally:
            log.close()
            writer.close()
    print(found)
    assert found[0] == ""
    assert found[1].startswith("alarm")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_edges_that_reached_one_node_of_three() -> None:
    """Two of three nodes are frozen while the edges of a flush are written, and then the third while another owner takes over: with any two
    nodes, what is read in the end is a recount."""
    with engine_or_skip(cassandra(nodes=3, own=True)) as engine, keyspace(engine, IDENTITY) as connection:
        first, *others = engine.nodes
        partition, schedule = 7, "B A:derived @others-frozen A A! @first-frozen B B B B @first-back C"
        events = events_of(partition, IDENTITY.partitions)
        log = MemoryLog(IDENTITY)
        append(log, partition, events)

        def freeze_first() -> None:
            for node in others:
                node.resume()
            first.pause()

        between = {
            "others-frozen": lambda: [node.pause() for node in others],
            "first-frozen": freeze_first,
            "first-back": first.resume,
        }
        scanner = CassandraScanner(connection)
        with capture_logs() as said:
            assert violation(schedule, partition, log, lambda: CassandraStore(connection), scanner, events, between=between) == ""
        assert "flush_failed" in {one["event"] for one in said}  # A's, half-way
        for node in engine.nodes:
            node.pause()
            assert seen(scanner, partition) == recount(events)
            node.resume()
