"""The edge rule, sharding and backoff."""

from hypothesis import given
from hypothesis import strategies as st

from watertower.core.backoff import full_jitter
from watertower.core.edge import wins
from watertower.core.model import KINDS, Edge, Kind, Metric
from watertower.core.sharding import partition_of


@given(st.booleans(), st.integers(0, 5), st.booleans(), st.integers(0, 5))
def test_an_event_wins_exactly_when_its_pair_is_greater(active: bool, at: int, was: bool, before: int) -> None:
    """(occurred_at, REMOVED > ACTIVE), compared as a pair."""
    assert wins(active, at, Edge(was, before, 0, 0)) == ((at, not active) > (before, not was))
    assert wins(active, at, None)


def test_partitions_never_change() -> None:
    """Known answers: a changed hash would give an actor's edges a second writer."""
    assert [partition_of(actor, 8) for actor in ("alice", "bob", "", "zoë", "用户")] == [7, 0, 0, 4, 5]
    assert [partition_of(actor, 64) for actor in ("alice", "bob")] == [7, 0]


def test_actors_spread_over_partitions() -> None:
    """10,000 consecutive ids: no partition more than a tenth away from its share."""
    sizes = [0] * 8
    for i in range(10_000):
        sizes[partition_of(f"fan-{i}", 8)] += 1
    assert all(1_125 <= size <= 1_375 for size in sizes)


def test_every_kind_has_metrics_of_its_own() -> None:
    """Two kinds that added to one metric could not be recounted from edges."""
    used = [metric for rule in KINDS.values() for metric in (rule.subject_metric, rule.actor_metric)]
    assert sorted(used) == sorted(Metric)
    assert set(KINDS) == set(Kind)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_random_over_the_whole_interval(attempt: int, uniform: float) -> None:
    """Between 0 and the cap, at the cap too: capped callers do not come back together."""
    assert 0 <= full_jitter(attempt, 0.1, 10.0, uniform) <= 10.0
    assert full_jitter(attempt, 0.1, 10.0, 0.5) == 0.5 * min(10.0, 0.1 * 2 ** min(attempt, 62))
