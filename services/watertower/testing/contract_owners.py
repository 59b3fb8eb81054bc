"""What differs between stores, as tests: whether a second owner is refused or any number may write, and whether a scan is of one moment."""

import threading

import pytest

from watertower.core.fold import fold, touched
from watertower.core.model import Kind, Metric, Shard
from watertower.errors import StartRefused
from watertower.testing.contract_feed import message, plain
from watertower.testing.contract_store import PARTITIONS, WAIT_S, StoreHarness, small_buckets, unapplied
from watertower.testing.replay import apply, at_ends, expected_rows, random_log, record, rows_of, write


class ExclusiveStoreContract:
    """One owner at a time; a flush shows with its sync or not at all."""

    def test_a_second_owner_is_refused(self, stores: StoreHarness) -> None:
        """While the first one lives."""
        first = stores.owner()
        with pytest.raises(StartRefused, match="in use"):
            stores.owner()
        first.store.close()
        stores.owner()

    def test_abandoned_rows_never_show(self, stores: StoreHarness) -> None:
        """Held back and abandoned, rows are not written by a later sync."""
        owner = stores.owner()
        apply(*owner, [record(0, 0, [("a", Kind.FOLLOW, "s", "", True, 5)])], sync=False)
        owner.store.abandon()
        owner.store.sync()
        assert rows_of(stores.scanner()) == expected_rows([])

    def test_abandoned_messages_never_show(self, stores: StoreHarness) -> None:
        """A message shows with the sync of its flush or not at all; the next one takes its place."""
        owner = stores.owner()
        feed = stores.reader().feed
        assert feed.poll() == []
        owner.feed.publish([message(0, -1, 0, 111)])
        assert feed.poll() == []
        owner.store.abandon()
        owner.feed.publish([message(0, -1, 0, 222)])
        owner.store.sync()
        assert [plain(found) for found in feed.poll()] == [message(0, -1, 0, 222)]


class SharedStoreContract:
    """Any number of owners; an abandoned flush may have been written, and readers compare positions."""

    def test_a_former_owner_does_no_harm(self, stores: StoreHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it writes late, in any order, loses."""
        small_buckets(monkeypatch)
        log = random_log(11, PARTITIONS, 30)
        former = stores.owner()
        apply(*former, log[:8])
        keys = touched(log[8:16])
        late = fold(log[8:16], former.store.read_edges(keys.edges), former.store.read_shards(keys.shards))
        owner = stores.owner()
        for part in unapplied(owner.store, log, [3, 7, 30]):
            apply(*owner, part)
        before = rows_of(stores.scanner())
        for steps in ([0, 1, 2], [2, 1, 0], [1], [0]):
            write(*former, late, steps)
            assert rows_of(stores.scanner()) == before
        assert at_ends(before) == at_ends(expected_rows(log))


class SnapshotContract:
    """A scan, and what is read of an entity, is of one moment, whatever is written meanwhile."""

    def test_a_scan_is_of_one_moment_while_the_owner_writes(self, stores: StoreHarness) -> None:
        """Edges, counts, lists and progress of one scan belong together, however long it takes and whatever happens meanwhile."""
        log = random_log(5, PARTITIONS, 60)
        owner = stores.owner()
        for one in log[:30]:
            apply(*owner, [one])
        scanner = stores.scanner()
        edges = scanner.edges()
        first = next(edges)
        for one in log[30:]:
            apply(*owner, [one])
        assert {first.key: first.edge} | dict(edges) == expected_rows(log[:30]).edges
        assert rows_of(scanner) == expected_rows(log[:30])
        assert rows_of(stores.scanner()) == expected_rows(log)

    def test_an_entity_is_read_as_of_one_moment(self, stores: StoreHarness) -> None:
        """All of its shards, while the owner writes them together."""
        owner = stores.owner()
        reader = stores.reader().store
        done = threading.Event()
        problems: list[str] = []

        def read() -> None:
            while not done.is_set():
                reader.catch_up()
                values = {shard.value for shard in reader.read_entities(["a"])[0].values()}
                if len(values) > 1:
                    problems.append(str(values))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for offset in range(200):
            owner.store.write_derived({("a", metric, 0): Shard(offset, 0, (), offset) for metric in Metric}, {})
            owner.store.sync()
        done.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert problems == []
