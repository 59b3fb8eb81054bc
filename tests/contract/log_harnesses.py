"""How the tests open the logs of the back ends."""

from pathlib import Path

from watertower.backends.memory_log import MemoryLog
from watertower.backends.sqlite import SqliteLogReader, SqliteLogWriter
from watertower.clock import SystemClock
from watertower.ports import LogIdentity

IDENTITY = LogIdentity("0123456789abcdef" * 2, 8)


class MemoryHarness:
    """One object is the writer and the reader."""

    identity = IDENTITY

    def __init__(self) -> None:
        self._log = MemoryLog(IDENTITY)

    def writer(self) -> MemoryLog:
        return self._log

    def reader(self) -> MemoryLog:
        return self._log

    def settle(self) -> None:
        """It drops at once."""


class Writer(SqliteLogWriter):
    """A writer that knows whether it was closed."""

    def __init__(self, folder: Path, identity: LogIdentity = IDENTITY, truncate_interval_ms: int = 3_600_000) -> None:
        self.closed = False
        super().__init__(folder / "log.sqlite", folder / "commits.json", identity, SystemClock(), truncate_interval_ms)

    def close(self) -> None:
        super().close()
        self.closed = True


class SqliteHarness:
    """A log in a folder. It truncates when told to, and not by itself."""

    identity = IDENTITY

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Writer | None = None
        self._reader: SqliteLogReader | None = None

    def writer(self) -> Writer:
        if self._writer is None or self._writer.closed:
            self._writer = Writer(self.folder)
        return self._writer

    def reader(self) -> SqliteLogReader:
        if self._reader is None:
            self._reader = open_reader(self.folder)
        return self._reader

    def settle(self) -> None:
        self.writer().truncate()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()


def open_reader(folder: Path, identity: LogIdentity = IDENTITY) -> SqliteLogReader:
    """A reader of the log in a folder."""
    return SqliteLogReader(folder / "log.sqlite", folder / "commits.json", identity)
