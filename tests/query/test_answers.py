"""Answers that are put together from ready bytes are, byte for byte or field by field, those that the generated messages would give."""

import random

from hypothesis import given
from hypothesis import strategies as st

from watertower.core.model import Metric, Shard
from watertower.query.answers import batch_answer, freshness_message, shape_of, single_answer
from watertower.query.cache import CountsCache, Entry, Load
from watertower.query.tail import Freshness
from watertower.v1 import reader_pb2 as pb

COUNTS = st.one_of(st.integers(0, 300), st.sampled_from([0, 127, 128, 2**31, 2**63 - 1]))
METRICS = st.lists(st.sampled_from([int(metric) for metric in Metric]), min_size=1, unique=True)
ENTITIES = st.lists(st.one_of(st.none(), st.dictionaries(st.sampled_from([int(metric) for metric in Metric]), COUNTS)), max_size=20)
CLAIMS = st.builds(
    Freshness, st.one_of(st.none(), st.integers(1, 2**50)), st.binary(max_size=1_024), st.booleans(), st.booleans()
)  # fmt: skip


def entry_of(values: dict[int, int] | None) -> Entry:
    entry = Entry()
    for metric, value in (values or {}).items():
        entry.merge((metric, 0), value, 1)
    return entry


@given(ENTITIES.filter(bool), METRICS, CLAIMS, st.integers(0, 3))
def test_a_batch_is_what_its_message_would_be(
    entities: list[dict[int, int] | None], metrics: list[int], claim: Freshness, repeats: int
) -> None:
    """Also when asked again, for other metrics in between, and with entities asked for twice."""
    entries = [entry_of(values) for values in entities]
    entries += entries[:repeats]
    freshness = freshness_message(claim)
    expected = pb.BatchGetCountsResponse(freshness=freshness)
    for index, entry in enumerate(entries):
        expected.counts.add(values=[entry.totals[metric] for metric in metrics])
        if not entry.shards:
            expected.exceptions.add(index=index, known=False)
    for shape in (shape_of(tuple(metrics)), shape_of(tuple(reversed(metrics))), shape_of(tuple(metrics))):
        answer = batch_answer(shape, entries, freshness.SerializeToString())
    assert pb.BatchGetCountsResponse.FromString(answer) == expected


@given(st.one_of(st.none(), st.dictionaries(st.sampled_from([int(metric) for metric in Metric]), COUNTS)), METRICS, CLAIMS)
def test_a_single_answer_is_what_its_message_would_be(values: dict[int, int] | None, metrics: list[int], claim: Freshness) -> None:
    """Known or not, whatever the numbers."""
    entry, freshness = entry_of(values), freshness_message(claim)
    expected = pb.GetCountsResponse(
        values=[entry.totals[metric] for metric in metrics], known=bool(entry.shards), freshness=freshness
    )  # fmt: skip
    for _ in range(2):
        answer = single_answer(shape_of(tuple(metrics)), entry, freshness.SerializeToString())
        assert pb.GetCountsResponse.FromString(answer) == expected


def test_a_row_is_made_anew_when_its_counts_have_changed() -> None:
    """By a message of the feed and by a load; what changes nothing leaves it."""
    cache = CountsCache(1 << 20, 60.0, 1.0, 60.0, random.Random(0).random)
    load = Load()
    entry = cache.register("a", load)
    shape = shape_of((1,))
    assert pb.GetCountsResponse.FromString(single_answer(shape, entry, b"")) == pb.GetCountsResponse(values=[0], freshness={})
    cache.begin(load, 0.0)
    cache.finish(load, [{(1, 0): Shard(5, 5, (), 9)}])
    for value, offset, shown in ((7, 10, 7), (6, 9, 7), (8, 11, 8)):
        entry.merge((1, 0), value, offset)
        assert list(pb.GetCountsResponse.FromString(single_answer(shape, entry, b"")).values) == [shown]
    assert entry.row_of is shape
    entry.merge((1, 0), 1, 2)
    assert entry.row_of is shape
