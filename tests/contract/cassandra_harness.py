"""How the tests open the store on a real Cassandra node: a keyspace a module, emptied before each test."""

import random
from collections.abc import Iterator
from dataclasses import replace

from tests.contract.store_harnesses import FEED_MESSAGES_MAX, IDENTITY
from watertower.backends.cassandra import (
    CassandraConnection,
    CassandraReader,
    CassandraScanner,
    CassandraSettings,
    CassandraStore,
    migrate,
)
from watertower.backends.memory import MemoryFeed, MemoryRows
from watertower.clock import SystemClock
from watertower.ports import StoreIdentity, StoreScanner
from watertower.testing.contract_store import Owner, Reading

ROW_TABLES = ("edges", "counts", "lists", "progress")


def connect(settings: CassandraSettings) -> CassandraConnection:
    return CassandraConnection(settings, SystemClock(), random.Random(1))


def keyspace(settings: CassandraSettings, name: str) -> Iterator[CassandraConnection]:
    """A connection to a new keyspace of this name, migrated; gone at the end."""
    connection = connect(replace(settings, keyspace=name))
    connection.query(f"DROP KEYSPACE IF EXISTS {name}")
    migrate(connection, IDENTITY, {settings.local_dc: 1})
    yield connection
    connection.query(f"DROP KEYSPACE IF EXISTS {name}")
    connection.close()


class CassandraHarness:
    """Any number of owners and readers on one connection. The feed is the memory's: Kafka's is tested with Kafka."""

    identity: StoreIdentity = IDENTITY
    feed_messages_max = FEED_MESSAGES_MAX

    def __init__(self, connection: CassandraConnection) -> None:
        """Empties the tables: TRUNCATE takes a third of a second each, so only those that have rows."""
        self.connection = connection
        for table in ROW_TABLES:
            if connection.query(f"SELECT * FROM {connection.settings.keyspace}.{table} LIMIT 1"):
                connection.query(f"TRUNCATE {connection.settings.keyspace}.{table}")
        self._feed = MemoryRows(IDENTITY, FEED_MESSAGES_MAX)

    def owner(self) -> Owner:
        return Owner(CassandraStore(self.connection, IDENTITY), MemoryFeed(self._feed))

    def reader(self) -> Reading:
        return Reading(CassandraReader(self.connection, IDENTITY), MemoryFeed(self._feed))

    def scanner(self) -> StoreScanner:
        return CassandraScanner(self.connection, IDENTITY)
