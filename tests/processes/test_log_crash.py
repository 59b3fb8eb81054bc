"""The embedded log in a process that is killed, and on a disk that refuses."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.log_harnesses import IDENTITY, Writer, open_reader
from tests.needs import skip_or_fail
from watertower.errors import BackendUnavailable, StartRefused
from watertower.testing.contract_log import WAIT_S, append, read_all

EVERYTHING = dict.fromkeys(range(IDENTITY.partitions), -1)

# Four threads append as fast as they can; each acknowledgement is one line. Records are dropped while it goes on.
_APPEND = """
import os, sys, threading
from pathlib import Path
from tests.contract.log_harnesses import Writer, open_reader
writer = Writer(Path(sys.argv[1]), truncate_interval_ms=20)
reader = open_reader(Path(sys.argv[1]))
def work(partition):
    number = 0
    while True:
        payload = f"{sys.argv[2]}-{partition}-{number}"
        offset = writer.append(partition, payload.encode() * 50, 1).result()
        os.write(1, f"{partition} {offset} {payload}\\n".encode())
        if number % 10 == 9 and partition % 2:
            reader.commit({partition: offset})
        number += 1
for partition in range(4):
    threading.Thread(target=work, args=(partition,)).start()
"""


def test_every_acknowledged_record_outlives_a_kill(tmp_path: Path, rng: random.Random) -> None:
    """A process is killed at a random moment, ten times: what it acknowledged is in the log as it was, and no offset is used twice."""
    acknowledged: dict[tuple[int, int], str] = {}
    last = dict.fromkeys(range(4), -1)
    for life in range(10):
        command = [sys.executable, "-c", _APPEND, str(tmp_path), str(life)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(rng.randrange(1, 300))]
        finally:
            child.send_signal(signal.SIGKILL)
        lines += child.communicate(timeout=WAIT_S)[0].splitlines(keepends=True)
        for line in lines:
            partition, offset, payload = line.split()
            assert int(offset) > last[int(partition)]
            last[int(partition)] = int(offset)
            acknowledged[int(partition), int(offset)] = payload
    reader = open_reader(tmp_path)
    records = {(record.partition, record.offset): record.payload for record in read_all(reader, EVERYTHING)}
    kept = {place: payload.encode() * 50 for place, payload in acknowledged.items() if place[1] >= reader.start(place[0])}
    assert {place: records.get(place) for place in kept} == kept
    assert reader.start(0) == reader.start(2) == 0  # nothing was committed there, so all of it was compared
    reader.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        skip_or_fail("a small file system can only be mounted by root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        skip_or_fail(f"mount: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def _fill(writer: Writer, acknowledged: dict[int, bytes]) -> None:
    """Appends until the disk refuses."""
    for number in range(1_000):
        payload = b"%06d" % number * 5_000
        future = writer.append(0, payload, 1)
        if failure := future.exception(WAIT_S):
            assert isinstance(failure, BackendUnavailable)
            assert "the log does not answer" in str(failure)
            return
        acknowledged[future.result()] = payload
    raise AssertionError("the disk never refused")


def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    """On a full disk appends fail and are not in the log; when space returns they succeed, and all that was acknowledged is there."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    writer, reader = Writer(small_disk), open_reader(small_disk)
    acknowledged: dict[int, bytes] = {}
    for _ in range(3):
        _fill(writer, acknowledged)
    assert acknowledged
    assert {record.offset: record.payload for record in read_all(reader, EVERYTHING)} == acknowledged
    ballast.unlink()
    offsets = append(writer, 0, b"after")
    assert offsets[0] > max(acknowledged)
    acknowledged[offsets[0]] = b"after"
    writer.close()
    assert {record.offset: record.payload for record in read_all(reader, EVERYTHING)} == acknowledged
    reader.close()


def test_a_folder_turned_read_only_is_refused_at_start(small_disk: Path) -> None:
    """A log on a file system that has become read-only is refused with what to do, and opened again when it is writable."""
    writer = Writer(small_disk)
    append(writer, 0, b"a")
    writer.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StartRefused, match="give this user the right to write the data folder"):
        Writer(small_disk).close()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    writer = Writer(small_disk)
    assert append(writer, 0, b"b") == [1]
    writer.close()


def test_writes_that_fail_are_not_acknowledged(tmp_path: Path) -> None:
    """While the system refuses to let the files grow, appends fail; afterwards they succeed without a restart."""
    writer, reader = Writer(tmp_path), open_reader(tmp_path)
    before = append(writer, 0, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match="the log does not answer"):
                append(writer, 0, b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = append(writer, 0, b"y" * 1_000_000)
    assert [record.offset for record in read_all(reader, EVERYTHING)] == before + after
    writer.close()
    reader.close()
