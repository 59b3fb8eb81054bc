"""The embedded log: one SQLite file in WAL mode, written by one thread of one process, read by others.

Theory of operation. A record's key is its partition and its offset in one integer, so that a partition is a range of the table.
All appends that wait when the writer wakes go into one transaction with synchronous=FULL: one sync of the WAL for all of them, and
their futures are resolved after COMMIT has returned. SQLite shows a transaction to readers only after that sync, so readers
see durable records only. The next offset of each partition is a row of its own, written in the same transaction and read anew in each:
an offset is never used twice, whatever was deleted, lost or failed in between.

The WAL stays small because the writer checkpoints it, after the futures are resolved, and because readers hold no transaction
between two calls. The file stays small because what is applied is deleted, and free pages beyond a reserve are given back.

After any error the connection is closed and the next use opens another one: a failed commit leaves nothing behind to
reason about, and the log goes on by itself when its disk does.
"""

import sqlite3
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import structlog

from watertower.backends.commits import CommitsFile
from watertower.backends.sqlite_file import PAGE_BYTES, LogFile, key
from watertower.backends.sqlite_reader import SqliteLogReader
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.ports import Clock, LogIdentity

__all__ = ["SqliteLogReader", "SqliteLogWriter"]

GROUP_BYTES_MAX = 16 * 2**20
"""Bytes of payload in one transaction, at most (a single record may be larger): bounds the wait for a sync."""

TRUNCATE_BYTES_MAX = 4 * 2**20
"""Bytes of payload deleted in one transaction, about: bounds how long an append waits for a truncation."""

TRUNCATE_RECORDS_MAX = 1_000
"""Records deleted in one transaction, at most."""

CHECKPOINT_BYTES = 4 * 2**20
"""Bytes written to the WAL, about, before it is copied into the file."""

FREE_BYTES_KEPT = 64 * 2**20
"""Bytes of free pages that are kept for later records; what is beyond is given back to the file system."""


class _Append(NamedTuple):
    partition: int
    payload: bytes
    appended_at: int
    future: "Future[int]"


