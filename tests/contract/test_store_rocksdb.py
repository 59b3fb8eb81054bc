"""What the embedded store promises beyond the contract: refusals at start, upkeep, readers that follow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocksdict import AccessType, Options, Rdict, WriteBatch

from tests.contract.rocksdb_owner import events
from tests.contract.store_harnesses import FEED_MESSAGES_MAX, IDENTITY, MIB, open_reader, open_scanner, open_store, owner_process, reported
from watertower.backends import rocksdb_keys as keys
from watertower.backends import rocksdb_open, rocksdb_reader
from watertower.backends.rocksdb import RocksDbReader, RocksDbStore
from watertower.backends.rocksdb_open import translated
from watertower.core.model import Kind
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.replay import apply, expected_rows, record, rows_of


def tamper(path: Path, key: bytes, value: bytes) -> None:
    """Writes a row behind the store's back."""
    db = Rdict(str(path), Options(raw_mode=True), {}, AccessType.read_write())
    batch = WriteBatch(raw_mode=True)
    batch.put(key, value)
    db.write(batch)
    db.close()


# --- refusals at start


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (StoreIdentity(LogIdentity("another", IDENTITY.log.partitions), 1), "from log another"),
        (StoreIdentity(LogIdentity(IDENTITY.log.log_id, 99), 1), "99 partitions"),
        (StoreIdentity(IDENTITY.log, 2), "generation 2"),
    ],
)
def test_rows_of_another_log_are_refused(tmp_path: Path, other: StoreIdentity, said: str) -> None:
    """Owner, reader and scanner refuse rows that were made from another log, partition count or generation, and name both."""
    path = tmp_path / "store"
    RocksDbStore(path, other, MIB, MIB, 10).close()
    openers: list[Callable[[Path], object]] = [open_store, open_reader, open_scanner]
    for open_it in openers:
        with pytest.raises(StartRefused, match=said) as refusal:
            open_it(path)
        assert IDENTITY.log.log_id in str(refusal.value)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (json.dumps({"format": 2, "anything": "else"}).encode(), "format 2.*start the version that wrote it"),
        (b"{", "is damaged.*backup"),
        (b"[]", "is damaged.*backup"),
    ],
)
def test_a_newer_or_unreadable_format_is_refused(tmp_path: Path, document: bytes, said: str) -> None:
    """The refusal says what to do, and the rows are left alone."""
    path = tmp_path / "store"
    open_store(path).close()
    tamper(path, keys.IDENTITY, document)
    with pytest.raises(StartRefused, match=said):
        open_store(path)
    with pytest.raises(StartRefused, match=said):
        open_reader(path)


def test_rows_without_an_identity_are_refused(tmp_path: Path) -> None:
    """A RocksDB that is not ours is not adopted."""
    path = tmp_path / "store"
    tamper(path, b"something", b"else")
    with pytest.raises(StartRefused, match="does not say which log"):
        open_store(path)


@pytest.mark.parametrize("damage", ["CURRENT missing", "CURRENT garbage", "MANIFEST cut"])
def test_a_damaged_store_is_refused(tmp_path: Path, damage: str) -> None:
    """It is neither repaired by guessing nor begun anew."""
    path = tmp_path / "store"
    store = open_store(path)
    apply(store, store.feed, [record(0, 0, events(0))])
    store.close()
    if damage == "CURRENT missing":
        (path / "CURRENT").unlink()
    elif damage == "CURRENT garbage":
        (path / "CURRENT").write_text("garbage")
    else:
        manifest = path / (path / "CURRENT").read_text().strip()
        manifest.write_bytes(b"\0" * 100)
    with pytest.raises(StartRefused, match=r"is damaged.*backup"):
        open_store(path)


def test_a_store_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    """One owner at a time, across processes; the next one may come when the first is dead, however it died."""
    path = tmp_path / "store"
    with owner_process(path) as owner:
        reported(owner)
        with pytest.raises(StartRefused, match="in use by another process"):
            open_store(path)
    open_store(path).close()


