"""The tables in Cassandra: how they are made, and what must hold whenever they are opened.

The protocol of core/fold.py is exact only under conditions that a table, a keyspace or a node could quietly break; each is looked at here
and refused with what to do about it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

from watertower.backends.cassandra_connection import CassandraConnection
from watertower.backends.cassandra_requests import Row
from watertower.core.positions import write_timestamp
from watertower.errors import BackendRefused, StartRefused
from watertower.ports import LogIdentity, StoreIdentity

_TABLES = ("schema_migrations", "log_meta", "edges", "counts", "lists", "progress")
_IDENTITY = "identity"
_MIGRATE: Final = "run `watertower migrate`"


class Migration(NamedTuple):
    """One file of schemas/cql. Released ones never change."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """Without comments and without the semicolons that end them."""
        code = "\n".join(line for line in self.text.splitlines() if not line.lstrip().startswith("--"))
        return [statement.strip() for statement in re.split(r";[ \t]*(?:\n|$)", code) if statement.strip()]


def shipped() -> list[Migration]:
    """The migrations of this version, in order."""
    found = []
    for file in files("watertower").joinpath("schemas", "cql").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.cql", file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found)


def migrate(
    connection: CassandraConnection, identity: StoreIdentity, replication: Mapping[str, int], migrations: Sequence[Migration] | None = None
) -> list[Migration]:
    """Makes the keyspace and what is missing in it, and says there which rows these are. Gives what was applied.

    `replication`: copies per data centre; used only when the keyspace is made. Can be run again, and from two places at once: every
    statement says IF NOT EXISTS, and what was recorded is read again. Raises StartRefused when the schema there is not a beginning of
    this one, or when it holds the rows of another log or generation; BackendUnavailable.
    """
    migrations = shipped() if migrations is None else migrations
    done: list[Migration] = []
    failures = 0
    while True:
        try:
            _migrate(connection, identity, replication, migrations, done)
        except BackendRefused:  # somebody else's change of the schema came in between
            failures += 1
            if failures >= connection.settings.attempts_max:
                raise
            connection.pause(failures)
        else:
            return done


def _migrate(
    connection: CassandraConnection,
    identity: StoreIdentity,
    replication: Mapping[str, int],
    migrations: Sequence[Migration],
    done: list[Migration],
) -> None:
    keyspace = connection.settings.keyspace
    if not _tables(connection):
        factors = "".join(f", {_quoted(centre)}: {int(factor)}" for centre, factor in replication.items())
        if connection.settings.local_dc not in replication:
            raise StartRefused(f"cassandra_replication: must name the local data centre {connection.settings.local_dc!r}")
        connection.query(f"CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy'{factors}}}")
        connection.agree_on_schema()
    applied = _applied(connection)
    _refuse_other(applied, migrations)
    for migration in migrations:
        if migration.number in applied:
            continue
        for statement in migration.statements:
            connection.query(_in_keyspace(statement, keyspace))
            connection.agree_on_schema()
        cell = json.dumps({"name": migration.name, "checksum": migration.checksum})
        _write(connection, "schema_migrations (number, cell)", f"{migration.number}, {_quoted(cell)}", write_timestamp(1, migration.number))
        done.append(migration)
    _refuse_other(_applied(connection), migrations)
    if stored_identity(connection) is None:
        cell = json.dumps({**identity.log._asdict(), "generation": identity.generation})
        _write(connection, "log_meta (name, cell)", f"'{_IDENTITY}', {_quoted(cell)}", write_timestamp(identity.generation, 0))
    _refuse_identity(stored_identity(connection), identity)


def stored_identity(connection: CassandraConnection) -> StoreIdentity | None:
    """Which rows these are; None before the first migration is through."""
    if "log_meta" not in _tables(connection):
        return None
    rows = _read(connection, f"SELECT cell FROM {connection.settings.keyspace}.log_meta WHERE name = '{_IDENTITY}'")  # noqa: S608
    if not rows:
        return None
    cell = json.loads(rows[0][0])
    return StoreIdentity(LogIdentity(cell["log_id"], cell["partitions"]), cell["generation"])


def opened(connection: CassandraConnection, identity: StoreIdentity | None) -> StoreIdentity:
    """Checks everything that must hold before a row is read or written; gives which rows these are.

    `identity`: None for a reader that takes what is there. Raises StartRefused, saying what to do; BackendUnavailable.
    """
    keyspace = connection.settings.keyspace
    tables = _tables(connection)
    if not set(_TABLES) <= tables.keys():
        raise StartRefused(f"keyspace {keyspace} of Cassandra has no tables of Watertower: {_MIGRATE}")
    migrations = shipped()
    applied = _applied(connection)
    _refuse_other(applied, migrations)
    missing = [migration.number for migration in migrations if migration.number not in applied]
    if missing:
        raise StartRefused(f"the schema of keyspace {keyspace} lacks migration {missing[0]}: {_MIGRATE}")
    for problem in (
        *table_problems({name: tables[name] for name in _TABLES}),
        *keyspace_problems(*_keyspace(connection), connection.settings.local_dc),
        *node_problems(_node_settings(connection)),
    ):
        raise StartRefused(f"keyspace {keyspace}: {problem}")
    stored = stored_identity(connection)
    _refuse_identity(stored, identity or stored)
    if stored is None:  # said to mypy; refused above
        raise StartRefused(_MIGRATE)
    return stored


# --- what must hold


def table_problems(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the options of the tables break. `tables`: options as the driver reads them, by table."""
    problems = []
    for name, options in tables.items():
        if str(options.get("read_repair", "")).upper() != "BLOCKING":
            problems.append(
                f"read_repair of table {name} must be BLOCKING, or a quorum read may go back in time and an event be counted twice: "
                f"ALTER TABLE {name} WITH read_repair = 'BLOCKING'"
            )
        compaction = str(dict(options.get("compaction") or {}).get("class", ""))
        if "TimeWindow" in compaction or "DateTiered" in compaction:
            problems.append(
                f"table {name} is compacted by {compaction.rpartition('.')[2]}, which takes write timestamps for time; here they are "
                f"positions in the log: ALTER TABLE {name} WITH compaction = {{'class': 'SizeTieredCompactionStrategy'}}"
            )
        if int(options.get("default_time_to_live") or 0) != 0:
            problems.append(
                f"table {name} has a default_time_to_live: rows would vanish and late events come back: "
                f"ALTER TABLE {name} WITH default_time_to_live = 0, and restore what has expired"
            )
    return problems


