"""The life of the service: how it ends, what it does when a part dies, and that its parts run alone."""

import contextlib
import itertools
import os
import random
import signal
import socket
import struct
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from tests.calls import follow, health, read_counts, reading, record, wait_visible, writing
from tests.commands import assert_audit_is_clean, watertower
from tests.expected import Expected, assert_store_equals
from tests.processes.support import QUICK
from tests.traffic import Writers
from watertower import datafolder
from watertower.backends.sqlite import SqliteLogReader
from watertower.cli.options import opened_scanner
from watertower.core.backoff import full_jitter
from watertower.testing.service import ROLES, Service, group_alive, wait_until

WRITER, READER = "watertower.v1.EngagementWriter", "watertower.v1.EngagementReader"
Stopper = Callable[[Service], None]


def _sigterm(service: Service) -> None:
    service.send(signal.SIGTERM)


def _ctrl_c(service: Service) -> None:
    """A terminal sends SIGINT to the whole group."""
    assert service.process is not None
    os.killpg(service.process.pid, signal.SIGINT)


@pytest.mark.parametrize("stop", [_sigterm, _ctrl_c], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_takes_readiness_off_then_applies_what_was_acknowledged_then_ends(
    tmp_path: Path, rng: random.Random, stop: Stopper
) -> None:
    """Under load. First ingest says that it is not ready and ends, then the projector has applied everything, then query ends; the exit
    code is 0 and every acknowledged event is in the store."""
    data = tmp_path / "data"
    with Service(data) as service:
        service.start()
        assert health(service.write_target) == health(service.write_target, WRITER) == "SERVING"
        assert health(service.read_target) == health(service.read_target, READER) == "SERVING"
        with Writers(service.write_target, 4, rng) as writers:
            wait_until(partial(writers.acknowledged_more_than, 3_000), "events are acknowledged")
            stop(service)
            wait_until(lambda: health(service.write_target) in ("NOT_SERVING", "CLOSED"), "ingest is not ready any more")
            assert service.wait_ended() == 0
            assert health(service.read_target) == "CLOSED"
            acknowledged = writers.snapshot()
            _assert_applied(data, acknowledged)
            said = [(event["event"], event["child"]) for event in service.events() if "child" in event]
            assert [child for event, child in said if event == "role_stopped"] == list(ROLES)
            for role in ("ingest", "query"):
                assert said.index(("role_not_ready", role), said.index(("role_ready", role))) < said.index(("role_stopped", role))
            assert all(event["exit_code"] == 0 for event in service.events("role_stopped"))
            # Whether a call that got no answer was recorded is open until it is repeated.
            service.start()
            expected = writers.finish()
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)


def test_a_second_signal_kills_what_is_left_and_the_exit_code_says_so(tmp_path: Path) -> None:
    """A role that does not end is not waited for any longer; 0 would say that everything was applied."""
    with Service(tmp_path / "data") as service:
        service.start()
        assert service.kill("projector", signal.SIGSTOP)
        _ctrl_c(service)
        wait_until(lambda: [e for e in service.events("role_stopped") if e["child"] == "ingest"], "ingest has ended")
        _ctrl_c(service)
        assert service.wait_ended() == 1
        assert "projector" in [event["child"] for event in service.events("role_killed")]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_ctrl_c_while_it_starts(tmp_path: Path, after: int) -> None:
    """However many roles were started by then: exit code 130, said once, and no traceback of a role whose modules are being imported."""
    with Service(tmp_path / "data") as service:
        service.start(ready=False)
        wait_until(lambda: (tmp_path / "data" / "serve.lock").exists() and len(service.events("role_started")) >= after, "it starts")
        _ctrl_c(service)
        assert service.wait_ended() == 130
        said = service.log_tail()
        assert said.count("interrupted") == 1
        assert "Traceback" not in said


