"""The fold: order, duplicates and flush boundaries do not matter; counts equal the edges behind them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.histories import Happening, Rows, apply, apply_all, happenings, record_of, records_of, truth
from watertower.core import buckets
from watertower.core.fold import ShardBehindEdge, fold, touched
from watertower.core.model import KINDS, Edge, Kind, Metric, Shard

EVENTS = st.lists(happenings(), max_size=40)
SIZES = st.lists(st.integers(1, 6), max_size=40)


@given(EVENTS, st.randoms(use_true_random=False), SIZES, SIZES)
def test_any_permutation_and_duplication_gives_the_same_edges_counts_and_lists(
    events: list[Happening], rng: random.Random, sizes: list[int], flushes: list[int]
) -> None:
    """The same set of events, shuffled and with repeats, in other records and other flushes, looks the same to a caller."""
    once = apply_all(records_of(events, [1] * len(events)), [])
    again = events + rng.choices(events, k=rng.randrange(len(events) + 1)) if events else []
    rng.shuffle(again)
    assert apply_all(records_of(again, sizes), flushes).visible() == once.visible()


@given(EVENTS, SIZES, SIZES)
def test_counts_equal_active_edges_and_are_never_negative(events: list[Happening], sizes: list[int], flushes: list[int]) -> None:
    """Against a naive reference: per entity and metric the number of active edges; each list is exactly its active edges."""
    records = records_of(events, sizes)
    rows = Rows({}, {}, set())
    at = 0
    for size in [*flushes, *[1] * len(records)]:
        apply(rows, records[at : at + size])
        at += size
        assert all(shard.value >= 0 for shard in rows.shards.values())
    newest = truth(events)
    expected: dict[tuple[str, int], int] = {}
    for (actor, kind, subject, _), (_, removed) in newest.items():
        rule = KINDS[Kind(kind)]
        for counted in ((subject, int(rule.subject_metric)), (actor, int(rule.actor_metric))):
            expected[counted] = expected.get(counted, 0) + (not removed)
    edges, counts, lists = rows.visible()
    assert edges == {key: (not removed, at) for key, (at, removed) in newest.items()}
    assert counts == {key: value for key, value in expected.items() if value}
    assert lists == sorted((s, k, -at, a, r) for (a, k, s, r), (at, removed) in newest.items() if not removed)


@given(EVENTS, SIZES, SIZES, SIZES)
def test_any_flush_boundaries_give_the_same_rows_list_buckets_included(
    events: list[Happening], sizes: list[int], flushes: list[int], others: list[int]
) -> None:
    """The whole rows, not only what a caller sees: values, gained, crossings, buckets, edges' offsets. A shard's own position
    depends on where its last flush ended, so it is compared as "at least the last record that touched it"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "SHARED_GAINED_MAX", 2)
        patch.setattr(buckets, "BUCKET_GAINED_MAX", 3)
        records = records_of(events, sizes)
        one, two = apply_all(records, flushes), apply_all(records, others)
    assert one.edges == two.edges
    assert one.lists == two.lists
    assert {k: v[:3] for k, v in one.shards.items()} == {k: v[:3] for k, v in two.shards.items()}
    last = {key: record.offset for record in records for key in touched([record]).shards}
    for rows in (one, two):
        assert all(rows.shards[key].offset >= offset for key, offset in last.items())


