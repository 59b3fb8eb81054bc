"""Reading all rows in Cassandra, for audits and exports: in order of tokens, a page at a time, the next one under way meanwhile.

There are no snapshots: what is written during a scan may show or not. An audit is for a service that is drained.
"""

import heapq
from collections.abc import Iterator

from watertower.backends import cells
from watertower.backends.cassandra_connection import CassandraConnection
from watertower.backends.cassandra_edges import ActorRows
from watertower.backends.cassandra_requests import Row
from watertower.backends.cassandra_schema import opened
from watertower.backends.cassandra_statements import OWN_COUNTS
from watertower.core.model import ACTOR_METRIC, NO_SHARD, EdgeKey, ListKey, Progress, Shard, ShardKey
from watertower.core.sharding import partition_of
from watertower.ports import EdgeRow, StoreIdentity

_PAGE_ROWS = 2_000


class CassandraScanner:
    """The StoreScanner of ports.py."""

    def __init__(self, connection: CassandraConnection, identity: StoreIdentity | None = None) -> None:
        """`identity`: None takes the rows that are there. Raises StartRefused, BackendUnavailable (see cassandra_schema.opened).

        The connection stays its owner's to close.
        """
        self._connection = connection
        self._identity = opened(connection, identity)
        self._actors = ActorRows(connection)

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    def progress(self) -> dict[int, Progress]:
        return {partition: cells.decode_progress(cell) for partition, cell in self._rows("SELECT partition, cell FROM {keyspace}.progress")}

    def edges(self) -> Iterator[EdgeRow]:
        partitions = self._identity.log.partitions
        statement = self._connection.prepare("SELECT actor, kind, subject, ref, cell FROM {keyspace}.edges", _PAGE_ROWS)
        last: str | None = None
        for page in self._connection.pages(statement):
            went_on: dict[ShardKey, int] = {}  # of an actor whose counts were on a page before: what its edges here say
            for actor, kind, subject, ref, cell in page:
                if kind == OWN_COUNTS:
                    continue
                edge = cells.decode_edge(cell)
                if actor == last:
                    key = (actor, ACTOR_METRIC[kind], partition_of(actor, partitions))
                    went_on[key] = max(edge.offset, went_on.get(key, NO_SHARD.offset))
                yield EdgeRow((actor, kind, subject, ref), edge)
            if went_on:
                self._actors.settle(went_on)
            if page:
                last = page[-1][0]

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        # Both tables are in order of (token, id), and a token is of the id alone: so an entity's shards of either meet.
        of_subjects = self._rows("SELECT token(entity), entity, metric, shard, cell FROM {keyspace}.counts")
        of_actors = self._rows("SELECT token(actor), actor, subject, ref, cell FROM {keyspace}.edges WHERE kind = 0 ALLOW FILTERING")
        for _, entity, metric, shard, cell in heapq.merge(of_subjects, of_actors, key=_place):
            yield (entity, int(metric), int(shard)), cells.decode_shard(cell)

    def subject_lists(self) -> Iterator[ListKey]:
        for row in self._rows("SELECT subject, kind, shard, bucket, occurred_at, actor, ref FROM {keyspace}.lists"):
            subject, kind, shard, bucket, occurred_at, actor, ref = row
            yield (subject, kind, shard, bucket, occurred_at, actor, ref)

    def actor_lists(self) -> Iterator[EdgeKey]:
        return (key for key, edge in self.edges() if edge.active)

    def close(self) -> None:
        """Nothing to let go of: the connection is its owner's."""

    def _rows(self, query: str) -> Iterator[Row]:
        for page in self._connection.pages(self._connection.prepare(query, _PAGE_ROWS)):
            yield from page


def _place(row: Row) -> tuple[int, bytes]:
    return row[0], row[1].encode()