def _assert_applied(data: Path, acknowledged: Expected) -> None:
    """The store has everything that was acknowledged; it may have more, of calls that got no answer."""
    with opened_scanner(data) as scanner:
        ends = {partition: progress.end for partition, progress in scanner.progress().items()}
        edges = {key: (edge.occurred_at, not edge.active) for key, edge in scanner.edges()}
    assert all(ends[partition] >= end for partition, end in acknowledged.ends.items())
    behind = [key for key, state in acknowledged.edges.items() if key not in edges or edges[key] < state]
    assert behind == []
    assert_audit_is_clean({"data": data})


def test_a_role_that_dies_is_restarted_with_backoff_and_said_so(tmp_path: Path) -> None:
    """Each role in turn, one of them three times: its death and its restart are in the log, no restart comes earlier than was said or
    later than the cap allows, and the service works again."""
    settings = {"restart_base_ms": 100, "restart_cap_ms": 300}
    with Service(tmp_path / "data", settings=settings) as service:
        service.start()
        for number, role in enumerate(("projector", "query", "ingest", "ingest", "ingest")):
            assert service.kill(role)
            wait_until(lambda role=role, n=number: len(service.events("role_died")) > n, f"{role} is said to be dead")  # type: ignore[misc]
            service.wait_roles_ready()
            with writing(service.write_target) as writer:
                position = record(writer, [follow(f"ann{number}", "star")])
            wait_visible(service.read_target, position.offsets)
        with reading(service.read_target) as reader:
            counts, _ = read_counts(reader, ["star"])
        assert counts[0]["followers"] == 5
        deaths: dict[str, int] = {}
        starts = service.events("role_started")
        for death in service.events("role_died"):
            role = death["child"]
            attempt = deaths[role] = deaths.get(role, 0) + 1
            assert death["exit_code"] == -signal.SIGKILL
            assert 0 <= death["restart_in_s"] <= full_jitter(attempt - 1, 0.1, 0.3, 1.0)
            again = next(event for event in starts if event["child"] == role and event["starts"] == attempt + 1)
            waited = datetime.fromisoformat(again["timestamp"]) - datetime.fromisoformat(death["timestamp"])
            assert waited.total_seconds() >= death["restart_in_s"] - 0.001  # rounded
        assert deaths == {"projector": 1, "query": 1, "ingest": 3}
        assert service.stop() == 0


def test_a_role_whose_port_is_taken_while_it_is_down_waits_for_it(tmp_path: Path) -> None:
    """A client that goes on connecting to a role that is down can be given that very port, and is then connected with itself. The role is
    started again until the port is free; the others go on."""
    with Service(tmp_path / "data", settings=QUICK) as service:
        service.start()
        address = ("127.0.0.1", service.read_port)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # or the system keeps the port for a minute
            assert service.kill("query")
            wait_until(lambda: _bound(client, address), "the port is free", 10.0)  # long before the role is back
            client.connect(address)
            wait_until(lambda: [death for death in service.events("role_died") if death["exit_code"] == 4], "query finds its port taken")
            with writing(service.write_target) as writer:
                position = record(writer, [follow("ann", "star")])
        service.wait_roles_ready()
        wait_visible(service.read_target, position.offsets)
        assert service.stop() == 0


def _bound(client: socket.socket, address: tuple[str, int]) -> bool:
    try:
        client.bind(address)
    except OSError:
        return False
    return True


def test_the_roles_end_when_the_supervisor_is_killed(tmp_path: Path, rng: random.Random) -> None:
    """SIGKILL to the supervisor alone: every role notices, drains and ends, and a new `serve` starts on the same folder."""
    data = tmp_path / "data"
    with Service(data, settings=QUICK) as service:
        service.start()
        with Writers(service.write_target, 2, rng) as writers:
            wait_until(partial(writers.acknowledged_more_than, 1_000), "events are acknowledged")
            service.send(signal.SIGKILL)
            assert service.wait_ended() == -signal.SIGKILL
            assert service.process is not None
            group = service.process.pid
            wait_until(lambda: not group_alive(group), "the roles have ended")
            assert {event["role"] for event in service.events("supervisor_gone")} == set(ROLES)
            service.start()
            expected = writers.finish()
        assert service.stop() == 0
    assert_store_equals({"data": data}, expected)


