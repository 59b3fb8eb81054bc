"""How the tests open the store on a real Cassandra node: a keyspace a module, emptied before each test; and what they send."""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cassandra.protocol import BatchMessage, ExecuteMessage, QueryMessage
from cassandra.query import BatchType

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
from watertower.testing.engines import CassandraEngine, unique_name

ROW_TABLES = ("edges", "counts", "lists", "progress")


def settings_of(engine: CassandraEngine, **changes: Any) -> CassandraSettings:
    """How to reach an engine."""
    hosts, ports = zip(*(address.rsplit(":", 1) for address in engine.contact_points.split(",")), strict=True)
    settings = CassandraSettings(contact_points=hosts, port=int(ports[0]), local_dc=engine.local_datacenter)
    return replace(settings, **changes)


def connect(settings: CassandraSettings) -> CassandraConnection:
    return CassandraConnection(settings, SystemClock(), random.Random(1))


@contextmanager
def new_keyspace(settings: CassandraSettings, copies: int = 1) -> Iterator[CassandraConnection]:
    """A connection to a keyspace that nobody used, migrated; gone at the end."""
    connection = connect(replace(settings, keyspace=unique_name("contract")))
    try:
        migrate(connection, IDENTITY, {settings.local_dc: copies})
        yield connection
    finally:
        connection.query(f"DROP KEYSPACE IF EXISTS {connection.settings.keyspace}")
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


class Sent:
    """Every statement that the driver sends on a connection, as text; and what is wrong with them."""

    def __init__(self, connection: CassandraConnection) -> None:
        self._session = connection._session
        self._session.add_request_init_listener(self._on_request)
        self.statements: list[str] = []
        self.consistencies: list[int] = []
        self.batches: list[list[tuple[str, list[bytes]]]] = []
        self.problems: list[str] = []

    def stop(self) -> None:
        self._session.remove_request_init_listener(self._on_request)

    def _on_request(self, future: Any) -> None:
        message = future.message
        if isinstance(message, QueryMessage):
            texts = [message.query]
        elif isinstance(message, ExecuteMessage):
            texts = [self._prepared(message.query_id)]
        elif isinstance(message, BatchMessage):
            if message.batch_type not in (BatchType.UNLOGGED, BatchType.UNLOGGED.value):
                self.problems.append(f"a batch of type {message.batch_type}")
            texts = [self._prepared(query) if prepared else query for prepared, query, _ in message.queries]
            self.batches.append([(text, values) for text, (_, _, values) in zip(texts, message.queries, strict=True)])
        else:
            self.problems.append(f"a message that this test does not know: {type(message).__name__}")
            return
        self.statements += texts
        self.consistencies.append(message.consistency_level)
        self.problems += filter(None, map(problem_of, texts))

    def _prepared(self, query_id: bytes) -> str:
        text: str = self._session.cluster._prepared_statements[query_id].query_string
        return text


def problem_of(statement: str) -> str | None:
    """What a statement must not do to rows whose write timestamps are positions."""
    text = " ".join(statement.upper().split())
    verb = text.partition(" ")[0]
    if verb in ("SELECT", "USE", "TRUNCATE", "DROP"):  # the last two: these tests themselves
        return None
    if verb in ("CREATE", "ALTER"):
        return f"a counter column: {statement}" if re.search(r"\bCOUNTER\b", text.partition(" WITH ")[0]) else None
    if verb not in ("INSERT", "UPDATE", "DELETE"):
        return f"of an unknown kind: {statement}"
    if "USING TIMESTAMP " not in text:
        return f"no explicit timestamp: {statement}"
    if re.search(r"\bIF\b", text):
        return f"a lightweight transaction: {statement}"
    if re.search(r"\bTTL\b", text):
        return f"a TTL: {statement}"
    if verb == "UPDATE" and re.search(r"SET .*?(\w+) = \1 [+-]", text):
        return f"an increment: {statement}"
    return None
