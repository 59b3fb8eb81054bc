"""The connection to Cassandra: how it is opened, and how statements are sent.

One Cluster a process. Every statement is prepared, idempotent by its write timestamp, sent at LOCAL_QUORUM to a replica of the local data
centre, and tried again here, with full jitter: the driver's own policies would not repeat a write that timed out.
"""

import random
import re
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, FallthroughRetryPolicy, TokenAwarePolicy
from cassandra.query import tuple_factory

from watertower.backends.cassandra_errors import DRIVER_ERRORS, is_retryable, refuse_start, text
from watertower.core.backoff import full_jitter
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import Clock

Statement: TypeAlias = Any
"""A bound or batch statement of the driver, which has no types."""

Row: TypeAlias = tuple[Any, ...]

ALL: Final = ConsistencyLevel.ALL
"""Every replica: only to look for what a quorum does not show (cassandra_edges.py)."""

_PROTOCOL = 5
"""Of Cassandra 4.0 and later."""

_RECONNECT_BASE_S, _RECONNECT_CAP_S = 0.2, 5.0
"""Seconds between two looks at a node that is down, doubling between these."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CassandraSettings:
    """How to reach Cassandra. Plain values; where they come from is config.py's business."""

    contact_points: tuple[str, ...] = ("127.0.0.1",)
    port: int = 9042
    local_dc: str = "datacenter1"
    keyspace: str = "watertower"
    user: str = ""  # empty: no authentication
    password: str = field(default="", repr=False)
    ca_file: Path | None = None  # given: TLS, the nodes' certificates checked against it
    compression: bool = False  # of the protocol, by LZ4
    connect_timeout_ms: int = 5_000
    request_timeout_ms: int = 5_000  # of one attempt
    requests_in_flight_max: int = 32  # of one call of the store
    attempts_max: int = 5  # of one statement, the first one included
    retry_base_ms: int = 50
    retry_cap_ms: int = 2_000


class CassandraConnection:
    """One Cluster and Session. Any thread may use it."""

    def __init__(self, settings: CassandraSettings, clock: Clock, rng: random.Random) -> None:
        """Connects. Raises BackendUnavailable while no node can be reached, StartRefused for what waiting cannot cure: a wrong password
        or CA, a data centre that the cluster does not have, settings that cannot be right."""
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", settings.keyspace):
            raise StartRefused(
                f"cassandra_keyspace: {settings.keyspace!r} must be 1 to 48 lower-case letters, digits and underscores, a letter first"
            )
        self.settings = settings
        self._clock, self._rng = clock, rng
        self._prepared: dict[tuple[str, int | None], Statement] = {}
        self._closed = False
        self._cluster, self._session = _connected(settings)

    # --- sending

    def prepare(self, query: str, page_rows: int | None = None, **literals: int) -> Statement:
        """A prepared statement. In braces: `{keyspace}`, and `literals` by name. Its results come whole, or in pages of `page_rows`.

        Kept as long as the connection: a node that was restarted has forgotten it, and the driver can tell it again only while somebody
        holds the statement, which a batch of query ids does not.
        """
        text = query.format(keyspace=self.settings.keyspace, **literals)
        statement = self._prepared.get((text, page_rows))
        if statement is None:
            statement = self._again(lambda: self._session.prepare(text))
            statement.is_idempotent = True
            statement.fetch_size = page_rows
            self._prepared[text, page_rows] = statement
        return statement

    def run(self, statements: Iterable[Statement]) -> list[list[Row]]:
        """Sends statements, at most requests_in_flight_max at a time, taking each from the iterable when its turn comes. Gives the rows
        of each, in order; whole results: none of these statements may be paged.

        Raises BackendUnavailable when one was tried attempts_max times, BackendRefused when trying again cannot help; only after
        every request that was on its way is answered or timed out.
        """
        self._refuse_closed()
        waiting = enumerate(statements)
        results: dict[int, list[Row]] = {}
        answered: SimpleQueue[_Sent] = SimpleQueue()
        again: list[tuple[float, int, _Sent]] = []  # a heap by the moment from which each may be sent again
        under_way = 0
        exhausted = False
        failed: Exception | None = None
        while True:
            while failed is None and under_way < self.settings.requests_in_flight_max:
                if again and again[0][0] <= self._clock.monotonic_s():
                    sent = heappop(again)[2]
                elif not exhausted and (following := next(waiting, None)) is not None:
                    sent = _Sent(*following)
                else:
                    exhausted = True
                    break
                under_way += 1
                self._send(sent, answered)
            until_s = again[0][0] - self._clock.monotonic_s() if again and failed is None else None
            if under_way == 0:
                if until_s is None:
                    break
                self._clock.sleep(until_s)
                continue
            try:
                sent = answered.get(timeout=until_s)
            except Empty:
                continue
            under_way -= 1
            try:
                results[sent.number] = sent.rows()
            except Exception as error:
                sent.failures += 1
                failed = failed or self._final(error, sent.failures)
                if failed is None:
                    heappush(again, (self._clock.monotonic_s() + self._wait_s(sent.failures), sent.number, sent))
        if failed is not None:
            raise failed
        return [results[number] for number in range(len(results))]

    def pages(self, statement: Statement) -> Iterator[list[Row]]:
        """The pages of a statement that was prepared so, each asked for while the one before it is used. Raises as `run`."""
        self._refuse_closed()
        asked = self._asked(statement)
        while True:
            result = self._again(asked)
            more = result.paging_state
            if more is not None:
                asked = self._asked(statement, more)
            yield list(result.current_rows)
            if more is None:
                return

    def query(self, query: str) -> list[Row]:
        """One statement that is not worth preparing, retried as `run`. For start-up and migrations."""
        return list(self._again(lambda: self._session.execute(query)))

    def agree_on_schema(self) -> None:
        """Waits until every node that is up has the same schema. Raises BackendUnavailable after the driver's patience (10 s)."""
        if not self._again(lambda: self._cluster.control_connection.wait_for_schema_agreement()):
            raise BackendUnavailable("the nodes of Cassandra do not agree on the schema yet")

    def close(self) -> None:
        """Lets go. Idempotent."""
        if not self._closed:
            self._closed = True
            self._cluster.shutdown()

    # --- how

    def _asked(self, statement: Statement, page: bytes | None = None) -> Callable[[], Any]:
        """Sends a statement; what it gives waits for the answer at its first call and asks anew at each further one."""
        sent = [self._executed(statement, page)]
        return lambda: (sent.pop() if sent else self._executed(statement, page)).result()

    def _executed(self, statement: Statement, page: bytes | None = None) -> Any:
        """The future of a statement; an error in sending it is its result."""
        try:
            return self._session.execute_async(statement, paging_state=page)
        except Exception as error:
            return _Failed(error)

    def _send(self, sent: "_Sent", answered: "SimpleQueue[_Sent]") -> None:
        sent.future = self._executed(sent.statement)
        sent.future.add_callbacks(lambda _: answered.put(sent), lambda _: answered.put(sent))

    def _again(self, call: Callable[[], _Result]) -> _Result:
        """The call's result, tried as `run` does."""
        self._refuse_closed()
        failures = 0
        while True:
            try:
                return call()
            except Exception as error:
                failures += 1
                failed = self._final(error, failures)
                if failed is not None:
                    raise failed from error
            self._clock.sleep(self._wait_s(failures))

    def _final(self, error: Exception, failures: int) -> Exception | None:
        """What an error comes to; None when it is worth another attempt."""
        if not isinstance(error, DRIVER_ERRORS):
            return error
        if not is_retryable(error):
            return BackendRefused(f"Cassandra: {text(error)}")
        if self._closed or failures >= self.settings.attempts_max:
            return BackendUnavailable(f"Cassandra, after {failures} attempts: {text(error)}")
        return None

    def _wait_s(self, failures: int) -> float:
        return full_jitter(failures - 1, self.settings.retry_base_ms / 1e3, self.settings.retry_cap_ms / 1e3, self._rng.random())

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BackendRefused("the connection to Cassandra is closed")


