"""A copy of the embedded store as of one moment, beside an owner that goes on writing, and without asking it.

Theory of operation. RocksDB never changes a table once it is written: it writes new ones, says in its manifest which are alive, and
deletes those that are not. So hard links to the tables, the manifest as far as it goes and the write-ahead logs as far as they go are a
copy, if all of them belong together: RocksDB's own checkpoint makes one in the same way. The owner's checkpoint forbids deletions
meanwhile; from outside it is enough to see that the manifest is the same after the links as before them. A file that was alive then was
there the whole time, and a flush is one entry of a write-ahead log, so it is in the copy whole or not at all.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from watertower.backends import cells
from watertower.backends import rocksdb_keys as keys
from watertower.backends.rocksdb_open import DRIVER_ERRORS, damaged, manifest, open_secondary, scan
from watertower.core.model import Progress
from watertower.errors import BackendUnavailable
from watertower.ports import StoreIdentity

LINK_ATTEMPTS_MAX: Final = 100
"""Attempts at linking the files of an owner that changes its manifest all the time, before a copy is given up. One takes milliseconds."""

_TABLE = re.compile(r"\d+\.sst")
_WRITE_AHEAD_LOG = re.compile(r"\d+\.log")
_CACHE_BYTES = 1024 * 1024
_PIECE_BYTES = 1024 * 1024


class StoreCopy(NamedTuple):
    """What a copy of the store is."""

    progress: dict[int, Progress]  # how far it is applied, by partition
    files: frozenset[str]  # names of all that belongs to it


def copy_store(path: Path, into: Path) -> None:
    """Makes the new folder `into` a copy of the store at `path` as of one moment of this call; tables are hard links, so both must be on
    one file system. Not synced, and `drop_dead_tables` must come before anything writes there.

    Raises BackendUnavailable where there is no store yet or it changes faster than it can be copied; StartRefused where it is damaged;
    OSError.
    """
    if not path.exists() or not any(path.iterdir()):
        raise BackendUnavailable(f"there is no store at {path} yet: a projector creates it when it starts")
    met = False
    for _ in range(LINK_ATTEMPTS_MAX):
        before = manifest(path)
        if before is None:  # for a moment, while an owner changes over to another one
            continue
        met = True
        into.mkdir(mode=0o700)
        logs = _link(path, into, before[0])
        if manifest(path) == before:
            break
        shutil.rmtree(into)
    else:
        if not met:
            raise damaged(path, "the file CURRENT is missing, or names a manifest that is")
        raise BackendUnavailable(f"the store at {path} changes faster than it can be copied")
    # The owner goes on appending to these: from here on they are files of our own, which end at that moment.
    for name, size in {**logs, before[0]: before[1]}.items():
        _cut_off(into / name, size)
    (into / "CURRENT").write_text(before[0] + "\n")


def drop_dead_tables(copy: Path, scratch: Path, identity: StoreIdentity) -> StoreCopy:
    """Opens a copy as a reader would and removes the tables that it does not name. Returns what the copy is then.

    What the owner was just writing is linked, too. A later owner of the copy might take the same name for a table of its own, and would
    write into that of the owner. `scratch` is a folder for this call alone. Raises BackendUnavailable, StartRefused (see
    rocksdb_open.open_secondary).
    """
    db = open_secondary(copy, scratch, identity, _CACHE_BYTES)
    try:
        with DRIVER_ERRORS:
            alive = {str(file["name"]).lstrip("/") for file in db.live_files()}
        progress = {keys.decode_partition(key): cells.decode_progress(value) for key, value in scan(db, keys.PROGRESS)}
    finally:
        db.close()
        shutil.rmtree(scratch, ignore_errors=True)
    files = set(alive)
    for file in copy.iterdir():
        if not _TABLE.fullmatch(file.name):
            files.add(file.name)
        elif file.name not in alive:
            file.unlink()
    return StoreCopy(progress, frozenset(files))


def _link(path: Path, into: Path, manifest_name: str) -> dict[str, int]:
    """Links everything that may be alive. Returns the write-ahead logs with their sizes, which only then are looked at: of the logs that
    are linked, all but the newest are complete by then."""
    logs = []
    for entry in sorted(os.listdir(path)):
        if entry == manifest_name or _TABLE.fullmatch(entry) or _WRITE_AHEAD_LOG.fullmatch(entry):
            with suppress(FileNotFoundError):  # deleted meanwhile: then it was not alive, or the manifest has changed
                os.link(path / entry, into / entry)
                if _WRITE_AHEAD_LOG.fullmatch(entry):
                    logs.append(entry)
    return {name: (into / name).stat().st_size for name in logs}


def _cut_off(link: Path, size: int) -> None:
    """Makes a file of its own of a link, with the first `size` bytes."""
    own = link.with_name(link.name + ".own")
    with link.open("rb") as source, own.open("xb") as target:
        while size > 0 and (piece := source.read(min(size, _PIECE_BYTES))):
            target.write(piece)
            size -= len(piece)
    own.replace(link)
