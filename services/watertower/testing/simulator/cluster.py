"""Three replicas, as a client of Cassandra sees them: writes and reads at quorum, blocking read repair, write timestamps, and messages that
are lost, doubled, late and out of order. Two stores stand on it: replicas.py and cassandra.py.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from watertower.errors import BackendUnavailable
from watertower.ports import StoreIdentity
from watertower.testing.simulator.faults import Faults
from watertower.testing.simulator.kernel import VirtualTimeLoop

REPLICAS = 3
QUORUM = 2
ATTEMPTS = 4
"""How often a client tries one statement before it gives up."""

TIMEOUT_S = 2.0

_Result = TypeVar("_Result")

Partition: TypeAlias = tuple[str, Any]
"""(table, partition key)."""

Cell: TypeAlias = tuple[int, Any]
"""(write timestamp, value); None is a tombstone."""


class Write(NamedTuple):
    """One cell to be written."""

    partition: Partition
    key: Any
    cell: Cell


Mutation: TypeAlias = Sequence[Write]
"""Cells of one partition, at least one. A replica takes all of them at one moment, or none."""


def _as_they_are(cells: dict[Any, Cell]) -> dict[Any, Cell]:
    return cells


class Select(NamedTuple):
    """What one statement reads of one partition. A replica says all of it as of one moment."""

    partition: Partition
    matches: Callable[[Any], bool]  # of a key
    cut: Callable[[dict[Any, Cell]], dict[Any, Cell]] = _as_they_are  # of what the replicas say together: puts it in order, limits it
    replicas: int = QUORUM  # so many are asked
    repaired_as_one: bool = True  # what a replica lacks is one mutation; else each cell one of its own


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

    def apply(self, mutation: Mutation) -> None:
        for write in mutation:
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

    # --- statements

    def writing(self, mutation: Mutation) -> "asyncio.Future[None]":
        """Sends a mutation. Done when a quorum acknowledged it; BackendUnavailable when none did: then any replica may have applied it,
        or will."""
        return _Writing(self, mutation).done

    def reading(self, select: Select) -> "asyncio.Future[dict[Any, Any]]":
        """Sends a select. Gives its values by key, what is deleted left out, after those who were asked agree; or BackendUnavailable."""
        return _Reading(self, select).done

    async def all_of(self, futures: Iterable["asyncio.Future[_Result]"]) -> list[_Result]:
        """Waits for statements that are on their way side by side. Raises BackendUnavailable when one failed, after all of them ended."""
        results, error = [], None
        for future in list(futures):
            try:
                results.append(await future)
            except BackendUnavailable as failed:
                error = failed
        if error is not None:
            raise error
        return results

    def count(self, what: str) -> None:
        """Notes that something happened that must happen now and then, beside the faults."""
        self._faults.fired[what] += 1

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
    """One mutation: to every replica, until a quorum has it."""

    def __init__(self, cluster: Cluster, mutation: Mutation) -> None:
        self._mutation = mutation
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
            elif len(self._mutation) > 1 and faults.strikes("mutation_on_one_replica"):
                self._chosen = [faults.stream("mutation_on_one_replica").randrange(REPLICAS)]
                self._attempt = ATTEMPTS  # who wrote it gives up at once, and what it left behind is met soon
        late_s = faults.stream("write_applied_late").uniform(TIMEOUT_S, 30.0) if faults.strikes("write_applied_late") else 0.0
        for replica in self._chosen:
            if late_s:
                cluster._loop.call_later(late_s, self._arrive, replica, True)
            else:
                cluster._send(self._arrive, replica, self._silent)

    def _arrive(self, replica: int, silent: bool) -> None:
        self._cluster.replicas[replica].apply(self._mutation)
        if not silent and not self.done.done():
            self._cluster._send(self._acknowledged, replica)

    def _acknowledged(self, replica: int) -> None:
        self._acks.add(replica)
        if len(self._acks) >= QUORUM and not self.done.done():
            self._end(None)


class _Reading(_Statement):
    """One read: from as many replicas as it asks, repaired before it is answered."""

    def __init__(self, cluster: Cluster, select: Select) -> None:
        self._select = select
        super().__init__(cluster)

    def _try(self) -> None:
        if self._attempt == 1:
            self._unanswered = self._cluster._faults.strikes("read_failed")
        if self._unanswered:
            return
        self._said: dict[int, dict[Any, Cell]] = {}
        for replica in self._cluster._rng.sample(range(REPLICAS), self._select.replicas):
            self._cluster._send(self._arrive, replica, self._attempt)

    def _arrive(self, replica: int, attempt: int) -> None:
        matches, cells = self._select.matches, self._cluster.replicas[replica].tables.get(self._select.partition, {})
        said = {key: cell for key, cell in cells.items() if matches(key)}
        self._cluster._send(self._answered, replica, attempt, said)

    def _answered(self, replica: int, attempt: int, said: dict[Any, Cell]) -> None:
        if attempt != self._attempt or replica in self._said or self.done.done():
            return
        self._said[replica] = said
        if len(self._said) < self._select.replicas:
            return
        together: dict[Any, Cell] = {}
        for cells in self._said.values():
            for key, cell in cells.items():
                together[key] = newest(cell, together.get(key)) or cell
        self._cells = self._select.cut(together)
        repairs = [(number, mutation) for number, cells in self._said.items() for mutation in self._lacking(cells)]
        if not self._cluster.read_repair or not repairs:
            self._answer()
            return
        self._unrepaired = set(range(len(repairs)))
        for order, (number, mutation) in enumerate(repairs):
            self._cluster._send(self._repair, number, mutation, order, attempt)

    def _lacking(self, said: Mapping[Any, Cell]) -> list[Mutation]:
        """What repairs a replica that said this."""
        writes = [Write(self._select.partition, key, cell) for key, cell in self._cells.items() if said.get(key) != cell]
        return ([writes] if writes else []) if self._select.repaired_as_one else [[write] for write in writes]

    def _repair(self, replica: int, mutation: Mutation, order: int, attempt: int) -> None:
        self._cluster.replicas[replica].apply(mutation)
        self._cluster._send(self._repaired, replica, order, attempt)

    def _repaired(self, replica: int, order: int, attempt: int) -> None:
        if attempt != self._attempt or self.done.done():
            return
        self._unrepaired.discard(order)
        if not self._unrepaired:
            self._answer()

    def _answer(self) -> None:
        self._end({key: value for key, (_, value) in self._cells.items() if value is not None})
