"""A message of the counts feed cut into slices and put together again, with what may happen on the way."""

import random

import pytest

from watertower.backends.kafka_slices import ACTOR_METRICS, SUBJECT_METRICS, UNFINISHED_MAX, Assembly, SliceName, sliced
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
