"""A store on the replicas of cluster.py: the Store, StoreReader and StoreScanner of ports.py.

Every row is a cell of its own: nothing but the order of the steps keeps one row's write before another's. How rows lie in Cassandra, where
some are written and read together, is in cassandra.py.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from watertower.backends.memory import page
from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.core.positions import write_timestamp
from watertower.ports import EdgeRow, ListCursor, StoreIdentity
from watertower.testing.simulator.cluster import Cluster, Partition, Select, Write
from watertower.testing.simulator.kernel import wait


def edge_write(key: EdgeKey, edge: Edge, generation: int) -> Write:
    return Write(("edges", key[0]), key, (write_timestamp(generation, edge.offset), edge))


def shard_write(key: ShardKey, shard: Shard, generation: int) -> Write:
    return Write(("shards", key[0]), key, (write_timestamp(generation, shard.offset), shard))


def list_write(row: ListKey, change: ListChange, generation: int) -> Write:
    timestamp = write_timestamp(generation, change.offset, delete=not change.present)
    return Write(("lists", row[:2]), row, (timestamp, True if change.present else None))


def progress_write(partition: int, progress: Progress, generation: int) -> Write:
    return Write(("progress", partition), partition, (write_timestamp(generation, progress.end), progress))


class ReplicatedStore:
    """One process's Store and StoreReader of ports.py. Its methods block in virtual time (kernel.wait)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._generation = cluster.identity.generation

    @property
    def identity(self) -> StoreIdentity:
        return self._cluster.identity

    # --- Store

    def read_touched(self, keys: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        edges = self.read_edges(keys.edges)
        return edges, self.read_shards(keys.shards)

    def read_edges(self, keys: Collection[EdgeKey]) -> dict[EdgeKey, Edge]:
        return self._cells([(("edges", key[0]), key) for key in keys])

    def read_shards(self, keys: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        return self._cells([(("shards", key[0]), key) for key in keys])

    def read_progress(self) -> dict[int, Progress]:
        return self._cells([(("progress", partition), partition) for partition in range(self.identity.log.partitions)])

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        writes = [shard_write(key, shard, self._generation) for key, shard in shards.items()]
        writes += [list_write(row, change, self._generation) for row, change in lists.items()]
        self._write(writes)

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        self._write([edge_write(key, edge, self._generation) for key, edge in edges.items()])

    def write_progress(self, progress: Mapping[int, Progress]) -> None:
        self._write([progress_write(partition, row, self._generation) for partition, row in progress.items()])

    def sync(self) -> None:
        """Nothing to do: every write was acknowledged."""

    def abandon(self) -> None:
        """Nothing to do: nothing is held back."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _write(self, writes: list[Write]) -> None:
        if writes:
            wait(self._cluster.all_of([self._cluster.writing([write]) for write in writes]))

    def _cells(self, asked: list[tuple[Partition, Any]]) -> dict[Any, Any]:
        selects = [Select(partition, {key}.__contains__, repaired_as_one=False) for partition, key in asked]
        found = wait(self._cluster.all_of([self._cluster.reading(select) for select in selects])) if asked else []
        return {key: value for cells in found for key, value in cells.items()}

    def _partition(self, partition: Partition) -> dict[Any, Any]:
        return wait(self._cluster.reading(Select(partition, lambda key: True, repaired_as_one=False)))

    # --- StoreReader

    def catch_up(self) -> None:
        """Nothing to do: reads are at quorum."""

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        selects = [Select(("shards", entity), lambda key: True, repaired_as_one=False) for entity in entities]
        found = wait(self._cluster.all_of([self._cluster.reading(select) for select in selects])) if entities else []
        return [{key[1:]: shard for key, shard in rows.items()} for rows in found]

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        active = {key[2] for key, edge in self._partition(("edges", actor)).items() if edge.active and key[1] == kind}
        return [subject in active for subject in subjects]

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        rows = self._partition(("lists", (subject, kind)))
        return page([ListCursor(at, actor, ref) for _, _, _, _, at, actor, ref in rows], after, limit)

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        rows = self._partition(("edges", actor))
        return page([ListCursor(e.occurred_at, s, ref) for (_, k, s, ref), e in rows.items() if e.active and k == kind], after, limit)


class ReplicaScanner:
    """The StoreScanner of ports.py on what some replicas hold together, at once: for the checks of a run."""

    def __init__(self, cluster: Cluster, replicas: Collection[int]) -> None:
        self._cluster, self._replicas = cluster, replicas

    @property
    def identity(self) -> StoreIdentity:
        return self._cluster.identity

    def progress(self) -> dict[int, Progress]:
        return dict(self._rows("progress"))

    def edges(self) -> Iterator[EdgeRow]:
        return (EdgeRow(key, edge) for key, edge in self._rows("edges"))

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        return self._rows("shards")

    def subject_lists(self) -> Iterator[ListKey]:
        return (row for row, _ in self._rows("lists"))

    def actor_lists(self) -> Iterator[EdgeKey]:
        return (key for key, edge in self.edges() if edge.active)

    def close(self) -> None:
        """Nothing to let go of."""

    def _rows(self, table: str) -> Iterator[tuple[Any, Any]]:
        for partition in self._cluster.partitions(table):
            for key, (_, value) in self._cluster.merged(self._replicas, partition).items():
                if value is not None:
                    yield key, value
