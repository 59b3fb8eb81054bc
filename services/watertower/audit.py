"""The audit: recounts every count and every list from the edges, as of one moment, and names each difference.

Edges are the truth; counts and lists are derived from them. So one pass over the edges says what every shard and every list row must
be. Memory grows with the number of subjects, not with the number of edges:

- an actor's edges lie next to each other, and so do its shards: both scans are read side by side and compared as they meet;
- a subject's edges are everywhere, so each of its shards has an entry for the length of the audit;
- list rows are compared as one sum of their hashes (a sum does not depend on order). Only if two sums differ does a second pass sum
  in ROW_GROUPS groups, and a third one look at the rows of the groups that differ. The hash is Python's own of the whole row, 64 bits,
  salted anew in each process: a difference goes unseen with a probability of about 2**-60.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

from watertower.core.model import ACTOR_METRIC, NO_PROGRESS, SUBJECT_METRIC, EdgeKey, Kind, ListKey, Metric, Shard
from watertower.core.sharding import partition_of
from watertower.ports import StoreScanner

ROW_GROUPS = 65_536
"""Groups in which list rows are summed to find those that differ; a power of two."""

ROWS_HELD_MAX = 500_000
"""List rows that are held at once, about; more differing groups take more passes."""

PROGRESS_EDGES = 50_000
"""Edges between two calls of `on_progress`."""

COUNT = "count"
"""A shard's value is not its number of active edges."""

NEGATIVE = "negative"
"""A shard's value is below zero."""

EDGE_AHEAD_OF_SHARD = "edge_ahead_of_shard"
"""An edge was changed at an offset that its shard has not reached: found must be at least expected."""

EDGE_BEYOND_PROGRESS = "edge_beyond_progress"
"""An edge was changed at an offset that its partition has not reached: found must be at most expected."""

SUBJECT_LIST = "subject_list"
"""A row of a list of actors is missing, is there without an active edge, or lies elsewhere than the edge says."""

ACTOR_LIST = "actor_list"
"""A row of a list of subjects is missing, is there without an active edge, or is there more than once (expected, found: how often)."""

DIFFERENCE_KINDS = (COUNT, NEGATIVE, EDGE_AHEAD_OF_SHARD, EDGE_BEYOND_PROGRESS, SUBJECT_LIST, ACTOR_LIST)

_MASK = ROW_GROUPS - 1
_ACTOR_METRICS = frozenset(ACTOR_METRIC.values())

_Row = TypeVar("_Row", ListKey, EdgeKey)

Place: TypeAlias = dict[str, int]
"""Where a list row is: shard, bucket, occurred_at."""


class Difference(NamedTuple):
    """One thing that is not as the edges say."""

    kind: str  # one of DIFFERENCE_KINDS
    key: Mapping[str, str | int]
    expected: int | Place | None  # None: nothing should be there
    found: int | Place | None  # None: nothing is there


class Totals(NamedTuple):
    """How much was looked at."""

    edges: int
    active_edges: int
    shards: int
    subject_list_rows: int
    actor_list_rows: int


def audit(
    scanner: StoreScanner,
    on_difference: Callable[[Difference], None],
    on_progress: Callable[[int], None] = lambda edges: None,
) -> Totals:
    """Compares everything with the edges; calls `on_difference` for each difference and `on_progress` with the number of edges."""
    recount = _Recount(scanner, on_difference, on_progress)
    recount.compare_shards()
    subject_sum, subject_rows = _sum(scanner.subject_lists())
    actor_sum, actor_rows = _sum(scanner.actor_lists())
    if subject_sum != recount.subject_sum:
        for difference in _subject_list_differences(scanner):
            on_difference(difference)
    if actor_sum != recount.actor_sum:
        for difference in _actor_list_differences(scanner):
            on_difference(difference)
    return Totals(recount.edges, recount.active, recount.shards, subject_rows, actor_rows)


_Entry: TypeAlias = list[int]
"""One shard as [count, changed_at, value, offset]: what the edges say (active edges, the last offset that changed one of them), and what
is there. A list, because there is one for every actor."""

_COUNT, _CHANGED_AT, _VALUE, _OFFSET = range(4)


_Actor: TypeAlias = tuple[str, int, dict[int, _Entry]]
"""(actor, its partition, what the edges say by metric)"""

