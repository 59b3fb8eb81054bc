"""The back ends of one data folder: the log in SQLite, the store and the counts feed in RocksDB."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from watertower.backends.rocksdb import RocksDbScanner, RocksDbStore
from watertower.backends.rocksdb_follower import RocksDbFollower
from watertower.backends.sqlite import SqliteLogReader, SqliteLogWriter
from watertower.clock import SystemClock
from watertower.config import Settings
from watertower.datafolder import DataFolder, open_existing, open_or_create
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
    remove_scratch_of_the_dead(folder.readers_path)
    own = folder.readers_path / f"query-{os.getpid()}"
    reader = RocksDbFollower(folder.store_path, own, _store_identity(folder), block_cache_bytes=settings.projector.block_cache_bytes)
    opened.callback(reader.close)
    return reader, reader


def scanner(settings: Settings, opened: ExitStack) -> StoreScanner:
    """All rows of the folder as of now."""
    folder = open_existing(settings.service.data)
    folder.readers_path.mkdir(mode=0o700, exist_ok=True)
    remove_scratch_of_the_dead(folder.readers_path)
    own = Path(tempfile.mkdtemp(prefix=f"scan-{os.getpid()}-", dir=folder.readers_path))
    opened.callback(shutil.rmtree, own, ignore_errors=True)
    rows = RocksDbScanner(folder.store_path, own, _store_identity(folder))
    opened.callback(rows.close)
    return rows


def _folder(settings: Settings) -> DataFolder:
    return open_or_create(settings.service.data, settings.service.partitions)


def _store_identity(folder: DataFolder) -> StoreIdentity:
    return StoreIdentity(folder.identity, folder.generation)


def remove_scratch_of_the_dead(readers: Path) -> None:
    """A secondary instance keeps a small folder of its own, and a backup one with links, named after its process; a killed process
    leaves it behind."""
    for left in readers.glob("*"):
        owner = re.fullmatch(r"(?:query|scan|backup)-(\d+)(?:-.*)?", left.name)
        if owner is None:
            continue
        try:
            os.kill(int(owner[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            continue  # alive, of another user