def keyspace_problems(replication: Mapping[str, str], durable_writes: bool, local_dc: str) -> list[str]:
    """What the keyspace's options (as in system_schema.keyspaces) break."""
    strategy = replication.get("class", "").rpartition(".")[2]
    if strategy != "NetworkTopologyStrategy":
        return [
            f"it is replicated by {strategy}, where LOCAL_QUORUM is no quorum of one data centre: ALTER KEYSPACE to NetworkTopologyStrategy"
        ]
    if not int(replication.get(local_dc, "0").partition("/")[0]):
        return [
            f"it has no copies in cassandra_local_datacenter {local_dc!r}: ALTER KEYSPACE to have some there, or name the right data centre"
        ]
    if not durable_writes:
        return ["its writes go past the commit log, and a node that dies forgets them: ALTER KEYSPACE with durable_writes = true"]
    return []


def node_problems(settings: Mapping[str, str | None]) -> list[str]:
    """What a node's settings (as in system_views.settings) break."""
    problems = [
        f"the nodes' guardrail {name} is {settings[name]} and would refuse timestamps made of positions: remove it from cassandra.yaml"
        for name in ("maximum_timestamp_fail_threshold", "minimum_timestamp_fail_threshold")
        if settings.get(name)
    ]
    if settings.get("commitlog_sync") == "periodic":
        problems.append(
            "the nodes' commitlog_sync is periodic: a node that dies forgets what it acknowledged last, and counts would stay wrong; set "
            "commitlog_sync: batch (or group) in cassandra.yaml and remove commitlog_sync_period"
        )
    if settings.get("user_timestamps_enabled") == "false":
        problems.append(
            "the nodes' guardrail user_timestamps_enabled is false and would refuse every write: set it to true in cassandra.yaml"
        )
    return problems


