"""The back ends of one data folder: the log in SQLite, the store and the counts feed in RocksDB."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from watertower.backends.rocksdb import RocksDbScanner, RocksDbStore
from watertower.backends.rocksdb_follower import RocksDbFollower
from watertower.backends.sqlite import SqliteLogReader, SqliteLogWriter
from watertower.bootstrap.scratch import scratch
from watertower.clock import SystemClock
from watertower.config import Settings
from watertower.datafolder import DataFolder, open_existing, open_or_create
from watertower.errors import BackendUnavailable
from watertower.ports import CountsFeed, FeedReader, LogReader, LogWriter, Store, StoreIdentity, StoreReader, StoreScanner


def log_writer(settings: Settings, opened: ExitStack) -> tuple[LogWriter, int]:
    """The log, for the one ingest of a folder, and the generation of the rows that are made from it."""
    folder = _folder(settings)
    opened.callback(folder.lock("ingest").release)
    log = SqliteLogWriter(
        folder.log_path,
        folder.commits_path,
        folder.identity,
        SystemClock(),
        truncate_interval_ms=settings.ingest.truncate_interval_ms,
    )
    opened.callback(log.close)
    return log, folder.generation


def projector_side(settings: Settings, opened: ExitStack, beat: Callable[[], None]) -> tuple[LogReader, Store, CountsFeed]:
    """The log, the store and the feed, for the one projector of a folder. `beat` is not needed: a flush is over soon, or hangs."""
    folder = _folder(settings)
    limits = settings.projector
    opened.callback(folder.lock("projector").release)
    log = SqliteLogReader(folder.log_path, folder.commits_path, folder.identity)
    opened.callback(log.close)
    store = RocksDbStore(
        folder.store_path,
        _store_identity(folder),
        write_buffer_bytes=limits.write_buffer_bytes,
        block_cache_bytes=limits.block_cache_bytes,
        feed_messages_max=limits.feed_messages_max,
    )
    opened.callback(store.close)
    return log, store, store.feed


def query_side(settings: Settings, opened: ExitStack) -> tuple[StoreReader, FeedReader]:
    """The store and the feed, for any number of query processes."""
    folder = _folder(settings)
    own = _scratch(folder, "query", opened)
    reader = RocksDbFollower(folder.store_path, own, _store_identity(folder), block_cache_bytes=settings.projector.block_cache_bytes)
    opened.callback(reader.close)
    return reader, reader


def scanner(settings: Settings, opened: ExitStack) -> StoreScanner:
    """All rows of the folder as of now."""
    folder = open_existing(settings.service.data)
    rows = RocksDbScanner(folder.store_path, _scratch(folder, "scan", opened), _store_identity(folder))
    opened.callback(rows.close)
    return rows


def _folder(settings: Settings) -> DataFolder:
    return open_or_create(settings.service.data, settings.service.partitions)


def _store_identity(folder: DataFolder) -> StoreIdentity:
    return StoreIdentity(folder.identity, folder.generation)


def _scratch(folder: DataFolder, kind: str, opened: ExitStack) -> Path:
    """A place for a secondary instance, until `opened` ends. It makes and removes that folder itself, so the lock is on the one above."""
    try:
        return opened.enter_context(scratch(folder.readers_path, kind)) / "instance"
    except OSError as error:
        raise BackendUnavailable(f"{folder.readers_path} cannot be written: {error.strerror}") from error
