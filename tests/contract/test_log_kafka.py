"""The log on a Kafka broker."""

from collections.abc import Iterator

import pytest

from tests.contract.kafka_harnesses import BOOTSTRAP, KafkaLogHarness, new_settings
from watertower.testing.contract_log import LogContract


@pytest.fixture
def log() -> Iterator[KafkaLogHarness]:
    """A log in a topic of its own."""
    harness = KafkaLogHarness(new_settings(BOOTSTRAP))
    yield harness
    harness.close()


class TestKafkaLog(LogContract):
    """A topic keeps every promise of a log."""
