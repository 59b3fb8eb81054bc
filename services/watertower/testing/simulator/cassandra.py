"""The real back end for Cassandra on the replicas of cluster.py: its own store, reader, statements and batches run on a connection of this
module, which stands where backends/cassandra_connection.py has the driver.

As in Cassandra, what a statement writes to one partition is one mutation, which a replica takes whole or not at all; what it reads of one
partition is of one moment on each replica, and is repaired by one mutation a replica. A statement over several partitions is that for each.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from watertower.backends import cassandra, cassandra_edges, cassandra_reader, cassandra_statements, cells
from watertower.backends.cassandra import CassandraReader, CassandraStore
from watertower.backends.cassandra_connection import ALL
from watertower.backends.cassandra_statements import OWN_COUNTS
from watertower.core.model import EdgeKey, ListKey, Progress, Shard, ShardKey
from watertower.core.positions import write_timestamp
from watertower.ports import EdgeRow, StoreIdentity
from watertower.testing.simulator.cluster import QUORUM, REPLICAS, Cell, Cluster, Partition, Select, Write
from watertower.testing.simulator.cql import Asked, Bound, Prepared, Row, Table
from watertower.testing.simulator.kernel import wait

LIMITS = {
    (cassandra, "READ_ROWS_MAX"): 6,
    (cassandra_edges, "READ_ROWS_MAX"): 6,
    (cassandra_edges, "READ_KEYS_MAX"): 2,
    (cassandra_reader, "READ_KEYS_MAX"): 2,
    (cassandra_reader, "_PAGE_ROWS"): 2,
    (cassandra_reader, "_PARTITIONS_AT_ONCE"): 2,
    (cassandra_statements, "PACKED_BATCH_BYTES_MAX"): 100,
    (cassandra_statements, "PARTITION_BATCH_ROWS_MAX"): 2,
}
"""What is smaller in a run than in the product, so that reads come in several statements and pages, and mutations in several pieces."""

ASKED_ALL = "all replicas asked"
"""Counted as a fault is: a statement at ALL, which cassandra_edges.py sends when an edge is ahead of its actor's count."""