def test_a_reader_before_the_store_may_try_again(tmp_path: Path) -> None:
    """It is told that there is no store yet, and leaves nothing behind that looks like one."""
    path = tmp_path / "store"
    with pytest.raises(BackendUnavailable, match="no store"):
        open_reader(path)
    assert not path.exists()
    Rdict(str(path), Options(raw_mode=True), {}).close()  # an owner that has come no further
    with pytest.raises(BackendUnavailable, match="being created"):
        open_reader(path)
    open_store(path).close()
    open_reader(path).close()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("IO error: No space left on device: While appending to file: 000008.log", BackendUnavailable),
        ("Resource busy: ", BackendUnavailable),
        ("Corruption: block checksum mismatch", BackendRefused),
        ("Invalid argument: no such column family", BackendRefused),
    ],
)
def test_driver_errors_say_whether_to_try_again(message: str, expected: type[Exception]) -> None:
    """What is wrong on the disk stays wrong; the rest may pass."""
    assert type(translated(message)) is expected


def test_a_check_reads_no_more_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a subject's comments up to the first active one, about; all of them, once however often it is asked for, where none is."""
    path = tmp_path / "store"
    store = open_store(path)
    comments = [(subject, f"c{n:03d}") for subject in ("active", "removed", "last") for n in range(350)]
    active = {(subject, ref) for subject, ref in comments if subject == "active" or (subject, ref) == ("last", "c349")}
    apply(store, store.feed, [record(0, 0, [("a", Kind.COMMENT, *comment, comment in active, 5) for comment in comments])])
    reader = open_reader(path)
    rows = 0
    scan = rocksdb_open.scan

    def counting(*arguments: Any) -> list[rocksdb_open.Row]:
        nonlocal rows
        found = scan(*arguments)
        rows += len(found)
        return found

    monkeypatch.setattr(rocksdb_open, "scan", counting)
    monkeypatch.setattr(rocksdb_reader, "scan", counting)
    try:
        assert reader.check_edges("a", Kind.COMMENT, ["active"] * 1_000) == [True] * 1_000
        assert rows <= 100
        assert reader.check_edges("a", Kind.COMMENT, ["removed", "last"] * 500) == [False, True] * 500
        assert rows <= 100 + 2 * 350
    finally:
        reader.close()
        store.close()


