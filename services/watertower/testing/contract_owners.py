"""What differs between a store that refuses a second owner (ports.Store.exclusive) and one that any number may write, as tests."""

import pytest

from watertower.core.fold import fold, touched
from watertower.core.model import Kind
from watertower.errors import StartRefused
from watertower.testing.contract_feed import message, plain
from watertower.testing.contract_store import PARTITIONS, StoreHarness, small_buckets, unapplied
from watertower.testing.replay import apply, at_ends, expected_rows, random_log, record, rows_of, write


class ExclusiveStoreContract:
    """One owner at a time; a flush shows with its sync or not at all."""

    def test_it_says_so(self, stores: StoreHarness) -> None:
        """The projector reads in another order then."""
        assert stores.owner().store.exclusive

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

    def test_it_says_so(self, stores: StoreHarness) -> None:
        """The projector reads in the order that this needs."""
        assert not stores.owner().store.exclusive

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
