"""The counts feed on a Kafka broker."""

from collections.abc import Iterator

import pytest
from kafka import KafkaProducer

from tests.contract.kafka_harnesses import CLOCK, KafkaFeedHarness, new_settings
from watertower.backends.kafka_feed import KafkaFeedReader
from watertower.backends.kafka_slices import SLICE_ENTRIES_MAX
from watertower.codec import encode_feed
from watertower.core.model import Metric
from watertower.errors import StartRefused
from watertower.ports import FeedMessage
from watertower.testing.contract_feed import FeedContract, message, plain, polled
from watertower.testing.contract_store import PARTITIONS, WAIT_S
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


def test_a_large_flush_comes_in_slices(stores: KafkaFeedHarness) -> None:
    """Whole, in order, its range with the last slice; metrics of actors go to their own topic, which says the same ranges."""
    owner, subjects = stores.owner(), stores.reader().feed
    actors = KafkaFeedReader(stores.settings, CLOCK, PARTITIONS, actors=True)
    assert subjects.poll() == actors.poll() == []
    count = 5_000
    entities, metrics = [f"e{n}" for n in range(count)], bytes([Metric.FOLLOWERS, Metric.FOLLOWERS, Metric.FOLLOWING, Metric.LIKES])
    owner.feed.publish([FeedMessage(1, 4, 9, 5_000, entities, metrics * (count // 4), range(count), [9] * count)])
    for feed, wanted in ((subjects, {Metric.FOLLOWERS, Metric.LIKES}), (actors, {Metric.FOLLOWING})):
        slices = polled(feed, -(-count * (3 if feed is subjects else 1) // 4 // SLICE_ENTRIES_MAX))
        assert [one.end for one in slices] == [4] * (len(slices) - 1) + [9]
        assert slices[-1].after == 4
        found = [value for one in slices for value in one.values]
        assert found == [n for n in range(count) if metrics[n % 4] in wanted]
    actors.close()


def test_what_cannot_be_decoded_is_left_out(stores: KafkaFeedHarness) -> None:
    """Noise, a message of a newer version, one without its name: the next range shows that something is missing."""
    owner, feed = stores.owner(), stores.reader().feed
    assert feed.poll() == []
    other = KafkaProducer(bootstrap_servers=stores.settings.bootstrap_servers)
    newer = bytearray(encode_feed(message(0, 0, 1)))
    newer[2] += 1
    for value, headers in ((b"noise", [("slice", b"1/1 x")]), (bytes(newer), [("slice", b"1/1 y")]), (encode_feed(message(0, 0, 1)), [])):
        other.send(stores.settings.subjects_topic, value, headers=headers, partition=0).get(WAIT_S)
    other.close()
    owner.feed.publish([message(0, 1, 2)])
    assert [plain(one) for one in polled(feed, 1)] == [message(0, 1, 2)]


def test_a_feed_of_another_number_of_partitions_is_refused(stores: KafkaFeedHarness) -> None:
    """It could not carry what is said of the log's partitions."""
    with pytest.raises(StartRefused, match="delete the topic and run `watertower topics create`"):
        KafkaFeedReader(stores.settings, CLOCK, PARTITIONS + 1)
