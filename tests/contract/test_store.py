"""The stores keep the promises of ports.Store, StoreReader, StoreScanner, CountsFeed and FeedReader."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.store_harnesses import MemoryHarness, RocksDbHarness
from watertower.testing.contract_feed import FeedContract
from watertower.testing.contract_store import StoreContract


class TestMemoryStore(StoreContract, FeedContract):
    """The store of the tests: any number of owners."""

    @pytest.fixture
    def stores(self) -> MemoryHarness:
        return MemoryHarness()


class TestRocksDbStore(StoreContract, FeedContract):
    """The embedded store: one owner."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Iterator[RocksDbHarness]:
        harness = RocksDbHarness(tmp_path)
        yield harness
        harness.close()
