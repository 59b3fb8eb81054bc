"""Reading the rows in Cassandra for the query process. A quorum read sees every acknowledged write: there is nothing to catch up with."""

import heapq
from collections.abc import Iterator, Sequence

from watertower.backends import cells
from watertower.backends.cassandra_connection import CassandraConnection
from watertower.backends.cassandra_edges import READ_KEYS_MAX, ActorRows, own_shards
from watertower.backends.cassandra_requests import Statement
from watertower.backends.cassandra_schema import opened
from watertower.backends.cassandra_statements import OWN_COUNTS, SHARED_PART
from watertower.core.model import ACTOR_METRIC, KINDS, NO_SHARD, SUBJECT_METRIC, Edge, EdgeKey, Kind, Progress, Shard
from watertower.core.sharding import partition_of
from watertower.ports import ListCursor, StoreIdentity

_PAGE_ROWS = 1_000
"""Rows of an actor's partition that are read at a time."""

_PARTITIONS_AT_ONCE = 64
"""Parts of a list that are read before the page is cut: bounds the rows held to this times the page's limit."""


class CassandraReader:
    """The StoreReader of ports.py. Any thread may call it."""

    def __init__(self, connection: CassandraConnection, identity: StoreIdentity | None = None) -> None:
        """`identity`: None takes the rows that are there. Raises StartRefused, BackendUnavailable (see cassandra_schema.opened).

        The connection stays its owner's to close.
        """
        self._connection = connection
        self._identity = opened(connection, identity)
        self._actors = ActorRows(connection)
        prepare = connection.prepare
        self._counts = prepare("SELECT metric, shard, cell FROM {keyspace}.counts WHERE entity = ?")
        self._counts_of_metric = prepare("SELECT shard, cell FROM {keyspace}.counts WHERE entity = ? AND metric = ?")
        self._own_counts = prepare("SELECT subject, ref, cell FROM {keyspace}.edges WHERE actor = ? AND kind = 0")
        self._progress = prepare("SELECT partition, cell FROM {keyspace}.progress")
        self._between = prepare(
            "SELECT kind, subject, ref, cell FROM {keyspace}.edges WHERE actor = ? AND (kind, subject) IN ?", _PAGE_ROWS
        )
        self._of_kind = prepare("SELECT kind, subject, ref, cell FROM {keyspace}.edges WHERE actor = ? AND kind IN ?", _PAGE_ROWS)
        listed = "SELECT occurred_at, actor, ref FROM {keyspace}.lists WHERE subject = ? AND kind = ? AND part = ? AND bucket = ?"
        self._newest = prepare(f"{listed} AND occurred_at >= ? LIMIT ?")
        self._older = prepare(f"{listed} AND occurred_at >= ? AND occurred_at < ? LIMIT ?")
        self._ties = prepare(f"{listed} AND occurred_at = ? AND (actor, ref) > (?, ?) LIMIT ?")

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    def catch_up(self) -> None:
        """Nothing to do."""

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        statements = (statement.bind((entity,)) for entity in entities for statement in (self._counts, self._own_counts))
        rows = iter(self._connection.run(statements))
        found = []
        for counts, own in zip(rows, rows, strict=True):
            shards = {(metric, shard): cells.decode_shard(cell) for metric, shard, cell in counts}
            shards.update(((int(metric), int(shard)), cells.decode_shard(cell)) for metric, shard, cell in own)
            found.append(shards)
        return found

    def read_progress(self) -> dict[int, Progress]:
        (rows,) = self._connection.run([self._progress.bind(())])
        return {partition: cells.decode_progress(cell) for partition, cell in rows}

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        if KINDS[Kind(kind)].needs_ref:
            return self._check_any_ref(actor, kind, subjects)
        keys: list[EdgeKey] = [(actor, kind, subject, "") for subject in dict.fromkeys(subjects)]
        moved = own_shards(keys, self._identity.log.partitions)
        found = self._actors.read(moved, set(moved.values()))[0]
        active = {key[2] for key, edge in found.items() if edge.active}
        return [subject in active for subject in subjects]

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        """Looks into every part of the list: the shared one and the newest of each shard first; their page says how new a row of the
        older ones must be to matter, which is as a rule newer than all of them."""
        (counts,) = self._connection.run([self._counts_of_metric.bind((subject, SUBJECT_METRIC[kind]))])
        buckets = {shard: len(cells.decode_shard(cell).crossings) for shard, cell in counts}
        newest = [(SHARED_PART, 0), *((shard, last) for shard, last in buckets.items() if last)]
        older = [(shard, bucket) for shard, last in buckets.items() for bucket in range(last - 1, 0, -1)]
        page: list[ListCursor] = []
        for parts in (newest, older):
            for at in range(0, len(parts), _PARTITIONS_AT_ONCE):
                since = page[-1].occurred_at if len(page) == limit else 0
                some = parts[at : at + _PARTITIONS_AT_ONCE]
                rows = self._connection.run(self._list_statements(subject, kind, some, after, since, limit))
                page = heapq.nsmallest(limit, [*page, *(ListCursor(*row) for found in rows for row in found)], key=_newest_first)
        return page

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        """Reads all edges of the actor and kind, removed ones too, whatever the limit: they lie in order of their subjects, and what one
        account did is bounded by what one account may do. A table in order of time would cost a row for each edge written."""
        rows = (ListCursor(edge.occurred_at, subject, ref) for subject, ref, edge in self._edges_of_kind(actor, kind) if edge.active)
        if after is not None:
            place = _newest_first(after)
            rows = (row for row in rows if _newest_first(row) > place)
        return heapq.nsmallest(limit, rows, key=_newest_first)

    def close(self) -> None:
        """Nothing to let go of: the connection is its owner's."""

    # --- how

    def _check_any_ref(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        own = (OWN_COUNTS, str(ACTOR_METRIC[kind]))
        active: set[str] = set()
        asked = list(dict.fromkeys(subjects))
        for at in range(0, len(asked), READ_KEYS_MAX):
            some = asked[at : at + READ_KEYS_MAX]
            rows = self._edges(actor, kind, self._between.bind((actor, [own, *((kind, subject) for subject in some)])))
            active.update(subject for subject, _, edge in rows if edge.active)
        return [subject in active for subject in subjects]

    def _edges_of_kind(self, actor: str, kind: int) -> Iterator[tuple[str, str, Edge]]:
        return self._edges(actor, kind, self._of_kind.bind((actor, [OWN_COUNTS, kind])))

    def _edges(self, actor: str, kind: int, statement: Statement) -> Iterator[tuple[str, str, Edge]]:
        """(subject, ref, edge) of what a statement selects besides the own counts, which it must select, too."""
        metric, shard = ACTOR_METRIC[kind], partition_of(actor, self._identity.log.partitions)
        changed_at = NO_SHARD.offset  # as further pages say, which are read without the counts
        for number, page in enumerate(self._connection.pages(statement)):
            for row_kind, subject, ref, cell in page:
                if row_kind != OWN_COUNTS:
                    edge = cells.decode_edge(cell)
                    if number:
                        changed_at = max(changed_at, edge.offset)
                    yield subject, ref, edge
        if changed_at > NO_SHARD.offset:
            self._actors.settle({(actor, metric, shard): changed_at})

    def _list_statements(
        self, subject: str, kind: int, parts: Sequence[tuple[int, int]], after: ListCursor | None, since: int, limit: int
    ) -> Iterator[Statement]:
        for part, bucket in parts:
            if after is None:
                yield self._newest.bind((subject, kind, part, bucket, since, limit))
                continue
            if after.occurred_at >= since:
                yield self._ties.bind((subject, kind, part, bucket, after.occurred_at, after.other, after.ref, limit))
            yield self._older.bind((subject, kind, part, bucket, since, after.occurred_at, limit))


def _newest_first(row: ListCursor) -> tuple[int, str, str]:
    return (-row.occurred_at, row.other, row.ref)
