"""Histories of events for tests: strategies, a naive reference, and a way to run the real fold over them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from watertower.core.fold import fold, touched
from watertower.core.model import KINDS, Edge, EdgeKey, EventBatch, Kind, ListKey, Record, Shard, ShardKey
from watertower.core.sharding import partition_of

PARTITIONS = 3


class Happening(NamedTuple):
    """One event."""

    actor: str
    kind: int
    subject: str
    ref: str
    active: bool
    at: int


@st.composite
def happenings(draw: st.DrawFn) -> Happening:
    kind = draw(st.sampled_from(list(Kind)))
    return Happening(
        draw(st.sampled_from(["a", "b", "c", "d"])),
        int(kind),
        draw(st.sampled_from(["x", "y"])),
        draw(st.sampled_from(["r1", "r2"])) if KINDS[kind].needs_ref else "",
        draw(st.booleans()),
        draw(st.integers(0, 12)),
    )


class Rows(NamedTuple):
    """A store of plain dicts."""

    edges: dict[EdgeKey, Edge]
    shards: dict[ShardKey, Shard]
    lists: set[ListKey]

    def visible(self) -> tuple[object, ...]:
        """What a caller can see: edges, counts, and lists in order. Offsets, buckets and shares are ours."""
        counts: dict[tuple[str, int], int] = {}
        for (entity, metric, _), shard in self.shards.items():
            counts[entity, metric] = counts.get((entity, metric), 0) + shard.value
        return (
            {key: (edge.active, edge.occurred_at) for key, edge in self.edges.items()},
            {key: value for key, value in counts.items() if value},
            sorted((subject, kind, -at, actor, ref) for subject, kind, _, _, at, actor, ref in self.lists),
        )


def records_of(events: Sequence[Happening], sizes: Iterable[int], first_offset: int = 0) -> list[Record]:
    """Cuts events into log records: each piece of the sequence gives one record per partition that it touches."""
    records, at = [], 0
    offsets = dict.fromkeys(range(PARTITIONS), first_offset)
    remaining = iter(sizes)
    while at < len(events):
        piece = events[at : at + next(remaining, 1)]
        at += len(piece)
        for partition in range(PARTITIONS):
            mine = [e for e in piece if partition_of(e.actor, PARTITIONS) == partition]
            if mine:
                records.append(record_of(partition, offsets[partition], mine))
                offsets[partition] += 1
    return records


def record_of(partition: int, offset: int, events: Sequence[Happening]) -> Record:
    batch = EventBatch(
        [e.actor for e in events],
        bytes(e.kind for e in events),
        [e.subject for e in events],
        [e.ref for e in events],
        bytes(e.active for e in events),
        [e.at for e in events],
    )
    return Record(partition, offset, offset.to_bytes(8), 0, batch)


def apply(rows: Rows, records: Sequence[Record]) -> None:
    """One flush, in full."""
    keys = touched(records)
    flush = fold(
        records, {k: rows.edges[k] for k in keys.edges if k in rows.edges}, {k: rows.shards[k] for k in keys.shards if k in rows.shards}
    )
    rows.shards.update(flush.shards)
    for key, change in flush.lists.items():
        (rows.lists.add if change.present else rows.lists.discard)(key)
    rows.edges.update(flush.edges)


def apply_all(records: Sequence[Record], flush_sizes: Iterable[int]) -> Rows:
    """The whole log, in flushes of the given numbers of records (one after they run out)."""
    rows, at, remaining = Rows({}, {}, set()), 0, iter(flush_sizes)
    while at < len(records):
        size = next(remaining, 1)
        apply(rows, records[at : at + size])
        at += size
    return rows


def truth(events: Iterable[Happening]) -> dict[EdgeKey, tuple[int, bool]]:
    """Per edge the newest (occurred_at, removed): a naive reference that shares no code with the fold."""
    newest: dict[EdgeKey, tuple[int, bool]] = {}
    for actor, kind, subject, ref, active, at in events:
        key = (actor, kind, subject, ref)
        newest[key] = max(newest.get(key, (-1, False)), (at, not active))
    return newest
