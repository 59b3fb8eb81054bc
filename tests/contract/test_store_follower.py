"""The reader in a child process keeps the contract of the readers, and what it promises beyond: its child may die, and ends with it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.store_harnesses import IDENTITY, MIB, RocksDbHarness, open_store
from watertower.backends.rocksdb_follower import RocksDbFollower
from watertower.core.model import Metric, Progress, Shard
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import FeedMessage, LogIdentity, StoreIdentity
from watertower.testing.contract_feed import FeedContract
from watertower.testing.contract_owners import ExclusiveStoreContract, SnapshotContract
from watertower.testing.contract_store import StoreContract

WAIT_S = 30.0


def message(end: int) -> FeedMessage:
    return FeedMessage(0, end - 1, end, 1, ["star"], bytes([Metric.FOLLOWERS]), [end], [end])


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError("did not come true in time")
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestFollower(StoreContract, FeedContract, ExclusiveStoreContract, SnapshotContract):
    """The embedded store, read through a child."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> Iterator[RocksDbHarness]:
        harness = RocksDbHarness(tmp_path, RocksDbFollower)
        yield harness
        harness.close()


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[RocksDbFollower]:
    store = open_store(tmp_path / "store")
    follower = RocksDbFollower(tmp_path / "store", tmp_path / "own", IDENTITY, MIB)
    try:
        store.write_derived({("star", int(Metric.FOLLOWERS), 0): Shard(3, 3, (), 2)}, {})
        store.write_progress({0: Progress(2, b"12345678", 5)})
        store.sync()
        yield follower
    finally:
        follower.close()
        store.close()


def test_a_child_that_is_killed_is_started_again(follower: RocksDbFollower) -> None:
    """One call says that the store is unavailable, for now; the next one is answered. Nobody restarts anything by hand."""
    pid = follower.pid
    assert pid is not None
    follower.catch_up()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BackendUnavailable, match="starts it again"):
        follower.read_entities(["star"])[0]
    assert follower.read_entities(["star"])[0] == {(int(Metric.FOLLOWERS), 0): Shard(3, 3, (), 2)}
    assert follower.pid != pid


def test_what_a_dead_child_missed_shows_as_a_gap(tmp_path: Path) -> None:
    """The new child begins at the feed's end: the ranges of what comes next do not join on to what was seen."""
    store = open_store(tmp_path / "store")
    follower = RocksDbFollower(tmp_path / "store", tmp_path / "own", IDENTITY, MIB)
    try:
        follower.poll()
        store.publish([message(0)])
        store.sync()
        assert [m.end for m in follower.poll()] == [0]
        os.kill(follower.pid or 0, signal.SIGKILL)
        store.publish([message(1)])
        store.sync()
        with pytest.raises(BackendUnavailable):
            follower.poll()
        assert follower.poll() == []
        store.publish([message(2)])
        store.sync()
        assert [m.after for m in follower.poll()] == [1]  # 0 was the last end seen
    finally:
        follower.close()
        store.close()


def test_the_child_ends_with_its_follower(follower: RocksDbFollower, tmp_path: Path) -> None:
    """Closed: the child is gone, so is its folder, and further calls are refused."""
    pid = follower.pid
    assert pid is not None
    assert (tmp_path / "own").exists()
    follower.close()
    wait_until(lambda: gone(pid))
    assert not (tmp_path / "own").exists()
    with pytest.raises(BackendRefused, match="closed"):
        follower.read_progress()


def test_a_store_that_is_not_there_yet_is_waited_for_by_the_caller(tmp_path: Path) -> None:
    """As every reader: unavailable, and no child left behind."""
    with pytest.raises(BackendUnavailable, match="no store at"):
        RocksDbFollower(tmp_path / "store", tmp_path / "own", IDENTITY, MIB)


def test_a_child_that_cannot_be_started_is_tried_again(follower: RocksDbFollower, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory or processes: unavailable, for now."""
    os.kill(follower.pid or 0, signal.SIGKILL)
    with pytest.raises(BackendUnavailable, match="starts it again"):
        follower.read_progress()

    def fails(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fails)
        with pytest.raises(BackendUnavailable, match="cannot be started: Resource temporarily unavailable"):
            follower.read_progress()
    assert follower.read_progress() == {0: Progress(2, b"12345678", 5)}


def test_a_store_of_another_log_is_refused(tmp_path: Path) -> None:
    """What the child finds wrong at its start is this process's refusal."""
    open_store(tmp_path / "store").close()
    with pytest.raises(StartRefused, match="was made from log"):
        RocksDbFollower(tmp_path / "store", tmp_path / "own", StoreIdentity(LogIdentity("another", 3), 1), MIB)
