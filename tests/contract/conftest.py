"""A real Cassandra node for the tests that need one."""

import pytest

from tests.contract.cassandra_harness import settings_of
from watertower.backends.cassandra import CassandraSettings
from watertower.testing.engines import CassandraEngine


@pytest.fixture(scope="session")
def cassandra_settings(cassandra_engine: CassandraEngine) -> CassandraSettings:
    """How to reach the node."""
    return settings_of(cassandra_engine)