_OwnShards: TypeAlias = tuple[str, dict[tuple[int, int], Shard]]
"""(entity, its shards of actor metrics by (metric, shard))"""


class _Recount:
    """The first pass: edges and shards side by side."""

    def __init__(self, scanner: StoreScanner, on_difference: Callable[[Difference], None], on_progress: Callable[[int], None]) -> None:
        self._scanner = scanner
        self._report = on_difference
        self._on_progress = on_progress
        self._partitions = scanner.identity.log.partitions
        self._subjects: dict[tuple[str, int, int], _Entry] = {}
        self.subject_sum = self.actor_sum = 0  # of the hashes of the list rows that the edges say there must be
        self.edges = self.active = self.shards = 0

    def compare_shards(self) -> None:
        """Compares every shard. The two scans are in the same order of ids, so what waits for its counterpart is little; were they
        not, it would only cost memory."""
        actors, owners = self._read_edges(), self._read_shards()
        waiting_actors: dict[str, _Actor] = {}
        waiting_owners: dict[str, _OwnShards] = {}
        while True:
            actor, owner = next(actors, None), next(owners, None)
            if actor is None and owner is None:
                break
            if actor is not None and owner is not None and actor[0] == owner[0]:
                self._compare_actor(actor, owner[1])
                continue
            if actor is not None:
                met = waiting_owners.pop(actor[0], None)
                if met is None:
                    waiting_actors[actor[0]] = actor
                else:
                    self._compare_actor(actor, met[1])
            if owner is not None:
                waiting = waiting_actors.pop(owner[0], None)
                if waiting is None:
                    waiting_owners[owner[0]] = owner
                else:
                    self._compare_actor(waiting, owner[1])
        for actor in waiting_actors.values():
            self._compare_actor(actor, {})
        for entity, shards in waiting_owners.values():
            self._compare_actor((entity, partition_of(entity, self._partitions), {}), shards)
        for (subject, metric, shard), entry in self._subjects.items():
            self._compare(subject, metric, shard, entry)
        self._subjects.clear()

    def _read_edges(self) -> Iterator[_Actor]:
        """Takes in all edges; yields what they say of each actor when the actor's last edge was seen."""
        progress = self._scanner.progress()
        subjects = self._subjects
        current: str | None = None
        partition = end = -1
        own: dict[int, _Entry] = {}
        number = active_number = subject_sum = actor_sum = 0
        for edge_key, (active, occurred_at, bucket, offset) in self._scanner.edges():
            actor, kind, subject, ref = edge_key
            if actor != current:
                if current is not None:
                    yield current, partition, own
                current, own = actor, {}
                partition = partition_of(actor, self._partitions)
                end = progress.get(partition, NO_PROGRESS).end
            number += 1
            if number % PROGRESS_EDGES == 0:
                self._on_progress(number)

            subject_key = (subject, SUBJECT_METRIC[kind], partition)
            of_subject = subjects.get(subject_key)
            if of_subject is None:
                of_subject = subjects[subject_key] = [0, -1, 0, -1]
            metric = ACTOR_METRIC[kind]
            of_actor = own.get(metric)
            if of_actor is None:
                of_actor = own[metric] = [0, -1, 0, -1]
            if offset > of_subject[_CHANGED_AT]:
                of_subject[_CHANGED_AT] = offset
            if offset > of_actor[_CHANGED_AT]:
                of_actor[_CHANGED_AT] = offset
            if offset > end:
                self._report(Difference(EDGE_BEYOND_PROGRESS, _edge_key(edge_key), end, offset))
            if active:
                active_number += 1
                of_subject[_COUNT] += 1
                of_actor[_COUNT] += 1
                subject_sum += hash((subject, kind, partition, bucket, occurred_at, actor, ref))
                actor_sum += hash(edge_key)
        self.edges, self.active = number, active_number
        self.subject_sum, self.actor_sum = subject_sum, actor_sum
        if current is not None:
            yield current, partition, own

    def _read_shards(self) -> Iterator[_OwnShards]:
        """Takes in all shards: those of subjects into their entries; yields each entity's others."""
        subjects = self._subjects
        current: str | None = None
        own: dict[tuple[int, int], Shard] = {}
        for key, shard in self._scanner.shards():
            self.shards += 1
            entity, metric, number = key
            if entity != current:
                if own and current is not None:
                    yield current, own
                current, own = entity, {}
            if metric in _ACTOR_METRICS:
                own[metric, number] = shard
            else:
                entry = subjects.get(key)
                if entry is None:
                    entry = subjects[key] = [0, -1, 0, -1]
                entry[_VALUE], entry[_OFFSET] = shard.value, shard.offset
        if own and current is not None:
            yield current, own

    def _compare_actor(self, actor: _Actor, shards: dict[tuple[int, int], Shard]) -> None:
        name, partition, own = actor
        for (metric, number), shard in shards.items():
            entry = own.get(metric) if number == partition else None
            if entry is None:
                entry = [0, -1, 0, -1]
            entry[_VALUE], entry[_OFFSET] = shard.value, shard.offset
            self._compare(name, metric, number, entry)
        for metric, entry in own.items():
            if (metric, partition) not in shards:
                self._compare(name, metric, partition, entry)

    def _compare(self, entity: str, metric: int, shard: int, entry: _Entry) -> None:
        count, changed_at, value, offset = entry
        if value == count and changed_at <= offset:
            return
        key: Mapping[str, str | int] = {"entity": entity, "metric": Metric(metric).name.lower(), "shard": shard}
        if value != count:
            self._report(Difference(COUNT, key, count, value))
        if value < 0:
            self._report(Difference(NEGATIVE, key, count, value))
        if changed_at > offset:
            self._report(Difference(EDGE_AHEAD_OF_SHARD, key, changed_at, offset))


