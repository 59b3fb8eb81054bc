"""What a run must come to: a naive replay of the log in offset order, which shares no rule with the product.

It keeps every value that each count and each edge ever had, by offset, so that an answer of any moment can be held against it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

EdgeName: TypeAlias = tuple[str, int, str, str]
"""(actor, kind, subject, ref)."""

METRICS_OF_KIND = {1: (1, 2), 2: (3, 4), 3: (5, 6)}
"""kind -> (metric of the subject, metric of the actor)."""


class State(NamedTuple):
    """Of an edge."""

    occurred_at: int
    removed: bool


class History:
    """A value that changes along the offsets of one partition."""

    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._values: list[object] = []

    def put(self, offset: int, value: object) -> None:
        if self._offsets and self._offsets[-1] == offset:
            self._values[-1] = value
        else:
            self._offsets.append(offset)
            self._values.append(value)

    def at(self, offset: int) -> object | None:
        """As of this offset, inclusive; None before the first value."""
        index = bisect_right(self._offsets, offset)
        return self._values[index - 1] if index else None

    def since(self, offset: int) -> list[object | None]:
        """As of this offset, and every value after it."""
        index = bisect_right(self._offsets, offset)
        return [self._values[index - 1] if index else None, *self._values[index:]]


class Reference:
    """The truth about one log."""

    def __init__(self) -> None:
        self.edges: dict[EdgeName, History] = defaultdict(History)
        self.counts: dict[tuple[str, int, int], History] = defaultdict(History)
        """By (entity, metric, partition)."""
        self.partition_of: dict[EdgeName, int] = {}
        self._now: dict[EdgeName, State] = {}
        self._values: dict[tuple[str, int, int], int] = defaultdict(int)

    def take(self, partition: int, offset: int, events: Iterable[tuple[str, int, str, str, bool, int]]) -> None:
        """The next record of a partition: (actor, kind, subject, ref, active, occurred_at) each."""
        for actor, kind, subject, ref, active, at in events:
            name, state = (actor, kind, subject, ref), State(at, not active)
            self.partition_of[name] = partition
            of_subject, of_actor = METRICS_OF_KIND[kind]
            for key in ((subject, of_subject, partition), (actor, of_actor, partition)):
                self.counts[key].put(offset, self._values[key])
            before = self._now.get(name)
            if before is not None and state <= before:
                continue
            self._now[name] = state
            self.edges[name].put(offset, state)
            step = (not state.removed) - (before is not None and not before.removed)
            for key in ((subject, of_subject, partition), (actor, of_actor, partition)):
                self._values[key] += step
                self.counts[key].put(offset, self._values[key])

    def edge(self, actor: str, kind: int, subject: str, ref: str) -> History:
        """Of one edge, also of one that never was."""
        return self.edges.get((actor, kind, subject, ref)) or History()

    def values_since(self, entity: str, metric: int, position: Mapping[int, int], partitions: int) -> set[int]:
        """Every sum that an answer may show which includes at least this position."""
        sums = {0}
        for partition in range(partitions):
            history = self.counts.get((entity, metric, partition))
            if history is not None:
                values = {value if isinstance(value, int) else 0 for value in history.since(position.get(partition, -1))}
                sums = {total + value for total in sums for value in values}
        return sums

    def active_at(self, ends: Mapping[int, int]) -> Iterator[tuple[EdgeName, State]]:
        """The edges that are active as of these offsets."""
        for name, state in self.edges_at(ends):
            if not state.removed:
                yield name, state

    def edges_at(self, ends: Mapping[int, int]) -> Iterator[tuple[EdgeName, State]]:
        """The edges that exist as of these offsets, removed ones included."""
        for name, history in self.edges.items():
            state = history.at(ends[self.partition_of[name]])
            if isinstance(state, State):
                yield name, state