class SimulatedConnection:
    """As much of CassandraConnection as the store and the reader use. Its methods block in virtual time (kernel.wait)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._prepared: dict[bytes, Prepared] = {}

    def prepare(self, query: str, page_rows: int | None = None, **literals: int) -> Prepared:
        prepared = Prepared(query.format(keyspace="{keyspace}", **literals), page_rows)
        self._prepared[prepared.query_id] = prepared
        return prepared

    def run(self, statements: Iterable[Any]) -> list[list[Row]]:
        """Bound SELECTs give rows; batches give none. All side by side."""
        sent = [self._read(one) if isinstance(one, Bound) else (self._write(one), None) for one in statements]
        if not sent:
            return []
        wait(self._cluster.all_of([future for futures, _ in sent for future in futures]))
        return [[] if rows is None else rows([future.result() for future in futures]) for futures, rows in sent]

    def pages(self, statement: Bound) -> Iterator[list[Row]]:
        """Of one partition. The next page is on its way while one is used."""
        prepared = statement.prepared
        (asked,) = prepared.asked(statement.values, ())
        size, place = prepared.page_rows or 1, prepared.table.place
        under_way: asyncio.Future[dict[Row, Any]] | None = self._cluster.reading(_select(prepared.table, asked._replace(limit=size)))
        while under_way is not None:
            found = wait(under_way)
            under_way = None
            if len(found) == size:
                last = place(list(found)[-1])
                following = Asked(asked.partition, lambda key, last=last: place(key) > last and asked.matches(key), size)  # type: ignore[misc]
                under_way = self._cluster.reading(_select(prepared.table, following))
            yield [prepared.projected(asked.partition, key, value) for key, value in found.items()]

    def _read(self, statement: Bound) -> "tuple[list[asyncio.Future[Any]], Callable[[list[Any]], list[Row]]]":
        prepared, replicas = statement.prepared, QUORUM
        if statement.consistency_level == ALL:
            replicas = REPLICAS
            self._cluster.count(ASKED_ALL)
        everywhere = [("progress", (partition,)) for partition in range(self._cluster.identity.log.partitions)]
        asked = list(prepared.asked(statement.values, everywhere))

        def rows(found: list[dict[Row, Any]]) -> list[Row]:
            return [
                prepared.projected(one.partition, key, value)
                for one, values in zip(asked, found, strict=True)
                for key, value in values.items()
            ]

        return [self._cluster.reading(_select(prepared.table, one)._replace(replicas=replicas)) for one in asked], rows

    def _write(self, batch: Any) -> "list[asyncio.Future[Any]]":
        by_partition: dict[Partition, list[Write]] = {}
        for _, query_id, values in batch._statements_and_parameters:
            write = self._prepared[query_id].write(values)
            by_partition.setdefault(write.partition, []).append(write)
        return [self._cluster.writing(mutation) for mutation in by_partition.values()]


def _select(table: Table, asked: Asked) -> Select:
    """Rows beyond the limit are neither given nor repaired."""

    def cut(cells_: dict[Row, Cell]) -> dict[Row, Cell]:
        kept: dict[Row, Cell] = {}
        living = 0
        for key in sorted(cells_, key=table.place):
            if living == asked.limit:
                break
            kept[key] = cells_[key]
            living += cells_[key][1] is not None
        return kept

    return Select(asked.partition, asked.matches, cut)


def store(cluster: Cluster) -> CassandraStore:
    """Of a projector that starts."""
    connection: Any = SimulatedConnection(cluster)
    return CassandraStore(connection, cluster.identity)


def reader(cluster: Cluster) -> CassandraReader:
    """Of a query process that starts."""
    connection: Any = SimulatedConnection(cluster)
    return CassandraReader(connection, cluster.identity)


def progress_write(partition: int, progress: Progress, generation: int) -> Write:
    """A row of progress."""
    return Write(("progress", (partition,)), (), (write_timestamp(generation, progress.end), cells.encode_progress(progress)))


@contextmanager
def surroundings() -> Iterator[None]:
    """The back end with LIMITS, and without its look at how a cluster is set up, which these replicas cannot answer."""
    with ExitStack() as patched:
        for (module, name), value in LIMITS.items():
            patched.enter_context(patch.object(module, name, value))
        for module in (cassandra, cassandra_reader):
            patched.enter_context(patch.object(module, "opened", lambda connection, identity: identity))
        yield


class RowScanner:
    """The StoreScanner of ports.py on what some replicas hold together, at once: for the checks of a run."""

    def __init__(self, cluster: Cluster, replicas: Collection[int]) -> None:
        self._cluster, self._replicas = cluster, replicas

    @property
    def identity(self) -> StoreIdentity:
        return self._cluster.identity

    def progress(self) -> dict[int, Progress]:
        return {partition: cells.decode_progress(cell) for (partition,), _, cell in self._rows("progress")}

    def edges(self) -> Iterator[EdgeRow]:
        for (actor,), (kind, subject, ref), cell in self._rows("edges"):
            if kind != OWN_COUNTS:
                yield EdgeRow((actor, kind, subject, ref), cells.decode_edge(cell))

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        for (entity,), (metric, shard), cell in self._rows("counts"):
            yield (entity, metric, shard), cells.decode_shard(cell)
        yield from self.own_counts()

    def own_counts(self) -> Iterator[tuple[ShardKey, Shard]]:
        """The shards that lie beside the edges."""
        for (actor,), (kind, metric, shard), cell in self._rows("edges"):
            if kind == OWN_COUNTS:
                yield (actor, int(metric), int(shard)), cells.decode_shard(cell)

    def subject_lists(self) -> Iterator[ListKey]:
        for (subject, kind, _, bucket), (occurred_at, actor, ref), shard in self._rows("lists"):
            yield subject, kind, shard, bucket, occurred_at, actor, ref

    def actor_lists(self) -> Iterator[EdgeKey]:
        return (key for key, edge in self.edges() if edge.active)

    def close(self) -> None:
        """Nothing to let go of."""

    def _rows(self, table: str) -> Iterator[tuple[Row, Row, Any]]:
        for partition in self._cluster.partitions(table):
            for key, (_, value) in self._cluster.merged(self._replicas, partition).items():
                if value is not None:
                    yield partition[1], key, value
