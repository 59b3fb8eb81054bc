"""A disk that is full, or does not take writes any more, while the service appends: nothing is acknowledged that is not there, and it goes
on by itself when the disk does."""

import errno
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.calls import read_counts, reading, wait_visible
from tests.expected import assert_store_equals
from tests.needs import skip_or_fail
from tests.processes.support import QUICK
from tests.traffic import Writers
from watertower.testing.service import ROLES, Service, wait_until

DISK_BYTES = 64 * 2**20
SETTINGS = {**QUICK, "projector_write_buffer_bytes": 1_000_000, "projector_retry_cap_ms": 500}
"""A small memtable, so that the store meets the end of the disk in all its ways: its log, its tables, its manifest."""


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "watertower-test", folder)
    if mounted.returncode:
        skip_or_fail(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        _run("umount", "-l", folder)


class Ext4(NamedTuple):
    """A small file system that knows read-only files and can fail."""

    folder: Path
    image: Path

    def mount(self) -> None:
        mounted = _run("mount", "-o", "loop,errors=remount-ro", self.image, self.folder)
        if mounted.returncode:
            skip_or_fail(f"a file system in a file cannot be mounted here: {mounted.stderr.strip()}")

    def fail(self) -> None:
        """What the kernel does when it meets an error in the file system: it turns read-only, at once, for good."""
        device = _run("findmnt", "-n", "-o", "SOURCE", self.folder).stdout.strip().removeprefix("/dev/")
        trigger = Path("/sys/fs/ext4") / device / "trigger_fs_error"
        if not trigger.exists():
            skip_or_fail(f"there is no {trigger} here")
        trigger.write_text("1")

    def repair(self) -> None:
        """What its administrator does then."""
        wait_until(lambda: _run("umount", self.folder).returncode == 0, "nobody uses the file system any more")
        assert _run("fsck.ext4", "-p", self.image).returncode in (0, 1)
        self.mount()


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ext4]:
    ext4 = Ext4(tmp_path / "mounted", tmp_path / "image")
    ext4.folder.mkdir()
    with ext4.image.open("wb") as file:
        file.truncate(DISK_BYTES)
    if shutil.which("mkfs.ext4") is None or shutil.which("chattr") is None or _run("mkfs.ext4", "-q", ext4.image).returncode:
        skip_or_fail("there is no mkfs.ext4, or no chattr, here")
    ext4.mount()
    try:
        yield ext4
    finally:
        _run("umount", "-l", ext4.folder)


def _fill(ballast: Path) -> None:
    """Takes every byte that is left."""
    with ballast.open("ab", buffering=0) as file:
        for size in (2**20, 4_096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def _fill_until_refused(writers: Writers, service: Service, ballast: Path) -> None:
    """Keeps the disk full until callers are refused and flushes fail."""
    writers.refusals.clear()
    failed = len(service.events("flush_failed"))

    def refused() -> bool:
        _fill(ballast)  # also what the log and the store give back meanwhile
        return writers.refused_for("UNAVAILABLE", "LOG_UNAVAILABLE") and len(service.events("flush_failed")) >= failed + 3

    wait_until(refused, "calls are refused and flushes fail because the disk is full", 60.0)


def _words(service: Service, role: str) -> list[str]:
    """What was said of a role since the service was started."""
    return [event["event"] for event in service.events() if event.get("child") == role]


def _restarted(service: Service, role: str, said: int, ballast: Path) -> bool:
    """Whether the role died, was started again, and is ready, not ready or dead again, all on a full disk."""
    _fill(ballast)
    words = _words(service, role)[said:]
    assert "role_refused" not in words
    return "role_started" in words and words[-1] != "role_started"


def _wait_acknowledged(writers: Writers, events: int = 2_000) -> None:
    wait_until(partial(writers.acknowledged_more_than, writers.acknowledged + events), "events are acknowledged")


def test_a_full_disk_acknowledges_nothing_and_the_service_goes_on_when_there_is_space(disk: Path, rng: random.Random) -> None:
    """While the disk is full, calls fail with UNAVAILABLE, LOG_UNAVAILABLE and a RetryInfo, and reads are answered. No role ends. With
    space again everything goes on without a restart, and what was acknowledged is counted exactly."""
    data, ballast = disk / "data", disk / "ballast"
    with Service(data, settings=SETTINGS) as service:
        service.start()
        with Writers(service.write_target, 4, rng, events_max=200) as writers, reading(service.read_target) as reader:
            for _ in range(3):
                _wait_acknowledged(writers)
                _fill_until_refused(writers, service, ballast)
                counts, _ = read_counts(reader, ["s0", "a0"])
                assert counts[0]["followers"] > 0
                assert set(writers.refusals) == {("UNAVAILABLE", "LOG_UNAVAILABLE", True)}
                ballast.unlink()
            _wait_acknowledged(writers)
            expected = writers.finish()
            wait_visible(service.read_target, expected.ends)
        assert service.events("role_died") == []
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)


