"""The embedded store: one RocksDB in the data folder, owned by the projector, read by others as secondary instances.

A flush, its progress and its feed messages are one write batch, written and synced at once: readers see all of it or nothing. How the
rows lie is in rocksdb_keys.py, how the database is opened in rocksdb_open.py, the readers' side in rocksdb_reader.py.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rocksdict import Rdict, WriteBatch

from watertower.backends import cells
from watertower.backends import rocksdb_keys as keys
from watertower.backends.rocksdb_open import DRIVER_ERRORS, last_key, multi_get, open_owner, scan, synced
from watertower.backends.rocksdb_reader import RocksDbReader, RocksDbScanner
from watertower.codec import encode_feed
from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.errors import BackendRefused, StartRefused
from watertower.ports import CountsFeed, FeedMessage, StoreIdentity

__all__ = ["RocksDbReader", "RocksDbScanner", "RocksDbStore"]

_Key = TypeVar("_Key")
_Row = TypeVar("_Row")


class RocksDbStore:
    """The Store and CountsFeed of ports.py. For one thread.

    Holds writes back until `sync`. A write that failed leaves RocksDB unwilling to write, also when the cause (a full disk) has passed,
    so the store lets go of it and opens it again at the next use.
    """

    def __init__(
        self,
        path: Path,
        identity: StoreIdentity,
        write_buffer_bytes: int,
        block_cache_bytes: int,
        feed_messages_max: int,
    ) -> None:
        """Opens or creates the store in folder `path`. Raises StartRefused, BackendUnavailable (see rocksdb_open.open_owner)."""
        self._path, self._identity = path, identity
        self._write_buffer_bytes, self._block_cache_bytes = write_buffer_bytes, block_cache_bytes
        self._feed_messages_max = feed_messages_max
        self._synced = synced()
        self._ids = keys.Ids()
        self._batch = WriteBatch(raw_mode=True)
        self._feed = self._feed_synced = range(0)  # the sequence numbers on the feed: with what is held back, and on the disk
        self._closed = False
        self._db: Rdict | None = None
        self._open()

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    @property
    def feed(self) -> CountsFeed:
        """The counts feed: messages become visible at the store's next sync, together with the flush."""
        return self

    # --- reads

    def read_touched(self, wanted: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        # Nobody writes in between, so the order does not matter; and an actor without a shard has no such edge, because whatever
        # wrote the edge wrote the shard. In a surge most actors are new: this spares half of the reads.
        shards = self.read_shards(wanted.shards)
        return self.read_edges([edge for edge, of_actor in wanted.edges.items() if of_actor in shards]), shards

    def read_edges(self, wanted: Collection[EdgeKey]) -> dict[EdgeKey, Edge]:
        return self._read(dict(zip(keys.edge_keys(wanted, self._ids), wanted, strict=True)), cells.decode_edge)

    def read_shards(self, wanted: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        return self._read(dict(zip(keys.shard_keys(wanted, self._ids), wanted, strict=True)), cells.decode_shard)

    def read_progress(self) -> dict[int, Progress]:
        rows = scan(self._opened(), keys.PROGRESS)
        return {keys.decode_partition(key): cells.decode_progress(value) for key, value in rows}

    def _read(self, wanted: dict[bytes, _Key], decode: Callable[[bytes], _Row]) -> dict[_Key, _Row]:
        order = sorted(wanted)
        values = multi_get(self._opened(), order)
        return {wanted[key]: decode(value) for key, value in zip(order, values, strict=True) if value is not None}

    # --- writes, held back until sync

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        self._put(dict(zip(keys.shard_keys(shards, self._ids), cells.encode_shards(shards.values()), strict=True)))
        rows = keys.list_rows(lists, self._ids)
        self._put(rows.of_subjects)
        self._put(dict.fromkeys(rows.of_actors, b""))
        for key in rows.gone:
            self._batch.delete(key)

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        self._put(dict(zip(keys.edge_keys(edges, self._ids), cells.encode_edges(edges.values()), strict=True)))

    def write_progress(self, progress: Mapping[int, Progress]) -> None:
        for partition, row in progress.items():
            self._batch.put(keys.progress_key(partition), cells.encode_progress(row))

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        """Of CountsFeed. Forgets the oldest messages beyond feed_messages_max."""
        self._opened()  # the sequence goes on after the last message that is on the disk
        first, end = self._feed.start, self._feed.stop
        for message in messages:
            self._batch.put(keys.feed_key(end), encode_feed(message))
            end += 1
        kept_from = max(first, end - self._feed_messages_max)
        for sequence in range(first, kept_from):
            self._batch.delete(keys.feed_key(sequence))
        self._feed = range(kept_from, end)

    def sync(self) -> None:
        db, batch = self._opened(), self._batch
        self._forget_batch()
        if batch.is_empty():
            return
        try:
            with DRIVER_ERRORS:
                db.write(batch, self._synced)
        except BaseException:
            del db
            self._let_go()
            raise
        self._feed_synced = self._feed

    def abandon(self) -> None:
        self._forget_batch()
        self._feed = self._feed_synced

    def close(self) -> None:
        """Lets go; what was not synced is forgotten. Idempotent."""
        self._closed = True
        self.abandon()
        if self._db is not None:
            # Writes the memtable out, so that the next start need not replay it. If that fails, it does: everything synced is in the log.
            with suppress(Exception):
                self._db.close()
            self._db = None

    def _put(self, rows: dict[bytes, bytes]) -> None:
        # In order of keys: the memtable takes sorted rows in a third of the time of shuffled ones, which pays for the sorting.
        put = self._batch.put
        for key in sorted(rows):
            put(key, rows[key])

    # --- the database

    def _opened(self) -> Rdict:
        if self._db is not None:
            return self._db
        if self._closed:
            raise BackendRefused("the store is closed")
        try:
            return self._open()
        except StartRefused as error:  # this is no start any more
            raise BackendRefused(str(error)) from error

    def _open(self) -> Rdict:
        db = open_owner(self._path, self._identity, self._write_buffer_bytes, self._block_cache_bytes)
        first = scan(db, keys.FEED, limit=1)
        last = last_key(db, keys.FEED)
        kept = range(keys.decode_sequence(first[0][0]), keys.decode_sequence(last) + 1) if first and last is not None else range(0)
        self._feed = self._feed_synced = kept
        self._db = db
        return db

    def _let_go(self) -> None:
        # Dropped, not closed: close() would try to write the memtable to the very disk that has just failed.
        self._db = None

    def _forget_batch(self) -> None:
        self._batch = WriteBatch(raw_mode=True)
        self._ids.clear()
