"""What ports.CountsFeed and FeedReader promise, as tests."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
    """So many whole messages, in their parts, and what else comes with them: each may take a moment after its publish."""
    found: list[FeedMessage] = []

    def arrived() -> bool:
        found.extend(feed.poll())
        return len(claims(found)) >= count

    wait_until(arrived, f"{count} messages", WAIT_S)
    return found


class Claim(NamedTuple):
    """What a whole message claims."""

    partition: int
    after: int
    end: int
    as_of: int


def claims(messages: Iterable[FeedMessage], partition: int | None = None) -> list[Claim]:
    """In order; of one partition, or of all."""
    return [Claim(*one[:4]) for one in messages if one.as_of and partition in (None, one.partition)]


def entries(messages: Iterable[FeedMessage], partition: int) -> list[tuple[str, int, int, int]]:
    """(entity, metric, value, offset) of all messages of a partition, in order, whatever parts they came in."""
    return [entry for one in messages if one.partition == partition for entry in zip(*one[4:], strict=True)]


def assert_same(found: Sequence[FeedMessage], published: Sequence[FeedMessage]) -> None:
    """Each partition's claims and entries, in order; no entry comes after the claim that includes it."""
    for partition in range(PARTITIONS):
        assert claims(found, partition) == claims(published, partition)
        assert entries(found, partition) == entries(published, partition)
        claimed = -1
        for one in found:
            if one.partition == partition:
                assert all(offset > claimed for offset in one.offsets)
                claimed = max(claimed, one.end)


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
        assert_same(polled(feed, 1), [message(0, 0, 1)])
        assert feed.poll() == []

    def test_messages_come_in_order_and_as_they_were(self, stores: StoreHarness) -> None:
        """Ranges, moments and columns, heartbeats with none, from several flushes of several partitions: to every reader."""
        owner = stores.owner()
        readers = [stores.reader().feed, stores.reader().feed]
        assert [feed.poll() for feed in readers] == [[], []]
        published = []
        for end in range(5):
            flush = [message(0, end - 1, end, 2**40), message(2, 10 * end, 10 * end + 10), FeedMessage(1, 7, 7, end + 1, (), b"", (), ())]
            owner.feed.publish(flush)
            owner.store.sync()
            published += flush
        for feed in readers:
            assert_same(polled(feed, len(published)), published)

    def test_a_large_message_comes_whole(self, stores: StoreHarness) -> None:
        """Thousands of shards, of subjects and of actors: in any parts, claimed when all are there."""
        owner, feed = stores.owner(), stores.reader().feed
        assert feed.poll() == []
        count = 5_000
        metrics = bytes([Metric.FOLLOWERS, Metric.FOLLOWING, Metric.LIKES, Metric.FOLLOWERS]) * (count // 4)
        large = FeedMessage(1, 4, 9, 5_000, [f"e{n}" for n in range(count)], metrics, range(count), [9] * count)
        owner.feed.publish([large])
        owner.store.sync()
        found = polled(feed, 1)
        assert claims(found) == claims([large])
        assert sorted(entries(found, 1)) == sorted(entries([large], 1))
        assert found[-1].end == 9

    def test_a_reader_that_polls_has_the_rows_too(self, stores: StoreHarness) -> None:
        """When a message is there, the progress that it tells of is there."""
        owner = stores.owner()
        reader = stores.reader()
        assert reader.feed.poll() == []
        for end in range(20):
            owner.store.write_progress({0: Progress(end, b"12345678", end)})
            owner.feed.publish([message(0, end - 1, end)])
            owner.store.sync()
            assert [claim.end for claim in claims(polled(reader.feed, 1))] == [end]
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
        assert [claim.end for claim in claims(found)] == list(range(count - stores.feed_messages_max, count))
        assert claims(found)[0].after > -1

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
        assert [claim.end for claim in claims(polled(feed, 6))] == list(range(6))
