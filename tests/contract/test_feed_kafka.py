"""The counts feed on a Kafka broker."""

from collections.abc import Iterator

import pytest

from tests.contract.kafka_harnesses import KafkaFeedHarness, new_settings
from watertower.testing.contract_feed import FeedContract
from watertower.testing.engines import KafkaEngine

pytestmark = pytest.mark.slow


@pytest.fixture
def stores(kafka_engine: KafkaEngine) -> Iterator[KafkaFeedHarness]:
    """A feed in topics of its own."""
    harness = KafkaFeedHarness(new_settings(kafka_engine))
    yield harness
    harness.close()


class TestKafkaFeed(FeedContract):
    """Two topics keep every promise of a feed."""