@pytest.mark.slow
@given(EVENTS, SIZES, SIZES, st.data())
def test_a_flush_cut_at_any_step_and_replayed_gives_the_same_rows(
    events: list[Happening], sizes: list[int], flushes: list[int], data: st.DataObject
) -> None:
    """Cuts a flush after any number of row writes (derived rows in any order, then edges in any order), then replays with other
    boundaries: rows equal those of an uncut run, buckets included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "SHARED_GAINED_MAX", 2)
        patch.setattr(buckets, "BUCKET_GAINED_MAX", 3)
        records = records_of(events, sizes)
        whole = apply_all(records, flushes)
        rows, at = Rows({}, {}, set()), 0
        while at < len(records):
            size = data.draw(st.integers(1, 5), label="flush")
            piece = records[at : at + size]
            flush = fold(piece, rows.edges, rows.shards)
            derived = data.draw(st.permutations([("s", k) for k in flush.shards] + [("l", k) for k in flush.lists]), label="order")
            writes = [*derived, *[("e", k) for k in data.draw(st.permutations(list(flush.edges)), label="edges")]]
            cut = data.draw(st.integers(0, len(writes)), label="cut")
            for what, key in writes[:cut]:
                if what == "s":
                    rows.shards[key] = flush.shards[key]
                elif what == "l":
                    (rows.lists.add if flush.lists[key].present else rows.lists.discard)(key)
                else:
                    rows.edges[key] = flush.edges[key]
            if cut == len(writes):
                at += size
    assert rows.edges == whole.edges
    assert rows.lists == whole.lists
    assert {k: v[:3] for k, v in rows.shards.items()} == {k: v[:3] for k, v in whole.shards.items()}


def test_touched_means_written_even_when_nothing_changed() -> None:
    """An unlike of nothing moves no count, but writes its shards at the flush's end: the skip rule of a replay relies on it."""
    flush = fold([record_of(1, 5, [Happening("a", Kind.LIKE, "x", "", False, 1)])], {}, {})
    assert flush.shards == {("x", Metric.LIKES, 1): Shard(0, 0, (), 5), ("a", Metric.LIKES_GIVEN, 1): Shard(0, 0, (), 5)}
    assert flush.edges == {("a", Kind.LIKE, "x", ""): Edge(False, 1, 0, 5)}
    assert not flush.lists


def test_a_row_that_appears_and_vanishes_within_a_flush_is_deleted() -> None:
    """A crash may have written its first half before: the delete must be written too."""
    flush = fold([record_of(0, 9, [Happening("a", Kind.FOLLOW, "x", "", on, t) for on, t in ((True, 1), (False, 2))])], {}, {})
    assert [change.present for change in flush.lists.values()] == [False]


def test_a_shard_already_at_the_end_is_published_but_not_written() -> None:
    """What another owner already wrote is not written again, but readers that missed it still hear of it."""
    ahead = {("x", int(Metric.FOLLOWERS), 0): Shard(7, 7, (), 9), ("a", int(Metric.FOLLOWING), 0): Shard(1, 1, (), 9)}
    flush = fold([record_of(0, 9, [Happening("a", Kind.FOLLOW, "x", "", True, 1)])], {}, ahead)
    assert flush.shards == {}
    assert flush.published == ahead
    assert list(flush.edges) == [("a", Kind.FOLLOW, "x", "")]


def test_an_edge_ahead_of_its_shard_stops() -> None:
    """The alarm that costs nothing: rows were lost or read stale."""
    edges = {("a", int(Kind.FOLLOW), "x", ""): Edge(True, 1, 0, 8)}
    shards = {("x", int(Metric.FOLLOWERS), 0): Shard(1, 1, (), 8), ("a", int(Metric.FOLLOWING), 0): Shard(1, 1, (), 7)}
    with pytest.raises(ShardBehindEdge, match=r"at offset 8 but its shard .* only at 7"):
        fold([record_of(0, 9, [Happening("a", Kind.FOLLOW, "x", "", False, 2)])], edges, shards)


def test_setting_active_again_moves_the_row_and_no_count() -> None:
    """The newest press decides where the row stands; its bucket stays."""
    rows = Rows({}, {}, set())
    apply(rows, [record_of(0, 0, [Happening("a", Kind.FOLLOW, "x", "", True, 1)])])
    apply(rows, [record_of(0, 1, [Happening("a", Kind.FOLLOW, "x", "", True, 5)])])
    assert rows.lists == {("x", int(Kind.FOLLOW), 0, 0, 5, "a", "")}
    assert rows.shards["x", int(Metric.FOLLOWERS), 0] == Shard(1, 1, (), 1)


def test_buckets_turn_at_their_limits() -> None:
    """Reaches both limits for real: the shared bucket ends after 2,000 activations of a shard, the next after 100,000."""
    rows = Rows({}, {}, set())
    total = buckets.BUCKET_GAINED_MAX + 1
    for start in range(0, total, 10_000):
        events = [Happening(f"fan-{i}", Kind.FOLLOW, "x", "", True, i) for i in range(start, min(total, start + 10_000))]
        apply(rows, [record_of(0, start, events)])
    sizes: dict[int, int] = {}
    for key in rows.lists:
        sizes[key[3]] = sizes.get(key[3], 0) + 1
    assert sizes == {0: buckets.SHARED_GAINED_MAX, 1: buckets.BUCKET_GAINED_MAX - buckets.SHARED_GAINED_MAX, 2: 1}
