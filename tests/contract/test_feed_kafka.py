"""The counts feed on a Kafka broker."""

from collections.abc import Iterator

import pytest
from kafka import KafkaProducer

from tests.contract.kafka_harnesses import CLOCK, IGNORE_SOCKETS, KafkaFeedHarness, new_settings
from watertower.backends.kafka_feed import KafkaFeedReader
from watertower.backends.kafka_slices import SLICE_ENTRIES_MAX
from watertower.codec import encode_feed
from watertower.core.model import Metric
from watertower.errors import StartRefused
from watertower.ports import FeedMessage
from watertower.testing.contract_feed import FeedContract, assert_same, message, polled
from watertower.testing.contract_store import PARTITIONS, WAIT_S
from watertower.testing.engines import KafkaEngine

pytestmark = [pytest.mark.slow, IGNORE_SOCKETS]


@pytest.fixture
def stores(kafka_engine: KafkaEngine) -> Iterator[KafkaFeedHarness]:
    """A feed in topics of its own."""
    harness = KafkaFeedHarness(new_settings(kafka_engine))
    yield harness
    harness.close()


class TestKafkaFeed(FeedContract):
    """Two topics keep every promise of a feed."""


def test_a_large_flush_comes_in_slices(stores: KafkaFeedHarness) -> None:
    """At most so many entries each, in order within a topic; its range comes with the last slice of both."""
    owner, feed = stores.owner(), stores.reader().feed
    assert feed.poll() == []
    count = 4 * SLICE_ENTRIES_MAX
    metrics = bytes([Metric.FOLLOWERS, Metric.FOLLOWERS, Metric.FOLLOWING, Metric.LIKES]) * (count // 4)
    owner.feed.publish([FeedMessage(1, 4, 9, 5_000, [f"e{n}" for n in range(count)], metrics, range(count), [9] * count)])
    slices = polled(feed, 1)
    assert [len(one.values) for one in slices] == [SLICE_ENTRIES_MAX] * 4
    assert [(one.after, one.end, one.as_of) for one in slices] == [(-1, -1, 0)] * 3 + [(4, 9, 5_000)]
    for topic in ({Metric.FOLLOWERS, Metric.LIKES}, {Metric.FOLLOWING}):
        of_topic = [value for one in slices if set(one.metrics) <= topic for value in one.values]
        assert of_topic == [n for n in range(count) if metrics[n] in topic]


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
    assert_same(polled(feed, 1), [message(0, 1, 2)])


def test_a_feed_of_another_number_of_partitions_is_refused(stores: KafkaFeedHarness) -> None:
    """It could not carry what is said of the log's partitions."""
    with pytest.raises(StartRefused, match="delete the topic and run `watertower topics create`"):
        KafkaFeedReader(stores.settings, CLOCK, PARTITIONS + 1)
