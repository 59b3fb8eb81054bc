"""The connection to Cassandra: how it is opened, and how statements are sent.

One Cluster a process. Every statement is prepared, idempotent by its write timestamp, sent at LOCAL_QUORUM to a replica of the local data
centre, and tried again here, with full jitter: the driver's own policies would not repeat a write that timed out.
"""

import logging
import random
import re
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, FallthroughRetryPolicy, TokenAwarePolicy
from cassandra.query import tuple_factory

from watertower.backends.cassandra_errors import DRIVER_ERRORS, refuse_start, text
from watertower.backends.cassandra_requests import Requests, Row, Statement
from watertower.backends.driver_log import driver_log
from watertower.errors import BackendUnavailable, StartRefused
from watertower.ports import Clock

ALL: Final = ConsistencyLevel.ALL
"""Every replica: only to look for what a quorum does not show (cassandra_edges.py)."""

_PROTOCOL = 5
"""Of Cassandra 4.0 and later."""

_RECONNECT_BASE_S, _RECONNECT_CAP_S = 0.2, 5.0
"""Seconds between two looks at a node that is down, doubling between these."""


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


class _ExpectedWarnings(logging.Filter):
    """Drops what a node says of every batch that is worth sending (PACKED_BATCH_BYTES_MAX): the driver would log each."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("Server warning: Batch for", "Server warning: Unlogged batch covering"))


_EXPECTED_WARNINGS = _ExpectedWarnings()


class CassandraConnection:
    """One Cluster and Session. Any thread may use it."""

    def __init__(self, settings: CassandraSettings, clock: Clock, rng: random.Random, heard: Callable[[], None] = lambda: None) -> None:
        """Connects. `heard` is called with every answer to a statement, or its failure.

        Raises BackendUnavailable while no node can be reached, StartRefused for what waiting cannot cure: a wrong password or CA, a data
        centre that the cluster does not have, settings that cannot be right."""
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", settings.keyspace):
            raise StartRefused(
                f"cassandra_keyspace: {settings.keyspace!r} must be 1 to 48 lower-case letters, digits and underscores, a letter first"
            )
        self.settings = settings
        self._prepared: dict[tuple[str, int | None], Statement] = {}
        driver_log("cassandra", clock)
        logging.getLogger("cassandra.protocol").addFilter(_EXPECTED_WARNINGS)  # once, however often it is called
        self._cluster, self._session = _connected(settings)
        self._requests = Requests(self._session, settings, clock, rng, heard)

    # --- sending

    def prepare(self, query: str, page_rows: int | None = None, **literals: int) -> Statement:
        """A prepared statement. In braces: `{keyspace}`, and `literals` by name. Its results come whole, or in pages of `page_rows`.

        Kept as long as the connection: a node that was restarted has forgotten it, and the driver can tell it again only while somebody
        holds the statement, which a batch of query ids does not.
        """
        cql = query.format(keyspace=self.settings.keyspace, **literals)
        statement = self._prepared.get((cql, page_rows))
        if statement is None:
            statement = self._requests.again(lambda: self._session.prepare(cql))
            statement.is_idempotent = True
            statement.fetch_size = page_rows
            self._prepared[cql, page_rows] = statement
        return statement

    def run(self, statements: Iterable[Statement]) -> list[list[Row]]:
        """As Requests.run."""
        return self._requests.run(statements)

    def pages(self, statement: Statement) -> Iterator[list[Row]]:
        """As Requests.pages."""
        return self._requests.pages(statement)

    def query(self, query: str) -> list[Row]:
        """One statement that is not worth preparing, retried as `run`. For start-up and migrations."""
        return list(self._requests.again(lambda: self._session.execute(query)))

    def agree_on_schema(self) -> None:
        """Waits until every node that is up has the same schema. Raises BackendUnavailable after the driver's patience (10 s)."""
        if not self._requests.again(lambda: self._cluster.control_connection.wait_for_schema_agreement()):
            raise BackendUnavailable("the nodes of Cassandra do not agree on the schema yet")

    def pause(self, failures: int) -> None:
        """As Requests.pause."""
        self._requests.pause(failures)

    def close(self) -> None:
        """Lets go. Idempotent."""
        self._requests.close()
        self._cluster.shutdown()


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
