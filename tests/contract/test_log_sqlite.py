"""What only the embedded log promises: group commit, bounded files, refusals at start."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.log_harnesses import IDENTITY, SqliteHarness, Writer, open_reader
from watertower.backends import sqlite, sqlite_file
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import LogIdentity
from watertower.testing.contract_log import LARGE, WAIT_S, append, read_all

EVERYTHING = dict.fromkeys(range(IDENTITY.partitions), -1)

_OPEN = """
import sys
from pathlib import Path
from watertower.backends.sqlite import SqliteLogReader
from watertower.ports import LogIdentity
sys.stdin.read(1)
folder = Path(sys.argv[1])
SqliteLogReader(folder / "log.sqlite", folder / "commits.json", LogIdentity(sys.argv[2], int(sys.argv[3])))
print("open")
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteHarness]:
    """A log in a folder of its own."""
    harness = SqliteHarness(tmp_path)
    yield harness
    harness.close()


def held(folder: Path) -> sqlite3.Connection:
    """Keeps the log's only writer waiting, as a slow disk would, until it is closed."""
    connection = sqlite3.connect(folder / "log.sqlite", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that other threads do."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Counting(Writer):
    """A writer that notes what it did in each transaction."""

    def __init__(self, folder: Path) -> None:
        self.groups: list[list[int]] = []  # the sizes of the payloads
        self.chunks: list[int] = []  # the number of records deleted
        self.freed: list[int] = []  # the number of pages given back
        super().__init__(folder)

    def _write(self, connection: sqlite3.Connection, group: list[sqlite._Append]) -> list[int]:
        self.groups.append([len(item.payload) for item in group])
        return super()._write(connection, group)

    def _delete_some(self, connection: sqlite3.Connection) -> int:
        self.chunks.append(super()._delete_some(connection))
        return self.chunks[-1]

    def _give_back_some(self, connection: sqlite3.Connection) -> int:
        self.freed.append(super()._give_back_some(connection))
        return self.freed[-1]


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


# --- group commit


def test_appends_that_wait_share_a_transaction(log: SqliteHarness) -> None:
    """What is appended while the disk is busy becomes durable in one transaction, and is not seen before."""
    writer, reader = Counting(log.folder), log.reader()
    disk = held(log.folder)
    futures = [writer.append(number % 8, b"x", 1) for number in range(500)]
    assert not any(future.done() for future in futures)  # append did not wait for the disk
    assert read_all(reader, EVERYTHING) == []
    disk.close()
    writer.close()
    assert all(future.done() for future in futures)
    assert len(writer.groups) <= 2  # the thread may have taken the very first appends by themselves
    assert len(read_all(reader, EVERYTHING)) == 500


def test_a_transaction_is_bounded_in_bytes(log: SqliteHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group takes GROUP_BYTES_MAX at most, so that one sync does not wait for everything; a larger record goes alone."""
    monkeypatch.setattr(sqlite, "GROUP_BYTES_MAX", 1_000)
    writer = Counting(log.folder)
    disk = held(log.folder)
    futures = [writer.append(0, b"x" * size, 1) for size in [300] * 20 + [5_000] + [300] * 20]
    disk.close()
    assert [future.result(WAIT_S) for future in futures] == list(range(41))
    writer.close()
    assert all(sum(group) <= 1_000 or len(group) == 1 for group in writer.groups)
    assert [5_000] in writer.groups
    assert max(map(len, writer.groups)) == 3


def test_an_append_cannot_be_cancelled(log: SqliteHarness) -> None:
    """A caller that no longer waits does not harm the others: its record is on its way."""
    writer = log.writer()
    disk = held(log.folder)
    futures = [writer.append(0, b"x", 1) for _ in range(3)]
    assert not futures[1].cancel()
    disk.close()
    assert [future.result(WAIT_S) for future in futures] == [0, 1, 2]


def test_an_append_to_a_closed_log_fails(log: SqliteHarness) -> None:
    """After close, an append and a truncation are refused instead of lost."""
    writer = log.writer()
    writer.close()
    with pytest.raises(BackendRefused, match="closed"):
        writer.append(0, b"x", 1).result(WAIT_S)
    with pytest.raises(BackendRefused, match="closed"):
        writer.truncate()


@pytest.mark.parametrize("partition", [-1, 8])
def test_a_partition_that_is_not_there_is_refused(log: SqliteHarness, partition: int) -> None:
    """An append to a partition that the log does not have raises at once."""
    with pytest.raises(ValueError, match=f"partition {partition} of 8"):
        log.writer().append(partition, b"x", 1)


def test_a_log_that_stays_busy_is_unavailable_and_comes_back(log: SqliteHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite's lock is not given up in time, the append fails and may be repeated; nothing of it is in the log."""
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.05)
    writer = log.writer()
    disk = held(log.folder)
    with pytest.raises(BackendUnavailable, match="locked"):
        writer.append(0, b"a", 1).result(WAIT_S)
    disk.close()
    append(writer, 0, b"b")
    assert [record.payload for record in read_all(log.reader(), EVERYTHING)] == [b"b"]


# --- bounded files


def test_the_wal_stays_small_under_a_steady_load_with_a_reader(log: SqliteHarness) -> None:
    """However much is appended while a reader reads, the WAL does not grow with it."""
    writer, reader = log.writer(), log.reader()
    done = threading.Event()
    reached = dict(EVERYTHING)

    def follow() -> None:
        while not done.is_set():
            for record in reader.read(reached, 100, LARGE):
                reached[record.partition] = record.offset

    thread = threading.Thread(target=follow)
    thread.start()
    largest = 0
    for _ in range(120):
        append(writer, 0, *[b"x" * 100_000 for _ in range(8)])
        largest = max(largest, size_of(log.folder / "log.sqlite-wal"))
    done.set()
    thread.join(WAIT_S)
    assert largest < 48 * 2**20  # of 96 MB


def test_a_truncation_is_done_in_bounded_transactions(log: SqliteHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long truncation deletes TRUNCATE_RECORDS_MAX records and TRUNCATE_BYTES_MAX at a time, so that appends come between."""
    monkeypatch.setattr(sqlite, "TRUNCATE_RECORDS_MAX", 10)
    monkeypatch.setattr(sqlite, "TRUNCATE_BYTES_MAX", 3_000)
    writer = Counting(log.folder)
    append(writer, 0, *[b"x" for _ in range(26)])
    append(writer, 1, *[b"x" * 1_000 for _ in range(7)], b"x" * 9_000, b"x")
    log.reader().commit({0: 25, 1: 8})
    assert writer.truncate() == 25 + 8
    assert sorted(writer.chunks) == [0, 1, 1, 3, 3, 5, 10, 10]
    assert writer.truncate() == 0
    writer.close()


def test_the_log_truncates_itself(tmp_path: Path) -> None:
    """What is committed is dropped at the interval, without being asked."""
    writer, reader = Writer(tmp_path, truncate_interval_ms=5), open_reader(tmp_path)
    offsets = append(writer, 0, b"a", b"b", b"c")
    reader.commit({0: offsets[-1]})
    wait_until(lambda: reader.start(0) == offsets[-1])
    writer.close()
    reader.close()


def test_the_file_shrinks_again_after_a_backlog(log: SqliteHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backlog took beyond FREE_BYTES_KEPT goes back to the file system once it is applied."""
    monkeypatch.setattr(sqlite, "FREE_BYTES_KEPT", 2**20)
    offsets = append(log.writer(), 0, *[b"x" * 500_000 for _ in range(40)])
    log.writer().close()
    assert size_of(log.folder / "log.sqlite") > 18 * 2**20
    log.reader().commit({0: offsets[-1]})
    log.reader().close()
    writer = Counting(log.folder)
    writer.truncate()
    writer.close()
    assert size_of(log.folder / "log.sqlite") < 4 * 2**20
    assert len(writer.freed) < 10  # many pages in each transaction, but not all in one
    assert max(writer.freed) <= sqlite.TRUNCATE_BYTES_MAX // 4_096


def test_an_offset_outlives_all_its_records(log: SqliteHarness) -> None:
    """Also a log without a single record knows which offsets were used."""
    append(log.writer(), 2, b"a", b"b", b"c")
    log.writer().close()
    log.reader().close()
    with sqlite3.connect(log.folder / "log.sqlite") as other:
        other.execute("DELETE FROM records")
    other.close()
    assert log.reader().start(2) == 3
    assert append(log.writer(), 2, b"d") == [3]


def test_a_damaged_commits_file_drops_nothing_and_is_replaced(log: SqliteHarness) -> None:
    """The file is never synced; whatever a crash leaves of it, no record is lost and the next commit is taken."""
    offsets = append(log.writer(), 0, b"a", b"b")
    path = log.folder / "commits.json"
    for content in (b"", b"{", b"[]", b'{"ends": {"0": "x"}}', b'{"log_id": "other", "ends": {"0": 1}}', b"\xff", b'{"ends": 1}'):
        path.write_bytes(content)
        log.settle()
        assert len(read_all(log.reader(), EVERYTHING)) == 2
    log.reader().commit({0: offsets[1]})
    log.settle()
    assert log.reader().start(0) == offsets[1]


def test_a_commit_that_cannot_be_written_says_so(log: SqliteHarness) -> None:
    """A commit fails with BackendUnavailable where its file cannot be written."""
    (log.folder / "commits.json.new").mkdir()
    with pytest.raises(BackendUnavailable, match="commits cannot be written"):
        log.reader().commit({0: 1})


# --- starting


@pytest.mark.parametrize("first", ["writer", "reader"])
def test_roles_may_start_in_any_order(log: SqliteHarness, first: str) -> None:
    """Writer or reader, whoever comes first makes the log."""
    getattr(log, first)()
    append(log.writer(), 0, b"a")
    assert len(read_all(log.reader(), EVERYTHING)) == 1
    assert not list(log.folder.glob("*.new*"))


def test_processes_that_start_at_once_get_one_log(tmp_path: Path) -> None:
    """Roles may be started at the same moment; a creation that died half-way is not in their way."""
    (tmp_path / "log.sqlite.new").write_bytes(b"half")
    (tmp_path / "log.sqlite.new-wal").write_bytes(b"half")
    command = [sys.executable, "-c", _OPEN, str(tmp_path), IDENTITY.log_id, str(IDENTITY.partitions)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("x")
        child.stdin.flush()
    assert [child.communicate(timeout=WAIT_S)[0] for child in children] == ["open\n"] * 4
    assert not list(tmp_path.glob("*.new*"))


@pytest.mark.parametrize("identity", [LogIdentity("f" * 32, 8), LogIdentity(IDENTITY.log_id, 16)])
def test_another_log_is_refused(log: SqliteHarness, identity: LogIdentity) -> None:
    """A log of another identity or number of partitions is refused, by the writer and by the reader."""
    log.writer().close()
    for start in (Writer, open_reader):
        with pytest.raises(StartRefused, match="bring back the log that belongs to the folder"):
            start(log.folder, identity)


def test_a_newer_log_is_refused(log: SqliteHarness) -> None:
    """A log whose tables a newer version wrote is refused."""
    log.writer().close()
    with sqlite3.connect(log.folder / "log.sqlite") as other:
        other.execute("UPDATE meta SET value = 2 WHERE name = 'format'")
    other.close()
    for start in (Writer, open_reader):
        with pytest.raises(StartRefused, match=r"format 2.*start the version that wrote it"):
            start(log.folder)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00" + b"\x00" * 4_080, b"not a database" * 1_000, None])
def test_a_damaged_log_is_refused(log: SqliteHarness, content: bytes | None) -> None:
    """An empty file, one of zeros, a foreign one and one that is cut off are refused with what to do, and left as they are."""
    path = log.folder / "log.sqlite"
    append(log.writer(), 0, b"x" * 100_000)
    log.writer().close()
    path.write_bytes(path.read_bytes()[:3_000] if content is None else content)
    before = path.read_bytes()
    for start in (Writer, open_reader):
        with pytest.raises(StartRefused, match="if the file is damaged, restore the data folder from a backup"):
            start(log.folder)
    assert path.read_bytes() == before


def test_a_log_that_vanished_is_not_begun_anew(log: SqliteHarness) -> None:
    """A log that was applied and is missing is refused: an empty one would use its offsets again."""
    append(log.writer(), 0, b"a", b"b")
    log.reader().commit({0: 1})
    log.close()
    (log.folder / "log.sqlite").unlink()
    for start in (Writer, open_reader):
        with pytest.raises(StartRefused, match=r"is missing.*bring it back"):
            start(log.folder)
    assert not (log.folder / "log.sqlite").exists()


def test_damage_that_shows_later_is_refused_then(log: SqliteHarness) -> None:
    """A page that is destroyed is reported as damage, which trying again cannot help, by reads and by appends."""
    path = log.folder / "log.sqlite"
    append(log.writer(), 0, *[b"x" * 50 for _ in range(1_000)])
    log.writer().close()
    content = path.read_bytes()
    pages = 4  # the header, the tables of pages and of settings, and the counters, which are needed to open it
    path.write_bytes(content[: pages * 4_096] + b"\xff" * (len(content) - pages * 4_096))
    with pytest.raises(BackendRefused, match=r"damaged.*restore the data folder from a backup"):
        read_all(log.reader(), EVERYTHING)
    with pytest.raises(BackendRefused, match=r"damaged.*restore the data folder from a backup"):
        append(log.writer(), 0, b"x")
