"""Backups of a data folder whose log and store the test itself drives, so that what happens between two copies is its decision."""

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.commands import watertower
from tests.needs import skip_or_fail
from watertower import bootstrap, config, failpoints
from watertower.audit import audit
from watertower.backends import rocksdb_copy
from watertower.backends.rocksdb import RocksDbStore
from watertower.backends.sqlite import SqliteLogReader, SqliteLogWriter
from watertower.backends.sqlite_copy import LogCopier
from watertower.bootstrap import backup as backup_module
from watertower.bootstrap import embedded
from watertower.bootstrap.backup import Backup, backup
from watertower.codec import encode_batch
from watertower.config import ProjectorSettings
from watertower.core.model import EventBatch
from watertower.core.sharding import partition_of
from watertower.datafolder import MARKER, open_or_create
from watertower.errors import BackendRefused, BackendUnavailable, BackupRefused, StartRefused
from watertower.ports import StoreIdentity
from watertower.projector.projector import Projector
from watertower.testing.clock import FakeClock

PARTITIONS = 2
WRITE_BUFFER_BYTES = 65_536
SMALL_DISK_BYTES = 4 * 2**20


class Folder:
    """A data folder with its ingest and its projector in the hands of a test."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self._actors = path, FakeClock(), 0
        folder = open_or_create(path, PARTITIONS)
        files = (folder.log_path, folder.commits_path, folder.identity)
        self.log = SqliteLogWriter(*files, self.clock, truncate_interval_ms=3_600_000)
        self.reader = SqliteLogReader(*files)
        self.store = RocksDbStore(folder.store_path, StoreIdentity(folder.identity, folder.generation), WRITE_BUFFER_BYTES, 2**20, 100)
        self.projector = Projector(self.reader, self.store, self.store.feed, ProjectorSettings(), self.clock, random.Random(1))
        self.projector.start()

    def append(self, count: int = 1) -> None:
        """Records of one new follower of "star" each, acknowledged."""
        for _ in range(count):
            actor = f"actor {self._actors}"
            batch = EventBatch([actor], b"\1", ["star"], [""], b"\1", [1])
            self.log.append(partition_of(actor, PARTITIONS), encode_batch(batch), self.clock.now_us()).result()
            self._actors += 1

    def apply(self) -> None:
        """All that was appended; and says to the log that it may drop it."""
        self.clock.advance(1.0)
        while self.projector.step().events:
            self.clock.advance(1.0)

    def live(self, count: int = 1) -> None:
        """Appends, applies, drops."""
        self.append(count)
        self.apply()
        self.log.truncate()

    def close(self) -> None:
        self.projector.close()
        self.reader.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "data")
    folder.live(100)
    yield folder
    folder.close()


@pytest.fixture
def meanwhile() -> Iterator[Callable[[str, Callable[[], None]], None]]:
    """Does something whenever a failpoint is reached."""

    def arrange(point: str, act: Callable[[], None]) -> None:
        failpoints.watcher = lambda name: act() if name == point else None

    yield arrange
    failpoints.watcher = None


def followers(path: Path) -> int:
    """Of "star", once all that the log of a folder holds is applied. The audit is clean before and after."""
    audit_is_clean(path)
    restored = Folder(path)
    restored.apply()
    restored.close()
    audit_is_clean(path)
    with bootstrap.opened_scanner(config.load({"data": path})) as scanner:
        return sum(shard.value for (entity, _, _), shard in scanner.shards() if entity == "star")


def audit_is_clean(path: Path) -> None:
    differences: list[object] = []
    with bootstrap.opened_scanner(config.load({"data": path})) as scanner:
        audit(scanner, differences.append)
    assert differences == []


def contents(path: Path) -> dict[str, bytes]:
    """Of the tables of a folder's store."""
    return {file.name: file.read_bytes() for file in (path / "store").glob("*.sst")}


def left(folder: Folder, target: Path) -> list[str]:
    """What is there of a backup that was not made."""
    return [str(path) for path in (target, target.with_name(target.name + ".part"), *folder.path.glob("readers/*")) if path.exists()]


def test_a_backup_has_what_was_acknowledged(folder: Folder, tmp_path: Path) -> None:
    """Applied or not: what the store lacks is in the log. It says up to where it goes."""
    folder.append(10)
    made = backup(folder.path, tmp_path / "copy")
    assert made.path == tmp_path / "copy"
    assert sum(end + 1 for end in made.applied.values()) == 100
    assert sum(end + 1 for end in made.ends.values()) == 110
    assert made.bytes == sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file() and file.name != MARKER)
    folder.live(5)
    assert followers(made.path) == 110
    assert made.path.stat().st_mode & 0o777 == 0o700


