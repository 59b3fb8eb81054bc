"""The audit: recounts every count and every list from the edges, as of one moment, and names each difference.

Edges are the truth; counts and lists are derived from them. So one pass over the edges says what every shard and every list row must
be. Memory grows with the number of subjects, not with the number of edges:

- an actor's edges lie next to each other, and so do its shards: both scans are read side by side and compared as they meet;
- a subject's edges are everywhere, so each of its shards has an entry for the length of the audit;
- list rows are compared as sums of their hashes in ROW_GROUPS groups (a sum does not depend on order). Only where two sums differ does
  a second pass look at the group's rows one by one. The hash is Python's own of the whole row, 64 bits, salted anew in each process: a
  difference goes unseen with a probability of about 2**-60.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from watertower.core.model import KINDS, NO_PROGRESS, EdgeKey, Kind, ListKey, Metric, Shard
from watertower.core.sharding import partition_of
from watertower.ports import StoreScanner

ROW_GROUPS = 65_536
"""Groups in which list rows are summed; a power of two."""

ROWS_HELD_MAX = 500_000
"""List rows that the second pass holds at once, about; more differing groups take more passes."""

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
_SUBJECT_METRIC = {int(kind): int(rule.subject_metric) for kind, rule in KINDS.items()}
_ACTOR_METRIC = {int(kind): int(rule.actor_metric) for kind, rule in KINDS.items()}
_ACTOR_METRICS = frozenset(_ACTOR_METRIC.values())

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
    subject_rows = recount.subject_lists.subtract(scanner.subject_lists())
    actor_rows = recount.actor_lists.subtract(scanner.actor_lists())
    for chunk in recount.subject_lists.differing():
        _name_subject_rows(scanner, chunk, on_difference)
    for chunk in recount.actor_lists.differing():
        _name_actor_rows(scanner, chunk, on_difference)
    return Totals(recount.edges, recount.active, recount.shards, subject_rows, actor_rows)


class _Sums:
    """Sums of row hashes by group: rows that should be there are added, rows that are there are taken away."""

    def __init__(self) -> None:
        self.sums = [0] * ROW_GROUPS
        self.rows = [0] * ROW_GROUPS

    def subtract(self, rows: "Iterator[ListKey] | Iterator[EdgeKey]") -> int:
        """Takes rows that are there away; returns how many."""
        sums, counts, number = self.sums, self.rows, 0
        for row in rows:
            hashed = hash(row)
            group = hashed & _MASK
            sums[group] -= hashed
            counts[group] += 1
            number += 1
        return number

    def differing(self) -> Iterator[frozenset[int]]:
        """The groups whose sums are not zero, as many at once as ROWS_HELD_MAX allows."""
        chunk: list[int] = []
        held = 0
        for group, total in enumerate(self.sums):
            if total:
                chunk.append(group)
                held += self.rows[group]
                if held >= ROWS_HELD_MAX:
                    yield frozenset(chunk)
                    chunk, held = [], 0
        if chunk:
            yield frozenset(chunk)


class _Entry:
    """One shard: what the edges say (`count`, the last offset that changed one of them), and what is there."""

    __slots__ = ("changed_at", "count", "offset", "value")

    def __init__(self) -> None:
        self.count = self.value = 0
        self.changed_at = self.offset = -1


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
        self.subject_lists, self.actor_lists = _Sums(), _Sums()
        self.edges = self.active = self.shards = 0

    def compare_shards(self) -> None:
        """Compares every shard. The two scans are in the same order of ids, so what waits for its counterpart is little; were they
        not, it would only cost memory."""
        actors, owners = self._read_edges(), self._read_shards()
        waiting_actors: dict[str, _Actor] = {}
        waiting_owners: dict[str, _OwnShards] = {}
        more = True
        while more:
            more = False
            actor = next(actors, None)
            if actor is not None:
                more = True
                met = waiting_owners.pop(actor[0], None)
                if met is None:
                    waiting_actors[actor[0]] = actor
                else:
                    self._compare_actor(actor, met[1])
            owner = next(owners, None)
            if owner is not None:
                more = True
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
        list_sums, list_rows = self.subject_lists.sums, self.subject_lists.rows
        own_sums, own_rows = self.actor_lists.sums, self.actor_lists.rows
        current: str | None = None
        partition = end = -1
        own: dict[int, _Entry] = {}
        number = active_number = 0
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

            subject_key = (subject, _SUBJECT_METRIC[kind], partition)
            of_subject = subjects.get(subject_key)
            if of_subject is None:
                of_subject = subjects[subject_key] = _Entry()
            metric = _ACTOR_METRIC[kind]
            of_actor = own.get(metric)
            if of_actor is None:
                of_actor = own[metric] = _Entry()
            if offset > of_subject.changed_at:
                of_subject.changed_at = offset
            if offset > of_actor.changed_at:
                of_actor.changed_at = offset
            if offset > end:
                self._report(Difference(EDGE_BEYOND_PROGRESS, _edge_key(edge_key), end, offset))
            if active:
                active_number += 1
                of_subject.count += 1
                of_actor.count += 1
                hashed = hash((subject, kind, partition, bucket, occurred_at, actor, ref))
                list_sums[hashed & _MASK] += hashed
                list_rows[hashed & _MASK] += 1
                hashed = hash(edge_key)
                own_sums[hashed & _MASK] += hashed
                own_rows[hashed & _MASK] += 1
        self.edges, self.active = number, active_number
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
                    entry = subjects[key] = _Entry()
                entry.value, entry.offset = shard.value, shard.offset
        if own and current is not None:
            yield current, own

    def _compare_actor(self, actor: _Actor, shards: dict[tuple[int, int], Shard]) -> None:
        name, partition, own = actor
        for (metric, number), shard in shards.items():
            entry = own.get(metric) if number == partition else None
            if entry is None:
                entry = _Entry()
            entry.value, entry.offset = shard.value, shard.offset
            self._compare(name, metric, number, entry)
        for metric, entry in own.items():
            if (metric, partition) not in shards:
                self._compare(name, metric, partition, entry)

    def _compare(self, entity: str, metric: int, shard: int, entry: _Entry) -> None:
        key: Mapping[str, str | int] = {"entity": entity, "metric": Metric(metric).name.lower(), "shard": shard}
        if entry.value != entry.count:
            self._report(Difference(COUNT, key, entry.count, entry.value))
        if entry.value < 0:
            self._report(Difference(NEGATIVE, key, entry.count, entry.value))
        if entry.changed_at > entry.offset:
            self._report(Difference(EDGE_AHEAD_OF_SHARD, key, entry.changed_at, entry.offset))


def _edge_key(key: EdgeKey) -> Mapping[str, str | int]:
    actor, kind, subject, ref = key
    return {"actor": actor, "kind": Kind(kind).name.lower(), "subject": subject, "ref": ref}


def _name_subject_rows(scanner: StoreScanner, groups: frozenset[int], report: Callable[[Difference], None]) -> None:
    """Names the rows of lists of actors that differ, of some groups."""
    partitions = scanner.identity.log.partitions
    balance: dict[ListKey, int] = {}
    for (actor, kind, subject, ref), edge in scanner.edges():
        if edge.active:
            row = (subject, kind, partition_of(actor, partitions), edge.bucket, edge.occurred_at, actor, ref)
            if hash(row) & _MASK in groups:
                balance[row] = balance.get(row, 0) + 1
    for row in scanner.subject_lists():
        if hash(row) & _MASK in groups:
            balance[row] = balance.get(row, 0) - 1
    for row, number in balance.items():
        subject, kind, shard, bucket, occurred_at, actor, ref = row
        place = {"shard": shard, "bucket": bucket, "occurred_at": occurred_at}
        difference = Difference(
            SUBJECT_LIST, _edge_key((actor, kind, subject, ref)), place if number > 0 else None, None if number > 0 else place
        )
        for _ in range(abs(number)):
            report(difference)


def _name_actor_rows(scanner: StoreScanner, groups: frozenset[int], report: Callable[[Difference], None]) -> None:
    """Names the rows of lists of subjects that differ, of some groups."""
    balance: dict[EdgeKey, tuple[int, int]] = {}
    for key, edge in scanner.edges():
        if edge.active and hash(key) & _MASK in groups:
            balance[key] = (1, 0)
    for key in scanner.actor_lists():
        if hash(key) & _MASK in groups:
            expected, found = balance.get(key, (0, 0))
            balance[key] = (expected, found + 1)
    for key, (expected, found) in balance.items():
        if expected != found:
            report(Difference(ACTOR_LIST, _edge_key(key), expected, found))
