"""Opening RocksDB: options, identity, and what the driver's errors mean. Shared by the owner and by readers."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from watertower.backends import rocksdb_keys as keys
from watertower.datafolder import sync_folder
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import StoreIdentity

FORMAT: Final = 1
"""Version of the key and value encodings in rocksdb_keys.py. A store with a higher one is refused."""

CATCH_UPS_MAX: Final = 100
"""Attempts at following an owner that changes its manifest all the time, before a reader gives up."""

SECONDARY_OPENS_MAX: Final = 10
"""Attempts at opening beside an owner that deletes files all the time, before a reader gives up."""

_BLOCK_BYTES = 8 * 1024
_BLOOM_BITS_PER_KEY = 10
_INFO_LOG_BYTES_MAX = 1024 * 1024
_INFO_LOGS_MAX = 2
_BACKGROUND_JOBS_MAX = 2
_BACKGROUND_SYNC_BYTES = 1024 * 1024
_READER_WRITE_BUFFER_BYTES = 32 * 1024 * 1024

Row = tuple[bytes, bytes]


class _DriverErrors:
    """`with DRIVER_ERRORS:` around every use of the driver. rocksdict raises plain `Exception` with RocksDB's message."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is Exception:
            raise translated(str(error)) from error
        if kind is DbClosedError:
            raise BackendRefused("the store is closed") from error


DRIVER_ERRORS: Final = _DriverErrors()


def translated(message: str) -> BackendUnavailable | BackendRefused:
    """What RocksDB's message means to a caller."""
    # What is on the disk is wrong, or the request is; everything else (I/O, space, busy, shutting down) may pass.
    refused = message.startswith(("Corruption", "Invalid argument", "Not implemented"))
    return BackendRefused(message) if refused else BackendUnavailable(message)


def open_owner(path: Path, identity: StoreIdentity, write_buffer_bytes: int, block_cache_bytes: int) -> Rdict:
    """Opens the store for writing, creates it if there is none.

    Raises StartRefused: another process owns it, it is damaged, in a newer format, or made from another log; BackendUnavailable where
    trying again may help.
    """
    options = _options(write_buffer_bytes, block_cache_bytes)
    # A log file is dropped when its memtable is written out; this bounds what a restart replays and what a reader tails.
    options.set_max_total_wal_size(4 * write_buffer_bytes)
    # One writing thread: neither concurrent inserts nor spinning for a place in the queue of writers.
    options.set_allow_concurrent_memtable_write(False)
    options.set_enable_write_thread_adaptive_yield(False)
    # New edges are looked up in vain: let the memtable say so without a search.
    options.set_memtable_prefix_bloom_ratio(0.05)
    options.set_memtable_whole_key_filtering(True)
    try:
        if not path.exists() or not any(path.iterdir()):
            _create(path, options)
        if not (path / "CURRENT").exists():
            raise damaged(path, "the file CURRENT is missing")
        db = _open(path, options, AccessType.read_write())
    except StartRefused:
        raise
    except OSError as error:
        raise BackendUnavailable(f"the store at {path} cannot be opened: {error}") from error
    except Exception as error:
        raise _open_failure(path, error) from error
    if not _has_identity(db, path, identity):
        if any(True for _ in scan(db, b"", limit=1)):
            raise damaged(path, "it has rows but does not say which log they were made from")
        _write_identity(db, identity)
    return db


def _create(path: Path, options: Options) -> None:
    """Makes an empty store under another name and renames it, so that there is a whole one or none, whenever the process dies."""
    unfinished = path.with_name(path.name + ".new")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    options.create_if_missing(True)
    db = _open(unfinished, options, AccessType.read_write())
    options.create_if_missing(False)
    db.close()
    unfinished.rename(path)
    sync_folder(path.parent)


