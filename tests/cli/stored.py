"""Stores for audits and exports: one of plain dicts, in which a test can plant what is wrong, and real data folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.core.histories import Happening, Rows, records_of
from watertower import datafolder
from watertower.backends.rocksdb import RocksDbStore
from watertower.core.fold import fold, touched
from watertower.core.model import EdgeKey, ListKey, Progress, Record, Shard, ShardKey
from watertower.ports import EdgeRow, LogIdentity, StoreIdentity


class Scanner:
    """A StoreScanner over plain dicts. Edges and shards are in the order of their ids, as in a real store."""

    def __init__(self, rows: Rows, progress: dict[int, Progress], partitions: int, actor_rows: Sequence[EdgeKey] | None = None) -> None:
        self.rows = rows
        self.ends = progress
        self.actor_rows = [key for key, edge in rows.edges.items() if edge.active] if actor_rows is None else list(actor_rows)
        self.identity = StoreIdentity(LogIdentity("test", partitions), 1)

    def progress(self) -> dict[int, Progress]:
        return self.ends

    def edges(self) -> Iterator[EdgeRow]:
        for key in sorted(self.rows.edges):
            yield EdgeRow(key, self.rows.edges[key])

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        for key in sorted(self.rows.shards):
            yield key, self.rows.shards[key]

    def subject_lists(self) -> Iterator[ListKey]:
        yield from sorted(self.rows.lists)

    def actor_lists(self) -> Iterator[EdgeKey]:
        yield from sorted(self.actor_rows)

    def close(self) -> None:
        pass


def ends_of(records: Sequence[Record]) -> dict[int, Progress]:
    """Progress when all records are applied."""
    return {record.partition: Progress(record.offset, record.record_id, record.appended_at) for record in records}


def store_of(path: Path, partitions: int) -> RocksDbStore:
    """The store of a data folder, which is made if it is not there."""
    folder = datafolder.open_or_create(path, partitions)
    return RocksDbStore(
        folder.store_path,
        StoreIdentity(folder.identity, folder.generation),
        write_buffer_bytes=4_194_304,
        block_cache_bytes=4_194_304,
        feed_messages_max=100,
    )


def data_folder(path: Path, events: Sequence[Happening], partitions: int) -> None:
    """A data folder to which events were applied."""
    store = store_of(path, partitions)
    records = records_of(events, [len(events)])
    keys = touched(records)
    flush = fold(records, store.read_edges(keys.edges), store.read_shards(keys.shards))
    store.write_derived(flush.shards, flush.lists)
    store.write_edges(flush.edges)
    store.write_progress(flush.progress)
    store.sync()
    store.close()
