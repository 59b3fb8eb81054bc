"""What should be there, recounted from the acknowledged events without the service's code, and the comparison with what is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tests.calls import METRICS, Event, read_counts, reading
from tests.commands import Settings, assert_audit_is_clean, exported_counts
from watertower import bootstrap, config
from watertower.core.positions import Position

DIFFERENCES_SHOWN = 5


class Expected:
    """The last writer of each edge among acknowledged events, by (occurred_at, REMOVED > ACTIVE)."""

    def __init__(self) -> None:
        self.edges: dict[tuple[str, int, str, str], tuple[int, bool]] = {}  # (occurred_at, removed)
        self.ends: dict[int, int] = {}  # the largest acknowledged offset by partition
        self.events = 0

    def take(self, events: Sequence[Event], position: Position | None) -> None:
        """Events that were acknowledged, at this position."""
        edges = self.edges
        for actor, kind, subject, ref, active, occurred_at in events:
            key, state = (actor, kind, subject, ref), (occurred_at, not active)
            if key not in edges or state > edges[key]:
                edges[key] = state
        self.events += len(events)
        for partition, offset in position.offsets.items() if position else ():
            self.ends[partition] = max(offset, self.ends.get(partition, -1))

    def merge(self, other: "Expected") -> None:
        for key, state in other.edges.items():
            self.edges[key] = max(state, self.edges.get(key, state))
        for partition, end in other.ends.items():
            self.ends[partition] = max(end, self.ends.get(partition, -1))
        self.events += other.events

    def counts(self) -> Counter[tuple[str, str]]:
        """(entity, metric) -> count. Zero for an entity all of whose edges are removed."""
        counts: Counter[tuple[str, str]] = Counter()
        for (actor, kind, subject, _), (_, removed) in self.edges.items():
            counts[subject, METRICS[2 * kind - 2]] += not removed
            counts[actor, METRICS[2 * kind - 1]] += not removed
        return counts


def assert_store_equals(settings: Settings, expected: Expected) -> None:
    """Every edge, count and list of the store is what the acknowledged events say, one by one, and `audit` agrees."""
    with bootstrap.opened_scanner(config.load(settings)) as scanner:
        found = {key: (edge.occurred_at, not edge.active) for key, edge in scanner.edges()}
        listed = Counter((actor, kind, subject, ref) for subject, kind, _, _, _, actor, ref in scanner.subject_lists())
        of_actors = Counter(scanner.actor_lists())
    active = Counter(key for key, (_, removed) in expected.edges.items() if not removed)
    counts, exported = expected.counts(), exported_counts(settings)
    _assert_same("edges", found, expected.edges)
    _assert_same("rows of subjects' lists", listed, active)
    _assert_same("rows of actors' lists", of_actors, active)
    _assert_same("counts", _without_zeros(exported), _without_zeros(counts))
    assert_audit_is_clean(settings)


def assert_reader_equals(target: str, entities: Sequence[str], expected: Expected) -> None:
    """What the reader answers, from its cache and its feed, is what is recounted."""
    with reading(target) as stub:
        found, _ = read_counts(stub, entities)
    counts = expected.counts()
    wanted = [{metric: counts[entity, metric] for metric in METRICS} for entity in entities]
    _assert_same("answers", dict(zip(entities, found, strict=True)), dict(zip(entities, wanted, strict=True)))


def _without_zeros(counts: Mapping[Any, int]) -> dict[Any, int]:
    """A count of an entity all of whose edges are removed may be there or not."""
    return {key: count for key, count in counts.items() if count}


def _assert_same(what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> None:
    wrong = {key: (found.get(key), wanted.get(key)) for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
    shown = dict(sorted(wrong.items())[:DIFFERENCES_SHOWN])
    assert not wrong, f"{len(wrong)} of {len(wanted)} {what} differ (found, expected): {shown}"