def test_a_backup_of_a_folder_that_nobody_uses(folder: Folder, tmp_path: Path) -> None:
    """The service need not run."""
    folder.append(1)
    folder.close()
    assert followers(backup(folder.path, tmp_path / "copy").path) == 101


def test_events_between_the_copies_are_counted_once(folder: Folder, tmp_path: Path, meanwhile: Callable[..., None]) -> None:
    """The log is copied after the store: what is appended and applied in between is in the log's copy only."""
    meanwhile("backup.after_store", lambda: (folder.append(7), folder.apply()))
    made = backup(folder.path, tmp_path / "copy")
    assert made.applied != made.ends
    assert followers(made.path) == 107


def test_a_log_that_drops_records_between_the_copies_is_copied_again(
    folder: Folder, tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    """Otherwise what lies between the store's copy and the log's would be missing."""
    drops = iter([10, 10])
    meanwhile("backup.after_store", lambda: folder.live(next(drops, 0)))
    assert followers(backup(folder.path, tmp_path / "copy").path) == 120


def test_a_log_that_always_drops_records_between_the_copies_is_refused(
    folder: Folder, tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    """After COPY_ATTEMPTS_MAX attempts, with the reason; nothing is left behind."""
    copies: list[int] = []
    meanwhile("backup.after_store", lambda: (copies.append(1), folder.live(10)))
    with pytest.raises(StartRefused, match=r"do not go together.*the log starts at offset"):
        backup(folder.path, tmp_path / "copy")
    assert len(copies) == backup_module.COPY_ATTEMPTS_MAX
    assert left(folder, tmp_path / "copy") == []


def test_a_store_that_changes_while_it_is_linked_is_linked_again(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links of two moments are no copy: here a table is written out, and its write-ahead log deleted, after the manifest was looked at."""
    link, times = rocksdb_copy._link, iter(range(3))

    def disturbed(*arguments: object) -> dict[str, int]:
        if next(times, None) is not None:
            folder.live(10)
            folder.store._opened().flush()
        return link(*arguments)

    monkeypatch.setattr(rocksdb_copy, "_link", disturbed)
    made = backup(folder.path, tmp_path / "copy")
    assert next(times, None) is None
    assert followers(made.path) == 130


def test_a_store_that_always_changes_is_given_up(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After LINK_ATTEMPTS_MAX attempts; nothing is left behind."""
    seen = iter(range(10_000))
    monkeypatch.setattr(rocksdb_copy, "manifest", lambda _: ("MANIFEST-1", next(seen)))
    with pytest.raises(BackendUnavailable, match="changes faster than it can be copied"):
        backup(folder.path, tmp_path / "copy")
    assert next(seen) == 2 * rocksdb_copy.LINK_ATTEMPTS_MAX
    assert left(folder, tmp_path / "copy") == []


def test_an_entry_that_is_half_written_is_not_in_the_copy(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write-ahead log is cut off where it was at that moment, be that within an entry."""
    link = rocksdb_copy._link
    folder.store._opened().flush()
    for _ in range(20):
        folder.append()
        folder.apply()
    monkeypatch.setattr(rocksdb_copy, "_link", lambda *a: {name: size // 2 for name, size in link(*a).items()})
    made = backup(folder.path, tmp_path / "copy")
    assert 100 < sum(end + 1 for end in made.applied.values()) < 120
    assert followers(made.path) == 120


def test_what_the_owner_was_writing_is_not_touched(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is not finished is linked like any other. The copy's owner takes the next numbers for its own tables, and must not
    write into that one, nor into the tables that both share."""
    numbers = [int(file.stem) for file in (folder.path / "store").glob("*.log")]
    unfinished = [folder.path / "store" / f"{max(numbers) + n:06}.sst" for n in range(1, 30)]
    for table in unfinished:
        table.write_bytes(b"being written")
    before = contents(folder.path)
    made = backup(folder.path, tmp_path / "copy")
    assert made.linked_bytes > 0 or not (set(before) - {table.name for table in unfinished})
    assert not {table.name for table in unfinished} & set(os.listdir(made.path / "store"))
    copy = Folder(made.path)
    copy.live(3_000)
    copy.close()
    now = contents(folder.path)
    assert {name: now.get(name) for name in before} == before
    for table in unfinished:
        table.unlink()


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("data", "exists: a backup is a new folder"),
        ("file", "exists: a backup is a new folder"),
        ("dangling", "exists: a backup is a new folder"),
        ("missing/copy", "is no folder: make it first"),
        ("data/copy", "lies in the data folder"),
        ("data/store/copy", "lies in the data folder"),
        ("link/copy", "lies in the data folder"),
        ("used", "used.part has something else in it"),
    ],
)
def test_a_target_that_breaks_a_rule_is_refused(folder: Folder, tmp_path: Path, target: str, rule: str) -> None:
    """By name, with the rule; what is there stays as it is."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(folder.path)
    (tmp_path / "used.part").mkdir()
    (tmp_path / "used.part" / "thesis.txt").write_text("mine")
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(BackupRefused, match=rule) as refused:
        backup(folder.path, tmp_path / target)
    assert str(tmp_path / target).split(".part")[0].removesuffix("/copy") in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == there


def test_two_backups_to_one_target(folder: Folder, tmp_path: Path, meanwhile: Callable[..., None]) -> None:
    """The second one is refused while the first one is under way, and does not disturb it."""
    said: list[str] = []

    def again() -> None:
        with pytest.raises(BackupRefused) as refused:
            backup(folder.path, tmp_path / "copy")
        said.append(str(refused.value))

    meanwhile("backup.after_log", again)
    made = backup(folder.path, tmp_path / "copy")
    assert said == [f"another backup to {made.path} is under way: wait for it, or choose another target"]
    assert followers(made.path) == 100


def test_what_a_dead_backup_left_is_removed(folder: Folder, tmp_path: Path) -> None:
    """Its unfinished target by the next backup to the same place, its links by whatever reads the folder next."""
    part = tmp_path / "copy.part"
    (part / "store").mkdir(parents=True)
    (part / "log.sqlite").write_text("half")
    links = folder.path / "readers" / "backup-1-x"  # somebody has that process id
    links.mkdir(parents=True)
    os.link(folder.path / "log.sqlite", links / "1.log")
    assert followers(backup(folder.path, tmp_path / "copy").path) == 100
    assert left(folder, tmp_path / "other") == []
    assert not part.exists()


@pytest.fixture
def foreign_pid(monkeypatch: pytest.MonkeyPatch) -> int:
    """The process id of this process, as if it ran in another container: here nobody has it."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(os, "getpid", lambda: ended.pid)
    return ended.pid


def test_a_reader_in_another_container_leaves_a_backup_alone(
    folder: Folder, tmp_path: Path, meanwhile: Callable[..., None], foreign_pid: int
) -> None:
    """It does not know the backup's process, and the links stay."""
    seen: list[str] = []

    def read() -> None:
        with bootstrap.opened_scanner(config.load({"data": folder.path})):
            seen.extend(path.name for path in folder.path.glob("readers/backup-*"))

    meanwhile("backup.after_log", read)
    assert followers(backup(folder.path, tmp_path / "copy").path) == 100
    assert len(seen) == 1
    assert seen[0].startswith(f"backup-{foreign_pid}-")


@pytest.mark.parametrize("kind", ["query", "scan"])
def test_a_backup_leaves_a_reader_in_another_container_alone(folder: Folder, tmp_path: Path, foreign_pid: int, kind: str) -> None:
    """It does not know the reader's process either."""
    settings = config.load({"data": folder.path, "partitions": PARTITIONS})
    with ExitStack() as opened:
        embedded.query_side(settings, opened) if kind == "query" else embedded.scanner(settings, opened)
        (own,) = folder.path.glob("readers/*")
        assert own.name.startswith(f"{kind}-{foreign_pid}")
        there = sorted(own.rglob("*"))
        backup(folder.path, tmp_path / "copy")
        assert sorted(own.rglob("*")) == there
    assert left(folder, tmp_path / "other") == []


def test_a_backup_whose_files_were_removed_is_none(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the check that the copies go together, too: a start on it would be refused."""
    folder.store._opened().flush()
    check = backup_module._check_together
    removed: list[str] = []

    def disturbed(*arguments: Any) -> dict[int, int]:
        ends = check(*arguments)
        table = next(folder.path.glob("readers/backup-*/store/*.sst"))
        table.unlink()
        removed.append(table.name)
        return ends

    monkeypatch.setattr(backup_module, "_check_together", disturbed)
    with pytest.raises(BackendUnavailable, match="removed files of the backup while it was made") as refused:
        backup(folder.path, tmp_path / "copy")
    assert removed[0] in str(refused.value)
    assert left(folder, tmp_path / "copy") == []


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        skip_or_fail("a small file system can only be mounted by root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        skip_or_fail(f"mount: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_backup_to_another_disk_shares_nothing(folder: Folder, other_disk: Path) -> None:
    """Every file is a copy there."""
    made = backup(folder.path, other_disk / "copy")
    assert made.linked_bytes == 0
    assert followers(made.path) == 100
    assert left(folder, other_disk / "other") == []


@pytest.mark.parametrize("known", [True, False], ids=["seen before", "met while copying"])
def test_a_disk_without_space_is_refused(folder: Folder, other_disk: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """With what is missing where that can be known, and in any case by name; nothing is left behind, and with space it succeeds."""
    ballast = other_disk / "ballast"
    ballast.write_bytes(b"x" * (SMALL_DISK_BYTES - 16_384))
    if not known:
        monkeypatch.setattr(backup_module, "_check_space", lambda *_: None)
    rule = f"{other_disk} has .* bytes free and the backup needs" if known else f"no space is left for {other_disk}"
    with pytest.raises(BackupRefused, match=rule):
        backup(folder.path, other_disk / "copy")
    assert left(folder, other_disk / "copy") == []
    ballast.unlink()
    assert followers(backup(folder.path, other_disk / "copy").path) == 100


def test_a_folder_whose_log_and_store_do_not_go_together_is_refused(folder: Folder, tmp_path: Path) -> None:
    """A backup of it would be one, too."""
    folder.close()
    with sqlite3.connect(folder.path / "log.sqlite") as log:
        log.execute("UPDATE records SET payload = x'00'")
    log.close()
    with pytest.raises(StartRefused, match="is not the one that the store has applied"):
        backup(folder.path, tmp_path / "copy")
    assert left(folder, tmp_path / "copy") == []


def test_what_is_no_data_folder_is_refused(tmp_path: Path) -> None:
    """A folder of something else, and one that has no store yet."""
    with pytest.raises(StartRefused, match="is no data folder"):
        backup(tmp_path, tmp_path / "copy")
    made = open_or_create(tmp_path / "data", PARTITIONS)
    SqliteLogReader(made.log_path, made.commits_path, made.identity).close()
    with pytest.raises(BackendUnavailable, match="there is no store"):
        backup(tmp_path / "data", tmp_path / "copy")


@pytest.mark.parametrize("lost", ["CURRENT", "MANIFEST-*"])
def test_a_damaged_store_is_refused(folder: Folder, tmp_path: Path, lost: str) -> None:
    """In the words of a start on it: that trying again helps would be wrong. An empty folder is what a start takes for none."""
    folder.close()
    store = folder.path / "store"
    for file in store.glob(lost):
        file.unlink()
    with pytest.raises(StartRefused, match=r"is damaged \(the file CURRENT is missing, or names a manifest that is\): put back a backup"):
        backup(folder.path, tmp_path / "copy")
    shutil.rmtree(store)
    store.mkdir()
    with pytest.raises(BackendUnavailable, match="there is no store"):
        backup(folder.path, tmp_path / "copy")
    assert left(folder, tmp_path / "copy") == []


def test_a_damaged_log_is_refused(folder: Folder, tmp_path: Path) -> None:
    """In the words of a start on it, or, where the damage comes later, in those of a reader."""
    folder.close()
    made = open_or_create(folder.path, PARTITIONS)
    copier = LogCopier(made.log_path, made.identity)
    made.log_path.write_bytes(b"no database" * 1_000)
    with pytest.raises(StartRefused, match=r"log\.sqlite cannot be opened: file is not a database.*restore the data folder"):
        backup(folder.path, tmp_path / "copy")
    assert left(folder, tmp_path / "copy") == []
    with pytest.raises(BackendRefused, match=r"the log is damaged: .*; stop the service and restore"):
        copier.copy(tmp_path / "log")
    copier.close()


def test_the_command(folder: Folder, tmp_path: Path) -> None:
    """Says what it made, and in one line why it made nothing."""
    made = watertower("backup", tmp_path / "copy", "--data", folder.path)
    assert (made.code, made.err) == (0, "")
    assert made.out.startswith(f"{tmp_path / 'copy'}: ")
    again = watertower("backup", tmp_path / "copy", "--data", folder.path)
    assert (again.code, again.out) == (1, "")
    assert again.err == f"watertower: {tmp_path / 'copy'} exists: a backup is a new folder, name one that is not there\n"
    cluster = watertower("backup", tmp_path / "more", "--set", "log=kafka", "--set", "store=cassandra")
    assert cluster.code == 1
    assert "docs/cluster.md" in cluster.err
    assert Backup._fields == ("path", "applied", "ends", "bytes", "linked_bytes")
