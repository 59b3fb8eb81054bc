"""`watertower backup` beside a real service under load: what it makes is whole, what its death leaves is nothing, and the service does not
notice."""

import contextlib
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.calls import CLOCK, wait_visible
from tests.commands import assert_audit_is_clean, watertower
from tests.expected import Expected, assert_store_equals
from tests.processes.support import QUICK
from tests.traffic import Readers, World, Writers
from watertower import bootstrap, config
from watertower.failpoints import POINTS
from watertower.testing.service import Service, clean_environment, wait_until

RESTLESS = {**QUICK, "projector_write_buffer_bytes": 65_536, "ingest_truncate_interval_ms": 1}
"""A store that writes and deletes tables, and a log that drops records, all the time."""

BACKUPS = 6
KILLS = 8


def backed_up(data: Path, target: Path) -> dict[int, int]:
    """Makes a backup. Up to where its log goes, by partition."""
    ran = watertower("backup", target, "--data", data, "--json")
    assert ran.code == 0, ran.err
    return {int(partition): end for partition, end in json.loads(ran.out)["ends"].items()}


def assert_is_whole(copy: Path, before: Expected, ends: dict[int, int], sent: Expected | None = None) -> None:
    """A service runs on the copy; afterwards counts and lists are those of its edges, and these have all events that were acknowledged
    `before` the backup, and none that was not `sent`."""
    with Service(copy, settings=QUICK) as restored:
        restored.start()
        wait_visible(restored.read_target, ends)
        assert restored.stop() == 0
    assert_audit_is_clean({"data": copy})
    assert all(ends[partition] >= end for partition, end in before.ends.items())
    with bootstrap.opened_scanner(config.load({"data": copy})) as scanner:
        found = {key: (edge.occurred_at, not edge.active) for key, edge in scanner.edges()}
    assert [key for key, state in before.edges.items() if found.get(key, (-1, False)) < state] == [], "an acknowledged event is missing"
    if sent is not None:
        assert [key for key, state in found.items() if state > sent.edges[key]] == [], "an event that was never sent"


def test_backups_under_load_are_whole(tmp_path: Path, rng: random.Random) -> None:
    """While writers write, tables come and go and the log is truncated at every turn, each backup is a data folder on which a service
    starts, whose audit is clean, and which has every event that was acknowledged before the backup began. In the end the service itself
    has counted every event once."""
    data, world = tmp_path / "data", World()
    made: list[tuple[Path, Expected, dict[int, int]]] = []
    with Service(data, settings=RESTLESS) as service:
        service.start()
        with Writers(service.write_target, 4, rng, world) as writers, Readers(service.read_target, 1, rng, world) as readers:
            for number in range(BACKUPS):
                wait_until(lambda seen=writers.acknowledged: writers.acknowledged_more_than(seen + 2_000), "events are acknowledged")
                if number % 4 == 3:
                    service.kill("projector")  # a backup needs no role
                before, copy = writers.snapshot(), tmp_path / f"copy{number}"
                made.append((copy, before, backed_up(data, copy)))
            service.wait_roles_ready()
            expected = writers.finish()
            wait_visible(service.read_target, expected.ends)
            readers.finish()
        assert service.stop() == 0
    assert writers.unacknowledged == 0
    assert_store_equals({"data": data}, expected)
    for copy, before, ends in made:
        assert_is_whole(copy, before, ends, expected)
    assert list((data / "readers").iterdir()) == []


def test_a_killed_backup_leaves_nothing(tmp_path: Path, rng: random.Random) -> None:
    """Backups die of SIGKILL at each of their failpoints and at random moments, under load. What is there then is a whole backup or none;
    the service goes on, its log is truncated, and the next backup to the same place is made, and removes what the dead ones left."""
    data, target = tmp_path / "data", tmp_path / "copy"
    points = [point for point in POINTS if point.startswith("backup.")]
    whole = 0
    with Service(data, settings=RESTLESS) as service:
        service.start()
        with Writers(service.write_target, 2, rng, World()) as writers:
            wait_until(lambda: writers.acknowledged_more_than(5_000), "events are acknowledged")
            for kill in range(KILLS + len(points)):
                point = points[kill] if kill < len(points) else ""
                before = writers.snapshot()
                died = _killed_backup(data, target, point, rng)
                if target.exists():
                    whole += 1
                    assert_is_whole(target, before, _ends(target))
                    shutil.rmtree(target)
                else:
                    assert died
            before = writers.snapshot()
            ends = backed_up(data, target)
            after = writers.finish()
            wait_visible(service.read_target, after.ends)
        wait_until(lambda: _records(data) <= len(after.ends), "the log is truncated up to the last record of each partition")
        assert service.stop() == 0
    assert whole >= 1
    assert_is_whole(target, before, ends, after)
    assert_store_equals({"data": data}, after)
    assert not target.with_name("copy.part").exists()
    assert list((data / "readers").iterdir()) == []


def _killed_backup(data: Path, target: Path, point: str, rng: random.Random) -> bool:
    """Whether it was killed before its end: at the failpoint, or at a random moment."""
    command = [sys.executable, "-m", "watertower", "backup", str(target), "--data", str(data)]
    environment = clean_environment({"WATERTOWER_FAILPOINTS": f"{point}=kill"} if point else {})
    backup = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not point:
        part = target.with_name(target.name + ".part")
        wait_until(lambda: part.exists() or backup.poll() is not None, "the backup begins")
        CLOCK.sleep(rng.random() * 0.2)
        backup.kill()
    _, said = backup.communicate(timeout=60.0)
    assert backup.returncode in (0, -signal.SIGKILL), said
    assert not point or backup.returncode != 0, f"{point} was not reached"
    return backup.returncode != 0


def _ends(copy: Path) -> dict[int, int]:
    """Up to where the log of a folder goes, by partition."""
    with contextlib.closing(sqlite3.connect(copy / "log.sqlite")) as log:
        return {partition: offset - 1 for partition, offset in log.execute("SELECT partition, next_offset FROM partitions")}


def _records(data: Path) -> int:
    """Of the log of a folder."""
    with contextlib.closing(sqlite3.connect(data / "log.sqlite")) as log:
        return int(log.execute("SELECT count(*) FROM records").fetchone()[0])
