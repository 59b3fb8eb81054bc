"""The logs keep the promises of ports.LogWriter and ports.LogReader."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.log_harnesses import MemoryHarness, SqliteHarness
from watertower.testing.contract_log import LogContract


class TestMemoryLog(LogContract):
    """The log of the tests."""

    @pytest.fixture
    def log(self) -> MemoryHarness:
        return MemoryHarness()


class TestSqliteLog(LogContract):
    """The embedded log."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[SqliteHarness]:
        harness = SqliteHarness(tmp_path)
        yield harness
        harness.close()