def test_roles_that_die_on_a_full_disk_come_back_when_there_is_space(disk: Path, rng: random.Random) -> None:
    """A role whose restart meets the full disk waits for space, or is restarted until there is some; the service does not give up."""
    data, ballast = disk / "data", disk / "ballast"
    with Service(data, settings=SETTINGS) as service:
        service.start()
        with Writers(service.write_target, 4, rng, events_max=200) as writers:
            for role in ROLES:
                _wait_acknowledged(writers)
                _fill_until_refused(writers, service, ballast)
                said = len(_words(service, role))
                assert service.kill(role)
                wait_until(partial(_restarted, service, role, said, ballast), f"{role} is started again and says how it is")
                ballast.unlink()
                service.wait_roles_ready()
            _wait_acknowledged(writers)
            expected = writers.finish()
            wait_visible(service.read_target, expected.ends)
        print({role: _words(service, role) for role in ROLES})
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)


def test_files_that_turn_read_only_take_nothing_and_the_service_goes_on_when_they_are_writable(ext4: Ext4, rng: random.Random) -> None:
    """While the data folder and its files are read-only, calls fail with UNAVAILABLE, LOG_UNAVAILABLE and a RetryInfo. Once they are
    writable again everything goes on without a restart, and what was acknowledged is counted exactly."""
    data = ext4.folder / "data"
    with Service(data, settings=SETTINGS) as service:
        service.start()
        with Writers(service.write_target, 4, rng, events_max=200) as writers:
            for _ in range(2):
                _wait_acknowledged(writers)
                writers.refusals.clear()
                # Not the memory that the log's processes share, nor the locks: these are no data.
                files = [
                    data,
                    *(path for path in data.rglob("*") if path.name in ("log.sqlite", "log.sqlite-wal") or path.parent.name == "store"),
                ]
                assert _run("chattr", "+i", *files, data / "store").returncode in (0, 1)  # 1: a file of the store that is gone by now
                wait_until(partial(writers.refused_for, "UNAVAILABLE", "LOG_UNAVAILABLE"), "calls are refused", 60.0)
                assert set(writers.refusals) == {("UNAVAILABLE", "LOG_UNAVAILABLE", True)}
                assert _run("chattr", "-i", "-R", data).returncode == 0
            _wait_acknowledged(writers)
            expected = writers.finish()
            wait_visible(service.read_target, expected.ends)
        assert service.events("role_died") == []
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)


def test_a_file_system_that_fails_loses_nothing_that_was_acknowledged(ext4: Ext4, rng: random.Random) -> None:
    """The kernel turns a file system read-only when it meets an error in it. Nothing is acknowledged from then on; when it is mounted
    again and the service started, everything acknowledged is there.

    It happens between two calls: an fdatasync that is under way at that moment may return 0 for data that ext4 then loses, so that no
    service above it can keep it (docs/operating.md, "What a sync is worth").
    """
    data = ext4.folder / "data"
    with Service(data, settings=SETTINGS) as service:
        service.start()
        with Writers(service.write_target, 4, rng, events_max=200) as writers:
            _wait_acknowledged(writers)
            with writers.paused():
                ext4.fail()
            wait_until(partial(writers.refused_for, "UNAVAILABLE", "LOG_UNAVAILABLE"), "calls are refused", 60.0)
            service.kill_group()
            ext4.repair()
            service.start()
            _wait_acknowledged(writers)
            expected = writers.finish()
            wait_visible(service.read_target, expected.ends)
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)
