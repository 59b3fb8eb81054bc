"""A message of the counts feed cut into slices and put together again, with what may happen on the way."""

import random
from itertools import pairwise

import pytest

from watertower.backends.kafka_slices import ACTOR_METRICS, SUBJECT_METRICS, UNFINISHED_MAX, Assembly, Joint, SliceName, sliced
from watertower.core.model import Metric
from watertower.ports import FeedMessage


def message(entries: int, end: int = 20) -> FeedMessage:
    """So many shards, of subjects and of actors in turns."""
    metrics = bytes([Metric.FOLLOWERS, Metric.FOLLOWING])[:2] * entries
    return FeedMessage(
        3, 10, end, 777, [f"e{n}" for n in range(entries)], metrics[:entries], list(range(entries)), [end - n % 2 for n in range(entries)]
    )


def named(parts: list[FeedMessage], name: str = "m") -> list[tuple[SliceName, FeedMessage]]:
    """As they travel."""
    return [(SliceName(number, len(parts), name), part) for number, part in enumerate(parts, 1)]


def entries_of(parts: list[FeedMessage]) -> list[tuple[str, int, int, int]]:
    return [entry for part in parts for entry in zip(part.entities, part.metrics, part.values, part.offsets, strict=True)]


def test_every_metric_goes_to_one_of_the_topics() -> None:
    """Also one that comes with a new kind: the split goes by the table."""
    assert sorted(SUBJECT_METRICS + ACTOR_METRICS) == sorted(Metric)


