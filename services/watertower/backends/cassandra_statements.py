"""The statements that the store prepares, and batches of them.

A mutation is (query id, values as bytes): a flush makes three for every event, and the driver's own binding would cost more than the
rest of the flush. Every mutation ends in USING TIMESTAMP; there are no lightweight transactions, counters or TTLs.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from cassandra.query import BatchStatement, BatchType

from watertower.backends import cells
from watertower.backends.cassandra_connection import CassandraConnection
from watertower.backends.cassandra_requests import Statement
from watertower.core.model import ACTOR_METRIC, KINDS, Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.core.positions import write_timestamp

OWN_COUNTS: Final = 0
"""The `kind` of the rows in an actor's partition of `edges` that hold the actor's own counts. No kind of the API has this number."""

ACTOR_METRICS: Final = frozenset(ACTOR_METRIC.values())
"""Metrics whose shards are such rows; those of the others are in `counts`."""

SHARED_PART: Final = -1
"""The `part` of a list's bucket 0, which all shards share."""

PACKED_BATCH_BYTES_MAX: Final = 10_240
"""Bytes of the values in one batch over several partitions, about. A node warns from 5 KiB and refuses from 50 KiB, of larger sums."""

PARTITION_BATCH_BYTES_MAX: Final = 131_072
"""Bytes of the values in one batch within one partition, about; a node takes up to its 16 MiB of one mutation."""

PARTITION_BATCH_ROWS_MAX: Final = 1_000
"""Rows in one batch within one partition; the protocol counts them in 16 bits."""

_TIMESTAMPS_KEPT_MAX = 10_000
"""Encoded timestamps that are kept for further rows of the same record."""

_SMALL = Struct(">h").pack
_INT = Struct(">i").pack
_LONG = Struct(">q").pack
_KIND = Struct(">ib").pack
_BYTE = [bytes((n,)) for n in range(128)]

Values: TypeAlias = list[bytes]
Mutation: TypeAlias = tuple[bool, bytes, Values]
"""(True: prepared, query id, values): what the driver's batches consist of."""

PartitionKey: TypeAlias = bytes | tuple[bytes, ...]
"""As it is hashed to a token: one column, or several."""


EdgeRow: TypeAlias = tuple[int, str, str]
"""(kind, subject, ref): a row of an actor's partition."""


def encode_texts(texts: Collection[str]) -> bytes:
    """A list<text> as a value."""
    parts = [_INT(len(texts))]
    for text in texts:
        utf8 = text.encode()
        parts += (_INT(len(utf8)), utf8)
    return b"".join(parts)


def encode_rows(rows: Collection[EdgeRow]) -> bytes:
    """A list<frozen<tuple<tinyint, text, text>>> as a value."""
    parts = [_INT(len(rows))]
    for kind, subject, ref in rows:
        subject_utf8, ref_utf8 = subject.encode(), ref.encode()
        # 13 bytes: the three lengths and the kind
        parts += (_INT(13 + len(subject_utf8) + len(ref_utf8)), _KIND(1, kind), _INT(len(subject_utf8)), subject_utf8)
        parts += (_INT(len(ref_utf8)), ref_utf8)
    return b"".join(parts)


