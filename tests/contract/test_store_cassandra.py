"""The store in Cassandra keeps the promises of ports.Store, StoreReader and StoreScanner on a real node."""

from collections.abc import Iterator

import pytest

from tests.contract.cassandra_harness import CassandraHarness, keyspace
from watertower.backends.cassandra import CassandraConnection, CassandraSettings
from watertower.testing.contract_owners import SharedStoreContract
from watertower.testing.contract_store import StoreContract


@pytest.fixture(scope="module")
def connection(cassandra_settings: CassandraSettings) -> Iterator[CassandraConnection]:
    yield from keyspace(cassandra_settings, "contract")


@pytest.fixture
def stores(connection: CassandraConnection) -> CassandraHarness:
    return CassandraHarness(connection)


class TestCassandraStore(StoreContract, SharedStoreContract):
    """Any number of owners, on LOCAL_QUORUM."""
