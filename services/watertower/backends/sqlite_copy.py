"""A copy of the embedded log as of one moment, beside an ingest that goes on appending."""

import sqlite3
from pathlib import Path

from watertower.backends.sqlite_file import open_failure, open_log, translated
from watertower.errors import BackupRefused
from watertower.ports import LogIdentity


class LogCopier:
    """A connection to the log that is open already when the moment comes."""

    def __init__(self, path: Path, identity: LogIdentity) -> None:
        """Raises StartRefused where it is another log or damaged, or this user may not open it; BackendUnavailable where that may pass."""
        try:
            self._connection = open_log(path, identity)
        except sqlite3.Error as error:
            raise open_failure(path, error) from error

    def size(self) -> int:
        """Bytes of a copy, about. Raises BackendUnavailable, BackendRefused."""
        try:
            (pages,), (page_bytes,) = (self._connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        except sqlite3.Error as error:
            raise translated(error, "the log cannot be read") from error
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
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                raise BackupRefused(f"no space is left for {target}: free some, or choose another target") from error
            raise translated(error, "the log cannot be copied") from error

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()
