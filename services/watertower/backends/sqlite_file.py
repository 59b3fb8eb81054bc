"""The SQLite file of the embedded log: made whole or not at all, opened only for the log it belongs to, opened again after errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from watertower.backends.commits import CommitsFile
from watertower.datafolder import DISK_ERRORS, creation_lock, sync_folder
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import LogIdentity

FORMAT = 1
"""Version of the tables that this version writes and reads."""

WAL_BYTES_KEPT = 16 * 2**20
"""Bytes of the WAL file that are kept when it starts again from its beginning."""

BUSY_S = 5.0
"""Seconds to wait for SQLite's locks. Only the creation of the file by several processes at once ever contends for them."""

PAGE_BYTES = 4_096
_PARTITION_SPAN = 2**56
"""Keys of one partition: more offsets than a write timestamp has room for (core/positions.py)."""

_SCHEMA = f"""
PRAGMA page_size = {PAGE_BYTES};
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE partitions (partition INTEGER PRIMARY KEY, next_offset INTEGER NOT NULL);
CREATE TABLE records (key INTEGER PRIMARY KEY, appended_at INTEGER NOT NULL, payload BLOB NOT NULL);
"""


def key(partition: int, offset: int) -> int:
    """The place of a record in the table. Offset -1 lies before all records of its partition."""
    return partition * _PARTITION_SPAN + offset


class LogFile:
    """A connection that is opened again after an error. Used by one thread at a time."""

    def __init__(self, path: Path, identity: LogIdentity, commits: CommitsFile) -> None:
        """Opens the log, and creates it if it is missing. Raises StartRefused; BackendUnavailable where its disk is full or fails, so
        that a process that is restarted meanwhile waits for it."""
        self._path = path
        self._identity = identity
        try:
            if not path.exists():
                _create(path, identity, commits)
            self._connection: sqlite3.Connection | None = open_log(path, identity)
        except (sqlite3.Error, OSError) as error:
            raise open_failure(path, error) from error

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The connection. Raises BackendUnavailable and BackendRefused instead of SQLite's errors, and forgets the connection then."""
        try:
            if self._connection is None:
                self._connection = open_log(self._path, self._identity)
            yield self._connection
        except StartRefused as error:
            self.drop()
            raise BackendRefused(str(error)) from error
        except sqlite3.Error as error:
            self.drop()
            raise translated(error, "the log does not answer") from error

    def drop(self) -> None:
        """Closes the connection; a transaction that is open is undone."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def translated(error: sqlite3.Error, otherwise: str) -> BackendUnavailable | BackendRefused:
    """What SQLite's error about an open log means to a caller: damage, or that `otherwise` is so, which may pass."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return BackendRefused(f"the log is damaged: {error}; stop the service and restore the data folder from a backup")
    return BackendUnavailable(f"{otherwise}: {error}")


def open_failure(path: Path, error: sqlite3.Error | OSError) -> BackendUnavailable | StartRefused:
    """What an error at the opening of the log means."""
    if _may_pass(error):
        return BackendUnavailable(f"the log {path} cannot be opened: {error}")
    return StartRefused(
        f"the log {path} cannot be opened: {error}; give this user the right to write the data folder and see that its disk has "
        "space; if the file is damaged, restore the data folder from a backup"
    )


def _may_pass(error: sqlite3.Error | OSError) -> bool:
    """Whether the disk is the cause, and not the file or a right."""
    if isinstance(error, OSError):
        return error.errno in DISK_ERRORS
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)


def _create(path: Path, identity: LogIdentity, commits: CommitsFile) -> None:
    """Makes an empty log under another name and renames it, so that there is a whole one or none."""
    with creation_lock(path.parent):
        if path.exists():
            return  # another process was faster
        if commits.read():
            raise StartRefused(
                f"the log {path} is missing, and its records had been applied: bring it back, or restore a backup of the folder"
            )
        unfinished = path.with_name(path.name + ".new")
        for left in path.parent.glob(unfinished.name + "*"):
            left.unlink()
        connection = sqlite3.connect(unfinished, isolation_level=None)
        try:
            connection.executescript(_SCHEMA)
            meta = {"format": FORMAT, "log_id": identity.log_id, "partitions": identity.partitions}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            connection.executemany("INSERT INTO partitions VALUES (?, 0)", ((partition,) for partition in range(identity.partitions)))
            connection.execute("COMMIT")
        finally:
            connection.close()  # moves the WAL into the file and removes it
        unfinished.rename(path)
        sync_folder(path.parent)


def open_log(path: Path, identity: LogIdentity) -> sqlite3.Connection:
    """A connection to the log of this identity. Raises StartRefused, sqlite3.Error."""
    # mode=rw: a file that has vanished is an error and not an empty log whose offsets begin again.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        connection.executescript(
            f"PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA journal_size_limit = {WAL_BYTES_KEPT}; PRAGMA wal_autocheckpoint = 0"
        )
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        if meta.get("format") != FORMAT:
            raise StartRefused(
                f"the log {path} has format {meta.get('format')} and this version of Watertower reads {FORMAT}: "
                "start the version that wrote it"
            )
        found = LogIdentity(str(meta.get("log_id")), int(meta.get("partitions", 0)))
        if found != identity:
            raise StartRefused(
                f"{path} is the log {found.log_id} with {found.partitions} partitions, and the data folder belongs to "
                f"{identity.log_id} with {identity.partitions}: bring back the log that belongs to the folder"
            )
    except BaseException:
        connection.close()
        raise
    return connection
