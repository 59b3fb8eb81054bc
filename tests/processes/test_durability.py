"""Durable means synced: the system calls of a process that appends, as the kernel saw them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import skip_or_fail

APPENDS = 25  # of each thread

# Says with system calls of its own when each append is called and when it is acknowledged.
_APPEND = """
import os, sys, threading
from pathlib import Path
from tests.contract.log_harnesses import Writer
writer = Writer(Path(sys.argv[1]))
if sys.argv[2] == "unsynced":
    with writer._file.use() as connection:
        connection.execute("PRAGMA synchronous = OFF")
def work(thread):
    for number in range(int(sys.argv[4])):
        name = f"{thread}.{number}"
        os.write(1, f"append {name}\\n".encode())
        writer.append(thread, name.encode(), 1).result()
        os.write(1, f"acknowledge {name}\\n".encode())
threads = [threading.Thread(target=work, args=(number,)) for number in range(int(sys.argv[3]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
writer.close()
"""

_SAID = re.compile(r'write\(1<[^>]*>, "(append|acknowledge) ([0-9.]+)\\n"')
_SYNC = re.compile(r"f(?:data)?sync\(\d+<[^>]*log\.sqlite-wal>")
_RESUMED = re.compile(r"<\.\.\. f(?:data)?sync resumed>")


def trace(folder: Path, mode: str, threads: int) -> list[str]:
    """The system calls of a process that appends, one a line, each beginning with its thread."""
    output = folder / "trace"
    command = ["strace", "-f", "-y", "-o", str(output), "-e", "trace=write,fsync,fdatasync", sys.executable, "-c", _APPEND]
    arguments = [str(folder), mode, str(threads), str(APPENDS)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    if "PTRACE" in done.stderr:
        skip_or_fail(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return output.read_text().splitlines()


def unsynced(calls: list[str]) -> tuple[int, list[str]]:
    """The number of acknowledgements, and those that no sync of the WAL precedes which began after their append was called and
    succeeded."""
    appended: dict[str, int] = {}
    acknowledged: list[str] = []
    missing: list[str] = []
    began: dict[str, int] = {}  # syncs that have not ended, by thread
    synced_from = -1  # when the latest begun of the syncs that have ended began
    for moment, call in enumerate(calls):
        thread = call.split(maxsplit=1)[0]
        if _SYNC.search(call):
            began[thread] = moment
        if thread in began and (_SYNC.search(call) or _RESUMED.search(call)) and re.search(r"\) += 0$", call):
            synced_from = max(synced_from, began.pop(thread))
        if said := _SAID.search(call):
            word, name = said.groups()
            if word == "append":
                appended[name] = moment
            else:
                acknowledged.append(name)
                if synced_from <= appended[name]:
                    missing.append(name)
    return len(acknowledged), missing


@pytest.fixture
def strace() -> None:
    """Skips where there is no strace, unless it is required."""
    if shutil.which("strace") is None:
        skip_or_fail("strace is not installed")


@pytest.mark.usefixtures("strace")
def test_every_acknowledgement_follows_a_sync_of_the_log(tmp_path: Path) -> None:
    """Between the call of append and its acknowledgement lies a sync of the WAL, begun after the call and ended before the answer."""
    assert unsynced(trace(tmp_path, "synced", threads=1)) == (APPENDS, [])


@pytest.mark.usefixtures("strace")
def test_concurrent_appends_share_syncs_that_cover_them(tmp_path: Path) -> None:
    """With several callers there are fewer syncs than appends, and still each acknowledgement follows one."""
    calls = trace(tmp_path, "synced", threads=4)
    assert unsynced(calls) == (4 * APPENDS, [])
    assert sum(1 for call in calls if _SYNC.search(call)) < 4 * APPENDS


@pytest.mark.usefixtures("strace")
def test_the_check_notices_a_missing_sync(tmp_path: Path) -> None:
    """The tests above fail where the log does not sync."""
    count, missing = unsynced(trace(tmp_path, "unsynced", threads=4))
    assert count == len(missing) == 4 * APPENDS
