"""The fold: where exactness is decided.

A projector owns whole partitions and works through each strictly in sequence. One flush covers whole records. In this order it
  1. reads the touched edges, *then* the touched shards, fresh           (`touched` names them)
  2. folds                                                               (`fold`, pure)
  3. writes every touched shard and list row                            (`Flush.shards`, `Flush.lists`)
  4. when those are acknowledged, writes the edges that changed          (`Flush.edges`)
  5. when those are acknowledged, writes progress                        (`Flush.progress`)
  6. publishes every touched shard and the covered ranges on the feed    (`Flush.published`); only then is the offset committed.

Why the order, which is the reverse of the reads: a replay skips what an edge already shows, so an edge must never be ahead of what
it should have moved; and if another owner's edge is seen, the shards it wrote earlier are seen too.

Why a value written twice, late or by a former owner does no harm: every row is a deterministic function of a prefix of the log,
stored with the position of that prefix in the same cell. Such a write either equals the row or loses to a newer one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from watertower.core.buckets import bucket_of, is_boundary
from watertower.core.edge import wins
from watertower.core.model import (
    ACTOR_METRIC,
    NO_SHARD,
    SUBJECT_METRIC,
    Edge,
    EdgeKey,
    ListChange,
    ListKey,
    Progress,
    Record,
    Shard,
    ShardKey,
)

_new = tuple.__new__  # builds a named tuple in a third of the time that its own constructor takes


class ShardBehindEdge(Exception):
    """An edge is ahead of a shard that it moved. The store broke a promise; the partition must stop.

    From "touched means written, shards before edges, edges read before shards" follows that an edge's position is never past the
    freshly read position of its shards. Where that fails, rows were lost or read stale, and counting on would make it worse.
    """

    def __init__(self, edge: EdgeKey, edge_offset: int, shard: ShardKey, shard_offset: int) -> None:
        super().__init__(f"edge {edge} is at offset {edge_offset} but its shard {shard} only at {shard_offset}")
        self.shard = shard


class Touched(NamedTuple):
    """The rows that a flush must read, each once, in order of first use. Read `edges` first.

    `edges` gives each edge's shard of its actor: every write of the edge moved it or touched it.
    """

    edges: dict[EdgeKey, ShardKey]
    shards: dict[ShardKey, None]


class Flush(NamedTuple):
    """What a flush writes and publishes."""

    shards: dict[ShardKey, Shard]  # absolute values at their partition's `end`
    lists: dict[ListKey, ListChange]
    edges: dict[EdgeKey, Edge]
    progress: dict[int, Progress]
    published: dict[ShardKey, Shard]  # every touched shard, also those found already at or past `end`


def touched(records: Iterable[Record]) -> Touched:
    """Every edge and every shard that the records' events belong to."""
    edges: dict[EdgeKey, ShardKey] = {}
    shards: dict[ShardKey, None] = {}
    for partition, _, _, _, (actors, kinds, subjects, refs, _, _) in records:
        for edge in zip(actors, kinds, subjects, refs, strict=True):
            actor, kind, subject, _ = edge
            edges[edge] = of_actor = (actor, ACTOR_METRIC[kind], partition)
            shards[subject, SUBJECT_METRIC[kind], partition] = shards[of_actor] = None
    return Touched(edges, shards)


def fold(records: Sequence[Record], edges: Mapping[EdgeKey, Edge], shards: Mapping[ShardKey, Shard]) -> Flush:
    """Folds whole records, of any number of partitions, each partition's in order of offset, into one flush.

    `edges` and `shards` are the rows that `touched` named, as read (absent where there is no row). Raises ShardBehindEdge when
    they contradict each other.
    """
    progress = {r.partition: Progress(r.offset, r.record_id, r.appended_at) for r in records}
    running: dict[ShardKey, _Running] = {}
    changed: dict[EdgeKey, Edge] = {}
    lists: dict[ListKey, ListChange] = {}

    for partition, offset, _, _, batch in records:
        added, removed = ListChange(True, offset), ListChange(False, offset)
        for index, (actor, kind, subject, ref, active, at) in enumerate(zip(*batch, strict=True)):
            edge_key = (actor, kind, subject, ref)
            subject_key = (subject, SUBJECT_METRIC[kind], partition)
            actor_key = (actor, ACTOR_METRIC[kind], partition)
            of_subject = running.get(subject_key) or running.setdefault(subject_key, list(shards.get(subject_key, NO_SHARD)))
            of_actor = running.get(actor_key) or running.setdefault(actor_key, list(shards.get(actor_key, NO_SHARD)))

            current = edges.get(edge_key)
            if current is not None:
                if current.offset > of_subject[_OFFSET]:
                    raise ShardBehindEdge(edge_key, current.offset, subject_key, of_subject[_OFFSET])
                if current.offset > of_actor[_OFFSET]:
                    raise ShardBehindEdge(edge_key, current.offset, actor_key, of_actor[_OFFSET])
                if offset <= current.offset:
                    continue  # the edge already shows it
            current = changed.get(edge_key, current)
            if not wins(active, at, current):
                continue

            if current is not None and current.active:
                # Set ACTIVE again, later: no count moves, the row moves up within its bucket. Removed: the row goes.
                bucket = current.bucket
                lists[subject, kind, partition, bucket, current.occurred_at, actor, ref] = removed
                if not active:
                    _add(of_subject, -1, offset, index)
                    _add(of_actor, -1, offset, index)
            elif active:
                bucket = bucket_of(of_subject[_CROSSINGS], offset, index)
                _add(of_subject, +1, offset, index)
                _add(of_actor, +1, offset, index)
            else:
                bucket = 0
            if active:
                lists[subject, kind, partition, bucket, at, actor, ref] = added
            changed[edge_key] = _new(Edge, (active == 1, at, bucket, offset))

    written: dict[ShardKey, Shard] = {}
    ahead: dict[ShardKey, Shard] = {}
    for key, (value, gained, crossings, counted_to) in running.items():
        end = progress[key[2]].end
        if counted_to >= end:
            ahead[key] = shards[key]
        else:
            # Also when the net change is zero: "touched means written" is what the skip rule of a replay relies on.
            written[key] = _new(Shard, (value, gained, crossings, end))
    return Flush(written, lists, changed, progress, written | ahead)


# A shard while the flush adds to it: the columns of Shard, in a list. `offset` stays what was read: up to where the value counts.
_Running: TypeAlias = list[Any]
_VALUE, _GAINED, _CROSSINGS, _OFFSET = range(4)


def _add(shard: _Running, delta: int, offset: int, index: int) -> None:
    """Adds a transition to a shard, unless the value read already contains it."""
    if offset <= shard[_OFFSET]:
        return
    shard[_VALUE] += delta
    if delta > 0:
        shard[_GAINED] += 1
        if is_boundary(shard[_GAINED]):
            shard[_CROSSINGS] = (*shard[_CROSSINGS], (offset, index))
