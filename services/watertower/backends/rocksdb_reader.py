"""Readers of the embedded store: secondary instances beside the owner's process, or without one.

rocksdict holds the interpreter lock while a secondary catches up and while it iterates; it lets go of it only in multi-gets and when it
closes. So a catch-up stops the process for as long as it takes: 2 to 3 us per follow that it takes over.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rocksdict import Rdict

from watertower.backends import cells
from watertower.backends import rocksdb_keys as keys
from watertower.backends.rocksdb_open import Row, follow, last_key, multi_get, open_secondary, scan, scan_in_pieces, written
from watertower.codec import decode_feed
from watertower.core.model import KINDS, EdgeKey, Kind, ListKey, Progress, Shard, ShardKey
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.ports import EdgeRow, FeedMessage, ListCursor, StoreIdentity

_SCAN_ROWS = 1_000
"""Rows that a scanner takes at a time."""

_CHECK_ROWS = 100
"""Edges that a check of one subject takes at a time: as a rule the first is active."""

_SCANNER_CACHE_BYTES = 8 * 1024 * 1024
"""Bytes of a scanner's block cache: it reads each block once."""


class RocksDbReader:
    """The StoreReader and FeedReader of ports.py, on one secondary instance."""

    def __init__(self, path: Path, secondary_path: Path, identity: StoreIdentity, block_cache_bytes: int) -> None:
        """`secondary_path` is a folder for this instance alone; it is removed on close.

        Raises BackendUnavailable while there is no store, StartRefused (see rocksdb_open.open_secondary).
        """
        self._path, self._secondary_path, self._identity = path, secondary_path, identity
        self._block_cache_bytes = block_cache_bytes
        # Around every use of the instance: while it catches up, what it shows may have holes.
        self._lock = threading.RLock()
        self._caught_up_to: frozenset[tuple[str, int]] | None = None
        self._seen: int | None = None  # sequence of the last feed message taken
        self._closed = False
        self.reopened = 0
        """How often the instance could not follow its owner and was opened anew."""
        self._db = self._open()
        self._whole = True

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    def catch_up(self) -> None:
        with self._lock:
            now = written(self._path)
            if now is None or now != self._caught_up_to:  # RocksDB takes half a millisecond to find out that there is nothing
                self._follow()
                self._caught_up_to = now

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        return [self._read_entity(entity) for entity in entities]

    def _read_entity(self, entity: str) -> dict[tuple[int, int], Shard]:
        prefix = keys.entity_prefix(entity)
        shards: dict[tuple[int, int], Shard] = {}
        with self._lock:
            rows = scan(self._current(), prefix)
        for key, cell in rows:
            _, metric, shard = keys.decode_shard_key(key)
            shards[metric, shard] = cells.decode_shard(cell)
        return shards

    def read_progress(self) -> dict[int, Progress]:
        with self._lock:
            return _progress(self._current())

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        if KINDS[Kind(kind)].needs_ref:
            active = {subject: self._any_active(keys.edge_prefix(actor, kind, subject)) for subject in dict.fromkeys(subjects)}
            return [active[subject] for subject in subjects]
        with self._lock:
            values = multi_get(self._current(), keys.edge_keys([(actor, kind, subject, "") for subject in subjects], keys.Ids()))
        return [value is not None and cells.decode_edge(value).active for value in values]

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        return self._list(keys.list_prefix(keys.SUBJECT_LISTS, subject, kind), after, limit)

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        return self._list(keys.list_prefix(keys.ACTOR_LISTS, actor, kind), after, limit)

    def poll(self) -> list[FeedMessage]:
        """Of FeedReader. Catches up first."""
        return [decode_feed(payload) for payload in self.poll_payloads()]

    def poll_payloads(self) -> list[bytes]:
        """The same, as codec.encode_feed wrote them."""
        with self._lock:
            self.catch_up()
            db = self._current()
            if self._seen is None:
                last = last_key(db, keys.FEED)
                self._seen = -1 if last is None else keys.decode_sequence(last)
                return []
            rows = scan(db, keys.FEED, start=keys.feed_key(self._seen + 1))
            if rows:
                self._seen = keys.decode_sequence(rows[-1][0])
        return [payload for _, payload in rows]

    def close(self) -> None:
        """Lets go and removes `secondary_path`. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                _close_secondary(self._db, self._secondary_path)

    def _any_active(self, prefix: bytes) -> bool:
        """Of edges that differ in ref alone, as of one moment. Reads up to the first active one, so removed ones all if there is none."""
        with self._lock:
            return any(cells.decode_edge(value).active for _, value in scan_in_pieces(self._current(), prefix, _CHECK_ROWS))

    def _list(self, prefix: bytes, after: ListCursor | None, limit: int) -> list[ListCursor]:
        start = prefix if after is None else keys.list_place(prefix, after) + b"\0"
        with self._lock:
            rows = scan(self._current(), prefix, start, limit)
        return [keys.decode_cursor(key, len(prefix)) for key, _ in rows]

    def _current(self) -> Rdict:
        """The instance, without holes."""
        if self._closed:
            raise BackendRefused("the reader is closed")
        if not self._whole:
            self._follow()
        return self._db

    def _follow(self) -> None:
        if self._closed:
            raise BackendRefused("the reader is closed")
        self._caught_up_to, self._whole = None, False
        # The owner may delete a file between our reading its name and opening it: the second attempt reads newer names.
        for _ in range(2):
            with suppress(BackendUnavailable, BackendRefused):
                follow(self._db, self._path)
                self._whole = True
                return
        try:
            self._db = self._open()
        except StartRefused as error:  # this is no start any more
            raise BackendRefused(str(error)) from error
        self._whole = True
        self.reopened += 1

    def _open(self) -> Rdict:
        return open_secondary(self._path, self._secondary_path, self._identity, self._block_cache_bytes)


class RocksDbScanner:
    """The StoreScanner of ports.py: a secondary instance that never catches up, and so stays at the moment of its opening."""

    def __init__(self, path: Path, secondary_path: Path, identity: StoreIdentity) -> None:
        """`secondary_path` is a folder for this instance alone; it is removed on close.

        Works beside an owner or without one. Raises BackendUnavailable while there is no store, StartRefused
        (see rocksdb_open.open_secondary).
        """
        self._secondary_path, self._identity = secondary_path, identity
        self._db = open_secondary(path, secondary_path, identity, _SCANNER_CACHE_BYTES)
        self._closed = False

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    def progress(self) -> dict[int, Progress]:
        return _progress(self._db)

    def edges(self) -> Iterator[EdgeRow]:
        for key, value in self._rows(keys.EDGES):
            yield EdgeRow(keys.decode_edge_key(key), cells.decode_edge(value))

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        for key, cell in self._rows(keys.SHARDS):
            yield keys.decode_shard_key(key), cells.decode_shard(cell)

    def subject_lists(self) -> Iterator[ListKey]:
        for key, value in self._rows(keys.SUBJECT_LISTS):
            yield keys.decode_list_row(key, value)

    def actor_lists(self) -> Iterator[EdgeKey]:
        for key, _ in self._rows(keys.ACTOR_LISTS):
            yield keys.decode_actor_list_row(key)

    def close(self) -> None:
        """Lets go and removes `secondary_path`. Idempotent."""
        if not self._closed:
            self._closed = True
            _close_secondary(self._db, self._secondary_path)

    def _rows(self, prefix: bytes) -> Iterator[Row]:
        return scan_in_pieces(self._db, prefix, _SCAN_ROWS)


def _progress(db: Rdict) -> dict[int, Progress]:
    return {keys.decode_partition(key): cells.decode_progress(value) for key, value in scan(db, keys.PROGRESS)}


def _close_secondary(db: Rdict, secondary_path: Path) -> None:
    with suppress(Exception):  # there is nothing that a reader could lose
        db.close()
    shutil.rmtree(secondary_path, ignore_errors=True)