def _edge_key(key: EdgeKey) -> Mapping[str, str | int]:
    actor, kind, subject, ref = key
    return {"actor": actor, "kind": Kind(kind).name.lower(), "subject": subject, "ref": ref}


def _sum(rows: Iterator[_Row]) -> tuple[int, int]:
    """(sum of the rows' hashes, number of rows)."""
    total = number = 0
    for row in rows:
        total += hash(row)
        number += 1
    return total, number


def _subject_list_differences(scanner: StoreScanner) -> Iterator[Difference]:
    partitions = scanner.identity.log.partitions

    def expected() -> Iterator[ListKey]:
        for (actor, kind, subject, ref), edge in scanner.edges():
            if edge.active:
                yield subject, kind, partition_of(actor, partitions), edge.bucket, edge.occurred_at, actor, ref

    for row, wanted, found in _differing_rows(expected, scanner.subject_lists):
        subject, kind, shard, bucket, occurred_at, actor, ref = row
        key, place = _edge_key((actor, kind, subject, ref)), {"shard": shard, "bucket": bucket, "occurred_at": occurred_at}
        yield Difference(SUBJECT_LIST, key, place, None) if wanted > found else Difference(SUBJECT_LIST, key, None, place)


def _actor_list_differences(scanner: StoreScanner) -> Iterator[Difference]:
    def expected() -> Iterator[EdgeKey]:
        return (key for key, edge in scanner.edges() if edge.active)

    for row, wanted, found in _differing_rows(expected, scanner.actor_lists):
        yield Difference(ACTOR_LIST, _edge_key(row), wanted, found)


def _differing_rows(expected: Callable[[], Iterator[_Row]], found: Callable[[], Iterator[_Row]]) -> Iterator[tuple[_Row, int, int]]:
    """Each row that is not there as often as expected: (row, times expected, times found). Both are scanned several times."""
    sums, sizes = [0] * ROW_GROUPS, [0] * ROW_GROUPS
    for row in expected():
        hashed = hash(row)
        sums[hashed & _MASK] += hashed
        sizes[hashed & _MASK] += 1
    for row in found():
        hashed = hash(row)
        sums[hashed & _MASK] -= hashed
        sizes[hashed & _MASK] += 1
    differing = [group for group, total in enumerate(sums) if total]
    while differing:
        groups: set[int] = set()
        held = 0
        while differing and held < ROWS_HELD_MAX:
            groups.add(group := differing.pop())
            held += sizes[group]
        wanted: Counter[_Row] = Counter(row for row in expected() if hash(row) & _MASK in groups)
        there: Counter[_Row] = Counter(row for row in found() if hash(row) & _MASK in groups)
        for row in wanted.keys() | there.keys():
            if wanted[row] != there[row]:
                yield row, wanted[row], there[row]
