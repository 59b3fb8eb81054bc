"""A store of three replicas, as a client of Cassandra sees one: writes and reads at quorum, blocking read repair, write timestamps, and
messages that are lost, doubled, late and out of order. The Store, StoreReader and StoreScanner of ports.py stand on it.

Every row is a cell of its own: nothing but the order of the steps keeps one row's write before another's.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from watertower.backends.memory import page
from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, ListChange, ListKey, Progress, Shard, ShardKey
from watertower.core.positions import write_timestamp
from watertower.errors import BackendUnavailable
from watertower.ports import EdgeRow, ListCursor, StoreIdentity
from watertower.testing.simulator.faults import Faults
from watertower.testing.simulator.kernel import VirtualTimeLoop, wait

REPLICAS = 3
QUORUM = 2
ATTEMPTS = 4
"""How often a client tries one statement before it gives up."""

TIMEOUT_S = 2.0

Partition: TypeAlias = tuple[str, Any]
"""(table, partition key)."""

Cell: TypeAlias = tuple[int, Any]
"""(write timestamp, value); None is a tombstone."""


class Write(NamedTuple):
    """One cell to be written."""

    partition: Partition
    key: Any
    cell: Cell


def newest(one: Cell | None, other: Cell | None) -> Cell | None:
    """The cell that wins. A delete beats a value of the same timestamp."""
    if one is None or other is None:
        return one or other
    if one[0] != other[0]:
        return max(one, other, key=lambda cell: cell[0])
    return one if one[1] is None else other


class Replica:
    """What one node holds."""

    def __init__(self) -> None:
        self.tables: dict[Partition, dict[Any, Cell]] = defaultdict(dict)

    def apply(self, write: Write) -> None:
        cells = self.tables[write.partition]
        cells[write.key] = newest(write.cell, cells.get(write.key)) or write.cell


class Cluster:
    """Three replicas and the network before them."""

    def __init__(self, loop: VirtualTimeLoop, faults: Faults, rng: random.Random, identity: StoreIdentity) -> None:
        self._loop, self._faults, self._rng = loop, faults, rng
        self.identity = identity
        self.replicas = [Replica() for _ in range(REPLICAS)]
        self.slow_until_s = 0.0
        self.read_repair = True

    # --- messages

    def _latency_s(self) -> float:
        latency_s = self._rng.uniform(0.001, 0.004)
        if self._faults.strikes("message_reordered"):
            latency_s += self._faults.stream("message_reordered").uniform(0.005, 0.05)
        if self._faults.strikes("message_delayed"):
            latency_s += self._faults.stream("message_delayed").uniform(0.1, 3 * TIMEOUT_S)
        if self._loop.now_s < self.slow_until_s:
            latency_s += self._rng.uniform(0.2, 1.5)
        return latency_s

    def _send(self, deliver: Callable[..., None], *args: Any) -> None:
        """One message. It arrives later, twice, or never."""
        if self._faults.strikes("message_lost"):
            return
        self._loop.call_later(self._latency_s(), deliver, *args)
        if self._faults.strikes("message_duplicated"):
            self._loop.call_later(self._latency_s(), deliver, *args)

    # --- writes

    async def write(self, writes: Iterable[Write]) -> None:
        """All of them, side by side, each acknowledged by a quorum. Raises BackendUnavailable when one is not: then any may have been
        applied, on any replica, or will be."""
        await self._all([_Writing(self, one).done for one in writes])

    async def _all(self, waiting: list["asyncio.Future[Any]"]) -> list[Any]:
        results, error = [], None
        for future in waiting:
            try:
                results.append(await future)
            except BackendUnavailable as failed:
                error = failed
        if error is not None:
            raise error
        return results

    # --- reads

    async def read(self, asked: Sequence[tuple[Partition, Any]]) -> list[Any]:
        """The values of cells at quorum, in place; None for what is not there. Key None asks for a whole partition, as {key: value}."""
        return await self._all([_Reading(self, partition, key).done for partition, key in asked])

    # --- as an observer sees it

    def merged(self, replicas: Collection[int], partition: Partition) -> dict[Any, Cell]:
        """A partition as these replicas have it together."""
        cells: dict[Any, Cell] = {}
        for number in replicas:
            for key, cell in self.replicas[number].tables.get(partition, {}).items():
                cells[key] = newest(cell, cells.get(key)) or cell
        return cells

    def partitions(self, table: str) -> list[Partition]:
        """Of a table, on any replica, in order of first appearance."""
        found = {partition: None for replica in self.replicas for partition in replica.tables if partition[0] == table}
        return list(found)


class _Statement(ABC):
    """A statement on its way: tried again after each timeout, given up after ATTEMPTS."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.done: asyncio.Future[Any] = cluster._loop.create_future()
        self._attempt = 0
        self._next_attempt()

    @abstractmethod
    def _try(self) -> None: ...

    def _next_attempt(self) -> None:
        self._attempt += 1
        self._try()
        self._timer = self._cluster._loop.call_later(TIMEOUT_S, self._expire)

    def _expire(self) -> None:
        if self.done.done():
            return
        if self._attempt < ATTEMPTS:
            self._next_attempt()
        else:
            self.done.set_exception(BackendUnavailable("a statement was not answered by a quorum"))
            self.done.exception()  # seen, also where nobody waits any more

    def _end(self, result: Any) -> None:
        self._timer.cancel()
        self.done.set_result(result)


