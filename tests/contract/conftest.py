"""A real Cassandra node for the tests that need one."""

import pytest

from watertower.backends.cassandra import CassandraSettings
from watertower.testing.engines import CassandraEngine


@pytest.fixture(scope="session")
def cassandra_settings(cassandra_engine: CassandraEngine) -> CassandraSettings:
    """How to reach the node."""
    hosts, ports = zip(*(address.rsplit(":", 1) for address in cassandra_engine.contact_points.split(",")), strict=True)
    return CassandraSettings(contact_points=hosts, port=int(ports[0]), local_dc=cassandra_engine.local_datacenter)
