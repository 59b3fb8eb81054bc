"""Several query processes on one port: who serves, who is replaced, and who is kept out."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.calls import follow, health, read_counts, reading, record, wait_visible, writing
from tests.commands import watertower
from tests.processes.support import QUICK
from watertower.config import WORKERS_MAX
from watertower.errors import AddressTaken
from watertower.shared_port import held_port
from watertower.testing.service import Service, alive, free_port, wait_until

WORKERS = 3


@contextlib.contextmanager
def workers(data: Path, **settings: object) -> Iterator[tuple[Service, Service]]:
    """A service without a query process of its own that counts, beside query processes on one port."""
    with (
        Service(data, settings=QUICK) as writers,
        Service(data, "query", settings={**QUICK, "query_workers": WORKERS, **settings}) as readers,
    ):
        writers.start()
        readers.start(ready=False)
        wait_until(lambda: readers.events("workers_ready"), "all workers are ready")
        yield writers, readers


def serving(readers: Service) -> dict[str, int]:
    """The pid of each worker that is ready, by its name."""
    pids = readers.pids()
    return {name: pid for name, pid in pids.items() if readers.role_ready(name) and alive(pid)}


def connections(pid: int) -> int:
    """Sockets that a process has open."""
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd"))


def test_workers_share_one_port_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    """It is ready when all are; connections are spread over them; one that is killed is started again, and calls that are repeated are
    answered all the time; SIGTERM ends them all with 0."""
    with workers(tmp_path / "data") as (writers, readers):
        said = readers.events("workers_ready")
        assert [sorted(event["pids"]) for event in said] == [sorted(serving(readers).values())]
        assert said[0]["address"] == readers.read_target
        assert len(serving(readers)) == WORKERS
        with writing(writers.write_target) as writer:
            token = record(writer, [follow("ann", "star")])
        before = {pid: connections(pid) for pid in serving(readers).values()}
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stub = stack.enter_context(reading(readers.read_target))
                wait_until(lambda stub=stub: read_counts(stub, ["star"])[0][0]["followers"] == 1, "the worker has it")  # type: ignore[misc]
            assert all(connections(pid) > before[pid] for pid in before)
        victim, pid = next(iter(serving(readers).items()))
        os.kill(pid, signal.SIGKILL)
        for _ in range(20):
            with reading(readers.read_target) as stub:
                wait_until(lambda stub=stub: _answered(stub), "a worker answers")  # type: ignore[misc]
        wait_until(lambda: len(serving(readers)) == WORKERS and serving(readers)[victim] != pid, "it is replaced")
        wait_visible(readers.read_target, token.offsets)
        assert [death["child"] for death in readers.events("role_died")] == [victim]
        assert readers.stop() == 0
        assert health(readers.read_target) == "CLOSED"
        assert writers.stop() == 0


def _answered(stub: object) -> bool:
    try:
        return read_counts(stub, ["star"])[0][0]["followers"] == 1
    except grpc.RpcError:
        return False


@pytest.mark.parametrize("shared", [False, True], ids=["listening", "listening, and sharing the port"])
def test_a_port_that_somebody_else_has_is_refused(tmp_path: Path, shared: bool) -> None:
    """Also if that would share it: exit code 4, and a line that names the address. Nobody gets half of the calls of another service."""
    with socket.socket() as foreign:
        if shared:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        foreign.bind(("127.0.0.1", free_port()))
        foreign.listen()
        port = foreign.getsockname()[1]
        refused = watertower("query", "--data", tmp_path / "data", "--read-port", port, "--workers", 2)
        assert refused.code == 4
        assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in refused.err


def test_nobody_joins_the_workers_on_their_port(tmp_path: Path) -> None:
    """Neither a query process alone nor other workers nor `serve`: each is refused, and the first go on."""
    with workers(tmp_path / "data") as (_, readers):
        for command in (("query",), ("query", "--workers", 2)):
            second = watertower(*command, "--data", readers.data, "--read-port", readers.read_port)
            assert second.code == 4, command
            assert f"cannot listen on 127.0.0.1:{readers.read_port}" in second.err
        other = watertower(
            "serve", "--data", tmp_path / "other", "--write-port", 0, "--read-port", readers.read_port, "--set", "query_workers=2"
        )
        assert other.code == 3
        assert f"cannot listen on 127.0.0.1:{readers.read_port}" in other.err
        assert len(serving(readers)) == WORKERS
        assert readers.stop() == 0


def test_the_port_is_held_before_a_worker_listens() -> None:
    """Neither another service's workers nor a server alone can take it meanwhile; the workers themselves can."""
    with held_port("127.0.0.1", 0) as port:
        with pytest.raises(AddressTaken), held_port("127.0.0.1", port):
            pass
        with socket.socket() as foreign:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                foreign.bind(("127.0.0.1", port))
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()


def test_serve_has_workers_too(tmp_path: Path) -> None:
    """`query_workers`: each is a part of the service, ends last, and with it."""
    with Service(tmp_path / "data", settings={"query_workers": 2}) as service:
        service.start()
        assert set(service.pids()) == {"ingest", "projector", "query-1", "query-2"}
        with writing(service.write_target) as writer:
            wait_visible(service.read_target, record(writer, [follow("ann", "star")]).offsets)
        assert service.stop() == 0
        stopped = [event["child"] for event in service.events("role_stopped")]
        assert stopped == ["ingest", "projector", "query-1", "query-2"]


@pytest.mark.parametrize("number", [0, WORKERS_MAX + 1])
def test_the_number_of_workers_is_bounded(tmp_path: Path, number: int) -> None:
    """1 to `WORKERS_MAX`."""
    refused = watertower("query", "--data", tmp_path / "data", "--workers", number)
    assert refused.code == 3
    assert "query_workers" in refused.err
