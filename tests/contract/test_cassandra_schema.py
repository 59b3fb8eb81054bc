"""What must hold before a row in Cassandra is read or written, and how the tables come to be, on a real node."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.cassandra_harness import Sent, connect, new_keyspace
from tests.contract.store_harnesses import IDENTITY
from watertower.backends import cassandra_schema
from watertower.backends.cassandra import CassandraConnection, CassandraReader, CassandraScanner, CassandraSettings, CassandraStore, migrate
from watertower.backends.cassandra_schema import Migration, keyspace_problems, node_problems, opened, shipped, stored_identity
from watertower.errors import StartRefused
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.engines import unique_name

pytestmark = pytest.mark.slow

NEXT = Migration(2, "more", "-- comment; with a semicolon\nCREATE TABLE IF NOT EXISTS more (name text PRIMARY KEY);\n")


@pytest.fixture
def connection(cassandra_settings: CassandraSettings) -> Iterator[CassandraConnection]:
    """Of a keyspace of its own, migrated."""
    with new_keyspace(cassandra_settings) as connection:
        yield connection


@pytest.fixture
def empty(cassandra_settings: CassandraSettings) -> Iterator[CassandraConnection]:
    """Of a keyspace that does not exist."""
    connection = connect(replace(cassandra_settings, keyspace=unique_name("empty")))
    yield connection
    connection.query(f"DROP KEYSPACE IF EXISTS {connection.settings.keyspace}")
    connection.close()


# --- migrations


def test_nothing_opens_before_the_migration(empty: CassandraConnection) -> None:
    """The message says which command to run."""
    for handle in (CassandraStore, CassandraReader, CassandraScanner):
        with pytest.raises(StartRefused, match="run `watertower migrate`"):
            handle(empty, IDENTITY)


def test_a_migration_says_what_it_did_and_runs_twice(empty: CassandraConnection) -> None:
    """The second run finds nothing to do; the rows are those of the log that was given."""
    sent = Sent(empty)
    here = {empty.settings.local_dc: 1}
    assert migrate(empty, IDENTITY, here) == shipped()
    assert migrate(empty, IDENTITY, here) == []
    assert stored_identity(empty) == IDENTITY
    assert CassandraStore(empty).identity == CassandraReader(empty, IDENTITY).identity == IDENTITY
    sent.stop()
    assert sent.problems == []


def test_two_migrations_at_once_do_what_one_does(empty: CassandraConnection) -> None:
    """Also when they meet in every statement."""
    done: list[object] = []
    barrier = threading.Barrier(3)

    def run() -> None:
        barrier.wait()
        done.append(migrate(empty, IDENTITY, {empty.settings.local_dc: 1}))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 3
    assert opened(empty, IDENTITY) == IDENTITY


def test_a_new_migration_is_asked_for_and_then_applied(connection: CassandraConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer program refuses the older schema until it is migrated."""
    monkeypatch.setattr(cassandra_schema, "shipped", lambda: [*shipped(), NEXT])
    with pytest.raises(StartRefused, match="lacks migration 2: run `watertower migrate`"):
        opened(connection, IDENTITY)
    assert migrate(connection, IDENTITY, {connection.settings.local_dc: 1}) == [NEXT]
    assert opened(connection, IDENTITY) == IDENTITY


def test_a_schema_newer_than_the_program_is_refused(connection: CassandraConnection) -> None:
    """By migrate and by every process."""
    here = {connection.settings.local_dc: 1}
    migrate(connection, IDENTITY, here, [*shipped(), NEXT])
    for attempt in (lambda: migrate(connection, IDENTITY, here), lambda: opened(connection, IDENTITY)):
        with pytest.raises(StartRefused, match="newer than this version: it has migration 2 \\(more\\); upgrade"):
            attempt()


