"""The store and the counts feed in memory: the reference for what a store without a single owner must do.

Several owners may write at once, each write shows at once, and every row carries positions.write_timestamp: the highest wins, a delete
beats the value of the same position, and deleted rows stay as tombstones, so that a write of a former owner that comes late loses to
what is there. For tests and the simulator; nothing here is durable, and nothing is fast.
"""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.core.positions import write_timestamp
from watertower.ports import EdgeRow, FeedMessage, ListCursor, StoreIdentity

FEED_MESSAGES_MAX = 4_000
"""Messages that the feed keeps, unless told otherwise."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Table(Generic[_Key, _Value]):
    """Rows with write timestamps. The last writer wins, by timestamp, whenever its write arrives."""

    def __init__(self) -> None:
        self._cells: dict[_Key, tuple[int, _Value | None]] = {}

    def write(self, key: _Key, value: _Value | None, timestamp: int) -> None:
        """None deletes: the cell stays as a tombstone."""
        cell = self._cells.get(key)
        if cell is None or timestamp > cell[0]:
            self._cells[key] = (timestamp, value)

    def get(self, key: _Key) -> _Value | None:
        cell = self._cells.get(key)
        return None if cell is None else cell[1]

    def rows(self) -> list[tuple[_Key, _Value]]:
        return [(key, value) for key, (_, value) in self._cells.items() if value is not None]

    def copy(self) -> "_Table[_Key, _Value]":
        table = _Table[_Key, _Value]()
        table._cells = dict(self._cells)
        return table


class MemoryRows:
    """What several handles share: the rows and the feed of one store."""

    def __init__(self, identity: StoreIdentity, feed_messages_max: int = FEED_MESSAGES_MAX) -> None:
        self.identity = identity
        self.feed_messages_max = feed_messages_max
        self.lock = threading.RLock()
        self.edges: dict[str, _Table[EdgeKey, Edge]] = defaultdict(_Table)  # by actor
        self.shards: dict[str, _Table[ShardKey, Shard]] = defaultdict(_Table)  # by entity
        self.lists: dict[tuple[str, int], _Table[ListKey, bool]] = defaultdict(_Table)  # by (subject, kind)
        self.progress: _Table[int, Progress] = _Table()
        self.feed: dict[int, FeedMessage] = {}  # by sequence
        self.feed_next = 0

    def copy(self) -> "MemoryRows":
        """All rows as of now, for a scan."""
        with self.lock:
            rows = MemoryRows(self.identity, self.feed_messages_max)
            rows.edges.update({actor: table.copy() for actor, table in self.edges.items()})
            rows.shards.update({entity: table.copy() for entity, table in self.shards.items()})
            rows.lists.update({owner: table.copy() for owner, table in self.lists.items()})
            rows.progress = self.progress.copy()
            return rows


class MemoryStore:
    """One owner's or reader's handle: the Store, the StoreReader and, on a copy of the rows, the StoreScanner of ports.py."""

    def __init__(self, rows: MemoryRows) -> None:
        self._rows = rows
        self._generation = rows.identity.generation

    @property
    def identity(self) -> StoreIdentity:
        return self._rows.identity

    # --- Store

    def read_touched(self, keys: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        edges = self.read_edges(keys.edges)
        return edges, self.read_shards(keys.shards)

    def read_edges(self, keys: Collection[EdgeKey]) -> dict[EdgeKey, Edge]:
        with self._rows.lock:
            found = {key: self._rows.edges[key[0]].get(key) for key in keys}
        return {key: edge for key, edge in found.items() if edge is not None}

    def read_shards(self, keys: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        with self._rows.lock:
            found = {key: self._rows.shards[key[0]].get(key) for key in keys}
        return {key: shard for key, shard in found.items() if shard is not None}

    def read_progress(self) -> dict[int, Progress]:
        with self._rows.lock:
            return dict(self._rows.progress.rows())

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        with self._rows.lock:
            for key, shard in shards.items():
                self._rows.shards[key[0]].write(key, shard, write_timestamp(self._generation, shard.offset))
            for row, (present, offset) in lists.items():
                timestamp = write_timestamp(self._generation, offset, delete=not present)
                self._rows.lists[row[0], row[1]].write(row, True if present else None, timestamp)

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        with self._rows.lock:
            for key, edge in edges.items():
                self._rows.edges[key[0]].write(key, edge, write_timestamp(self._generation, edge.offset))

    def write_progress(self, progress: Mapping[int, Progress]) -> None:
        with self._rows.lock:
            for partition, row in progress.items():
                self._rows.progress.write(partition, row, write_timestamp(self._generation, row.end))

    def sync(self) -> None:
        """Nothing to do: every write shows at once."""

    def abandon(self) -> None:
        """Nothing to do: nothing is held back."""

    def close(self) -> None:
        """Nothing to do: the rows belong to whoever made them."""

    # --- StoreReader

    def catch_up(self) -> None:
        """Nothing to do: reads see every write."""

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        with self._rows.lock:
            return [{(metric, shard): row for (_, metric, shard), row in self._rows.shards[entity].rows()} for entity in entities]

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        with self._rows.lock:
            active = {key[2] for key, edge in self._rows.edges[actor].rows() if edge.active and key[1] == kind}
        return [subject in active for subject in subjects]

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        with self._rows.lock:
            rows = self._rows.lists[subject, kind].rows()
        return page([ListCursor(at, actor, ref) for (_, _, _, _, at, actor, ref), _ in rows], after, limit)

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        with self._rows.lock:
            rows = self._rows.edges[actor].rows()
        return page([ListCursor(e.occurred_at, s, ref) for (_, k, s, ref), e in rows if e.active and k == kind], after, limit)

    # --- StoreScanner: of one moment when made of MemoryRows.copy()

    def progress(self) -> dict[int, Progress]:
        return self.read_progress()

    def edges(self) -> Iterator[EdgeRow]:
        for table in self._rows.edges.values():
            yield from (EdgeRow(key, edge) for key, edge in table.rows())

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        for table in self._rows.shards.values():
            yield from table.rows()

    def subject_lists(self) -> Iterator[ListKey]:
        for table in self._rows.lists.values():
            yield from (row for row, _ in table.rows())

    def actor_lists(self) -> Iterator[EdgeKey]:
        return (key for key, edge in self.edges() if edge.active)


class MemoryFeed:
    """One handle on the feed: the CountsFeed and the FeedReader of ports.py. Messages show at once."""

    def __init__(self, rows: MemoryRows) -> None:
        self._rows = rows
        self._seen: int | None = None

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        with self._rows.lock:
            for message in messages:
                self._rows.feed[self._rows.feed_next] = message
                self._rows.feed.pop(self._rows.feed_next - self._rows.feed_messages_max, None)
                self._rows.feed_next += 1

    def poll(self) -> list[FeedMessage]:
        with self._rows.lock:
            seen, self._seen = self._seen, self._rows.feed_next
            return [] if seen is None else [message for sequence, message in self._rows.feed.items() if sequence >= seen]


def page(rows: list[ListCursor], after: ListCursor | None, limit: int) -> list[ListCursor]:
    """A page of a list whose rows come in any order."""
    rows.sort(key=_newest_first)
    return [row for row in rows if after is None or _newest_first(row) > _newest_first(after)][:limit]


def _newest_first(row: ListCursor) -> tuple[int, str, str]:
    return (-row.occurred_at, row.other, row.ref)