def open_secondary(path: Path, secondary_path: Path, identity: StoreIdentity, block_cache_bytes: int) -> Rdict:
    """Opens the store for reading, beside an owner or without one, as of now. `secondary_path` is a folder for this instance alone.

    Raises BackendUnavailable while there is no store (an owner creates it); StartRefused: it is damaged, in a newer format, or made
    from another log.
    """
    if not (path / "CURRENT").exists():  # the driver would create the folder
        raise BackendUnavailable(f"there is no store at {path} yet: a projector creates it when it starts")
    options = _options(_READER_WRITE_BUFFER_BYTES, block_cache_bytes)
    options.set_max_open_files(-1)  # the owner deletes files that it compacted; a file that is open stays readable
    attempts = SECONDARY_OPENS_MAX
    while True:
        attempts -= 1
        try:
            secondary_path.mkdir(parents=True, exist_ok=True)
            db = _open(path, options, AccessType.secondary(str(secondary_path)))
            break
        except OSError as error:
            raise BackendUnavailable(f"the store at {path} cannot be opened: {error}") from error
        except Exception as error:
            # A file was deleted between reading its name and opening it; the next attempt reads newer names.
            if attempts == 0 or "No such file" not in str(error):
                raise _open_failure(path, error) from error
    follow(db, path)
    if not _has_identity(db, path, identity):
        raise BackendUnavailable(f"the store at {path} is being created")
    return db


def follow(db: Rdict, path: Path) -> None:
    """Makes a secondary instance show everything that was written before this call. Nobody may read from it meanwhile.

    RocksDB reads the manifest and then the log files. What an owner moved from a log file to a table between the two, it sees in
    neither, while it sees what came later: a hole. The next look at the manifest fills it, so a catch-up counts only if the manifest
    has not changed meanwhile. Raises BackendUnavailable if that does not happen in CATCH_UPS_MAX attempts.
    """
    for _ in range(CATCH_UPS_MAX):
        before = manifest(path)
        with DRIVER_ERRORS:
            db.try_catch_up_with_primary()
        if before is not None and manifest(path) == before:
            return
    raise BackendUnavailable(f"the store at {path} changes faster than it can be followed")


def manifest(path: Path) -> tuple[str, int] | None:
    """The manifest's name and size: it is only appended to. None while an owner changes over to another one."""
    try:
        name = (path / "CURRENT").read_text().strip()
        return name, (path / name).stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackendUnavailable(f"the store at {path} cannot be read: {error}") from error