class SqliteLogWriter:
    """ports.LogWriter on a SQLite file. At most one at a time; the caller sees to that (datafolder locks)."""

    def __init__(self, path: Path, commits_path: Path, identity: LogIdentity, clock: Clock, truncate_interval_ms: int = 1_000) -> None:
        """Opens the log, or creates it. Raises StartRefused: another identity, a newer format, damage, no right;
        BackendUnavailable: the disk is full or fails."""
        self._identity = identity
        self._commits = CommitsFile(commits_path, identity)
        self._file = LogFile(path, identity, self._commits)
        self._clock = clock
        self._truncate_interval_s = truncate_interval_ms / 1e3
        self._changed = threading.Condition()
        self._waiting: deque[_Append] = deque()
        self._truncations: list[Future[int]] = []
        self._closing = False
        # What follows belongs to the thread.
        self._truncate_at = self._clock.monotonic_s() + self._truncate_interval_s
        self._deleted = 0
        self._wal_bytes = 0
        self._logger = structlog.get_logger("watertower.log")
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def identity(self) -> LogIdentity:
        return self._identity

    def append(self, partition: int, payload: bytes, appended_at: int, traceparent: str = "") -> "Future[int]":
        """See ports.LogWriter. The future cannot be cancelled: its record is on its way. It fails with BackendRefused when the log is
        closed or damaged. Raises ValueError for a partition that the log does not have."""
        if not 0 <= partition < self._identity.partitions:
            raise ValueError(f"partition {partition} of {self._identity.partitions}")
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if not self._closing:
                self._waiting.append(_Append(partition, payload, appended_at, future))
                self._changed.notify()
                return future
        future.set_exception(BackendRefused("the log is closed"))
        return future

    def truncate(self) -> int:
        """Deletes now what lies before the committed ends, as the thread does by itself at its interval. Waits.

        Returns the number of records deleted. Raises BackendUnavailable, BackendRefused.
        """
        request: Future[int] = Future()
        with self._changed:
            if self._closing:
                raise BackendRefused("the log is closed")
            self._truncations.append(request)
            self._changed.notify()
        return request.result()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        while True:
            group, stop = self._take()
            if group:
                self._commit(group)
            if stop:
                break
            if self._truncations or self._clock.monotonic_s() >= self._truncate_at:
                self._truncate()
        self._end_truncation(BackendRefused("the log is closed"))
        self._file.drop()

    def _take(self) -> tuple[list[_Append], bool]:
        """Waits for something to do. Returns what goes into the next transaction, and whether it is the last one."""
        group: list[_Append] = []
        size = 0
        with self._changed:
            if not self._waiting and not self._truncations and not self._closing:
                self._changed.wait(max(self._truncate_at - self._clock.monotonic_s(), 0.0))
            while self._waiting and (not group or size + len(self._waiting[0].payload) <= GROUP_BYTES_MAX):
                group.append(self._waiting.popleft())
                size += len(group[-1].payload)
            return group, self._closing and not self._waiting

    def _commit(self, group: list[_Append]) -> None:
        try:
            with self._file.use() as connection:
                offsets = self._write(connection, group)
        except (BackendUnavailable, BackendRefused) as error:
            for item in group:
                item.future.set_exception(error)
            return
        for item, offset in zip(group, offsets, strict=True):
            item.future.set_result(offset)
        self._checkpoint_after(sum(len(item.payload) + PAGE_BYTES for item in group) + PAGE_BYTES)

    def _write(self, connection: sqlite3.Connection, group: list[_Append]) -> list[int]:
        """One transaction. When it returns, the group is durable."""
        connection.execute("BEGIN IMMEDIATE")
        next_offsets: dict[int, int] = dict(connection.execute("SELECT partition, next_offset FROM partitions"))
        offsets = []
        for item in group:
            offsets.append(next_offsets[item.partition])
            next_offsets[item.partition] += 1
        connection.executemany(
            "INSERT INTO records VALUES (?, ?, ?)",
            ((key(item.partition, offset), item.appended_at, item.payload) for item, offset in zip(group, offsets, strict=True)),
        )
        touched = {item.partition for item in group}
        connection.executemany("UPDATE partitions SET next_offset = ? WHERE partition = ?", ((next_offsets[p], p) for p in touched))
        connection.execute("COMMIT")
        return offsets

    def _checkpoint_after(self, written: int) -> None:
        """Every CHECKPOINT_BYTES, copies the WAL into the file, so that the next transaction begins it anew. Where a reader is in the
        way at that moment, the next time does it."""
        self._wal_bytes += written
        if self._wal_bytes < CHECKPOINT_BYTES:
            return
        self._wal_bytes = 0
        try:
            with self._file.use() as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (BackendUnavailable, BackendRefused) as error:
            self._logger.warning("log_checkpoint_failed", error=str(error))

    def _truncate(self) -> None:
        """One transaction of a truncation, so that appends come between; the next one follows at once until nothing is left to delete."""
        try:
            with self._file.use() as connection:
                deleted = self._delete_some(connection)
                freed = 0 if deleted else self._give_back_some(connection)
        except (BackendUnavailable, BackendRefused) as error:
            self._logger.warning("log_truncation_failed", error=str(error))
            self._end_truncation(error)
            return
        self._deleted += deleted
        if deleted or freed:
            self._checkpoint_after((deleted + freed) * PAGE_BYTES)
        else:
            self._end_truncation(None)

    def _end_truncation(self, error: Exception | None) -> None:
        self._truncate_at = self._clock.monotonic_s() + self._truncate_interval_s
        with self._changed:
            requests, self._truncations = self._truncations, []
        for request in requests:
            request.set_exception(error) if error else request.set_result(self._deleted)
        self._deleted = 0

    def _delete_some(self, connection: sqlite3.Connection) -> int:
        """Deletes what lies before a committed end, in one partition. Returns the number of records."""
        for partition, end in self._commits.read().items():
            if not connection.execute("SELECT 1 FROM records WHERE key = ?", (key(partition, end),)).fetchone():
                continue  # an end without its record was not made from this log: nothing is dropped on its word
            bounds = (key(partition, 0), key(partition, end), TRUNCATE_RECORDS_MAX)
            rows = connection.execute("SELECT key, length(payload) FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?", bounds)
            size = count = 0
            for last, length in rows.fetchall():
                size += length
                if count and size > TRUNCATE_BYTES_MAX:
                    break
                count, upper = count + 1, last
            if count:
                connection.execute("DELETE FROM records WHERE key BETWEEN ? AND ?", (key(partition, 0), upper))
                return count
        return 0

    def _give_back_some(self, connection: sqlite3.Connection) -> int:
        """Returns free pages beyond the reserve to the file system. Returns their number."""
        free = _free_pages(connection)
        pages = min(free - FREE_BYTES_KEPT // PAGE_BYTES, TRUNCATE_BYTES_MAX // PAGE_BYTES)
        if pages <= 0:
            return 0
        # Not execute(): this statement has no columns, so the driver would take one step, which frees one page.
        connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        return free - _free_pages(connection)


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])
