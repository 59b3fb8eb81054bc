"""What the log may drop is on the disk: the system calls of a projector, as the kernel saw them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import skip_or_fail

FLUSHES = 20

# Each step is a flush and a commit: the clock moves on by more than the time between two commits.
_PROJECT = """
import random, sys
from pathlib import Path
from tests.contract.log_harnesses import IDENTITY, Writer, open_reader
from watertower.backends.rocksdb import RocksDbStore
from watertower.codec import encode_batch
from watertower.config import ProjectorSettings
from watertower.core.model import EventBatch
from watertower.ports import StoreIdentity
from watertower.projector.projector import Projector
from watertower.testing.clock import FakeClock
folder, clock = Path(sys.argv[1]), FakeClock()
log = Writer(folder)
store = RocksDbStore(folder / "store", StoreIdentity(IDENTITY, 1), 2**22, 2**22, 100)
if sys.argv[2] == "unsynced":
    store._synced.sync = False
projector = Projector(open_reader(folder), store, store.feed, ProjectorSettings(), clock, random.Random(1))
projector.start()
for number in range(int(sys.argv[3])):
    log.append(0, encode_batch(EventBatch([f"a{number}"], b"\\1", ["star"], [""], b"\\1", [1])), clock.now_us()).result()
    clock.advance(1.0)
    assert projector.step().events == 1
log.close()
"""

_WRITE = re.compile(r"\bwrite\(\d+<[^>]*/store/\d+\.log>")
_SYNC = re.compile(r"\bf(?:data)?sync\(\d+<[^>]*/store/\d+\.log>")
_RESUMED = re.compile(r"<\.\.\. f(?:data)?sync resumed>")
_COMMIT = re.compile(r'\brename\w*\(.*/commits\.json"')


def trace(folder: Path, mode: str) -> list[str]:
    """The system calls of a process that projects, one a line, each beginning with its thread."""
    output = folder / "trace"
    calls = "trace=write,fsync,fdatasync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-o", str(output), "-e", calls, sys.executable, "-c", _PROJECT, str(folder), mode, str(FLUSHES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "PTRACE" in done.stderr:
        skip_or_fail(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return output.read_text().splitlines()


def commits(calls: list[str]) -> tuple[int, int]:
    """How often the commits moved on after the store was written, and how often before a sync of the store's WAL that began after its
    last write had succeeded."""
    moved = early = 0
    written_at = counted = synced_from = -1
    began: dict[str, int] = {}  # syncs that have not ended, by thread
    for moment, call in enumerate(calls):
        thread = call.split(maxsplit=1)[0]
        if _WRITE.search(call):
            written_at = moment
        if _SYNC.search(call):
            began[thread] = moment
        if thread in began and (_SYNC.search(call) or _RESUMED.search(call)) and re.search(r"\) += 0$", call):
            synced_from = max(synced_from, began.pop(thread))
        if _COMMIT.search(call) and written_at > counted:
            moved, counted = moved + 1, written_at
            early += synced_from < written_at
    return moved, early


@pytest.fixture(autouse=True)
def strace() -> None:
    """Skips where there is no strace, unless it is required."""
    if shutil.which("strace") is None:
        skip_or_fail("strace is not installed")


def test_a_flush_is_synced_before_the_log_may_drop_it(tmp_path: Path) -> None:
    """Between the last write of a flush and the commit lies a sync of the store's WAL, begun after the one and ended before the other."""
    assert commits(trace(tmp_path, "synced")) == (FLUSHES, 0)


def test_the_check_notices_a_missing_sync(tmp_path: Path) -> None:
    """The test above fails where the store does not sync."""
    assert commits(trace(tmp_path, "unsynced")) == (FLUSHES, FLUSHES)