def test_a_migration_whose_text_changed_is_refused(connection: CassandraConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was released and applied is not edited."""
    changed = [migration._replace(text=migration.text + "\n-- one line more\n") for migration in shipped()]
    with pytest.raises(StartRefused, match="applied with another text"):
        migrate(connection, IDENTITY, {connection.settings.local_dc: 1}, changed)
    monkeypatch.setattr(cassandra_schema, "shipped", lambda: changed)
    with pytest.raises(StartRefused, match="applied with another text"):
        opened(connection, IDENTITY)


@pytest.mark.parametrize(
    "other",
    [
        StoreIdentity(LogIdentity("f" * 32, IDENTITY.log.partitions), 1),
        StoreIdentity(LogIdentity(IDENTITY.log.log_id, IDENTITY.log.partitions + 1), 1),
        StoreIdentity(IDENTITY.log, 2),
    ],
)
def test_rows_of_another_log_or_generation_are_refused(connection: CassandraConnection, other: StoreIdentity) -> None:
    """By migrate and by every process."""
    with pytest.raises(StartRefused, match="the store holds the rows of log"):
        migrate(connection, other, {connection.settings.local_dc: 1})
    for handle in (CassandraStore, CassandraReader, CassandraScanner):
        with pytest.raises(StartRefused, match="not of log"):
            handle(connection, other)


def test_the_keyspace_needs_copies_in_the_local_data_centre(empty: CassandraConnection) -> None:
    """Asked for when the keyspace is made."""
    with pytest.raises(StartRefused, match="cassandra_replication"):
        migrate(empty, IDENTITY, {"elsewhere": 3})


def test_a_keyspace_made_by_somebody_else_is_taken_as_it_is(empty: CassandraConnection) -> None:
    """Operators make keyspaces; the tables are ours."""
    keyspace, centre = empty.settings.keyspace, empty.settings.local_dc
    empty.query(f"CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', '{centre}': 1}}")
    assert migrate(empty, IDENTITY, {centre: 1}) == shipped()


def test_statements_are_told_from_comments() -> None:
    """A semicolon in a comment ends nothing."""
    assert NEXT.statements == ["CREATE TABLE IF NOT EXISTS more (name text PRIMARY KEY)"]
    statements = [statement for migration in shipped() for statement in migration.statements]
    assert len(statements) == 6
    assert all(statement.startswith("CREATE TABLE IF NOT EXISTS ") for statement in statements)


# --- conditions


@pytest.mark.parametrize("table", ["edges", "counts", "lists", "progress", "log_meta", "schema_migrations"])
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("read_repair = 'NONE'", "read_repair of table {table} must be BLOCKING.*ALTER TABLE {table} WITH read_repair"),
        ("compaction = {'class': 'TimeWindowCompactionStrategy'}", "table {table} is compacted by TimeWindow.*ALTER TABLE {table}"),
        ("default_time_to_live = 600", "table {table} has a default_time_to_live.*ALTER TABLE {table}"),
    ],
    ids=["read_repair", "compaction", "ttl"],
)
def test_a_broken_table_is_refused(shared: CassandraConnection, table: str, broken: str, says: str) -> None:
    """Whatever the projector's exactness rests on, and what to do about it."""
    right = {
        "read_repair": "'BLOCKING'",
        "compaction": "{'class': 'SizeTieredCompactionStrategy'}",
        "default_time_to_live": "0",
    }
    name = broken.partition(" ")[0]
    shared.query(f"ALTER TABLE {shared.settings.keyspace}.{table} WITH {broken}")
    try:
        with pytest.raises(StartRefused, match=says.format(table=table)):
            CassandraStore(shared, IDENTITY)
    finally:
        shared.query(f"ALTER TABLE {shared.settings.keyspace}.{table} WITH {name} = {right[name]}")
    assert opened(shared, IDENTITY) == IDENTITY


@pytest.fixture(scope="module")
def shared(cassandra_settings: CassandraSettings) -> Iterator[CassandraConnection]:
    """Of one keyspace, which each test leaves as it was."""
    with new_keyspace(cassandra_settings) as connection:
        yield connection


def test_a_keyspace_without_a_quorum_of_one_data_centre_is_refused(shared: CassandraConnection) -> None:
    """SimpleStrategy knows no data centres."""
    keyspace, centre = shared.settings.keyspace, shared.settings.local_dc
    shared.query(f"ALTER KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}")
    try:
        with pytest.raises(StartRefused, match="ALTER KEYSPACE to NetworkTopologyStrategy"):
            CassandraStore(shared, IDENTITY)
    finally:
        shared.query(f"ALTER KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', '{centre}': 1}}")


def test_a_keyspace_without_local_copies_is_refused() -> None:
    """LOCAL_QUORUM would have nobody to ask."""
    replication = {"class": "org.apache.cassandra.locator.NetworkTopologyStrategy", "east": "3", "west": "0"}
    assert keyspace_problems(replication, True, "east") == []
    for centre in ("west", "north"):
        assert "cassandra_local_datacenter" in keyspace_problems(replication, True, centre)[0]


def test_a_keyspace_that_goes_past_the_commit_log_is_refused() -> None:
    """It may have been made by somebody else, before `migrate`."""
    replication = {"class": "org.apache.cassandra.locator.NetworkTopologyStrategy", "east": "3"}
    (problem,) = keyspace_problems(replication, False, "east")
    assert "durable_writes = true" in problem


def test_settings_of_a_node_that_break_what_is_promised_are_refused(shared: CassandraConnection) -> None:
    """Guardrails that would refuse the timestamps, and acknowledgements that a killed node forgets. As the node shows its settings."""
    settings = dict(shared.query("SELECT name, value FROM system_views.settings"))  # type: ignore[arg-type]
    assert {"maximum_timestamp_fail_threshold", "commitlog_sync"} <= settings.keys()
    assert node_problems(settings) == []
    for name, value in (
        ("maximum_timestamp_fail_threshold", "3600s"),
        ("minimum_timestamp_fail_threshold", "1h"),
        ("user_timestamps_enabled", "false"),
        ("commitlog_sync", "periodic"),
    ):
        (problem,) = node_problems({**settings, name: value})
        assert name in problem
        assert "cassandra.yaml" in problem


def test_an_unknown_data_centre_is_refused(cassandra_settings: CassandraSettings) -> None:
    """The message names those that there are."""
    with pytest.raises(StartRefused, match=r"cassandra_local_datacenter: .*'nowhere'; it has datacenter1"):
        connect(replace(cassandra_settings, local_dc="nowhere"))


def test_a_keyspace_name_that_would_need_quotes_is_refused(cassandra_settings: CassandraSettings) -> None:
    """Names are put into statements."""
    with pytest.raises(StartRefused, match="cassandra_keyspace"):
        connect(replace(cassandra_settings, keyspace="k; DROP KEYSPACE system"))