class _Writing(_Statement):
    """One write: to every replica, until a quorum has it."""

    def __init__(self, cluster: Cluster, write: Write) -> None:
        self._write = write
        self._acks: set[int] = set()
        super().__init__(cluster)

    def _try(self) -> None:
        cluster, faults = self._cluster, self._cluster._faults
        if self._attempt == 1:
            # Drawn once: what keeps a statement from a quorum does so for all of its attempts, or no write would ever fail.
            self._silent = faults.strikes("write_applied_but_timed_out")
            self._chosen: Sequence[int] = range(REPLICAS)
            if faults.strikes("write_on_one_replica"):
                self._chosen = [faults.stream("write_on_one_replica").randrange(REPLICAS)]
        late_s = faults.stream("write_applied_late").uniform(TIMEOUT_S, 30.0) if faults.strikes("write_applied_late") else 0.0
        for replica in self._chosen:
            if late_s:
                cluster._loop.call_later(late_s, self._arrive, replica, True)
            else:
                cluster._send(self._arrive, replica, self._silent)

    def _arrive(self, replica: int, silent: bool) -> None:
        self._cluster.replicas[replica].apply(self._write)
        if not silent and not self.done.done():
            self._cluster._send(self._acknowledged, replica)

    def _acknowledged(self, replica: int) -> None:
        self._acks.add(replica)
        if len(self._acks) >= QUORUM and not self.done.done():
            self._end(None)


class _Reading(_Statement):
    """One read: from two replicas, repaired before it is answered."""

    def __init__(self, cluster: Cluster, partition: Partition, key: Any) -> None:
        self._partition, self._key = partition, key
        super().__init__(cluster)

    def _try(self) -> None:
        if self._attempt == 1:
            self._unanswered = self._cluster._faults.strikes("read_failed")
        if self._unanswered:
            return
        self._said: dict[int, dict[Any, Cell]] = {}
        for replica in self._cluster._rng.sample(range(REPLICAS), QUORUM):
            self._cluster._send(self._arrive, replica, self._attempt)

    def _arrive(self, replica: int, attempt: int) -> None:
        cells = self._cluster.replicas[replica].tables.get(self._partition, {})
        said = dict(cells) if self._key is None else {self._key: cells[self._key]} if self._key in cells else {}
        self._cluster._send(self._answered, replica, attempt, said)

    def _answered(self, replica: int, attempt: int, said: dict[Any, Cell]) -> None:
        if attempt != self._attempt or replica in self._said or self.done.done():
            return
        self._said[replica] = said
        if len(self._said) < QUORUM:
            return
        self._cells: dict[Any, Cell] = {}
        for cells in self._said.values():
            for key, cell in cells.items():
                self._cells[key] = newest(cell, self._cells.get(key)) or cell
        repairs = [
            (number, Write(self._partition, key, cell))
            for number, cells in self._said.items()
            for key, cell in self._cells.items()
            if cells.get(key) != cell
        ]
        if not self._cluster.read_repair or not repairs:
            self._answer()
            return
        self._unrepaired = {(number, write.key) for number, write in repairs}
        for number, write in repairs:
            self._cluster._send(self._repair, number, write, attempt)

    def _repair(self, replica: int, write: Write, attempt: int) -> None:
        self._cluster.replicas[replica].apply(write)
        self._cluster._send(self._repaired, replica, write.key, attempt)

    def _repaired(self, replica: int, key: Any, attempt: int) -> None:
        if attempt != self._attempt or self.done.done():
            return
        self._unrepaired.discard((replica, key))
        if not self._unrepaired:
            self._answer()

    def _answer(self) -> None:
        if self._key is None:
            self._end({key: value for key, (_, value) in self._cells.items() if value is not None})
        else:
            cell = self._cells.get(self._key)
            self._end(None if cell is None else cell[1])


# --- the ports


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
            wait(self._cluster.write(writes))

    def _cells(self, asked: list[tuple[Partition, Any]]) -> dict[Any, Any]:
        values = wait(self._cluster.read(asked)) if asked else []
        return {key: value for (_, key), value in zip(asked, values, strict=True) if value is not None}

    def _partition(self, partition: Partition) -> dict[Any, Any]:
        (rows,) = wait(self._cluster.read([(partition, None)]))
        found: dict[Any, Any] = rows
        return found

    # --- StoreReader

    def catch_up(self) -> None:
        """Nothing to do: reads are at quorum."""

    def read_entity(self, entity: str) -> dict[tuple[int, int], Shard]:
        return {key[1:]: shard for key, shard in self._partition(("shards", entity)).items()}

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
