"""The embedded store of a run: one owner, one synced batch a flush, and readers that see it as of their last catch-up.

Its rows lie on all replicas of the run's Cluster at once, so that the run's checks find them there.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.errors import BackendUnavailable
from watertower.ports import FeedMessage
from watertower.testing.simulator.cluster import Cell, Cluster, Partition, Write
from watertower.testing.simulator.feed import SimulatedFeed, SimulatedFeedReader
from watertower.testing.simulator.kernel import wait
from watertower.testing.simulator.replicas import ReplicatedStore, edge_write, list_write, progress_write, shard_write


class EmbeddedStore(ReplicatedStore):
    """Store and CountsFeed of ports.py in one, as backends/rocksdb.py: nothing shows before `sync`."""

    def __init__(self, cluster: Cluster, feed: SimulatedFeed) -> None:
        super().__init__(cluster)
        self._feed = feed
        self._held: list[list[Write] | list[FeedMessage]] = []  # by step

    def read_touched(self, keys: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        shards = self.read_shards(keys.shards)
        return self.read_edges([edge for edge, of_actor in keys.edges.items() if of_actor in shards]), shards

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        writes = [shard_write(key, shard, 1) for key, shard in shards.items()]
        self._held.append([*writes, *(list_write(row, change, 1) for row, change in lists.items())])

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        self._held.append([edge_write(key, edge, 1) for key, edge in edges.items()])

    def write_progress(self, progress: Mapping[int, Progress]) -> None:
        self._held.append([progress_write(partition, row, 1) for partition, row in progress.items()])

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        self._held.append(list(messages))

    def sync(self) -> None:
        """Durable at some moment within; where it fails, any number of the steps may be."""
        faults, held = self._cluster._faults, self._held
        failing = faults.strikes("sync_failed")
        wait(asyncio.sleep(self._cluster._rng.uniform(0.0005, 0.005)))
        self._apply(held[: faults.stream("sync_failed").randint(0, len(held))] if failing else held)
        self._held = []
        wait(asyncio.sleep(self._cluster._rng.uniform(0.0005, 0.005)))
        if failing:
            raise BackendUnavailable("the disk failed")

    def abandon(self) -> None:
        self._held = []

    def _apply(self, steps: list[list[Write] | list[FeedMessage]]) -> None:
        for step in steps:
            for one in step:
                if isinstance(one, Write):
                    for replica in self._cluster.replicas:
                        replica.tables[one.partition][one.key] = one.cell  # the owner is alone: the last write is the newest
                else:
                    self._feed.messages[one.partition].append(one)

    def _cells(self, asked: list[tuple[Partition, Any]]) -> dict[Any, Any]:
        wait(asyncio.sleep(self._cluster._rng.uniform(0.0002, 0.002)))
        return _values(self._cluster.replicas[0].tables, asked)


class SecondaryReader(ReplicatedStore):
    """StoreReader and FeedReader of ports.py in one, as backends/rocksdb_reader.py."""

    def __init__(self, cluster: Cluster, feed: SimulatedFeed) -> None:
        super().__init__(cluster)
        self._messages = SimulatedFeedReader(feed)
        self._tables: dict[Partition, dict[Any, Cell]] = {}

    def catch_up(self) -> None:
        wait(asyncio.sleep(self._cluster._rng.uniform(0.0005, 0.01)))
        self._tables = {partition: dict(cells) for partition, cells in self._cluster.replicas[0].tables.items()}

    def poll(self) -> list[FeedMessage]:
        """The rows first, then at once the messages up to the same moment: never ahead of the rows."""
        self._messages.travel()
        self.catch_up()
        return self._messages.take()

    def _cells(self, asked: list[tuple[Partition, Any]]) -> dict[Any, Any]:
        wait(asyncio.sleep(self._cluster._rng.uniform(0.0002, 0.01)))
        return _values(self._tables, asked)

    def _partition(self, partition: Partition) -> dict[Any, Any]:
        wait(asyncio.sleep(self._cluster._rng.uniform(0.0002, 0.01)))
        return {key: value for key, (_, value) in self._tables.get(partition, {}).items() if value is not None}


def _values(tables: Mapping[Partition, Mapping[Any, Cell]], asked: Collection[tuple[Partition, Any]]) -> dict[Any, Any]:
    cells = {key: tables.get(partition, {}).get(key) for partition, key in asked}
    return {key: cell[1] for key, cell in cells.items() if cell is not None and cell[1] is not None}
