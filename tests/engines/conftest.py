"""Engines that the tests of this folder may hurt, started once for all of them. Each test leaves them running."""

from collections.abc import Iterator

import pytest

from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka
from watertower.testing.engines.fixtures import engine_or_skip


@pytest.fixture(scope="package")
def own_kafka() -> Iterator[KafkaEngine]:
    """One broker."""
    with engine_or_skip(kafka(own=True)) as engine:
        yield engine


@pytest.fixture(scope="package")
def own_cassandra() -> Iterator[CassandraEngine]:
    """One node."""
    with engine_or_skip(cassandra(own=True)) as engine:
        yield engine