def written(path: Path) -> frozenset[tuple[str, int]] | None:
    """The files to which an owner appends, with their sizes: as long as it is the same, nothing was written. Costs 20 us. None while
    files come and go. Raises BackendUnavailable where the folder cannot be read."""
    try:
        with os.scandir(path) as files:
            return frozenset(
                (file.name, file.stat().st_size) for file in files if file.name.startswith("MANIFEST-") or file.name.endswith(".log")
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackendUnavailable(f"the store at {path} cannot be read: {error}") from error


def scan(db: Rdict, prefix: bytes, start: bytes | None = None, limit: int | None = None) -> list[Row]:
    """Rows whose key begins with `prefix`, from key `start` on (default: the first), as of one moment; at most `limit`."""
    rows: list[Row] = []
    bounds = ReadOptions()  # must outlive the cursor: RocksDB keeps a bare pointer to the bytes of the bound that they hold
    if prefix:
        bounds.set_iterate_upper_bound(keys.range_end(prefix))
    with DRIVER_ERRORS:
        cursor = db.iter(bounds)
        cursor.seek(prefix if start is None else start)
        valid, key, value, forward = cursor.valid, cursor.key, cursor.value, cursor.next
        while valid() and (limit is None or len(rows) < limit):
            rows.append((key(), value()))
            forward()
        cursor.status()  # an iterator that met an error ends like one that met the end of its range
        del cursor, valid, key, value, forward
    del bounds
    return rows


def scan_in_pieces(db: Rdict, prefix: bytes, piece: int) -> Iterator[Row]:
    """All rows whose key begins with `prefix`, `piece` at a time: an iterator that is held open pins what it began with."""
    start: bytes | None = None
    while True:
        rows = scan(db, prefix, start, piece)
        yield from rows
        if len(rows) < piece:
            return
        start = rows[-1][0] + b"\0"


def multi_get(db: Rdict, wanted: list[bytes]) -> list[bytes | None]:
    """The values of the given keys, in order, as of one moment; None where there is no row. Fastest where the keys are sorted."""
    anything: Any = wanted  # the driver's stubs ask for a list of a union, which a list of bytes is not
    with DRIVER_ERRORS:
        values: Any = db.get(anything)
    return cast("list[bytes | None]", values)


def last_key(db: Rdict, prefix: bytes) -> bytes | None:
    """The last key that begins with `prefix`."""
    with DRIVER_ERRORS:
        cursor = db.iter()
        cursor.seek_for_prev(keys.range_end(prefix))
        found: bytes | None = cursor.key() if cursor.valid() else None
        cursor.status()
    return found if found is not None and found.startswith(prefix) else None


def synced() -> WriteOptions:
    """Write options under which a write is on the disk when it returns."""
    options = WriteOptions()
    options.sync = True
    return options


_opening = threading.Lock()


def _open(path: Path, options: Options, access: AccessType) -> Rdict:
    # The empty dict matters: with None the driver takes the default column family's options from the last run's file, not from here.
    # The lock: the driver rewrites a small file of its own in the folder at each open.
    with _opening:
        return Rdict(str(path), options, {}, access)


def _options(write_buffer_bytes: int, block_cache_bytes: int) -> Options:
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(block_cache_bytes))
    blocks.set_block_size(_BLOCK_BYTES)
    blocks.set_format_version(5)
    blocks.set_bloom_filter(_BLOOM_BITS_PER_KEY, False)
    # Filters and indexes stay in memory beside the block cache: 5 bytes per edge, and a look-up in vain takes half as long as with
    # partitioned ones in the cache (0.9 against 2.3 us; whole ones in the cache drive each other out: 9 us).
    blocks.set_cache_index_and_filter_blocks(False)

    options = Options(raw_mode=True)
    options.set_block_based_table_factory(blocks)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_max_write_buffer_number(2)
    options.set_target_file_size_base(write_buffer_bytes)
    options.set_max_bytes_for_level_base(4 * write_buffer_bytes)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_max_background_jobs(_BACKGROUND_JOBS_MAX)
    options.set_bytes_per_sync(_BACKGROUND_SYNC_BYTES)
    options.set_keep_log_file_num(_INFO_LOGS_MAX)
    options.set_max_log_file_size(_INFO_LOG_BYTES_MAX)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _open_failure(path: Path, error: Exception) -> Exception:
    message = str(error)
    if "LOCK" in message and ("lock hold by current process" in message or "While lock file" in message):
        return StartRefused(f"the store at {path} is in use by another process: stop that one first")
    if isinstance(translated(message), BackendRefused):
        return damaged(path, message)
    return BackendUnavailable(f"the store at {path} cannot be opened: {message}")


def damaged(path: Path, why: str) -> StartRefused:
    """The refusal of a store whose files are not what an owner leaves."""
    return StartRefused(f"the store at {path} is damaged ({why}): put back a backup of the data folder; nothing was changed")


def _has_identity(db: Rdict, path: Path, expected: StoreIdentity) -> bool:
    """Whether the store says which log it was made from. Raises StartRefused if it is another one than expected."""
    with DRIVER_ERRORS:
        value: bytes | None = db.get(keys.IDENTITY)
    if value is None:
        return False
    try:
        found: dict[str, Any] = json.loads(value)
        newer = int(found["format"]) > FORMAT
        same = not newer and (found["log_id"], found["partitions"], found["generation"]) == (*expected.log, expected.generation)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"its identity is not readable: {error!r}") from error
    if newer:
        raise StartRefused(
            f"the store at {path} has format {found['format']}, this version reads up to {FORMAT}: start the version that wrote it or a "
            "newer one"
        )
    if not same:
        raise StartRefused(
            f"the store at {path} was made from log {found['log_id']} with {found['partitions']} partitions, generation "
            f"{found['generation']}, not from log {expected.log.log_id} with {expected.log.partitions} partitions, generation "
            f"{expected.generation}: bring log and store of one data folder together again"
        )
    return True


def _write_identity(db: Rdict, identity: StoreIdentity) -> None:
    document = {
        "format": FORMAT,
        "log_id": identity.log.log_id,
        "partitions": identity.log.partitions,
        "generation": identity.generation,
    }
    batch = WriteBatch(raw_mode=True)
    batch.put(keys.IDENTITY, json.dumps(document).encode())
    with DRIVER_ERRORS:
        db.write(batch, synced())
