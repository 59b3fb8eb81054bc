"""The log on a Kafka broker."""

from collections.abc import Iterator

import pytest

from tests.contract.kafka_harnesses import KafkaLogHarness, new_settings
from watertower.testing.contract_log import LogContract
from watertower.testing.engines import KafkaEngine

pytestmark = pytest.mark.slow


@pytest.fixture
def log(kafka_engine: KafkaEngine) -> Iterator[KafkaLogHarness]:
    """A log in a topic of its own."""
    harness = KafkaLogHarness(new_settings(kafka_engine))
    yield harness
    harness.close()


class TestKafkaLog(LogContract):
    """A topic keeps every promise of a log."""
