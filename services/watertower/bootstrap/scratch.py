"""Scratch of those that read a data folder beside its owners: a small folder for a secondary instance, or one with a backup's links.

Whoever made one holds a lock on it until the end, and a killed process leaves the folder without its lock. A process id would not do:
each container counts its own, and those of one pod share the data folder.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from watertower.datafolder import creation_lock

_OURS = re.compile(r"(?:query|scan|backup)-\d+(?:-.*)?")


@contextmanager
def scratch(readers: Path, kind: str) -> Iterator[Path]:
    """A new folder KIND-PID-* in `readers` for the body alone; its end removes it. What the dead left there goes first.

    The id is for people. `kind` is query, scan or backup. Raises OSError.
    """
    readers.mkdir(mode=0o700, exist_ok=True)
    with creation_lock(readers):  # a folder that has no lock yet looks like one of the dead
        _remove_what_the_dead_left(readers)
        own = Path(tempfile.mkdtemp(prefix=f"{kind}-{os.getpid()}-", dir=readers))
        descriptor = _lock(own)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(descriptor)


def _remove_what_the_dead_left(readers: Path) -> None:
    for left in readers.iterdir():
        if _OURS.fullmatch(left.name):
            with suppress(OSError):  # locked, so alive; or of another user; or removed by its owner right now
                descriptor = _lock(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)


def _lock(folder: Path) -> int:
    """A descriptor that holds the folder until it is closed. Raises BlockingIOError while another one does; OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
