"""An actor's partition in Cassandra, on three replicas of which the test chooses who answers: what a broken-off flush left on one of them.

The real store and reader run on the simulator's connection.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from watertower.backends.cassandra_edges import ActorRows
from watertower.core.fold import Touched
from watertower.core.model import Edge, EdgeKey, Kind, Metric, Shard, ShardKey
from watertower.core.sharding import partition_of
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.simulator import cassandra
from watertower.testing.simulator.cluster import REPLICAS, Cluster
from watertower.testing.simulator.faults import KINDS, Faults
from watertower.testing.simulator.kernel import VirtualTimeLoop, blocking

T = TypeVar("T")

PARTITIONS = 1
OWN: ShardKey = ("ann", Metric.FOLLOWING, partition_of("ann", PARTITIONS))
EDGES: list[EdgeKey] = [("ann", Kind.FOLLOW, subject, "") for subject in ("bob", "cid", "dan", "eve")]
BEFORE, FLUSHED_TO = 2, 9
TOUCHED = Touched(dict.fromkeys(EDGES, OWN), {OWN: None})


class ChosenReplicas(random.Random):
    """Randomness of a Cluster: reads go to the replicas that are named next; the last ones stay."""

    def __init__(self) -> None:
        super().__init__(1)
        self.next: list[tuple[int, ...]] = [(0, 1)]

    def sample(self, population: Any, k: int, **_: Any) -> list[int]:
        chosen = self.next.pop(0) if len(self.next) > 1 else self.next[0]
        return list(chosen) if k < REPLICAS else list(range(REPLICAS))


class Scene:
    """One follow that is everywhere, and then a flush of three more that ended while it wrote the edges: with the own count they are on
    replica 0 alone."""

    def __init__(self) -> None:
        self.loop = VirtualTimeLoop()
        self.faults = Faults(0, without=tuple(KINDS))
        self.replicas = ChosenReplicas()
        self.cluster = Cluster(self.loop, self.faults, self.replicas, StoreIdentity(LogIdentity("log", PARTITIONS), 1))
        self.store = cassandra.store(self.cluster)
        self.reader = cassandra.reader(self.cluster)
        self.flush(1, EDGES[:1], BEFORE)
        everywhere = [dict(replica.tables["edges", ("ann",)]) for replica in self.cluster.replicas]
        self.flush(len(EDGES), EDGES[1:], FLUSHED_TO)
        for replica, cells in list(zip(self.cluster.replicas, everywhere, strict=True))[1:]:
            replica.tables["edges", ("ann",)] = cells

    def flush(self, value: int, edges: list[EdgeKey], end: int) -> None:
        """Up to its edges, and until every replica has them."""
        self.store.write_derived({OWN: Shard(value, value, (), end)}, {})
        self.run(lambda: self.store.write_edges({key: Edge(True, 10, 0, end) for key in edges}))
        self.loop.run_until_complete(asyncio.sleep(1.0))

    def run(self, function: Callable[[], T]) -> T:
        return self.loop.run_until_complete(blocking(function))

    def read(self) -> tuple[int, int]:
        """(the newest edge's offset, the own count's) as a flush reads them; -1 for what is not there."""
        edges, shards = self.run(lambda: self.store.read_touched(TOUCHED))
        return max((edge.offset for edge in edges.values()), default=-1), shards[OWN].offset if OWN in shards else -1


@pytest.fixture
def scene() -> Iterator[Scene]:
    with cassandra.surroundings():
        scene = Scene()
        yield scene
        scene.loop.close()


def trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads edges takes them as they are."""
    monkeypatch.setattr(ActorRows, "read", lambda rows, edges, own: rows._read(edges, own))


def list_in_pages(scene: Scene) -> None:
    """The page with the own count from the replicas that do not have the flush, the further ones from one that does: they are repaired
    without the count. The look at the count, at last, is where it is old."""
    scene.replicas.next = [(1, 2), (0, 1), (0, 1), (1, 2)]
    found = scene.run(lambda: scene.reader.list_subjects("ann", Kind.FOLLOW, None, 10))
    assert len(found) == len(EDGES)


def test_a_flush_reads_both_or_neither(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """From two replicas that do not have the mutation: the state before. From one that has it: edges and count, and both are repaired."""
    trust(monkeypatch)
    for pair, offset in (((1, 2), BEFORE), ((0, 1), FLUSHED_TO), ((1, 2), FLUSHED_TO)):
        scene.replicas.next = [pair]
        assert scene.read() == (offset, offset)


def test_a_reader_settles_what_its_pages_repaired(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, no two replicas show an edge without its count, also to who trusts them."""
    trust(monkeypatch)
    list_in_pages(scene)
    assert scene.faults.fired[cassandra.ASKED_ALL] == 1
    assert scene.read() == (FLUSHED_TO, FLUSHED_TO)


def test_a_flush_asks_all_where_an_edge_is_ahead_of_its_count(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that died between its pages and its look at the count did no harm."""
    monkeypatch.setattr(ActorRows, "settle", lambda rows, changed_at: None)
    list_in_pages(scene)
    assert scene.faults.fired[cassandra.ASKED_ALL] == 0
    assert scene.read() == (FLUSHED_TO, FLUSHED_TO)
    assert scene.faults.fired[cassandra.ASKED_ALL] > 0


def test_pages_without_either_would_show_an_edge_ahead_of_its_count(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What both of them are for."""
    trust(monkeypatch)
    monkeypatch.setattr(ActorRows, "settle", lambda rows, changed_at: None)
    list_in_pages(scene)
    assert scene.read() == (FLUSHED_TO, BEFORE)