def test_each_role_takes_on_its_niceness(tmp_path: Path) -> None:
    """Added to that of the process that starts it."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with Service(tmp_path / "data", settings={**QUICK, "query_nice": 1, "ingest_nice": 3, "projector_nice": 7}) as service:
        pids = service.start().pids()
        found = {role: os.getpriority(os.PRIO_PROCESS, pid) - own for role, pid in pids.items()}
    assert found == {"query": 1, "ingest": 3, "projector": 7}


def test_a_second_serve_on_one_folder_is_refused(tmp_path: Path) -> None:
    """It names the first one's pid, exits with 3, and leaves the first alone. So does a single role."""
    with Service(tmp_path / "data") as service:
        service.start()
        assert service.process is not None
        second = watertower("serve", "--data", service.data, "--write-port", 0, "--read-port", 0)
        assert second.code == 3
        assert f"serve already runs on {service.data}, as process {service.process.pid}:" in second.err
        for role in ("ingest", "projector"):
            port = ("--write-port", 0) if role == "ingest" else ()
            alone = watertower(role, "--data", service.data, *port)
            assert alone.code == 3
            assert f"{role} already runs on {service.data}, as process {service.pids()[role]}:" in alone.err
        with writing(service.write_target) as writer:
            wait_visible(service.read_target, record(writer, [follow("ann", "star")]).offsets)
        assert service.events("role_died") == []
        assert service.stop() == 0


@pytest.mark.parametrize("order", list(itertools.permutations(ROLES)), ids="-".join)
def test_roles_start_alone_in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Each as a process of its own, one after the other. A query process before the first projector says that it waits for the store."""
    data = tmp_path / "data"
    with contextlib.ExitStack() as stack:
        roles = {role: stack.enter_context(Service(data, role)) for role in ROLES}
        for role in order:
            roles[role].start(ready=False)
            if role == "query" and order.index("projector") > order.index("query"):
                wait_until(lambda: roles["query"].events("not_ready"), "query says that it waits")
                assert "a projector creates it" in roles["query"].events("not_ready")[0]["reason"]
                wait_until(lambda: health(roles["query"].read_target) == "NOT_SERVING", "query answers that it is not ready")
            else:
                roles[role].wait_ready()
        roles["query"].wait_ready()
        with writing(roles["ingest"].write_target) as writer:
            position = record(writer, [follow("ann", "star"), follow("bob", "star")])
        wait_visible(roles["query"].read_target, position.offsets)
        with reading(roles["query"].read_target) as reader:
            counts, _ = read_counts(reader, ["star", "ann"])
        assert (counts[0]["followers"], counts[1]["following"]) == (2, 1)
        for role in order:
            assert roles[role].stop() == 0


def test_offsets_are_not_used_again_after_restarts_and_truncation(tmp_path: Path) -> None:
    """Of every partition, the offsets in write tokens only grow, though the log is truncated behind what is applied and the service is
    ended or killed in between."""
    data = tmp_path / "data"
    highest: dict[int, int] = {}
    with Service(data, settings={"ingest_truncate_interval_ms": 20}) as service:
        for start in range(4):
            service.start()
            with writing(service.write_target) as writer:
                for call in range(20):
                    offsets = record(writer, [follow(f"ann{start}-{call}-{n}", "star") for n in range(20)]).offsets
                    for partition, offset in offsets.items():
                        assert offset > highest.get(partition, -1), "an offset was used again"
                        highest[partition] = offset
            wait_visible(service.read_target, highest)
            folder = datafolder.open_existing(data)
            with contextlib.closing(SqliteLogReader(folder.log_path, folder.commits_path, folder.identity)) as log:
                wait_until(lambda log=log: all(log.start(p) == end for p, end in highest.items()), "the log is truncated")  # type: ignore[misc]
            if start % 2:
                service.kill_group()
            else:
                assert service.stop() == 0
    assert len(highest) == folder.identity.partitions
    assert_audit_is_clean({"data": data})
