"""SIGKILL at random moments and at every failpoint, under load: nothing acknowledged is lost, nothing counts twice."""

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.calls import CLOCK, wait_visible
from tests.commands import assert_audit_is_clean
from tests.expected import assert_reader_equals, assert_store_equals
from tests.processes.support import QUICK
from tests.traffic import Readers, World, Writers
from watertower.failpoints import POINTS
from watertower.testing.service import ROLES, START_S, Service, children, wait_until

DEATH_S = 30.0
"""Seconds in which a role must come to its failpoint under this load."""

KILLS_MIN = 20


def _armed(rng: random.Random) -> list[dict[str, str]]:
    """Per start of the service: by role, the failpoint at which it dies. Every point once; one death a role and start."""
    points = {role: [point for point in POINTS if point.startswith(role + ".")] for role in ROLES}
    starts: list[dict[str, str]] = [{} for _ in range(max(map(len, points.values())))]
    for role, names in points.items():
        rng.shuffle(names)
        for start, name in zip(rng.sample(range(len(starts)), len(names)), names, strict=True):
            starts[start][role] = name
    return starts


def _failpoints(armed: dict[str, str], rng: random.Random) -> str:
    # A commit is every half second at most, a load once per entity that is new; the others are many a second.
    most = {"projector.after_commit": 2, "query.before_load": 20, "query.after_load": 20}
    return ",".join(f"{point}=kill:{rng.randint(1, most.get(point, 30))}" for point in armed.values())


def test_every_acknowledged_event_counts_once_whatever_is_killed(tmp_path: Path, rng: random.Random) -> None:
    """Ingest, projector, query, what query started itself and the whole group die of SIGKILL, at random moments and once at each
    failpoint, while callers repeat every call until it is acknowledged. In the end edges, counts and lists are those of the acknowledged
    events and the audit is clean; meanwhile no count is negative and no answer lies behind an earlier one."""
    data, world = tmp_path / "data", World()
    kills: Counter[str] = Counter()
    with Service(data, settings=QUICK) as service:
        service.start(ready=False)
        _pause(rng)  # the first death may come while the data folder is being made
        with Writers(service.write_target, 4, rng, world) as writers, Readers(service.read_target, 2, rng, world) as readers:
            for number, armed in enumerate(_armed(rng)):
                service.kill_group()
                kills["group"] += 1
                service.start({"WATERTOWER_FAILPOINTS": _failpoints(armed, rng)}, ready=False)
                for role, point in armed.items():
                    wait_until(partial(_deaths, service, role), f"{role} dies at {point}", DEATH_S)
                    kills[f"{role} at a failpoint"] += 1
                service.wait_roles_ready()
                role = ROLES[number % len(ROLES)]
                _pause(rng)
                kills[role] += service.kill(role)
                if role != "query":
                    kills["follower of query"] += _kill_children(service, "query")
                acknowledged, answers = writers.acknowledged, readers.answers
                # Sometimes the group dies while its roles are on their way up.
                if rng.random() < 0.6:
                    service.wait_roles_ready()
                    wait_until(partial(writers.acknowledged_more_than, acknowledged), "events are acknowledged again")
                    wait_until(partial(readers.answered_more_than, answers), "reads are answered again")
                    _pause(rng)
            service.kill_group()
            kills["group"] += 1
            service.start()
            expected = writers.finish()
            wait_visible(service.read_target, expected.ends)
            readers.finish()
        print(
            f"{kills.total()} kills: {dict(kills)}; {expected.events} events acknowledged, {writers.repeated} calls repeated, "
            f"{readers.answers} reads answered ({readers.unknown_age} of unknown age), {readers.failures} not"
        )
        assert writers.unacknowledged == 0
        assert expected.events > 10_000, "the load was no load"
        assert readers.answers > 100, "the readers did not read"
        assert_reader_equals(service.read_target, world.entities, expected)
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)
    assert kills.total() >= KILLS_MIN
    assert kills["group"] >= 3
    assert kills["follower of query"] >= 1
    for role in ROLES:
        assert kills[role] >= 1, "no random kill"
        assert kills[f"{role} at a failpoint"] == sum(point.startswith(role + ".") for point in POINTS)


@pytest.mark.parametrize("file", ["*", "MANIFEST-*", "CURRENT", "*.log"])
def test_a_store_whose_maker_died_is_made_again(tmp_path: Path, file: str) -> None:
    """A projector that is killed at its first start, as soon as some file of the store is there, leaves nothing that the next one
    refuses."""
    data = tmp_path / "data"
    with Service(data, "projector") as projector:
        projector.start(ready=False)
        deadline = CLOCK.monotonic_s() + START_S
        while not any(data.glob(f"store*/{file}")) and CLOCK.monotonic_s() < deadline:
            pass  # it takes some milliseconds in all: no time for pauses between two looks
        assert any(data.glob(f"store*/{file}"))
        projector.kill_group()
        projector.start()
        assert projector.stop() == 0
    assert assert_audit_is_clean({"data": data})["edges"] == 0


def _deaths(service: Service, role: str) -> bool:
    """Whether the role died of SIGKILL in this start of the service."""
    assert service.process is not None
    assert service.process.poll() is None, "the service has ended"
    codes = [event["exit_code"] for event in service.events("role_died") if event["child"] == role]
    assert all(code == -signal.SIGKILL for code in codes), f"{role} ended by itself: {codes}"
    return bool(codes)


def _kill_children(service: Service, role: str) -> int:
    """SIGKILL to what the role has started itself; how many there were."""
    pids = children(service.pids()[role])
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def _pause(rng: random.Random) -> None:
    """Lets the load go on up to a random moment: what is tested is that any moment will do."""
    CLOCK.sleep(rng.random() * 0.5)
