"""How statements reach Cassandra: retries, bounds, errors; the first part without a node."""

import gc
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cassandra import InvalidRequest, OperationTimedOut, Unauthorized, WriteTimeout
from cassandra.cluster import NoHostAvailable
from cassandra.connection import Connection
from structlog.testing import capture_logs

from tests.contract.cassandra_harness import connect, new_keyspace, settings_of
from tests.contract.store_harnesses import IDENTITY
from watertower.backends import cassandra_connection, cassandra_requests
from watertower.backends.cassandra import CassandraConnection, CassandraSettings, CassandraStore
from watertower.backends.driver_log import LOG_INTERVAL_S, DriverLog
from watertower.core.model import Edge, Progress
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.testing.clock import FakeClock
from watertower.testing.engines import CassandraEngine, cassandra
from watertower.testing.engines.fixtures import engine_or_skip

SETTINGS = CassandraSettings(requests_in_flight_max=3, attempts_max=4, retry_base_ms=100, retry_cap_ms=1_000)
TIMED_OUT = WriteTimeout("nobody answered", write_type=0)
_DRIVER_LEAVES_SOCKETS = pytest.mark.filterwarnings(
    # The driver does not close the socket of an attempt that failed.
    "ignore:.*unclosed <socket:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
QUORUM_LOST = Unauthorized("Unable to perform authorization of permissions: Cannot achieve consistency level LOCAL_QUORUM")


@pytest.fixture(autouse=True)
def _driver_collected() -> Iterator[None]:
    """What the driver left is collected here, where the warnings are expected: its log records would keep it alive for the next test."""
    logger = logging.getLogger("cassandra")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    before = {id(found) for found in _driver_connections()}
    yield
    logger.setLevel(level)
    gc.collect()
    for found in _driver_connections():  # that something of a driver that was shut down still holds: for any length of time
        if id(found) not in before and found._socket is not None:
            found._socket.close()


def _driver_connections() -> list[Any]:
    return [found for found in gc.get_objects() if issubclass(type(found), Connection)]


class _Future:
    """A request that is answered when the test says so."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self._callbacks: tuple[Callable[[Any], None], Callable[[Any], None]] | None = None

    def add_callbacks(self, done: Callable[[Any], None], failed: Callable[[Any], None]) -> None:
        self._callbacks = (done, failed)

    def answer(self) -> None:
        if self._callbacks is None:
            raise RuntimeError("nobody listens")
        self._callbacks[isinstance(self.outcome, Exception)](self.outcome)

    def result(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return type("Result", (), {"current_rows": [(self.outcome,)]})


class _Session:
    """Answers statement n by its outcomes in turn, the last for good; each request when `held` more are waiting, newest first."""

    def __init__(self, outcomes: dict[str, list[Any]], held: int = 0) -> None:
        self.outcomes, self.held = outcomes, held
        self.waiting: list[_Future] = []
        self.sent: list[str] = []
        self.under_way_max = 0

    def execute_async(self, statement: str, paging_state: bytes | None = None) -> _Future:
        self.sent.append(statement)
        outcomes = self.outcomes.get(statement, [statement])
        future = _Future(outcomes.pop(0) if len(outcomes) > 1 else outcomes[0])
        self.waiting.append(future)
        self.under_way_max = max(self.under_way_max, len(self.waiting))
        return future


class _Cluster:
    """As much of a cluster as opening one takes."""

    class metadata:  # noqa: N801
        all_hosts = staticmethod(list)

    def __init__(self, session: _Session) -> None:
        self._session = session

    def connect(self) -> _Session:
        return self._session

    def shutdown(self) -> None:
        pass


class _Queue:
    """In place of the queue of answers: the requests are answered when the pipeline waits for one."""

    session: _Session

    def __init__(self) -> None:
        self._items: list[Any] = []

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get(self, timeout: float | None = None) -> Any:
        if not self._items:
            self.session.waiting.pop().answer()  # newest first
        return self._items.pop(0)


@pytest.fixture
def heard() -> list[int]:
    """How many statements had been sent whenever an answer was heard."""
    return []


@pytest.fixture
def opened(
    monkeypatch: pytest.MonkeyPatch, heard: list[int]
) -> Callable[[dict[str, list[Any]]], tuple[CassandraConnection, _Session, FakeClock]]:
    """A connection whose statements have these outcomes."""

    def open_(outcomes: dict[str, list[Any]]) -> tuple[CassandraConnection, _Session, FakeClock]:
        session, clock = _Session(outcomes), FakeClock()
        queue = type("Queue", (_Queue,), {"session": session})
        monkeypatch.setattr(cassandra_requests, "SimpleQueue", queue)
        monkeypatch.setattr(cassandra_connection, "_cluster", lambda _: _Cluster(session))
        return CassandraConnection(SETTINGS, clock, random.Random(1), lambda: heard.append(len(session.sent))), session, clock

    return open_


Opened = Callable[[dict[str, list[Any]]], tuple[CassandraConnection, _Session, FakeClock]]


def test_results_come_in_order_and_few_are_under_way(opened: Opened) -> None:
    """Whichever is answered first; requests_in_flight_max at once, and statements are made when their turn comes."""
    connection, session, _ = opened({})
    made: list[str] = []

    def statements() -> Iterator[str]:
        for n in range(10):
            made.append(str(n))
            assert len(made) - len(session.sent) == 1
            yield str(n)

    assert connection.run(statements()) == [[(str(n),)] for n in range(10)]
    assert session.under_way_max == 3
    assert connection.run([]) == []


@pytest.mark.parametrize("error", [TIMED_OUT, OperationTimedOut(), NoHostAvailable("none", {}), QUORUM_LOST, ConnectionResetError()])
def test_what_may_pass_is_tried_again_with_jitter(opened: Opened, error: Exception) -> None:
    """Up to attempts_max times, at growing intervals; the others go on meanwhile."""
    connection, session, clock = opened({"b": [error, error, error, "late"]})
    assert connection.run("abc") == [[("a",)], [("late",)], [("c",)]]
    assert session.sent.count("b") == 4
    assert 0 < clock.monotonic_s() < 0.1 + 0.2 + 0.4


def test_every_answer_is_heard_of_failures_too(opened: Opened, heard: list[int]) -> None:
    """While the others are on their way, not at the end: who listens can tell a flush that takes long from one that hangs."""
    connection, session, _ = opened({"b": [TIMED_OUT, "late"]})
    connection.run("abcdefgh")
    assert len(heard) == len(session.sent) == 9
    assert heard[0] == 3


def test_a_retry_that_is_due_already_is_sent_at_once(opened: Opened) -> None:
    """Its moment may pass between two looks at the clock."""
    connection, session, clock = opened({"b": [TIMED_OUT, "late"]})
    moments = iter(range(10_000))
    clock.monotonic_s = lambda: float(next(moments))  # type: ignore[method-assign]
    assert connection.run("abcdefgh")[1] == [("late",)]
    assert session.sent.count("b") == 2


def test_what_does_not_pass_is_unavailable(opened: Opened) -> None:
    """After attempts_max; nothing more is sent then, and what is under way is waited for."""
    connection, session, _ = opened({"b": [TIMED_OUT]})
    with pytest.raises(BackendUnavailable, match="after 4 attempts: WriteTimeout"):
        connection.run("abcdefghijklmnopqrstuvwxyz")
    assert session.sent.count("b") == 4
    assert session.waiting == []


def test_what_cannot_pass_is_refused_at_once(opened: Opened) -> None:
    """A statement that is wrong stays wrong."""
    for error in (InvalidRequest("wrong"), Unauthorized("User app has no MODIFY permission")):
        connection, session, _ = opened({"b": [error]})
        with pytest.raises(BackendRefused, match=str(error)[:5]):
            connection.run("abc")
        assert session.sent.count("b") == 1


def test_a_closed_connection_says_so(opened: Opened) -> None:
    """Closing twice is closing once."""
    connection, _, _ = opened({})
    connection.close()
    connection.close()
    with pytest.raises(BackendRefused, match="closed"):
        connection.run("a")


@_DRIVER_LEAVES_SOCKETS
def test_an_unreachable_node_is_waited_for() -> None:
    """The message says for what, and where."""
    with pytest.raises(BackendUnavailable, match=r"waiting for Cassandra at 127.0.0.1:1: "):
        connect(CassandraSettings(port=1, connect_timeout_ms=1_000))
    with pytest.raises(BackendUnavailable, match=r"waiting for Cassandra at no-such-host.invalid:1"):
        connect(CassandraSettings(contact_points=("no-such-host.invalid",), port=1, connect_timeout_ms=1_000))


def test_the_password_is_not_in_the_settings_text() -> None:
    """Settings get into logs."""
    assert "secret" not in repr(CassandraSettings(user="app", password="secret"))


@pytest.fixture(scope="module")
def secure_engine() -> Iterator[CassandraEngine]:
    with engine_or_skip(cassandra(secure=True)) as engine:
        yield engine


@pytest.mark.slow
@_DRIVER_LEAVES_SOCKETS
def test_login_and_tls(secure_engine: CassandraEngine, tmp_path: Path) -> None:
    """With the right password and authority the store works; each wrong one is refused at the start, naming its setting."""
    right = settings_of(secure_engine, user=secure_engine.user, password=secure_engine.password, ca_file=Path(secure_engine.ca_file))
    with new_keyspace(right) as connection:
        store = CassandraStore(connection, IDENTITY)
        store.write_progress({0: Progress(1, b"12345678", 1)})
        assert store.read_progress() == {0: Progress(1, b"12345678", 1)}
    with pytest.raises(StartRefused, match="cassandra_password"):
        connect(replace(right, password="wrong"))
    with pytest.raises(StartRefused, match="cassandra_ca_file"):
        connect(replace(right, ca_file=_another_authority(tmp_path)))
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(StartRefused, match="cassandra_ca_file"):
        connect(replace(right, ca_file=tmp_path / "empty.pem"))


def _another_authority(folder: Path) -> Path:
    """A certificate that signed nothing."""
    import subprocess

    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout {folder}/ca.key -out {folder}/ca.pem"
    subprocess.run(command.split(), check=True, capture_output=True)
    return folder / "ca.pem"


@pytest.mark.slow
@_DRIVER_LEAVES_SOCKETS
def test_a_node_that_was_away_is_found_again() -> None:
    """Without a restart of ours, prepared statements included: the node has forgotten them."""
    with engine_or_skip(cassandra(own=True)) as engine, new_keyspace(settings_of(engine, request_timeout_ms=2_000)) as connection:
        store = CassandraStore(connection, IDENTITY)
        edges = {("a", 1, "s", ""): Edge(True, 5, 0, 1)}
        store.write_edges(edges)
        connection.query("TRUNCATE system.prepared_statements")  # what it would read again when it starts
        engine.nodes[0].kill()
        with pytest.raises(BackendUnavailable):
            store.write_edges({("b", 1, "s", ""): Edge(True, 5, 0, 1)})
        engine.nodes[0].start()
        deadline = time.monotonic() + 60
        while True:
            try:
                store.write_edges({("b", 1, "s", ""): Edge(True, 5, 0, 1)})
                break
            except BackendUnavailable:
                if time.monotonic() > deadline:
                    raise
        assert store.read_edges(edges) == edges


def test_what_the_driver_says_is_in_the_service_s_log_once() -> None:
    """From WARNING on, each kind of message once in a while with how often it came, its error named; nothing below, whatever is set."""
    clock = FakeClock()
    log = DriverLog("cassandra", clock)
    logger = logging.Logger("cassandra.cluster", logging.DEBUG)
    logger.addHandler(log)
    with capture_logs() as said:
        logger.debug("password is %s", "secret")
        for port in (1, 2, 3):
            logger.warning("no node at %s", port)
        clock.sleep(LOG_INTERVAL_S)
        try:
            raise OSError("gone")
        except OSError:
            logger.exception("no node at %s", 4)
    shown = [{key: line[key] for key in ("message", "suppressed", "error") if key in line} for line in said]
    assert shown == [{"message": "no node at 1", "suppressed": 0}, {"message": "no node at 4", "suppressed": 2, "error": "OSError('gone')"}]
