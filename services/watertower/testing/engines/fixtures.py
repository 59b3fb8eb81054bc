"""For pytest: engines that all tests of a run share. A conftest imports the fixtures.

Where no engine can be had, the tests that want one are skipped with the reason; with WATERTOWER_REQUIRE_ENGINES=1 they fail.
Tests keep out of each other's way by `unique_name` for topics, keyspaces and groups. A test that hurts nodes takes an engine of its own:

    with engine_or_skip(kafka(nodes=3, own=True)) as engine:
        engine.nodes[0].kill()
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

import pytest

from watertower.testing.engines import CassandraEngine, Engine, EngineUnavailable, KafkaEngine, cassandra, kafka

REQUIRE = "WATERTOWER_REQUIRE_ENGINES"

_E = TypeVar("_E", bound=Engine)


@contextmanager
def engine_or_skip(start: AbstractContextManager[_E]) -> Iterator[_E]:
    """The engine; skips the test where there is none, or fails it where engines are required."""
    with ExitStack() as running:
        try:
            engine = running.enter_context(start)
        except EngineUnavailable as error:
            if os.environ.get(REQUIRE) == "1":
                pytest.fail(f"{REQUIRE}=1: {error}")
            pytest.skip(str(error))
        yield engine


@pytest.fixture(scope="session")
def kafka_engine() -> Iterator[KafkaEngine]:
    """One broker, shared by all tests of the run; never to be stopped."""
    with engine_or_skip(kafka()) as engine:
        yield engine


@pytest.fixture(scope="session")
def cassandra_engine() -> Iterator[CassandraEngine]:
    """One node, shared by all tests of the run; never to be stopped."""
    with engine_or_skip(cassandra()) as engine:
        yield engine
