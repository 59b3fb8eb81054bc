"""The projector's side of the embedded log: short reads, in any process of the same machine."""

import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path

from watertower.backends.commits import CommitsFile
from watertower.backends.sqlite_file import LogFile, key
from watertower.errors import BackendRefused
from watertower.ports import LogIdentity, LogRecord


class SqliteLogReader:
    """ports.LogReader on a SQLite file, in any process of the same machine. For one thread at a time."""

    def __init__(self, path: Path, commits_path: Path, identity: LogIdentity) -> None:
        """Opens the log, or creates it. Raises StartRefused: another identity, a newer format, damage, no right;
        BackendUnavailable: the disk is full or fails."""
        self._identity = identity
        self._commits = CommitsFile(commits_path, identity)
        self._file = LogFile(path, identity, self._commits)
        self._turn = 0
        # Where nothing was found, and in which state of the file: until that changes, nothing needs to be looked for there.
        self._seen: tuple[sqlite3.Connection, int] | None = None
        self._nothing_after: dict[int, int] = {}

    @property
    def identity(self) -> LogIdentity:
        return self._identity

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        """See ports.LogReader. Each partition gets an even share first; what is left then goes to those that have more, another one first
        each time. The first one's first record is taken also where it is larger than a share, so that it need not wait for good."""
        records: list[LogRecord] = []
        with self._file.use() as connection:
            hungry = self._hungry(connection, after)
            if not hungry:
                return records
            self._turn += 1
            order = sorted(hungry, key=lambda partition: (partition + self._turn) % self._identity.partitions)
            reached = {partition: after[partition] for partition in order}
            size = 0
            for share in (len(order), 1):
                records_share, bytes_share = max(records_max // share, 1), max(bytes_max // share, 1)
                for partition in order:
                    if partition not in reached:
                        continue  # found its end in the first round
                    limit = min(records_share, records_max - len(records))
                    room = min(bytes_share, bytes_max - size)
                    found, ended = self._range(connection, partition, reached[partition], limit, room, at_least_one=not records)
                    records += found
                    size += sum(len(record.payload) for record in found)
                    if found:
                        reached[partition] = found[-1].offset
                    if ended:
                        self._nothing_after[partition] = reached.pop(partition)
        return records

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """See ports.LogReader."""
        with self._file.use() as connection:
            next_offsets = dict(connection.execute("SELECT partition, next_offset FROM partitions"))
        return {partition: int(next_offsets[partition]) - 1 for partition in partitions}

    def owned(self) -> frozenset[int]:
        """See ports.LogReader."""
        return frozenset(range(self._identity.partitions))

    def start(self, partition: int) -> int:
        """See ports.LogReader."""
        with self._file.use() as connection:
            (offset,) = connection.execute(
                "SELECT coalesce((SELECT key - ? FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT 1), next_offset) "
                "FROM partitions WHERE partition = ?",
                (key(partition, 0), key(partition, 0), key(partition + 1, 0), partition),
            ).fetchone()
        return int(offset)

    def record_at(self, partition: int, offset: int) -> LogRecord | None:
        """See ports.LogReader."""
        with self._file.use() as connection:
            row = connection.execute("SELECT appended_at, payload FROM records WHERE key = ?", (key(partition, offset),)).fetchone()
        return LogRecord(partition, offset, *row) if row else None

    def set_aside(self, record: LogRecord, reason: str) -> None:
        """See ports.LogReader. Only ingest can write to this log: what it cannot have written is damage."""
        raise BackendRefused("the embedded log sets nothing aside")

    def commit(self, ends: Mapping[int, int]) -> None:
        """See ports.LogReader."""
        self._commits.write(ends)

    def close(self) -> None:
        """Lets go of the file; the next use would open it again. Idempotent."""
        self._file.drop()

    def _hungry(self, connection: sqlite3.Connection, after: Mapping[int, int]) -> list[int]:
        """The partitions in which there may be something new. Costs microseconds while nobody writes."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if self._seen is None or self._seen[0] is not connection or self._seen[1] != version:
            self._seen = (connection, version)
            self._nothing_after.clear()
        return [partition for partition, offset in after.items() if self._nothing_after.get(partition) != offset]

    @staticmethod
    def _range(
        connection: sqlite3.Connection, partition: int, after: int, limit: int, room: int, at_least_one: bool
    ) -> tuple[list[LogRecord], bool]:
        """Records of one partition in order: at most `limit` records and `room` bytes. Says whether the partition ends there."""
        if limit <= 0:
            return [], False
        base = key(partition, 0)
        found: list[LogRecord] = []
        rows = connection.execute(
            "SELECT key - ?, appended_at, payload FROM records WHERE key > ? AND key < ? ORDER BY key LIMIT ?",
            (base, base + after, key(partition + 1, 0), limit),
        )
        for offset, appended_at, payload in rows:
            room -= len(payload)
            if room < 0 and (found or not at_least_one):
                rows.close()  # ends the read transaction now, so that the writer can begin its WAL anew
                return found, False
            found.append(LogRecord(partition, offset, appended_at, payload))
        return found, len(found) < limit
