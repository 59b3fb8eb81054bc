"""A backup of a data folder, beside a service that writes: a folder that is a data folder.

The rule for a copy of log and store that go together: the log reaches at least as far as the store has applied it, and does not begin
after that. So the store is copied first and the log right after it. What the log drops in between, it may only drop because the store
has gone on; where that left a hole, which takes a truncation within milliseconds, both are copied again. A copy is held against what a
projector demands at its start before it gets its name.

No role takes part, so none can be hurt: a backup is one more reader, whether they run, hang or are restarted meanwhile.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from watertower import failpoints
from watertower.backends.rocksdb_copy import StoreCopy, copy_store, drop_dead_tables
from watertower.backends.sqlite import SqliteLogReader
from watertower.backends.sqlite_copy import LogCopier
from watertower.bootstrap.scratch import scratch
from watertower.core.model import Progress
from watertower.datafolder import MARKER, DataFolder, open_existing, sync_folder
from watertower.errors import BackendUnavailable, BackupRefused, StartRefused
from watertower.ports import StoreIdentity
from watertower.projector.start import resume_points

COPY_ATTEMPTS_MAX: Final = 10
"""Attempts at copying store and log before the log drops what lies between the two copies."""

SPACE_BYTES_MIN: Final = 1024 * 1024
"""Bytes that must be free at the target beyond those of the files: what the file system and SQLite take for themselves."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Backup(NamedTuple):
    """What was made."""

    path: Path
    applied: dict[int, int]  # inclusive offset up to which the store's copy goes, by partition
    ends: dict[int, int]  # the same of the log's copy: what was acknowledged up to there is in the backup
    bytes: int
    linked_bytes: int  # of these, in files that the data folder has too


def backup(data: Path, target: Path) -> Backup:
    """Makes the new folder `target` a data folder with everything that was acknowledged before this call. Durable when it returns.

    Until then it is called TARGET.part; what an error leaves of that is removed, what a death leaves the next backup removes. Raises
    BackupRefused for a target that breaks a rule or has no space; StartRefused for a folder `data` that is none of ours, is damaged, or
    whose log and store do not belong together; BackendRefused for a log whose damage shows only while it is read; BackendUnavailable
    where trying again may help.
    """
    folder = open_existing(data)
    _check_target(folder, target)
    try:
        with _unfinished(target) as part, scratch(folder.readers_path, "backup") as stage:
            made = _make(folder, stage, part)
            failpoints.reach("backup.after_files")
            if os.path.lexists(target):
                raise BackupRefused(f"{target} was made by somebody else meanwhile: choose another target")
            part.rename(target)
            sync_folder(target.parent)
            failpoints.reach("backup.after_rename")
    except OSError as error:
        raise _explained(error, target) from error
    return made._replace(path=target)


def _make(folder: DataFolder, stage: Path, part: Path) -> Backup:
    store = stage / "store"  # beside the original, where files can be linked
    copy, ends = _copy_both(folder, stage, part)
    if _apart(stage, part):
        _check_space(part, sum(file.stat().st_size for file in store.iterdir()))
    moved = part / folder.store_path.name
    moved.mkdir(mode=0o700)
    for file in store.iterdir():
        _move(file, moved / file.name)
    _check_whole(moved, copy.files)
    total = linked = 0
    for file in (part / folder.log_path.name, *moved.iterdir()):
        status = file.stat()
        total += status.st_size
        linked += status.st_size if status.st_nlink > 1 else 0
        _sync(file)
    sync_folder(moved)
    marker = part / MARKER  # last: without it, it is no data folder
    shutil.copyfile(folder.path / MARKER, marker)
    _sync(marker)
    sync_folder(part)
    return Backup(part, {partition: row.end for partition, row in copy.progress.items()}, ends, total, linked)