class _Sent:
    """A statement on its way, or waiting to be sent again."""

    __slots__ = ("failures", "future", "number", "statement")

    def __init__(self, number: int, statement: Statement) -> None:
        self.number, self.statement = number, statement
        self.failures = 0
        self.future: Any = None

    def rows(self) -> list[Row]:
        rows: list[Row] = self.future.result().current_rows
        return rows


class _Failed:
    """In the place of a future whose statement could not be sent."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> Any:
        raise self._error

    def add_callbacks(self, _: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        failed(self._error)


def _connected(settings: CassandraSettings) -> tuple[Any, Any]:
    """The driver's Cluster and Session."""
    where = ", ".join(f"{host}:{settings.port}" for host in settings.contact_points)
    cluster: Any = None
    try:
        cluster = _cluster(settings)
        session = cluster.connect()
        _refuse_data_centre(cluster, settings)
    except BaseException as error:
        if cluster is not None:
            cluster.shutdown()
        if not isinstance(error, DRIVER_ERRORS):
            raise
        refuse_start(error)
        if cluster is not None:
            _refuse_data_centre(cluster, settings)
        raise BackendUnavailable(f"waiting for Cassandra at {where}: {text(error)}") from error
    session.use_client_timestamp = False  # every mutation says its own
    return cluster, session


def _refuse_data_centre(cluster: Any, settings: CassandraSettings) -> None:
    known = {host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter}
    if known and settings.local_dc not in known:
        raise StartRefused(
            f"cassandra_local_datacenter: the cluster has no data centre {settings.local_dc!r}; it has {', '.join(sorted(known))}"
        )


def _cluster(settings: CassandraSettings) -> Any:
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.local_dc)),
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=settings.request_timeout_ms / 1e3,
        row_factory=tuple_factory,
    )
    return Cluster(
        list(settings.contact_points),
        port=settings.port,
        protocol_version=_PROTOCOL,
        compression="lz4" if settings.compression else False,
        auth_provider=PlainTextAuthProvider(settings.user, settings.password) if settings.user else None,
        ssl_context=_tls(settings.ca_file) if settings.ca_file else None,
        connect_timeout=settings.connect_timeout_ms / 1e3,
        control_connection_timeout=settings.connect_timeout_ms / 1e3,
        reconnection_policy=ExponentialReconnectionPolicy(_RECONNECT_BASE_S, _RECONNECT_CAP_S),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    )


def _tls(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise StartRefused(f"cassandra_ca_file: {ca_file} cannot be read as certificates in PEM ({error})") from error
