"""What ports.CountsFeed and FeedReader promise, as tests."""

from collections.abc import Iterable

from watertower.core.model import Metric, Progress
from watertower.ports import FeedMessage, FeedReader
from watertower.testing.contract_store import IDS, PARTITIONS, WAIT_S, StoreHarness
from watertower.testing.service import wait_until


def message(partition: int, after: int, end: int, value: int = 0) -> FeedMessage:
    """A message about every id of the contract."""
    count = len(IDS)
    return FeedMessage(
        partition, after, end, 1_000 * (end + 1), IDS, bytes([Metric.LIKES]) * count, [value + n for n in range(count)], [end] * count
    )


def plain(found: FeedMessage) -> FeedMessage:
    """The same, with columns that compare."""
    return found._replace(entities=list(found.entities), values=list(found.values), offsets=list(found.offsets))


def polled(feed: FeedReader, count: int) -> list[FeedMessage]:
    """So many messages, and what else comes with them: each may take a moment after its publish."""
    found: list[FeedMessage] = []

    def arrived() -> bool:
        found.extend(feed.poll())
        return len(found) >= count

    wait_until(arrived, f"{count} messages", WAIT_S)
    return found


def of_partition(messages: Iterable[FeedMessage], partition: int) -> list[FeedMessage]:
    """In order, in a form that compares."""
    return [plain(message) for message in messages if message.partition == partition]


class FeedContract:
    """The promises. Every back end passes all of them."""

    def test_the_first_poll_starts_at_the_end(self, stores: StoreHarness) -> None:
        """What was published before a reader's first poll is not for it; what comes after is."""
        owner = stores.owner()
        owner.feed.publish([message(0, -1, 0)])
        owner.store.sync()
        feed = stores.reader().feed
        assert feed.poll() == []
        assert feed.poll() == []
        owner.feed.publish([message(0, 0, 1)])
        owner.store.sync()
        assert [plain(found) for found in polled(feed, 1)] == [message(0, 0, 1)]
        assert feed.poll() == []

    def test_messages_come_in_order_and_as_they_were(self, stores: StoreHarness) -> None:
        """Ranges, moments and columns, heartbeats with none, from several flushes of several partitions: to every reader."""
        owner = stores.owner()
        readers = [stores.reader().feed, stores.reader().feed]
        assert [feed.poll() for feed in readers] == [[], []]
        published = []
        for end in range(5):
            flush = [message(0, end - 1, end, 2**40), message(2, 10 * end, 10 * end + 10), FeedMessage(1, 7, 7, end, (), b"", (), ())]
            owner.feed.publish(flush)
            owner.store.sync()
            published += flush
        for feed in readers:
            found = polled(feed, len(published))
            for partition in range(PARTITIONS):
                assert of_partition(found, partition) == of_partition(published, partition)

    def test_a_reader_that_polls_has_the_rows_too(self, stores: StoreHarness) -> None:
        """When a message is there, the progress that it tells of is there."""
        owner = stores.owner()
        reader = stores.reader()
        assert reader.feed.poll() == []
        for end in range(20):
            owner.store.write_progress({0: Progress(end, b"12345678", end)})
            owner.feed.publish([message(0, end - 1, end)])
            owner.store.sync()
            assert [found.end for found in polled(reader.feed, 1)] == [end]
            assert reader.store.read_progress()[0].end >= end

    def test_the_feed_is_bounded_and_shows_what_is_missing(self, stores: StoreHarness) -> None:
        """A reader that is far behind gets the last feed_messages_max messages; the first range does not join on to its last."""
        owner = stores.owner()
        feed = stores.reader().feed
        assert feed.poll() == []
        count = 3 * stores.feed_messages_max + 1
        for end in range(count):
            owner.feed.publish([message(0, end - 1, end)])
            if end % 3 == 0:
                owner.store.sync()
        owner.store.sync()
        found = polled(feed, stores.feed_messages_max)
        assert [one.end for one in found] == list(range(count - stores.feed_messages_max, count))
        assert found[0].after > -1

    def test_the_feed_goes_on_with_the_next_owner(self, stores: StoreHarness) -> None:
        """A reader misses nothing when the owner is another one."""
        owner = stores.owner()
        feed = stores.reader().feed
        assert feed.poll() == []
        for end in range(6):
            owner.feed.publish([message(0, end - 1, end)])
            owner.store.sync()
            owner.store.close()
            owner = stores.owner()
        assert [one.end for one in polled(feed, 6)] == list(range(6))
