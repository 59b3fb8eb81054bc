"""The data folder: created once and whole, recognized, refused with what to do, held by one process a role."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from watertower.core.sharding import PARTITIONS_MAX
from watertower.datafolder import MARKER, DataFolder, open_existing, open_or_create
from watertower.errors import StartRefused

_HOLD = """
import sys, time
from pathlib import Path
from watertower.datafolder import open_existing
lock = open_existing(Path(sys.argv[1])).lock("ingest")
print("held", flush=True)
time.sleep(600)
"""

_CREATE = """
import sys
from pathlib import Path
from watertower.datafolder import open_or_create
sys.stdin.read(1)
print(open_or_create(Path(sys.argv[1]), 8).identity.log_id)
"""


def test_a_new_folder_is_ours_alone_and_is_found_again(tmp_path: Path) -> None:
    """A folder is made with its parents, closed to others, and opened again as the same one."""
    made = open_or_create(tmp_path / "a" / "b", 8)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    assert made.identity.partitions == 8
    assert made.generation == 1
    assert open_or_create(made.path, 8) == open_existing(made.path) == made
    assert os.listdir(made.path) == [MARKER]


def test_an_empty_folder_and_one_left_half_made_are_taken(tmp_path: Path) -> None:
    """An empty folder is taken, also when a creation died before its marker had its name."""
    (tmp_path / f"{MARKER}.new").write_text('{"form')
    made = open_or_create(tmp_path, 4)
    assert open_existing(tmp_path) == made
    assert os.listdir(tmp_path) == [MARKER]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_two_logs_never_have_the_same_id(tmp_path: Path) -> None:
    """A re-created log is another log."""
    assert open_or_create(tmp_path / "a", 8).identity.log_id != open_or_create(tmp_path / "b", 8).identity.log_id


def test_processes_that_create_at_once_get_the_same_folder(tmp_path: Path) -> None:
    """Roles may be started at the same moment on a folder that does not exist."""
    children = [
        subprocess.Popen([sys.executable, "-c", _CREATE, str(tmp_path / "new")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("x")
        child.stdin.flush()
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert answers == {open_existing(tmp_path / "new").identity.log_id + "\n"}


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A folder with other content is refused, and nothing in it is touched."""
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StartRefused, match=r"not empty.*choose"):
        open_or_create(tmp_path, 8)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    """A path that is a file is refused with what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="choose another one"):
        open_or_create(tmp_path / "file", 8)
    with pytest.raises(StartRefused, match="check the path"):
        open_existing(tmp_path / "file")


def test_a_missing_folder_is_not_made_by_opening(tmp_path: Path) -> None:
    """open_existing refuses what is not there, and makes nothing."""
    with pytest.raises(StartRefused, match="check the path"):
        open_existing(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    """Another number of partitions would move actors to other writers."""
    open_or_create(tmp_path / "data", 8)
    with pytest.raises(StartRefused, match=r"has 8 partitions and the settings say 16.*set partitions to 8"):
        open_or_create(tmp_path / "data", 16)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """A folder of a newer version is refused, whatever else its marker says."""
    (tmp_path / MARKER).write_text(json.dumps({"format": 2, "other": []}))
    with pytest.raises(StartRefused, match=r"format 2.*start the version that wrote it"):
        open_or_create(tmp_path, 8)


GOOD = {"format": 1, "log_id": "0" * 32, "partitions": 8, "generation": 1}


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"\x00" * 80,
        b"{",
        b"[]",
        b"\xff\xfe",
        json.dumps({**GOOD, "format": "1"}).encode(),
        json.dumps({**GOOD, "format": True}).encode(),
        json.dumps({**GOOD, "format": 0}).encode(),
        json.dumps({**GOOD, "log_id": "0" * 31}).encode(),
        json.dumps({**GOOD, "log_id": "../" + "0" * 29}).encode(),
        json.dumps({**GOOD, "log_id": None}).encode(),
        json.dumps({**GOOD, "partitions": 0}).encode(),
        json.dumps({**GOOD, "partitions": PARTITIONS_MAX + 1}).encode(),
        json.dumps({**GOOD, "generation": 0}).encode(),
        json.dumps({"format": 1}).encode(),
    ],
)
def test_a_damaged_marker_is_refused(tmp_path: Path, marker: bytes) -> None:
    """A marker that is not whole is refused with what to do, and is not replaced."""
    (tmp_path / MARKER).write_bytes(marker)
    for _ in range(2):
        with pytest.raises(StartRefused, match="damaged: restore"):
            open_or_create(tmp_path, 8)
    assert (tmp_path / MARKER).read_bytes() == marker


def test_a_whole_marker_is_read(tmp_path: Path) -> None:
    """The marker of the damage test is read when it is not damaged."""
    (tmp_path / MARKER).write_text(json.dumps(GOOD))
    assert open_existing(tmp_path).identity == ("0" * 32, 8)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A new folder."""
    return open_or_create(tmp_path / "data", 8)


def test_a_role_is_held_once(folder: DataFolder) -> None:
    """The second holder of a role is refused and told who has it; another role is free; after release it is free again."""
    lock = folder.lock("ingest")
    with pytest.raises(StartRefused, match=rf"ingest already runs .* process {os.getpid()}\b"):
        folder.lock("ingest")
    with folder.lock("projector"):
        pass
    lock.release()
    lock.release()
    with folder.lock("ingest"):
        pass


def test_a_role_ends_with_its_process(folder: DataFolder) -> None:
    """A process that is killed holds nothing."""
    child = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StartRefused, match=rf"process {child.pid}\b"):
            folder.lock("ingest")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
    with folder.lock("ingest"):
        pass