def test_a_damaged_row_is_an_error_not_the_end(tmp_path: Path) -> None:
    """A scan that meets a block with a wrong checksum says so; it does not pass for a shorter list."""
    path = tmp_path / "store"
    store = open_store(path)
    apply(store, store.feed, [record(0, 0, [(f"actor{n}", Kind.FOLLOW, "star", "", True, n) for n in range(5_000)])])
    store.close()
    table = max(path.glob("*.sst"), key=lambda file: file.stat().st_size)
    content = bytearray(table.read_bytes())
    for at in range(len(content) // 8, len(content) * 3 // 4, 1_000):
        content[at] ^= 0xFF
    table.write_bytes(content)
    reader = open_reader(path)
    with pytest.raises(BackendRefused, match="Corruption"):
        rows_of(open_scanner(path))
    with pytest.raises(BackendRefused, match="Corruption"):
        reader.list_actors("star", Kind.FOLLOW, None, 5_000)
    reader.close()


# --- upkeep


def test_options_are_ours_after_a_restart_too(tmp_path: Path) -> None:
    """The driver would take the last run's options from a file, and forget the block cache among them."""
    path = tmp_path / "store"
    open_store(path).close()
    store = RocksDbStore(path, IDENTITY, MIB, 7 * MIB, 10)
    reader = RocksDbReader(path, tmp_path / "reader", IDENTITY, 5 * MIB)
    capacity = "rocksdb.block-cache-capacity"
    assert [db.property_int_value(capacity) for db in (store._opened(), reader._db)] == [7 * MIB, 5 * MIB]
    reader.close()
    store.close()


def test_the_feed_does_not_grow(tmp_path: Path) -> None:
    """Of any number of messages feed_messages_max stay on the disk, after a restart and an abandoned flush too."""
    store = open_store(tmp_path / "store")
    for offset in range(2 * FEED_MESSAGES_MAX):
        apply(store, store.feed, [record(0, offset, events(offset)[:3])], sync=offset % 7 != 0)
        store.abandon()
        if offset % 30 == 0:
            store.close()
            store = open_store(tmp_path / "store")
    store.close()
    db = Rdict(str(tmp_path / "store"), Options(raw_mode=True), {})
    assert len(rocksdb_open.scan(db, keys.FEED)) == FEED_MESSAGES_MAX
    db.close()


def test_a_scan_survives_that_all_its_files_are_compacted_away(tmp_path: Path) -> None:
    """Every file is open from the start, however many there are: what the owner deletes stays readable."""
    path = tmp_path / "store"
    store = open_store(path)
    store._opened().set_options({"disable_auto_compactions": "true"})
    log = [record(0, offset, events(offset)) for offset in range(30)]
    for one in log:
        apply(store, store.feed, [one])
        store._opened().flush()
    scanner = open_scanner(path)
    before = {file.name for file in path.glob("*.sst")}
    assert len(before) == 30
    store._opened().compact_range(None, None)
    assert not before & {file.name for file in path.glob("*.sst")}
    assert rows_of(scanner) == expected_rows(log)
    scanner.close()
    store.close()


def test_readers_leave_nothing_behind(tmp_path: Path) -> None:
    """A closed reader's and scanner's own folders are gone, the store's is not."""
    path = tmp_path / "store"
    open_store(path).close()
    reader, scanner = open_reader(path), open_scanner(path)
    assert {file.name for file in tmp_path.iterdir()} == {"store", "reader", "scanner"}
    reader.close()
    scanner.close()
    assert {file.name for file in tmp_path.iterdir()} == {"store"}
    with pytest.raises(BackendRefused, match="closed"):
        reader.catch_up()


def test_a_reader_that_cannot_follow_opens_anew(tmp_path: Path) -> None:
    """When catching up fails for good, the next catch-up goes on with a new instance, and the feed where it was."""
    path = tmp_path / "store"
    store = open_store(path)
    reader = open_reader(path)
    assert reader.poll() == []
    apply(store, store.feed, [record(0, 0, events(0))])
    reader._db.close()  # what a lost instance looks like from outside
    assert [message.end for message in reader.poll()] == [0]
    assert reader.reopened == 1
    assert reader.read_progress()[0].end == 0
    reader.close()
    store.close()


def test_catching_up_with_nothing_is_nearly_free(tmp_path: Path) -> None:
    """Where the owner has written nothing, RocksDB is not even asked: here it could not answer."""
    path = tmp_path / "store"
    store = open_store(path)
    reader = open_reader(path)
    apply(store, store.feed, [record(0, 0, events(0))])
    reader.catch_up()
    reader._db.close()
    reader.catch_up()
    assert reader.reopened == 0
    apply(store, store.feed, [record(0, 1, events(1))])
    reader.catch_up()
    assert reader.reopened == 1
    reader.close()
    store.close()


def test_a_catch_up_during_which_the_manifest_changed_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RocksDB may then show new rows without older ones. After CATCH_UPS_MAX attempts the reader says that it cannot answer."""
    path = tmp_path / "store"
    open_store(path).close()
    db = Rdict(str(path), Options(raw_mode=True), {}, AccessType.secondary(str(tmp_path / "reader")))
    seen = iter([("M", 1), ("M", 2), ("M", 2), ("N", 1), None, ("N", 1), ("N", 1), ("not", 0)])
    monkeypatch.setattr(rocksdb_open, "manifest", lambda _: next(seen))
    rocksdb_open.follow(db, path)
    assert next(seen) == ("not", 0)
    changing = iter(range(10**6))
    monkeypatch.setattr(rocksdb_open, "manifest", lambda _: ("M", next(changing)))
    with pytest.raises(BackendUnavailable, match="faster than it can be followed"):
        rocksdb_open.follow(db, path)
    assert next(changing) == 2 * rocksdb_open.CATCH_UPS_MAX


@pytest.mark.parametrize("failures", [rocksdb_open.SECONDARY_OPENS_MAX - 1, rocksdb_open.SECONDARY_OPENS_MAX])
def test_a_file_deleted_while_a_reader_opens_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """It opens again, SECONDARY_OPENS_MAX times in all; then it is told to come back later."""
    path = tmp_path / "store"
    open_store(path).close()
    left = iter(range(failures))
    opening = rocksdb_open._open

    def open_badly(*arguments: Any) -> Rdict:
        if next(left, None) is not None:
            raise Exception("IO error: No such file or directory: While open a file for random read: 000012.sst")  # as the driver does
        return opening(*arguments)

    monkeypatch.setattr(rocksdb_open, "_open", open_badly)
    if failures < rocksdb_open.SECONDARY_OPENS_MAX:
        open_reader(path).close()
    else:
        with pytest.raises(BackendUnavailable, match="No such file"):
            open_reader(path)
