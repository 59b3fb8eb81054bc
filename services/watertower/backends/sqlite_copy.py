"""A copy of the embedded log as of one moment, beside an ingest that goes on appending."""

import sqlite3
from pathlib import Path

from watertower.backends.sqlite_file import open_log
from watertower.errors import BackendRefused, BackendUnavailable, BackupRefused
from watertower.ports import LogIdentity


class LogCopier:
    """A connection to the log that is open already when the moment comes."""

    def __init__(self, path: Path, identity: LogIdentity) -> None:
        """Raises StartRefused where it is another log, BackendUnavailable where it cannot be opened."""
        try:
            self._connection = open_log(path, identity)
        except sqlite3.Error as error:
            raise BackendUnavailable(f"the log {path} cannot be opened: {error}") from error

    def size(self) -> int:
        """Bytes of a copy, about."""
        (pages,), (page_bytes,) = (self._connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        return int(pages) * int(page_bytes)

    def copy(self, target: Path) -> None:
        """Makes the new file `target` a copy, as of one moment at the beginning of this call. Not synced.

        It is one step of SQLite's backup: a snapshot, which keeps the log's WAL from beginning anew until it is copied; appends and
        truncations go on. Raises BackupRefused where there is no space, BackendUnavailable, BackendRefused.
        """
        try:
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                self._connection.backup(copy)
            finally:
                copy.close()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise BackupRefused(f"no space is left for {target}: free some, or choose another target") from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise BackendRefused(f"the log is damaged: {error}") from error
            raise BackendUnavailable(f"the log cannot be copied: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()
