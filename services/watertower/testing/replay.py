"""Logs made from a seed, applied to a store the way a projector does, whole or broken off between two steps."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from watertower.core.fold import Flush, fold, touched
from watertower.core.model import KINDS, Edge, EdgeKey, EventBatch, Kind, ListKey, Progress, Record, Shard, ShardKey
from watertower.core.sharding import partition_of
from watertower.ports import CountsFeed, FeedMessage, Store, StoreScanner

STEPS = ("derived", "edges", "progress", "publish")
"""The steps of a flush that write, in order."""

Event = tuple[str, int, str, str, bool, int]
"""(actor, kind, subject, ref, active, occurred_at)"""


class Rows(NamedTuple):
    """Everything that a store holds."""

    edges: dict[EdgeKey, Edge]
    shards: dict[ShardKey, Shard]
    subject_lists: list[ListKey]  # sorted
    actor_lists: list[EdgeKey]  # sorted
    progress: dict[int, Progress]


def record(partition: int, offset: int, events: Sequence[Event]) -> Record:
    """A log record of these events."""
    actors, kinds, subjects, refs, actives, times = zip(*events, strict=True)
    batch = EventBatch(actors, bytes(kinds), subjects, refs, bytes(actives), times)
    return Record(partition, offset, b"%08d" % offset, 1_000 * (offset + 1), batch)


def random_log(seed: int, partitions: int, records: int, events_max: int = 6) -> list[Record]:
    """Events between a few ids at a few moments, so that they meet: duplicates, late ones, removals of what never was."""
    rng = random.Random(seed)
    ids = ["a", "ab", "ü", "b" * 128]
    offsets: dict[int, int] = defaultdict(int)
    log: list[Record] = []
    while len(log) < records:
        by_partition: dict[int, list[Event]] = defaultdict(list)
        for _ in range(rng.randint(1, events_max)):
            actor, subject, kind = rng.choice(ids), rng.choice(ids), rng.choice(list(Kind))
            if actor != subject or KINDS[kind].allows_self:
                ref = rng.choice(["1", "2"]) if KINDS[kind].needs_ref else ""
                by_partition[partition_of(actor, partitions)].append((actor, kind, subject, ref, rng.random() < 0.6, rng.randint(1, 60)))
        for partition, events in by_partition.items():
            log.append(record(partition, offsets[partition], events))
            offsets[partition] += rng.randint(1, 2)  # a log may have gaps
    return log


def messages(flush: Flush, after: dict[int, int]) -> list[FeedMessage]:
    """What a projector publishes about a flush, per partition in its order."""
    found = []
    for partition, progress in flush.progress.items():
        shards = [(key, shard) for key, shard in flush.published.items() if key[2] == partition]
        found.append(
            FeedMessage(
                partition,
                after.get(partition, -1),
                progress.end,
                progress.appended_at,
                [entity for (entity, _, _), _ in shards],
                bytes([metric for (_, metric, _), _ in shards]),
                [shard.value for _, shard in shards],
                [shard.offset for _, shard in shards],
            )
        )
    return found


def apply(store: Store, feed: CountsFeed, records: Sequence[Record], steps: int = len(STEPS), *, sync: bool = True) -> Flush:
    """One flush of these records: reads, folds, and takes the first `steps` of STEPS; then syncs, or not."""
    keys = touched(records)
    edges = store.read_edges(keys.edges)
    flush = fold(records, edges, store.read_shards(keys.shards))
    write(store, feed, flush, range(steps))
    if sync:
        store.sync()
    return flush


def write(store: Store, feed: CountsFeed, flush: Flush, steps: Iterable[int] = range(len(STEPS))) -> None:
    """Some of a flush's STEPS, by number."""
    for step in steps:
        if STEPS[step] == "derived":
            store.write_derived(flush.shards, flush.lists)
        elif STEPS[step] == "edges":
            store.write_edges(flush.edges)
        elif STEPS[step] == "progress":
            store.write_progress(flush.progress)
        else:
            feed.publish(messages(flush, {p: row.end for p, row in store.read_progress().items()}))


def expected_rows(log: Sequence[Record]) -> Rows:
    """What every store must hold after the whole log, however it was applied: each record folded for itself, in plain dicts."""
    edges: dict[EdgeKey, Edge] = {}
    shards: dict[ShardKey, Shard] = {}
    lists: set[ListKey] = set()
    progress: dict[int, Progress] = {}
    for one in log:
        flush = fold([one], edges, shards)
        edges.update(flush.edges)
        shards.update(flush.shards)
        progress.update(flush.progress)
        for row, (present, _) in flush.lists.items():
            if present:
                lists.add(row)
            else:
                lists.discard(row)
    active = sorted(key for key, edge in edges.items() if edge.active)
    return Rows(edges, shards, sorted(lists), active, progress)


def at_ends(rows: Rows) -> Rows:
    """The rows with every shard at its partition's end: where a shard was last touched depends on the boundaries of the flushes."""
    moved = {key: shard._replace(offset=rows.progress[key[2]].end) for key, shard in rows.shards.items()}
    return rows._replace(shards=moved)


def rows_of(scanner: StoreScanner) -> Rows:
    """Everything that a scan finds. Raises ValueError where it finds a row twice."""
    edges = [(key, edge) for key, edge in scanner.edges()]
    shards = list(scanner.shards())
    subject_lists, actor_lists = sorted(scanner.subject_lists()), sorted(scanner.actor_lists())
    for name, keys in (("edge", [k for k, _ in edges]), ("shard", [k for k, _ in shards]), ("list", subject_lists), ("actor", actor_lists)):
        if len(set(keys)) != len(keys):
            raise ValueError(f"a scan found an {name} row twice")
    return Rows(dict(edges), dict(shards), subject_lists, actor_lists, scanner.progress())
