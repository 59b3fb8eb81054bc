"""A real Cassandra node for the tests that need one."""

import os

import pytest

from tests.needs import skip_or_fail
from watertower.backends.cassandra import CassandraSettings


@pytest.fixture(scope="session")
def cassandra_settings() -> CassandraSettings:
    """How to reach the node."""
    address = os.environ.get("WATERTOWER_TEST_CASSANDRA", "")
    if not address:
        skip_or_fail("WATERTOWER_TEST_CASSANDRA=host:port names no Cassandra node")
    host, _, port = address.partition(":")
    return CassandraSettings(contact_points=(host,), port=int(port))
