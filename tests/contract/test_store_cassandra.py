"""The store in Cassandra keeps the promises of ports.Store, StoreReader and StoreScanner on a real node."""

import random
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.contract.cassandra_harness import CassandraHarness, Sent, new_keyspace, problem_of
from tests.contract.store_harnesses import MemoryHarness
from watertower.backends import cassandra_edges, cassandra_reader, cassandra_scanner, cassandra_statements
from watertower.backends.cassandra import CassandraConnection, CassandraSettings, CassandraStore
from watertower.backends.cassandra_connection import ALL
from watertower.core.fold import ShardBehindEdge, fold, touched
from watertower.core.model import Edge, Kind, ListChange, Metric, Progress, Shard
from watertower.core.positions import write_timestamp
from watertower.core.sharding import partition_of
from watertower.ports import ListCursor
from watertower.testing.contract_owners import SharedStoreContract
from watertower.testing.contract_store import PARTITIONS, StoreContract, small_buckets
from watertower.testing.replay import apply, expected_rows, random_log, record, rows_of, write

pytestmark = pytest.mark.slow

FOLLOW = int(Kind.FOLLOW)


@pytest.fixture(scope="module")
def connection(cassandra_settings: CassandraSettings) -> Iterator[CassandraConnection]:
    with new_keyspace(cassandra_settings) as connection:
        yield connection


@pytest.fixture
def stores(connection: CassandraConnection) -> CassandraHarness:
    return CassandraHarness(connection)


@pytest.fixture(autouse=True)
def sent(connection: CassandraConnection) -> Iterator[Sent]:
    """Whatever a test of this module sends: every mutation has its timestamp, none is a transaction or a counter."""
    sent = Sent(connection)
    yield sent
    sent.stop()
    assert sent.problems == []


class TestCassandraStore(StoreContract, SharedStoreContract):
    """Any number of owners, on LOCAL_QUORUM."""


# --- what is sent


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO k.edges (actor) VALUES (?)",
        "UPDATE k.edges USING TTL 5 SET cell = ? WHERE actor = ?",
        "INSERT INTO k.edges (actor) VALUES (?) IF NOT EXISTS USING TIMESTAMP ?",
        "DELETE FROM k.edges WHERE actor = ?",
        "UPDATE k.counts USING TIMESTAMP ? SET n = n + 1 WHERE entity = ?",
        "create table k.n (entity text primary key, n counter)",
        "INSERT INTO k.edges (actor) VALUES (?) USING TIMESTAMP ? AND TTL 5",
        "LIST ROLES",
    ],
)
def test_a_wrong_statement_would_be_noticed(statement: str) -> None:
    """What the fixture `sent` looks for in every test here."""
    assert problem_of(statement) is not None


def test_a_whole_flush_is_seen_by_the_capture(stores: CassandraHarness, sent: Sent) -> None:
    """The capture sees what the store sends, batches included, all of it with the timestamps of positions."""
    for one in random_log(3, PARTITIONS, 10):
        apply(*stores.owner(), [one])
    mutations = [row for batch in sent.batches for row in batch]
    assert {text.split()[0] for text, _ in mutations} == {"INSERT", "DELETE"}
    for text, values in mutations:
        timestamp = int.from_bytes(values[0 if text.startswith("DELETE") else -1])
        assert write_timestamp(1, 0) <= timestamp <= write_timestamp(1, 30, delete=True)


def test_many_small_rows_stay_below_the_limit_of_a_batch(stores: CassandraHarness, sent: Sent) -> None:
    """A node refuses batches over several partitions from 50 KiB of its own reckoning, in which small rows weigh the most; that it warns
    far below stays out of the log."""
    store = stores.owner().store
    shards = {(f"{n:x}", metric, 0): Shard(1, 1, (), 1) for n in range(2_000) for metric in (Metric.LIKES, Metric.FOLLOWING)}
    lists = {(f"{n:x}", FOLLOW, 0, 0, 5, "a", ""): ListChange(True, 1) for n in range(2_000)}
    with capture_logs() as said:
        store.write_derived(shards, lists)
        store.write_edges({(f"{n:x}", FOLLOW, "s", ""): Edge(True, 5, 0, 1) for n in range(2_000)})
        store.write_progress({n: Progress(1, b"12345678", 1) for n in range(64)})
    assert store.read_shards(shards) == shards
    assert [line for line in said if line["event"] == "cassandra_client"] == []
    assert max(len(batch) for batch in sent.batches) > 100


