"""The protocol around the fold, on rows that keep the newest write timestamp: owners that crash, zombies that write late, flushes with
other boundaries, progress that moves back. Every row operation is one step of a random interleaving. The real fold runs unchanged.

A full simulation with replicas, network and feed is the simulator's; this is its smallest kernel, kept with the fold.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.core.histories import PARTITIONS, Happening, record_of, truth
from watertower.core import buckets
from watertower.core.fold import ShardBehindEdge, fold, touched
from watertower.core.model import KINDS, Kind, Record
from watertower.core.positions import write_timestamp
from watertower.core.sharding import partition_of

RUNS = 1_200
ACTORS = [actor for actor in "abcdefghijklmnop" if partition_of(actor, PARTITIONS) == 0][:3]


class Variant(NamedTuple):
    """How an owner works. The first of each is the rule; the others must fail."""

    read: str = "edges, shards"
    write: str = "derived, edges"
    timestamps: str = "position"
    skip_net_zero: bool = False


class Rows:
    """Rows that keep the write with the greatest timestamp."""

    def __init__(self) -> None:
        self._rows: dict[Any, tuple[int, Any]] = {}
        self._wall = 0

    def write(self, key: Any, value: Any, timestamp: int, by_position: bool) -> None:
        self._wall += 1
        timestamp = timestamp if by_position else self._wall
        if key not in self._rows or timestamp >= self._rows[key][0]:
            self._rows[key] = (timestamp, value)

    def read(self, key: Any) -> Any:
        return self._rows.get(key, (0, None))[1]

    def all(self, table: str) -> dict[Any, Any]:
        return {key[1]: value for key, (_, value) in self._rows.items() if key[0] == table and value is not None}


def owner(rows: Rows, log: list[Record], shared: dict[str, int], rng: random.Random, how: Variant) -> Iterator[None]:
    """One owner of the partition; every yield is a point at which it may be overtaken or die."""
    at = shared["next"]
    while at < len(log):
        records = log[at : at + rng.randint(1, 4)]
        end = records[-1].offset
        keys = touched(records)
        edges, shards = {}, {}
        for table in how.read.split(", "):
            for key in rng.sample(wanted := list(getattr(keys, table)), len(wanted)):
                if (row := rows.read((table, key))) is not None:
                    (edges if table == "edges" else shards)[key] = row
                yield
        flush = fold(records, edges, shards)
        derived: list[tuple[Any, Any, int]] = [
            (("shards", key), shard, write_timestamp(1, end))
            for key, shard in flush.shards.items()
            if not (how.skip_net_zero and shard.value == (shards[key].value if key in shards else 0))
        ]
        derived += [
            (("lists", key), True if change.present else None, write_timestamp(1, change.offset, delete=not change.present))
            for key, change in flush.lists.items()
        ]
        changed: list[tuple[Any, Any, int]] = [(("edges", key), edge, write_timestamp(1, edge.offset)) for key, edge in flush.edges.items()]
        steps = {"derived": derived, "edges": changed}
        for step in how.write.split(", "):
            for key, value, timestamp in rng.sample(steps[step], len(steps[step])):
                rows.write(key, value, timestamp, how.timestamps == "position")
                yield
        at += len(records)
        # Sometimes the progress of a zombie wins: it moves back.
        shared["next"] = max(shared["next"], at) if rng.random() < 0.8 else at
        yield


def failure(seed: int, how: Variant) -> str | None:
    """Runs one history; says what differs from the truth at the end, if anything."""
    rng = random.Random(seed)
    events: list[Happening] = []
    log = []
    for offset in range(rng.randint(1, 12)):
        piece = [
            Happening(rng.choice(ACTORS), int(Kind.FOLLOW), rng.choice("xy"), "", rng.random() < 0.6, rng.randint(0, 30))
            for _ in range(rng.randint(1, 3))
        ]
        events += piece
        log.append(record_of(0, offset, piece))
    rows, shared = Rows(), {"next": 0}
    alive: list[Iterator[None]] = []
    try:
        for _ in range(rng.randint(1, 400)):
            if not alive or (len(alive) < 3 and rng.random() < 0.05):
                alive.append(owner(rows, log, shared, rng, how))
            one = rng.choice(alive)
            if next(one, "done") == "done":
                alive.remove(one)
            if alive and rng.random() < 0.04:
                alive.pop(rng.randrange(len(alive)))
        for zombie in alive:
            if rng.random() < 0.5:
                list(zombie)
        if rng.random() < 0.5:
            shared["next"] = rng.randint(0, shared["next"])
        list(owner(rows, log, shared, rng, how))
    except ShardBehindEdge as error:
        return f"alarm: {error}"
    newest = truth(events)
    active = {key: at for key, (at, removed) in newest.items() if not removed}
    if {k: (e.active, e.occurred_at) for k, e in rows.all("edges").items()} != {k: (not r, at) for k, (at, r) in newest.items()}:
        return "edges"
    if sorted((a, k, s, r, at) for s, k, _, _, at, a, r in rows.all("lists")) != sorted((*key, at) for key, at in active.items()):
        return "lists"
    rule = KINDS[Kind.FOLLOW]
    for metric, place in ((rule.subject_metric, 2), (rule.actor_metric, 0)):
        for (entity, of, _), shard in rows.all("shards").items():
            if of == metric and shard.value != sum(key[place] == entity for key in active):
                return f"count {entity} {metric.name}"
    return None


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "SHARED_GAINED_MAX", 2)
    monkeypatch.setattr(buckets, "BUCKET_GAINED_MAX", 3)


def test_no_interleaving_loses_or_doubles() -> None:
    """1,200 histories (seeds 0 to 1,199): edges, lists and counts equal a naive recount in every one."""
    assert [(seed, found) for seed in range(RUNS) if (found := failure(seed, Variant()))] == []


@pytest.mark.parametrize(
    "how",
    [
        Variant(read="shards, edges"),
        Variant(write="edges, derived"),
        Variant(timestamps="wall clock"),
        Variant(skip_net_zero=True),
    ],
    ids=["shards read before edges", "edges written before derived rows", "wall-clock timestamps", "net zero not written"],
)
def test_every_forbidden_variant_is_found(how: Variant) -> None:
    """Within the same histories, so that the test above is known to be able to see."""
    assert any(failure(seed, how) for seed in range(RUNS))
