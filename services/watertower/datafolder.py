"""The data folder of the embedded back ends: what makes it ours, where things lie in it, and who may use them.

    watertower.json   the marker: {"format": 1, "log_id": ..., "partitions": ..., "generation": ...}
    log.sqlite        the log (with its -wal and -shm while it is open)
    commits.json      up to where the log is applied
    store/            the store
    readers/          scratch of those that read the store
    ROLE.lock         held by the one process of that role, with its pid

A folder is created with its marker, or not at all: the marker is written beside, synced and renamed.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from uuid import uuid4

from watertower.core.sharding import PARTITIONS_MAX
from watertower.errors import BackendUnavailable, StartRefused
from watertower.ports import LogIdentity

FORMAT = 1
"""Version of the folder's layout that this version writes and reads."""

MARKER = "watertower.json"
GENERATION = 1

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
"""Errors of a disk that is full, fails, or takes no writes for a while: a process that is restarted meanwhile waits for it."""

_UNFINISHED = MARKER + ".new"
_LOG_ID_DIGITS = 32


class Lock:
    """A role's exclusive hold on a data folder. Ends with `release`, at the end of `with`, or with the process, however it dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Lets go. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class DataFolder(NamedTuple):
    """A data folder that is ours."""

    path: Path
    identity: LogIdentity
    generation: int

    @property
    def log_path(self) -> Path:
        return self.path / "log.sqlite"

    @property
    def commits_path(self) -> Path:
        return self.path / "commits.json"

    @property
    def readers_path(self) -> Path:
        """Scratch of those that read the store (bootstrap/scratch.py). Made when it is needed."""
        return self.path / "readers"

    @property
    def store_path(self) -> Path:
        return self.path / "store"

    def lock(self, role: str) -> Lock:
        """Takes the role for this process. Raises StartRefused, naming the process, while another one has it; BackendUnavailable where
        the disk takes no writes now."""
        path = self.path / f"{role}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise BackendUnavailable(f"{path} cannot be written: {error.strerror}") from error
            raise StartRefused(f"{path} cannot be written: {error.strerror}; give this user the right to write the data folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StartRefused(
                f"{role} already runs on {self.path}, as process {holder}: stop that one (or wait, if it is ending), "
                "or give this one another data folder"
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise BackendUnavailable(f"{path} cannot be written: {error.strerror}") from error
        return Lock(descriptor)


def open_or_create(path: Path, partitions: int) -> DataFolder:
    """The data folder at `path`, made if there is nothing. Processes may call this at once: they get the same folder.

    Raises StartRefused for a folder that is not ours, is damaged, is newer, or has another number of partitions.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        if not (path / MARKER).exists():
            with creation_lock(path):
                _create(path, partitions)
    except OSError as error:
        raise StartRefused(
            f"the data folder {path} cannot be made: {error.strerror}; choose another one, or give this user the right"
        ) from error
    folder = open_existing(path)
    if folder.identity.partitions != partitions:
        raise StartRefused(
            f"the data folder {path} has {folder.identity.partitions} partitions and the settings say {partitions}: the number is fixed "
            f"when the folder is created; set partitions to {folder.identity.partitions}, or choose a new folder"
        )
    return folder


def open_existing(path: Path) -> DataFolder:
    """The data folder at `path`. Raises StartRefused if there is none, or it is damaged or newer."""
    try:
        text = (path / MARKER).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StartRefused(f"{path} is no data folder of Watertower (there is no {MARKER} in it): check the path") from error
    except OSError as error:
        raise StartRefused(f"the data folder {path} cannot be read: {error.strerror}; give this user the right to read it") from error
    return _parse(path, text)


@contextmanager
def creation_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time create something in a folder. Waits."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes what was created or renamed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path, partitions: int) -> None:
    if (path / MARKER).exists():
        return  # another process was faster
    # A marker that was never renamed is what a death right here leaves behind.
    if any(entry.name != _UNFINISHED for entry in path.iterdir()):
        raise StartRefused(f"{path} is not empty and no data folder of Watertower: choose an empty folder or a new one")
    path.chmod(0o700)
    unfinished = path / _UNFINISHED
    with unfinished.open("w") as file:
        marker = {"format": FORMAT, "log_id": uuid4().hex, "partitions": partitions, "generation": GENERATION}
        file.write(json.dumps(marker, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path / MARKER)
    sync_folder(path)
    sync_folder(path.parent)


def _parse(path: Path, text: bytes) -> DataFolder:
    damaged = f"{path / MARKER} is damaged: restore the data folder from a backup, or move it away to start with an empty one"
    try:
        marker = json.loads(text)
    except ValueError as error:
        raise StartRefused(damaged) from error
    if not isinstance(marker, dict) or not _is_number(marker.get("format"), 1):
        raise StartRefused(damaged)
    if marker["format"] > FORMAT:
        raise StartRefused(
            f"the data folder {path} has format {marker['format']} and this version of Watertower reads up to {FORMAT}: "
            "start the version that wrote it, or a newer one"
        )
    log_id = marker.get("log_id")
    known = isinstance(log_id, str) and len(log_id) == _LOG_ID_DIGITS and not set(log_id) - set("0123456789abcdef")
    if not known or not _is_number(marker.get("partitions"), 1, PARTITIONS_MAX) or not _is_number(marker.get("generation"), 1):
        raise StartRefused(damaged)
    return DataFolder(path, LogIdentity(str(log_id), marker["partitions"]), marker["generation"])


def _is_number(value: Any, at_least: int, at_most: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most