def _refuse_other(applied: Mapping[int, Mapping[str, str]], migrations: Sequence[Migration]) -> None:
    known = {migration.number: migration for migration in migrations}
    for number, row in sorted(applied.items()):
        if number not in known:
            raise StartRefused(
                f"the schema is newer than this version: it has migration {number} ({row['name']}); upgrade this process to a version that "
                "has it"
            )
        if row["checksum"] != known[number].checksum:
            raise StartRefused(
                f"migration {number} ({row['name']}) was applied with another text than that of this version's file: a released "
                "migration never changes; bring back its text and put the change into a new one"
            )


def _refuse_identity(stored: StoreIdentity | None, identity: StoreIdentity | None) -> None:
    if stored is None:
        raise StartRefused(f"the store does not say which log its rows are made of: {_MIGRATE}")
    if identity is not None and stored != identity:
        raise StartRefused(
            f"the store holds the rows of {_name(stored)}, not of {_name(identity)}: bring back the log that belongs to the store, name "
            "the keyspace that belongs to this log (cassandra_keyspace), or rebuild the store from its edges as a new generation"
        )


def _name(identity: StoreIdentity) -> str:
    return f"log {identity.log.log_id} ({identity.log.partitions} partitions), generation {identity.generation}"


# --- reading and writing them


def _tables(connection: CassandraConnection) -> dict[str, Mapping[str, Any]]:
    """The options of the keyspace's tables, by name."""
    rows = connection.query(
        "SELECT table_name, read_repair, compaction, default_time_to_live FROM system_schema.tables "  # noqa: S608 - a checked name
        f"WHERE keyspace_name = '{connection.settings.keyspace}'"
    )
    return {name: {"read_repair": repair, "compaction": compaction, "default_time_to_live": ttl} for name, repair, compaction, ttl in rows}


def _keyspace(connection: CassandraConnection) -> tuple[dict[str, str], bool]:
    """Its replication, and whether its writes go through the commit log."""
    rows = connection.query(
        f"SELECT replication, durable_writes FROM system_schema.keyspaces WHERE keyspace_name = '{connection.settings.keyspace}'"  # noqa: S608
    )
    return (dict(rows[0][0]), bool(rows[0][1])) if rows else ({}, True)


def _node_settings(connection: CassandraConnection) -> dict[str, str | None]:
    try:
        return dict(connection.query("SELECT name, value FROM system_views.settings"))
    except BackendRefused:  # not readable for this user: then it is the operator's to know
        return {}


def _applied(connection: CassandraConnection) -> dict[int, dict[str, str]]:
    if "schema_migrations" not in _tables(connection):
        return {}
    rows = _read(connection, f"SELECT number, cell FROM {connection.settings.keyspace}.schema_migrations")  # noqa: S608
    return {number: json.loads(cell) for number, cell in rows}


def _read(connection: CassandraConnection, query: str) -> list[Row]:
    """Of a table that is listed. The node may list it a moment before it knows it."""
    failures = 0
    while True:
        try:
            return connection.query(query)
        except BackendRefused:
            failures += 1
            if failures >= connection.settings.attempts_max:
                raise
            connection.pause(failures)


def _write(connection: CassandraConnection, columns: str, values: str, timestamp: int) -> None:
    connection.query(f"INSERT INTO {connection.settings.keyspace}.{columns} VALUES ({values}) USING TIMESTAMP {timestamp}")  # noqa: S608


def _in_keyspace(statement: str, keyspace: str) -> str:
    """The migrations name tables without their keyspace."""
    return re.sub(r"^(CREATE TABLE IF NOT EXISTS|ALTER TABLE) (\w+)", rf"\1 {keyspace}.\2", statement)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