# --- an actor's partition: edges and own counts


def test_own_counts_come_with_the_edges_in_one_mutation(stores: CassandraHarness, sent: Sent) -> None:
    """Not before them, so that no replica has an edge without the count that it moved."""
    owner = stores.owner()
    log = [record(0, 0, [("a", Kind.FOLLOW, f"s{n}", "", True, 5) for n in range(3)])]
    flush = fold(log, {}, {})
    owner.store.write_derived(flush.shards, flush.lists)
    own = ("a", int(Metric.FOLLOWING), 0)
    assert owner.store.read_shards([own]) == {}
    sent.batches.clear()
    owner.store.write_edges(flush.edges)
    (batch,) = sent.batches
    assert [text.split()[2].rpartition(".")[2] for text, _ in batch] == ["edges"] * 4
    assert owner.store.read_shards([own]) == {own: Shard(3, 3, (), 0)}


def test_an_actor_with_many_edges_has_its_counts_in_every_piece(
    stores: CassandraHarness, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a piece lands alone, the count is there too."""
    monkeypatch.setattr(cassandra_statements, "PACKED_BATCH_BYTES_MAX", 100)
    monkeypatch.setattr(cassandra_statements, "PARTITION_BATCH_ROWS_MAX", 6)
    log = [record(0, 0, [("a", kind, f"s{n}", "", True, 5) for n in range(12) for kind in (Kind.FOLLOW, Kind.LIKE)])]
    apply(*stores.owner(), log)
    pieces = [batch for batch in sent.batches if any(b"s" in values[1][:1] for text, values in batch if ".edges" in text)]
    assert len(pieces) == 6
    for batch in pieces:
        assert sum(", 0, '" in text for text, _ in batch) == 2
    assert rows_of(stores.scanner()).edges == expected_rows(log).edges


def test_own_counts_without_edges_are_written_at_the_latest_with_progress(stores: CassandraHarness) -> None:
    """A flush may move no edge and still touch a count."""
    own, other = ("a", int(Metric.FOLLOWING), 0), ("b", int(Metric.FOLLOWING), 0)
    store = stores.owner().store
    store.write_derived({own: Shard(0, 0, (), 7)}, {})
    store.write_progress({0: Progress(7, b"12345678", 1)})
    assert store.read_shards([own]) == {own: Shard(0, 0, (), 7)}
    store.write_derived({other: Shard(0, 0, (), 8)}, {})
    store.abandon()
    store.sync()
    assert store.read_shards([other]) == {}


def test_whoever_reads_edges_reads_the_own_counts_in_the_same_statement(stores: CassandraHarness, sent: Sent) -> None:
    """A quorum read repairs what it asked for, and an edge must not be repaired alone."""
    apply(*stores.owner(), [record(0, 0, [("a", Kind.COMMENT, "s", "1", True, 5), ("a", Kind.FOLLOW, "s", "", True, 5)])])
    owner, reader = stores.owner().store, stores.reader().store
    sent.statements.clear()
    owner.read_edges([("a", FOLLOW, "s", "")])
    reader.check_edges("a", Kind.FOLLOW, ["s"])
    reader.check_edges("a", Kind.COMMENT, ["s"])
    reader.list_subjects("a", Kind.FOLLOW, None, 10)
    asked = [text for text in sent.statements if ".edges" in text]
    assert len(asked) == 4  # one statement each, and what it is bound to has the kind of the counts:
    assert all("IN ?" in text for text in asked)
    messages: list[bytes] = []
    listener = lambda future: messages.append(b"".join(value for value in future.message.query_params if value))  # noqa: E731
    connection = stores.connection
    connection._session.add_request_init_listener(listener)
    reader.check_edges("a", Kind.FOLLOW, ["s"])
    reader.check_edges("a", Kind.COMMENT, ["s"])
    reader.list_subjects("a", Kind.FOLLOW, None, 10)
    connection._session.remove_request_init_listener(listener)
    assert len(messages) == 3
    assert all(b"\0\0\0\1\0" in message for message in messages)  # one byte: kind 0


def test_an_edge_ahead_of_its_count_is_looked_for_on_every_replica(stores: CassandraHarness, sent: Sent) -> None:
    """What a quorum does not show, one replica may have; if none has, the fold says so and the partition stops."""
    owner = stores.owner()
    log = [record(0, 0, [("a", Kind.FOLLOW, "s", "", True, 5)])]
    flush = fold(log, {}, {})
    owner.store.write_derived(flush.shards, flush.lists)
    owner.store.abandon()  # the own count goes
    owner.store.write_edges(flush.edges)
    sent.consistencies.clear()
    edges, shards = owner.store.read_touched(touched(log))
    assert sent.consistencies.count(ALL) == 1
    assert edges == flush.edges
    with pytest.raises(ShardBehindEdge):
        fold(log, edges, shards)


def test_further_pages_of_edges_are_checked_against_the_counts(
    stores: CassandraHarness, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were read without them: reader and scanner ask for the counts afterwards, and every replica where an edge is ahead."""
    monkeypatch.setattr(cassandra_reader, "_PAGE_ROWS", 5)
    monkeypatch.setattr(cassandra_scanner, "_PAGE_ROWS", 5)
    actor = next(name for name in "abcdefgh" if partition_of(name, PARTITIONS) == 0)
    log = [record(0, 0, [(actor, Kind.FOLLOW, f"s{n:02}", "", True, n + 1) for n in range(23)])]
    owner = stores.owner()
    apply(*owner, log)
    reader = stores.reader().store
    sent.consistencies.clear()
    assert [row.other for row in reader.list_subjects(actor, Kind.FOLLOW, None, 100)] == [f"s{n:02}" for n in reversed(range(23))]
    assert dict(stores.scanner().edges()) == expected_rows(log).edges
    assert ALL not in sent.consistencies
    owner.store.write_edges({(actor, FOLLOW, "s22", ""): Edge(True, 99, 0, 3)})  # without its count
    for read in (lambda: reader.list_subjects(actor, Kind.FOLLOW, None, 1), lambda: list(stores.scanner().edges())):
        sent.consistencies.clear()
        read()
        assert ALL in sent.consistencies


@pytest.mark.parametrize(("rows", "keys"), [(4, 100), (400, 3), (12, 3)])
def test_reads_of_any_packing_find_the_same_rows(stores: CassandraHarness, monkeypatch: pytest.MonkeyPatch, rows: int, keys: int) -> None:
    """How actors and edges are spread over statements changes nothing."""
    monkeypatch.setattr(cassandra_edges, "READ_ROWS_MAX", rows)
    monkeypatch.setattr(cassandra_edges, "READ_KEYS_MAX", keys)
    rng = random.Random(rows)
    names = [f"n{n}" for n in range(12)]
    events = {(rng.choice(names), rng.choice([Kind.LIKE, Kind.COMMENT]), rng.choice(names)) for _ in range(200)}
    by_partition: dict[int, list[tuple[str, int, str, str, bool, int]]] = {}
    for actor, kind, subject in sorted(events):
        event = (actor, kind, subject, "r" if kind == Kind.COMMENT else "", True, rng.randint(1, 9))
        by_partition.setdefault(partition_of(actor, PARTITIONS), []).append(event)
    log = [record(partition, 0, some) for partition, some in by_partition.items()]
    store = stores.owner().store
    some = log[0]._replace(events=record(log[0].partition, 0, by_partition[log[0].partition][::2]).events)
    apply(store, stores.owner().feed, [some])
    expected = expected_rows([some])
    asked = touched(log)
    assert store.read_touched(asked) == (
        {key: edge for key, edge in expected.edges.items() if key in asked.edges},
        {key: shard for key, shard in expected.shards.items() if key in asked.shards},
    )


# --- lists


@pytest.mark.parametrize("seed", range(3))
def test_lists_over_many_buckets_are_paged_like_those_of_the_memory(
    stores: CassandraHarness, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In exact order, wherever a page ends, however many parts the list has, and ties across them too."""
    small_buckets(monkeypatch)
    monkeypatch.setattr(cassandra_reader, "_PARTITIONS_AT_ONCE", 3)
    rng = random.Random(seed)
    memory = MemoryHarness()
    owners = [stores.owner(), memory.owner()]
    for offset in range(6):
        by_partition: dict[int, list[tuple[str, int, str, str, bool, int]]] = {}
        for _ in range(15):
            actor = f"a{rng.randint(0, 40)}"
            event = (actor, int(Kind.COMMENT), "s", rng.choice("12"), rng.random() < 0.8, rng.randint(1, 12))
            by_partition.setdefault(partition_of(actor, PARTITIONS), []).append(event)
        for partition, events in by_partition.items():
            for owner in owners:
                apply(*owner, [record(partition, offset, events)])
    reader, reference = stores.reader().store, memory.reader().store
    whole = reference.list_actors("s", Kind.COMMENT, None, 1_000)
    assert len(whole) > 20
    assert reader.list_actors("s", Kind.COMMENT, None, 1_000) == whole
    places = [*whole, *(ListCursor(row.occurred_at, row.other, "0") for row in whole[::3]), ListCursor(6, "zz", ""), ListCursor(0, "", "")]
    for after in rng.sample(places, 12):
        for limit in (1, 7, 50):
            assert reader.list_actors("s", Kind.COMMENT, after, limit) == reference.list_actors("s", Kind.COMMENT, after, limit)


def test_a_delete_beats_the_value_of_its_position(stores: CassandraHarness) -> None:
    """Whichever comes first; a later position beats both."""
    store = stores.owner().store
    first, second = (("s", FOLLOW, 0, 0, 5, actor, "") for actor in ("a", "b"))
    store.write_derived({}, {first: ListChange(False, 7), second: ListChange(True, 7)})
    store.write_derived({}, {first: ListChange(True, 7), second: ListChange(False, 7)})
    assert list(stores.scanner().subject_lists()) == []
    store.write_derived({}, {first: ListChange(True, 8)})
    assert list(stores.scanner().subject_lists()) == [first]


def test_what_a_shell_writes_without_a_timestamp_loses(stores: CassandraHarness, cassandra_settings: CassandraSettings) -> None:
    """The clock is lower than every position: a plain DELETE or INSERT changes nothing."""
    log = random_log(5, PARTITIONS, 10)
    for one in log:
        apply(*stores.owner(), [one])
    with_shell = CassandraStore(stores.connection)
    session = stores.connection._session.cluster.connect(stores.connection.settings.keyspace)  # not captured
    for actor, kind, subject, ref in expected_rows(log).edges:
        session.execute("DELETE FROM edges WHERE actor = %s", (actor,))
        session.execute(
            "INSERT INTO edges (actor, kind, subject, ref, cell) VALUES (%s, %s, %s, %s, %s)", (actor, kind, subject, ref, b"stray")
        )
    session.shutdown()
    assert with_shell.read_edges(expected_rows(log).edges) == expected_rows(log).edges
    assert rows_of(stores.scanner()) == expected_rows(log)


def test_what_a_former_owner_held_back_does_no_harm_either(stores: CassandraHarness) -> None:
    """Own counts that it writes late, by its next step, lose."""
    log = random_log(9, PARTITIONS, 20)
    former = stores.owner()
    late = fold(log[:10], {}, {})
    write(*former, late, [0])
    owner = stores.owner()
    for one in log:
        apply(*owner, [one])
    before = rows_of(stores.scanner())
    former.store.sync()
    assert rows_of(stores.scanner()) == before