@pytest.mark.parametrize("entries", [0, 1, 2, 9, 10, 11, 20, 45])
def test_slices_hold_every_entry_of_their_metrics(entries: int) -> None:
    """In order, at most so many each, with the whole range; and at least one slice, so that the range is known everywhere."""
    whole = message(entries)
    for metrics in (SUBJECT_METRICS, ACTOR_METRICS):
        parts = sliced(whole, metrics, entries_max=10)
        assert entries_of(parts) == [entry for entry in entries_of([whole]) if entry[1] in metrics]
        assert all(len(part.entities) <= 10 and part[:4] == whole[:4] for part in parts)
        assert len(parts) == max(1, -(-len(entries_of(parts)) // 10))


def test_only_the_last_slice_claims_the_range() -> None:
    """The others are given on at once, and claim neither a range nor a moment."""
    assembly = Assembly()
    given = [assembly.take(name, part) for name, part in named(sliced(message(50), SUBJECT_METRICS, 10))]
    assert [(one.after, one.end, one.as_of) for one in given] == [(10, 10, 0), (10, 10, 0), (10, 20, 777)]
    assert entries_of(given) == entries_of(sliced(message(50), SUBJECT_METRICS))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_slice_shows_as_a_gap(missing: int) -> None:
    """The last slice says a range that does not join on to what was before."""
    assembly = Assembly()
    slices = named(sliced(message(50), SUBJECT_METRICS, 10))
    del slices[missing]
    given = [assembly.take(name, part) for name, part in slices]
    assert (given[-1].after, given[-1].end) == (20, 20)


def test_a_slice_that_comes_twice_does_no_harm() -> None:
    """A retry of the driver may write a record again."""
    assembly = Assembly()
    slices = [one for one in named(sliced(message(50), SUBJECT_METRICS, 10)) for _ in range(2)]
    given = [assembly.take(name, part) for name, part in slices]
    assert (given[4].after, given[4].end) == (10, 20)
    assert (given[5].after, given[5].end) == (20, 20)  # nothing new: its range ends where the one before ends


def test_two_owners_may_publish_at_once() -> None:
    """Slices of two messages about the same range come in any mixture: each message is told by its own name."""
    rng = random.Random(7)
    for _ in range(200):
        queues = [named(sliced(message(50), SUBJECT_METRICS, 10), name) for name in ("a", "b")]
        if lost := rng.random() < 0.5:
            del queues[0][rng.randrange(2)]
        assembly, ranges = Assembly(), {}
        while any(queues):
            name, part = rng.choice([queue for queue in queues if queue]).pop(0)
            given = assembly.take(name, part)
            if name.number == name.total:
                ranges[name.message] = (given.after, given.end)
        assert ranges == {"a": (20, 20) if lost else (10, 20), "b": (10, 20)}


def test_what_stays_unfinished_is_forgotten() -> None:
    """A reader does not grow with the messages whose last slice never comes."""
    assembly = Assembly()
    (first, part), (last, tail) = named(sliced(message(40), SUBJECT_METRICS, 10), "old")
    assembly.take(first, part)
    for number in range(UNFINISHED_MAX):
        assembly.take(SliceName(1, 2, f"m{number}"), part)
    assert assembly.take(last, tail).after == 20


@pytest.mark.parametrize("value", [b"", b"1", b"1/", b"0/1 m", b"2/1 m", b"x/y m", b"\xff"])
def test_a_name_that_is_none_is_refused(value: bytes) -> None:
    """Whatever is in the header."""
    with pytest.raises(ValueError):
        SliceName.decode(value)


def test_a_name_comes_back() -> None:
    assert SliceName.decode(SliceName(2, 3, "ab.7").encode()) == SliceName(2, 3, "ab.7")


@pytest.mark.parametrize("seed", range(200))
def test_two_topics_together_claim_only_what_both_said(seed: int) -> None:
    """Messages of both topics in any order between them, some lost: whoever reads anew at each gap has every entry that was claimed."""
    rng = random.Random(seed)
    ends = sorted(rng.sample(range(100), 12))
    whole = [
        FeedMessage(0, before, end, 100 + end, ["s", "a"], bytes([Metric.FOLLOWERS, Metric.FOLLOWING]), [end, end], [end, end])
        for before, end in pairwise([-1, *ends])
    ]
    whole += [FeedMessage(0, ends[-1], ends[-1], 300 + beat, (), b"", (), ()) for beat in range(3)]
    streams = [[sliced(one, metrics)[0] for one in whole] for metrics in (SUBJECT_METRICS, ACTOR_METRICS)]
    lost = rng.random() < 0.5
    joint = Joint(2)
    held = {"s": -1, "a": -1}  # by entity: the offset of what the reader has of it
    claimed, as_of = -1, 0
    turns = [0] * len(whole) + [1] * len(whole)
    rng.shuffle(turns)
    for topic in turns:
        part = streams[topic].pop(0)
        if lost and rng.random() < 0.15:
            continue
        given = joint.take(topic, part)
        if given is None:
            continue
        if given.after > claimed:  # a gap: everything is read anew
            held = {entity: max(offset, given.end) for entity, offset in held.items()}
        for entity, offset in zip(given.entities, given.offsets, strict=True):
            held[entity] = max(held[entity], offset)
        claimed, as_of = max(claimed, given.end), max(as_of, given.as_of)
        for of_entity in held.values():
            assert of_entity >= max((end for end in ends if end <= claimed), default=-1)
    if not lost:
        assert (claimed, as_of) == (ends[-1], 302)


def test_a_topic_that_says_nothing_holds_the_claim_back() -> None:
    """Its entries are given on, what they belong to is not claimed."""
    joint = Joint(2)
    for end in range(3):
        (part,) = sliced(FeedMessage(0, end - 1, end, 5, ["s"], bytes([Metric.LIKES]), [1], [end]), SUBJECT_METRICS)
        given = joint.take(0, part)
        assert given is not None
        assert (given.after, given.end, given.as_of, given.entities) == (-1, -1, 0, ["s"])
    heartbeat = FeedMessage(0, 2, 2, 9, (), b"", (), ())
    assert joint.take(0, heartbeat) is None
    assert joint.take(1, heartbeat) == heartbeat._replace(after=2, end=2, as_of=9)
