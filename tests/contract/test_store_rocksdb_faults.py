"""The embedded store on disks that fail, and its readers beside an owner that dies."""

import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.contract.rocksdb_owner import PER_FLUSH, REMOVED, events, followers
from tests.contract.store_harnesses import open_reader, open_scanner, open_store, owner_process, reported
from tests.needs import skip_or_fail
from watertower.backends.rocksdb import RocksDbStore
from watertower.core.model import Kind, Metric
from watertower.errors import BackendUnavailable
from watertower.ports import ListCursor
from watertower.testing.replay import apply, expected_rows, record, rows_of

DEADLINE_S = 60.0


@pytest.mark.slow
def test_a_reader_follows_an_owner_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """Killed at random moments, restarted, flushing and compacting: at each catch-up the rows are of one moment, without holes, none
    goes back, and what the owner said is synced is there."""
    path = tmp_path / "store"
    rng = random.Random(1)
    open_store(path).close()
    reader = open_reader(path)
    reader.poll()
    fed = -1
    synced = -1
    files: set[str] = set()
    for _ in range(6):
        with owner_process(path) as owner:
            for _ in range(rng.randint(10, 25)):
                synced = reported(owner)
                for message in reader.poll():
                    assert message.end > fed
                    fed = message.end
                end = reader.read_progress()[0].end
                assert end >= max(synced, fed)
                assert reader.read_entities(["star"])[0][Metric.FOLLOWERS, 0].value >= followers(end)
                for offset in range(max(0, end - 5), end + 1):  # a hole would be anywhere between what is old and what is new
                    actor = f"{offset}-{rng.randrange(REMOVED, PER_FLUSH)}"
                    assert reader.check_edges(actor, Kind.FOLLOW, ["star", "stan"]) == [True, False]
                newest = reader.list_actors("star", Kind.FOLLOW, None, 5)
                assert newest[0].occurred_at >= synced
                files |= {file.name for file in path.glob("*.sst")}
            time.sleep(rng.random() / 100)  # so that the kill meets it anywhere in a flush
    assert len(files) > len(list(path.glob("*.sst"))) + 5, "the owner has compacted files away"
    reader.catch_up()
    end = reader.read_progress()[0].end
    assert end >= synced
    listed: list[ListCursor] = []
    while page := reader.list_actors("star", Kind.FOLLOW, listed[-1] if listed else None, 1_000):
        listed += page
    assert len(listed) == reader.read_entities(["star"])[0][Metric.FOLLOWERS, 0].value == followers(end)
    rows = rows_of(open_scanner(path))
    assert [key for key, edge in sorted(rows.edges.items()) if edge.active] == rows.actor_lists
    assert len(rows.subject_lists) == len(rows.actor_lists) == followers(end)
    reader.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if mount.returncode != 0:
        skip_or_fail(f"needs to mount a small file system: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_passes(small_disk: Path) -> None:
    """While the disk is full a flush fails and nothing of it shows; when there is space the same store goes on, without a restart, and
    every flush that was synced is there, for a reader that stayed open too."""
    path = small_disk / "store"
    store = open_store(path)
    reader = open_reader(path)
    reader.poll()
    ballast = small_disk / "ballast"
    offset = 0
    for _ in range(3):
        for _ in range(5):
            apply(store, store.feed, [record(0, offset, events(offset))])
            offset += 1
        fill(ballast)
        offset = apply_until_it_fails(store, offset)
        for _ in range(3):
            with pytest.raises(BackendUnavailable):
                apply(store, store.feed, [record(0, offset, events(offset))])
            store.abandon()
        reader.catch_up()
        assert reader.read_progress()[0].end in (offset - 1, offset)
        ballast.unlink()
        apply_until_it_works(store, offset)
        offset += 1
        reader.catch_up()
        assert reader.read_progress()[0].end == offset - 1
        assert reader.read_entities(["star"])[0][Metric.FOLLOWERS, 0].value == followers(offset - 1)
    ends = [message.end for message in reader.poll()]
    assert ends == sorted(set(ends))
    assert len(rows_of(open_scanner(path)).subject_lists) == followers(offset - 1)
    reader.close()
    store.close()


def test_a_disk_that_failed_is_tried_again(tmp_path: Path) -> None:
    """Also after an error that RocksDB itself does not recover from: here a file that may not grow."""
    store = open_store(tmp_path / "store")
    apply(store, store.feed, [record(0, 0, events(0))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(BackendUnavailable, match="File too large"):
            apply(store, store.feed, [record(0, 1, events(1))])
        store.abandon()
        with pytest.raises(BackendUnavailable):
            apply(store, store.feed, [record(0, 1, events(1))])
        store.abandon()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    apply(store, store.feed, [record(0, 1, events(1))])
    assert rows_of(open_scanner(tmp_path / "store")) == expected_rows([record(0, offset, events(offset)) for offset in range(2)])
    store.close()


def fill(ballast: Path) -> None:
    """Takes all the space that is left."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def apply_until_it_fails(store: RocksDbStore, offset: int) -> int:
    """Flushes for as long as they are synced. Returns the offset of the one that was not, for want of space."""
    for number in range(offset, offset + 10_000):
        try:
            apply(store, store.feed, [record(0, number, events(number))])
        except BackendUnavailable as error:
            store.abandon()
            if "No space left" not in str(error):
                raise
            return number
    raise RuntimeError("the disk is never full")


def apply_until_it_works(store: RocksDbStore, offset: int) -> None:
    """As the projector does: again and again, for a while."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            apply(store, store.feed, [record(0, offset, events(offset))])
            return
        except BackendUnavailable:
            store.abandon()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
