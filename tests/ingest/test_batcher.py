"""The queue in front of the log, step by step, without a clock, an event loop or a log."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watertower.core.model import EventBatch
from watertower.errors import CallRefused, Reason
from watertower.ingest.batcher import Batcher, Call

PARTITIONS = 3


def batcher(**limits: int) -> Batcher:
    defaults = {"record_events_max": 5, "record_bytes_max": 1_000, "queue_events_max": 1_000, "queue_bytes_max": 100_000}
    return Batcher(PARTITIONS, **defaults | limits, retry_after_s=0.5)


def events(*actors: str) -> EventBatch:
    count = len(actors)
    return EventBatch(actors, bytes([1]) * count, ("star",) * count, ("",) * count, bytes([1]) * count, tuple(range(count)))


def test_one_record_of_a_partition_is_in_flight_at_most() -> None:
    """The next one is given out when the first has landed, with everything that came meanwhile."""
    queue = batcher()
    first = queue.add({0: events("a")}, inf)
    assert queue.ready() == [0]
    assert queue.next_record(0, 0) == events("a")
    second, third = queue.add({0: events("b")}, inf), queue.add({0: events("c"), 2: events("d")}, inf)
    assert queue.ready() == [2]
    assert queue.next_record(0, 0) is None
    queue.appended(0, 17)
    assert queue.take_ended() == [first]
    assert first.offsets == {0: 17}
    record = queue.next_record(0, 0)
    assert record is not None
    assert list(record.actors) == ["b", "c"]
    queue.appended(0, 19)
    assert queue.take_ended() == [second]
    queue.next_record(2, 0)
    queue.appended(2, 5)
    assert queue.take_ended() == [third]
    assert third.offsets == {0: 19, 2: 5}
    assert (queue.events, queue.id_bytes, queue.ready()) == (0, 0, [])


def test_a_call_whose_deadline_has_passed_is_in_no_record() -> None:
    """DEADLINE_PASSED, at the moment of the deadline; what waits behind it moves up."""
    queue = batcher()
    late, later = queue.add({0: events("a"), 1: events("b")}, 10.0), queue.add({0: events("c")}, 10.1)
    record = queue.next_record(0, 10.0)
    assert record is not None
    assert list(record.actors) == ["c"]
    assert queue.take_ended() == [late]
    assert isinstance(late.error, CallRefused)
    assert late.error.reason is Reason.DEADLINE_PASSED
    assert not later.ended
    assert queue.ready() == []
    assert queue.events == 1


def test_a_record_may_be_left_empty_by_deadlines() -> None:
    """Then there is none, and the partition is free for the next call."""
    queue = batcher()
    queue.add({0: events("a")}, 1.0)
    assert queue.next_record(0, 2.0) is None
    queue.add({0: events("b")}, inf)
    assert queue.next_record(0, 2.0) == events("b")


def test_a_failed_record_ends_its_calls_and_what_else_waits_of_them() -> None:
    """The caller repeats the whole call anyway."""
    queue = batcher()
    call, other = queue.add({0: events("a"), 1: events("b")}, inf), queue.add({1: events("c")}, inf)
    queue.next_record(0, 0)
    error = OSError()
    queue.failed(0, error)
    assert queue.take_ended() == [call]
    assert call.error is error
    assert queue.next_record(1, 0) == events("c")
    queue.appended(1, 3)
    assert queue.take_ended() == [other]
    assert other.error is None


def test_the_queue_is_bounded_in_events_and_bytes() -> None:
    """A call that does not fit leaves nothing behind; ids are counted in bytes of UTF-8."""
    queue = batcher(queue_events_max=3)
    queue.add({0: events("a", "b")}, inf)
    with pytest.raises(CallRefused, match="queue"):
        queue.add({0: events("c"), 1: events("d")}, inf)
    assert queue.events == 2
    queue.add({1: events("d")}, inf)

    queue = batcher(queue_bytes_max=13)
    queue.add({0: events("é")}, inf)
    assert queue.id_bytes == len("é".encode()) + len("star")
    with pytest.raises(CallRefused, match="queue"):
        queue.add({0: events("éé")}, inf)
    queue.add({0: events("bob")}, inf)


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(20, 60))
def test_every_event_goes_into_one_record_or_is_given_up(rng: random.Random, record_events_max: int, record_bytes_max: int) -> None:
    """For any order of steps: records stay within their limits, nothing is appended twice, what succeeded is complete, the rest
    failed or was dropped, and the queue is empty in the end."""
    queue = batcher(record_events_max=record_events_max, record_bytes_max=record_bytes_max)
    calls: dict[Call, dict[int, list[str]]] = {}
    in_flight: dict[int, list[str]] = {}
    offset_of: dict[str, int] = {}
    ended: list[Call] = []
    dropped: set[Call] = set()

    def take(partition: int, now: float) -> None:
        record = queue.next_record(partition, now)
        if record is None:
            return
        assert partition not in in_flight
        assert len(record.actors) <= record_events_max
        assert len(record.actors) == 1 or sum(map(len, [*record.actors, *record.subjects])) <= record_bytes_max
        assert not offset_of.keys() & set(record.actors)
        in_flight[partition] = list(record.actors)

    def land(partition: int, offset: int) -> None:
        offset_of.update(dict.fromkeys(in_flight.pop(partition), offset))
        queue.appended(partition, offset)

    for now in range(rng.randrange(1, 60)):
        step = rng.choice(("add", "add", "record", "record", "land", "land", "fail", "drop"))
        if step == "add":
            parts = {
                partition: [f"{len(calls)}.{partition}.{number}" for number in range(rng.randrange(1, 9))]
                for partition in rng.sample(range(PARTITIONS), rng.randrange(1, PARTITIONS + 1))
            }
            call = queue.add({partition: events(*actors) for partition, actors in parts.items()}, rng.choice((inf, now + 3)))
            calls[call] = parts
        elif step == "record" and queue.ready():
            take(rng.choice(queue.ready()), now)
        elif step == "land" and in_flight:
            land(rng.choice(sorted(in_flight)), now)
        elif step == "fail" and in_flight:
            partition = rng.choice(sorted(in_flight))
            del in_flight[partition]
            queue.failed(partition, OSError())
        elif step == "drop" and calls:
            call = rng.choice(list(calls))
            if not call.ended:
                dropped.add(call)
            queue.drop(call)
        ended += queue.take_ended()
    for offset in range(100, 1_000):
        for partition in queue.ready():
            take(partition, 100)
        for partition in list(in_flight):
            land(partition, offset)
        if not queue.ready():
            break
    ended += queue.take_ended()

    assert (queue.events, queue.id_bytes) == (0, 0)
    assert len(ended) == len(set(ended))
    assert set(ended) | dropped == set(calls)
    assert not set(ended) & dropped
    for call in ended:
        if call.error is None:
            assert call.offsets == {p: max(offset_of[actor] for actor in actors) for p, actors in calls[call].items()}