class Mutations:
    """Makes the mutations of a generation. What is the same in most rows is in the text of the statement: a value less in each costs the
    driver and the node less."""

    def __init__(self, connection: CassandraConnection, generation: int) -> None:
        def prepared(query: str, **literals: int) -> bytes:
            query_id: bytes = connection.prepare(query, **literals).query_id
            return query_id

        edge = "INSERT INTO {keyspace}.edges (actor, kind, subject, ref, cell) VALUES "
        self._generation = generation
        self._edges = {int(kind): prepared(edge + "(?, {kind}, ?, ?, ?) USING TIMESTAMP ?", kind=kind) for kind in KINDS}
        self._edges_without_ref = {int(kind): prepared(edge + "(?, {kind}, ?, '', ?) USING TIMESTAMP ?", kind=kind) for kind in KINDS}
        self._own = {
            metric: prepared(edge + "(?, {kind}, '{metric}', ?, ?) USING TIMESTAMP ?", kind=OWN_COUNTS, metric=metric)
            for metric in ACTOR_METRICS
        }
        self._count = prepared("INSERT INTO {keyspace}.counts (entity, metric, shard, cell) VALUES (?, ?, ?, ?) USING TIMESTAMP ?")
        self._listed = prepared(
            "INSERT INTO {keyspace}.lists (subject, kind, part, bucket, occurred_at, actor, ref, shard) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
        )
        self._unlisted = prepared(
            "DELETE FROM {keyspace}.lists USING TIMESTAMP ? "
            "WHERE subject = ? AND kind = ? AND part = ? AND bucket = ? AND occurred_at = ? AND actor = ? AND ref = ?"
        )
        self._progress = prepared("INSERT INTO {keyspace}.progress (partition, cell) VALUES (?, ?) USING TIMESTAMP ?")
        self._timestamps: dict[int, bytes] = {}

    def _timestamp(self, offset: int) -> bytes:
        """Encoded; a flush has few offsets and many rows."""
        found = self._timestamps.get(offset)
        if found is None:
            if len(self._timestamps) >= _TIMESTAMPS_KEPT_MAX:
                self._timestamps.clear()
            found = self._timestamps[offset] = _LONG(write_timestamp(self._generation, offset))
        return found

    def edges(self, edges: Mapping[EdgeKey, Edge]) -> Iterator[tuple[PartitionKey, Mutation]]:
        """Of each."""
        queries, queries_without_ref, timestamp = self._edges, self._edges_without_ref, self._timestamp
        for (actor, kind, subject, ref), cell, edge in zip(edges, cells.encode_edges(edges.values()), edges.values(), strict=True):
            key = actor.encode()
            if ref:
                yield key, (True, queries[kind], [key, subject.encode(), ref.encode(), cell, timestamp(edge.offset)])
            else:
                yield key, (True, queries_without_ref[kind], [key, subject.encode(), cell, timestamp(edge.offset)])

    def own_counts(self, shards: Mapping[ShardKey, Shard]) -> Iterator[tuple[PartitionKey, Mutation]]:
        """Of each, all of actor metrics."""
        queries, timestamp = self._own, self._timestamp
        for (actor, metric, shard), cell, row in zip(shards, cells.encode_shards(shards.values()), shards.values(), strict=True):
            key = actor.encode()
            yield key, (True, queries[metric], [key, b"%d" % shard, cell, timestamp(row.offset)])

    def counts(self, shards: Mapping[ShardKey, Shard]) -> Iterator[tuple[PartitionKey, Mutation]]:
        """Of each, all of subject metrics."""
        query, timestamp = self._count, self._timestamp
        for (entity, metric, shard), cell, row in zip(shards, cells.encode_shards(shards.values()), shards.values(), strict=True):
            key = entity.encode()
            yield key, (True, query, [key, _BYTE[metric], _SMALL(shard), cell, timestamp(row.offset)])

    def lists(self, lists: Mapping[ListKey, ListChange]) -> Iterator[tuple[PartitionKey, Mutation]]:
        """Of each."""
        present_query, absent_query, byte, timestamp = self._listed, self._unlisted, _BYTE, self._timestamp
        for (subject, kind, shard, bucket, occurred_at, actor, ref), (present, offset) in lists.items():
            part = shard if bucket else SHARED_PART
            key = (subject.encode(), byte[kind], _SMALL(part), _INT(bucket))
            row = [*key, _LONG(occurred_at), actor.encode(), ref.encode()]
            if present:
                row += (_SMALL(shard), timestamp(offset))
                mutation = (True, present_query, row)
            else:
                mutation = (True, absent_query, [_LONG(write_timestamp(self._generation, offset, delete=True)), *row])
            yield key, mutation

    def progress(self, progress: Mapping[int, Progress]) -> Iterator[tuple[PartitionKey, Mutation]]:
        """Of each."""
        for partition, row in progress.items():
            key = _SMALL(partition)
            yield key, (True, self._progress, [key, cells.encode_progress(row), self._timestamp(row.end)])


class Partition(NamedTuple):
    """Mutations of one partition."""

    key: PartitionKey
    mutations: list[Mutation]
    repeated: int = 0
    """So many of the first ones go with each piece, where there are too many for one batch."""


def grouped(mutations: Iterable[tuple[PartitionKey, Mutation]]) -> Iterator[Partition]:
    """By partition, in order of first use."""
    groups: dict[PartitionKey, list[Mutation]] = {}
    for key, mutation in mutations:
        group = groups.get(key)
        if group is None:
            groups[key] = [mutation]
        else:
            group.append(mutation)
    return (Partition(key, group) for key, group in groups.items())


def batches(partitions: Iterable[Partition]) -> Iterator[Statement]:
    """Unlogged batches: several partitions while they are small, a large one alone, in pieces."""
    packed: list[Mutation] = []
    packed_bytes = 0
    first: PartitionKey = b""
    for key, mutations, repeated in partitions:
        size = sum([sum(map(len, values)) for _, _, values in mutations])
        if size > PACKED_BATCH_BYTES_MAX:
            for piece in _pieces(mutations, repeated):
                yield _batch(key, piece)
            continue
        if packed and packed_bytes + size > PACKED_BATCH_BYTES_MAX:
            yield _batch(first, packed)
            packed, packed_bytes = [], 0
        if not packed:
            first = key
        packed += mutations
        packed_bytes += size
    if packed:
        yield _batch(first, packed)


def _pieces(mutations: list[Mutation], repeated: int) -> Iterator[list[Mutation]]:
    common, size = mutations[:repeated], 0
    piece = list(common)
    for mutation in mutations[repeated:]:
        piece.append(mutation)
        size += sum(map(len, mutation[2]))
        if size > PARTITION_BATCH_BYTES_MAX or len(piece) >= PARTITION_BATCH_ROWS_MAX:
            yield piece
            piece, size = list(common), 0
    if len(piece) > repeated or len(mutations) == repeated:
        yield piece


def _batch(key: PartitionKey, mutations: list[Mutation]) -> Statement:
    """For a node that has the partition `key`."""
    statement = BatchStatement(BatchType.UNLOGGED)
    statement.is_idempotent = True
    statement.routing_key = key
    # As its add() would leave them, which encodes and copies at several times the price of a row.
    statement._statements_and_parameters = mutations
    return statement
