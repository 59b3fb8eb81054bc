"""What an import remembers beside its source, so that one that was cut off goes on where it was, with identical events."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from watertower.cli.import_events import Reject
from watertower.cli.output import CommandFailed

FORMAT = 1
_FINGERPRINT_BYTES = 1_048_576


class ImportState(NamedTuple):
    """How far an import is. Rows count from the first one without a gap: all before `offset` are acknowledged or rejected."""

    source: dict[str, Any]  # fingerprint
    options: dict[str, Any]  # everything that decides which events the rows become, and where they go
    base_time: int  # microseconds: occurred_at of rows without a time of their own
    offset: int = 0  # in the uncompressed file
    line: int = 0
    rows: int = 0
    events: int = 0
    rejected: int = 0
    rejects_bytes: int = 0  # length of the rejects file that belongs to this state
    position: str = ""  # hex of the write tokens, merged
    finished: bool = False


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells this content of the file from another: size, time of change, hash of the first MiB."""
    stat = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(_FINGERPRINT_BYTES)).hexdigest()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "head_sha256": head}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps the state, and with it the rejects file, for this process: two imports would write over each other. Raises CommandFailed
    while another import has it. The lock is a file beside the state, which is replaced whenever it is saved; it ends with its process."""
    lock = path.with_name(path.name + ".lock")
    while True:
        with lock.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CommandFailed(
                    f"another import that keeps its state in {path} is running: wait for its end, or give this one files of its own "
                    "with --state and --rejects"
                ) from error
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its holder ended, and removed it, between our opening and locking it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def load(path: Path) -> ImportState | None:
    """The state in the file; None if there is no file. Raises CommandFailed for a file that is no state."""
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return ImportState(**content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandFailed(f"{path} is no import state ({error}): remove it, or name another file with --state") from error


def save(path: Path, state: ImportState) -> None:
    """Replaces the file, all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **state._asdict()}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def begin(found: ImportState | None, fresh: ImportState, path: Path) -> ImportState:
    """The state to go on from: `found` if it is an unfinished import of the same rows, `fresh` if there is none or a finished one.

    Raises CommandFailed when an unfinished import of something else would be forgotten. One that has recorded nothing is nothing to
    forget: most likely its command was a mistake.
    """
    if found is None or found.finished:
        return fresh
    differing = [key for key in fresh.source if found.source.get(key) != fresh.source[key]]
    differing += [key for key in fresh.options if found.options.get(key) != fresh.options[key]]
    if differing and not found.events:
        return fresh
    if differing:
        raise CommandFailed(
            f"{path} belongs to an unfinished import that differs in {', '.join(differing)}: "
            "repeat that one, or name another file with --state, or begin anew with --restart"
        )
    return found


class RejectsFile:
    """The rows that do not go in, as csv: line, reason, row. Made when the first one comes.

    `size` bytes of an earlier run are kept: what it had written behind its last saved state comes again.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        if not size:
            path.unlink(missing_ok=True)
        elif path.exists():
            os.truncate(path, min(size, path.stat().st_size))

    def write(self, rejects: Sequence[Reject], at: int) -> int:
        """Writes rows behind the first `at` bytes; returns the length of the file. Repeated after an interruption, it writes the same."""
        if self._file is None:
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        at = min(at, self._file.seek(0, io.SEEK_END))
        self._file.seek(at)
        self._file.truncate()
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not at:
            writer.writerow(("line", "reason", "row"))
        writer.writerows((r.line, r.reason, r.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")) for r in rejects)
        self._file.write(text.getvalue().encode("utf-8", "backslashreplace"))
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