def _copy_both(folder: DataFolder, stage: Path, part: Path) -> tuple[StoreCopy, dict[int, int]]:
    """Copies of store and log that go together. Returns what the store's is, and up to where the log goes."""
    store, log = stage / "store", part / folder.log_path.name
    attempts = COPY_ATTEMPTS_MAX
    with ExitStack() as opened:
        copier = LogCopier(folder.log_path, folder.identity)
        opened.callback(copier.close)
        _check_space(part, copier.size())
        while True:
            attempts -= 1
            copy_store(folder.store_path, store)
            failpoints.reach("backup.after_store")
            copier.copy(log)
            failpoints.reach("backup.after_log")
            copy = drop_dead_tables(store, stage / "reader", StoreIdentity(folder.identity, folder.generation))
            try:
                return copy, _check_together(folder, log, copy.progress)
            except StartRefused as error:
                if attempts == 0:
                    raise StartRefused(
                        f"the copies of log and store do not go together, as do perhaps these themselves: {error}"
                    ) from error
            shutil.rmtree(store)
            log.unlink()


def _check_together(folder: DataFolder, log: Path, progress: dict[int, Progress]) -> dict[int, int]:
    """What a projector checks before its first record. Returns up to where the log goes. Raises StartRefused."""
    partitions = range(folder.identity.partitions)
    reader = SqliteLogReader(log, log.with_name(folder.commits_path.name), folder.identity)
    try:
        resume_points(reader, progress, partitions)
        return reader.ends(partitions)
    finally:
        reader.close()


def _check_whole(moved: Path, files: frozenset[str]) -> None:
    """That what was opened and held against the log is what is there now. Raises BackendUnavailable."""
    if missing := sorted(files - set(os.listdir(moved))):
        raise BackendUnavailable(f"something removed files of the backup while it was made ({missing[0]}): make it again")


# --- the target


def _check_target(folder: DataFolder, target: Path) -> None:
    if os.path.lexists(target):
        raise BackupRefused(f"{target} exists: a backup is a new folder, name one that is not there")
    if not target.parent.is_dir():
        raise BackupRefused(f"{target.parent} is no folder: make it first, or choose another target")
    if target.parent.resolve().is_relative_to(folder.path.resolve()):
        raise BackupRefused(f"{target} lies in the data folder: choose a target outside, best on another disk")


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """The folder TARGET.part, empty, for this process alone. Gone at the end, unless it was renamed."""
    part = target.with_name(target.name + ".part")
    part.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackupRefused(f"another backup to {target} is under way: wait for it, or choose another target") from error
        ours = {"store", "log.sqlite", "log.sqlite-wal", "log.sqlite-shm", "log.sqlite-journal", MARKER}
        if others := sorted(set(os.listdir(part)) - ours):
            raise BackupRefused(
                f"{part} has something else in it ({others[0]}) than an interrupted backup: remove it, or choose another target"
            )
        for left in part.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield part
        finally:
            if part.exists() and os.fstat(descriptor).st_ino == part.stat().st_ino:
                shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(descriptor)


def _apart(stage: Path, part: Path) -> bool:
    return stage.stat().st_dev != part.stat().st_dev


def _check_space(part: Path, needed: int) -> None:
    free, needed = shutil.disk_usage(part).free, needed + SPACE_BYTES_MIN
    if free < needed:
        raise BackupRefused(
            f"{part.parent} has {free:,} bytes free and the backup needs {needed:,} there: free some, or choose another target"
        )


def _move(file: Path, target: Path) -> None:
    """A rename, or a copy where that is another file system."""
    try:
        file.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(file, target)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, target: Path) -> Exception:
    where = error.filename2 or error.filename or target
    if error.errno in _NO_SPACE:
        return BackupRefused(f"no space is left for {where}: free some, or choose another target")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BackupRefused(f"{where} cannot be written: {error.strerror}; give this user the right, or choose another target")
    return BackendUnavailable(f"{where} cannot be copied: {error.strerror}")
