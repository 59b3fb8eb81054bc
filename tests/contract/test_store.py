"""The stores keep the promises of ports.Store, StoreReader, StoreScanner, CountsFeed and FeedReader."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.store_harnesses import MemoryHarness, RocksDbHarness
from watertower.core.model import Kind, ListChange
from watertower.testing.contract_feed import FeedContract
from watertower.testing.contract_owners import ExclusiveStoreContract, SharedStoreContract, SnapshotContract
from watertower.testing.contract_store import StoreContract


class TestMemoryStore(StoreContract, FeedContract, SharedStoreContract, SnapshotContract):
    """The store of the tests: any number of owners."""

    @pytest.fixture
    def stores(self) -> MemoryHarness:
        return MemoryHarness()

    def test_a_delete_beats_the_value_of_its_position(self, stores: MemoryHarness) -> None:
        """Whichever comes first; a later position beats both."""
        store = stores.owner().store
        first, second = (("s", int(Kind.FOLLOW), 0, 0, 5, actor, "") for actor in ("a", "b"))
        store.write_derived({}, {first: ListChange(False, 7), second: ListChange(True, 7)})
        store.write_derived({}, {first: ListChange(True, 7), second: ListChange(False, 7)})
        assert list(stores.scanner().subject_lists()) == []
        store.write_derived({}, {first: ListChange(True, 8)})
        assert list(stores.scanner().subject_lists()) == [first]


class TestRocksDbStore(StoreContract, FeedContract, ExclusiveStoreContract, SnapshotContract):
    """The embedded store: one owner."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Iterator[RocksDbHarness]:
        harness = RocksDbHarness(tmp_path)
        yield harness
        harness.close()
