"""The store in Cassandra: rows in tables, any number of owners.

    edges     ((actor), kind, subject, ref)                                     the truth, and the actor's own counts (kind 0)
    counts    ((entity), metric, shard)                                         the counts of subjects
    lists     ((subject, kind, part, bucket), occurred_at desc, actor, ref)     who follows me, newest first
    progress  ((partition))

Everything is written with a timestamp made of its position, so that what lands twice, late, or from a former owner equals the row or
loses to it; nothing is read in order to be written, and nothing depends on locks or transactions.

A flush in the order of core/fold.py costs a new follow one partition read, one row in a list and one mutation of two rows in the actor's
partition. The latter is why the own counts of actors, though derived, are not written with the other derived rows but held back until
`write_edges`: in one mutation with the edges they cannot be behind them. What that asks of reads is told in cassandra_edges.py.

The layout is in schemas/cql, how it is made and checked in cassandra_schema.py, the readers' side in cassandra_reader.py.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from watertower.backends import cells
from watertower.backends.cassandra_connection import CassandraConnection, CassandraSettings
from watertower.backends.cassandra_edges import READ_ROWS_MAX, ActorRows, own_shards
from watertower.backends.cassandra_reader import CassandraReader
from watertower.backends.cassandra_requests import Statement
from watertower.backends.cassandra_scanner import CassandraScanner
from watertower.backends.cassandra_schema import migrate, opened
from watertower.backends.cassandra_statements import ACTOR_METRICS, Mutation, Mutations, Partition, PartitionKey, batches, grouped
from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.ports import StoreIdentity

__all__ = ["CassandraConnection", "CassandraReader", "CassandraScanner", "CassandraSettings", "CassandraStore", "migrate"]


class CassandraStore:
    """The Store of ports.py. For one thread. Every write shows when its step returns, but for the own counts of actors."""

    def __init__(self, connection: CassandraConnection, identity: StoreIdentity | None = None) -> None:
        """`identity`: None takes the rows that are there. Raises StartRefused where a condition of cassandra_schema.py does not hold;
        BackendUnavailable.

        The connection stays its owner's to close.
        """
        self._connection = connection
        self._identity = opened(connection, identity)
        self._mutations = Mutations(connection, self._identity.generation)
        self._actors = ActorRows(connection)
        self._select_counts = connection.prepare(
            "SELECT entity, metric, shard, cell FROM {keyspace}.counts WHERE entity IN ? AND (metric, shard) IN ?"
        )
        self._select_progress = connection.prepare("SELECT partition, cell FROM {keyspace}.progress")
        self._held: dict[ShardKey, Shard] = {}  # own counts of actors, until write_edges

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    # --- reads

    def read_touched(self, keys: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        own, others = _own_and_others(keys.shards)
        edges, shards = self._actors.read(keys.edges, own)
        shards.update(self._read_counts(others))  # after the edges were answered
        return edges, shards

    def read_edges(self, keys: Collection[EdgeKey]) -> dict[EdgeKey, Edge]:
        moved = own_shards(keys, self._identity.log.partitions)
        return self._actors.read(moved, set(moved.values()))[0]

    def read_shards(self, keys: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        own, others = _own_and_others(keys)
        return self._actors.read({}, own)[1] | self._read_counts(others)

    def read_progress(self) -> dict[int, Progress]:
        (rows,) = self._connection.run([self._select_progress.bind(())])
        return {partition: cells.decode_progress(cell) for partition, cell in rows}

    def _read_counts(self, keys: Iterable[ShardKey]) -> dict[ShardKey, Shard]:
        found = self._connection.run(self._counts_statements(keys))
        return {(entity, metric, shard): cells.decode_shard(cell) for rows in found for entity, metric, shard, cell in rows}

    def _counts_statements(self, keys: Iterable[ShardKey]) -> Iterator[Statement]:
        by_entity: dict[str, list[tuple[int, int]]] = {}
        for entity, metric, shard in keys:
            by_entity.setdefault(entity, []).append((metric, shard))
        entities_by_rows: dict[tuple[tuple[int, int], ...], list[str]] = {}
        for entity, rows in by_entity.items():
            entities_by_rows.setdefault(tuple(rows), []).append(entity)
        for wanted, entities in entities_by_rows.items():
            step = max(1, READ_ROWS_MAX // len(wanted))
            for at in range(0, len(entities), step):
                yield self._select_counts.bind((entities[at : at + step], wanted))

    # --- writes

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        others = {key: shard for key, shard in shards.items() if key[1] not in ACTOR_METRICS}
        self._held.update((key, shard) for key, shard in shards.items() if key[1] in ACTOR_METRICS)
        self._write(self._mutations.counts(others), self._mutations.lists(lists))

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        by_actor: dict[PartitionKey, list[Mutation]] = {}
        for actor, mutation in self._mutations.own_counts(self._held):
            by_actor.setdefault(actor, []).append(mutation)
        counts = {actor: len(mutations) for actor, mutations in by_actor.items()}
        for actor, mutation in self._mutations.edges(edges):
            by_actor.setdefault(actor, []).append(mutation)
        # Too many edges of an actor for one mutation go in several, the counts with each.
        self._connection.run(batches(Partition(actor, rows, counts.get(actor, 0)) for actor, rows in by_actor.items()))
        self._held.clear()

    def write_progress(self, progress: Mapping[int, Progress]) -> None:
        self._write_held()
        self._write(self._mutations.progress(progress))

    def sync(self) -> None:
        """Every step is durable when it returns; only own counts may still be held back, in a flush that wrote no edges."""
        self._write_held()

    def abandon(self) -> None:
        self._held.clear()

    def close(self) -> None:
        """Forgets what is held back. Idempotent."""
        self._held.clear()

    def _write_held(self) -> None:
        if self._held:
            self.write_edges({})

    def _write(self, *mutations: Iterable[tuple[PartitionKey, Mutation]]) -> None:
        self._connection.run(statement for some in mutations for statement in batches(grouped(some)))


def _own_and_others(keys: Iterable[ShardKey]) -> tuple[list[ShardKey], list[ShardKey]]:
    own: list[ShardKey] = []
    others: list[ShardKey] = []
    for key in keys:
        (own if key[1] in ACTOR_METRICS else others).append(key)
    return own, others
