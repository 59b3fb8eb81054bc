"""What all tests share."""

import os
import random
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from watertower.testing.engines.fixtures import cassandra_engine, kafka_engine

__all__ = ["cassandra_engine", "kafka_engine"]

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that go by the shared engines, so that they can be run on another provider alone (`-m engines`)."""
    for item in items:
        if {"kafka_engine", "cassandra_engine"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("engines")


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """A command that a test calls in this process sets up the logs of the whole process: not for the tests after it."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness whose seed is printed with a failure; WATERTOWER_TEST_SEED gives one."""
    seed = int(os.environ.get("WATERTOWER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed} (repeat with WATERTOWER_TEST_SEED={seed})")
    return random.Random(seed)
