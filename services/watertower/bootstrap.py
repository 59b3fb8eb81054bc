"""The only place that picks back ends and wires processes. Everything else is handed what it needs."""

import os
import random
import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from watertower.backends.rocksdb import RocksDbScanner, RocksDbStore
from watertower.backends.rocksdb_follower import RocksDbFollower
from watertower.backends.sqlite import SqliteLogReader, SqliteLogWriter
from watertower.clock import SystemClock
from watertower.config import Settings
from watertower.datafolder import DataFolder, open_existing, open_or_create
from watertower.ingest.process import IngestProcess
from watertower.ingest.service import IngestService
from watertower.ports import StoreIdentity, StoreScanner
from watertower.projector.process import ProjectorProcess
from watertower.projector.projector import Projector
from watertower.query.process import QueryProcess
from watertower.query.service import QueryService


def ingest(settings: Settings) -> IngestProcess:
    """The ingest role on the configured log. Raises StartRefused; BackendUnavailable where trying again may help."""
    folder = _folder(settings)
    with ExitStack() as undo:  # of what is done already, where a later part is not to be had yet: the caller tries again
        lock = undo.enter_context(folder.lock("ingest"))
        log = SqliteLogWriter(
            folder.log_path,
            folder.commits_path,
            folder.identity,
            SystemClock(),
            truncate_interval_ms=settings.ingest.truncate_interval_ms,
        )
        undo.pop_all()
    service = IngestService(log, settings.ingest, SystemClock(), generation=folder.generation)
    return IngestProcess(service, log, settings.service, settings.ingest, lock)


def projector(settings: Settings) -> ProjectorProcess:
    """The projector role on the configured log, store and feed. Raises StartRefused; BackendUnavailable where trying again may help."""
    folder = _folder(settings)
    limits = settings.projector
    with ExitStack() as undo:
        lock = undo.enter_context(folder.lock("projector"))
        log = SqliteLogReader(folder.log_path, folder.commits_path, folder.identity)
        undo.callback(log.close)
        store = RocksDbStore(
            folder.store_path,
            _store_identity(folder),
            write_buffer_bytes=limits.write_buffer_bytes,
            block_cache_bytes=limits.block_cache_bytes,
            feed_messages_max=limits.feed_messages_max,
        )
        undo.pop_all()
    loop = Projector(log, store, store.feed, limits, SystemClock(), random.Random())  # noqa: S311 - jitter, not secrets
    return ProjectorProcess(loop, log, store, settings.service, SystemClock(), lock)


def query(settings: Settings) -> QueryProcess:
    """The query role on the configured store and feed. Raises StartRefused, BackendUnavailable while the store is not there yet."""
    folder = _folder(settings)
    _remove_scratch_of_the_dead(folder.readers_path)
    own = folder.readers_path / f"query-{os.getpid()}"
    reader = RocksDbFollower(folder.store_path, own, _store_identity(folder), block_cache_bytes=settings.projector.block_cache_bytes)
    service = QueryService(
        reader,
        reader,
        settings.query,
        SystemClock(),
        random.Random(),  # noqa: S311 - jitter, not secrets
        partitions=folder.identity.partitions,
    )
    return QueryProcess(service, reader, settings.service, settings.query)


def open_scanner(data: Path) -> StoreScanner:
    """All rows of a data folder as of now, beside a service that runs or does not. Raises StartRefused; BackendUnavailable while the
    store is not there yet."""
    folder = open_existing(data)
    folder.readers_path.mkdir(mode=0o700, exist_ok=True)
    _remove_scratch_of_the_dead(folder.readers_path)
    own = Path(tempfile.mkdtemp(prefix=f"scan-{os.getpid()}-", dir=folder.readers_path))
    try:
        return RocksDbScanner(folder.store_path, own, _store_identity(folder))
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


def _folder(settings: Settings) -> DataFolder:
    return open_or_create(settings.service.data, settings.service.partitions)


def _store_identity(folder: DataFolder) -> StoreIdentity:
    return StoreIdentity(folder.identity, folder.generation)


def _remove_scratch_of_the_dead(readers: Path) -> None:
    """A secondary instance keeps a small folder of its own, named after its process; a killed process leaves it behind."""
    for left in readers.glob("*"):
        owner = re.fullmatch(r"(?:query|scan)-(\d+)(?:-.*)?", left.name)
        if owner is None:
            continue
        try:
            os.kill(int(owner[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            continue  # alive, of another user
