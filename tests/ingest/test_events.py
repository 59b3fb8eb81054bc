"""The rules on whole columns say the same as the rules in plain words, event by event."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from watertower.core.model import EventBatch, Kind
from watertower.core.sharding import partition_of
from watertower.errors import CallRefused
from watertower.ingest.events import events_of
from watertower.v1.writer_pb2 import Event, RecordEventsRequest

LATEST_S = 1_800_000_005

ids = st.sampled_from(
    ["ann", "bob", "", "a" * 128, "a" * 129, "é" * 64, "é" * 65, "🌊" * 32, "🌊" * 33, "a\0", "a\x85b", "\u00a0", "a\u2028b", "x" * 33]
) | st.text(max_size=140)
good_ids = st.sampled_from(["ann", "bob", "eve", "é" * 64])
seconds = st.sampled_from([0, 946_684_799, 946_684_800, LATEST_S - 1, LATEST_S, LATEST_S + 1, -1, 2**62, -(2**62)])
nanos = st.sampled_from([0, 1, 999, 1_000, 999_999_999, 1_000_000_000, -1, -1_000])


@st.composite
def events(draw: st.DrawFn) -> Event:
    """An event that is valid half of the time, so that whole calls often are."""
    fields: dict[str, Any] = {"actor": draw(good_ids), "subject": "star", "state": draw(st.sampled_from([1, 2]))}
    fields["kind"] = draw(st.sampled_from([1, 2, 3]))
    fields["ref"] = "c1" if fields["kind"] == Kind.COMMENT else ""
    fields["occurred_at"] = Timestamp(seconds=LATEST_S - 10, nanos=draw(st.integers(0, 999_999_999)))
    if draw(st.integers(0, 5)) == 0:
        numbers = st.integers(-1, 5) | st.sampled_from([256, 257, -(2**31), 2**31 - 1])
        at = st.none() | st.builds(Timestamp, seconds=seconds, nanos=nanos)
        wrong = {"actor": ids, "subject": ids | good_ids, "ref": ids, "kind": numbers, "state": numbers, "occurred_at": at}
        for name in draw(st.lists(st.sampled_from(sorted(wrong)), max_size=3)):
            fields[name] = draw(wrong[name])
    return Event(**fields)


def broken_rules(event: Event) -> list[tuple[str, str]]:
    """The rules of the API's comments, written down as they read."""

    def of_id(value: str) -> str | None:
        if not 1 <= len(value.encode()) <= 128:
            return "ID_LENGTH"
        control = any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in value)
        return "ID_CONTROL_CHARACTER" if control else None

    found: list[tuple[str, str | None]] = [("actor", of_id(event.actor))]
    known = event.kind in (1, 2, 3)
    found.append(("kind", None if known else "KIND_UNKNOWN"))
    subject = of_id(event.subject)
    if subject is None and event.kind == 1 and event.actor == event.subject:
        subject = "SELF_NOT_ALLOWED"
    found.append(("subject", subject))
    if event.kind == 3:
        found.append(("ref", of_id(event.ref) if event.ref else "REF_REQUIRED"))
    elif known:
        found.append(("ref", "REF_NOT_ALLOWED" if event.ref else None))
    found.append(("state", None if event.state in (1, 2) else "STATE_UNKNOWN"))
    at = event.occurred_at
    if not event.HasField("occurred_at"):
        found.append(("occurred_at", "OCCURRED_AT_REQUIRED"))
    elif not 0 <= at.nanos < 10**9:
        found.append(("occurred_at", "OCCURRED_AT_INVALID"))
    elif at.seconds < 946_684_800:
        found.append(("occurred_at", "OCCURRED_AT_PAST"))
    elif at.seconds * 10**6 + at.nanos // 1_000 > LATEST_S * 10**6:
        found.append(("occurred_at", "OCCURRED_AT_FUTURE"))
    return [(field, reason) for field, reason in found if reason is not None]


def by_partition(events: list[Event], partitions: int) -> dict[int, list[tuple[str, int, str, str, int, int]]]:
    rows: dict[int, list[tuple[str, int, str, str, int, int]]] = {}
    for event in events:
        at = event.occurred_at.seconds * 10**6 + event.occurred_at.nanos // 1_000
        row = (event.actor, event.kind, event.subject, event.ref, int(event.state == 1), at)
        rows.setdefault(partition_of(event.actor, partitions), []).append(row)
    return rows


@given(st.lists(events(), min_size=1, max_size=12), st.sampled_from([1, 2, 8, 64]))
def test_columns_and_plain_words_agree(sent: list[Event], partitions: int) -> None:
    """The same calls pass, with the same events in the same partitions and order; the same rules are named of all others."""
    expected = [(f"events[{i}].{field}", reason) for i, event in enumerate(sent) for field, reason in broken_rules(event)]
    message = RecordEventsRequest(events=sent)
    if expected:
        with pytest.raises(CallRefused) as refused:
            events_of(message, partitions, LATEST_S * 10**6)
        assert [(violation.field, violation.reason.name) for violation in refused.value.violations] == expected
    else:
        parts = events_of(message, partitions, LATEST_S * 10**6)
        assert {partition: list(zip(*batch, strict=True)) for partition, batch in parts.items()} == by_partition(sent, partitions)


@pytest.mark.parametrize("partitions", [1, 8])
def test_columns_have_the_types_of_a_batch(partitions: int) -> None:
    """Kinds and actives are bytes, whatever the number of partitions: the log's codec takes them as they are."""
    event = Event(actor="ann", kind=1, subject="star", state=1, occurred_at=Timestamp(seconds=LATEST_S))
    (batch,) = events_of(RecordEventsRequest(events=[event]), partitions, LATEST_S * 10**6).values()
    assert batch == EventBatch(("ann",), b"\x01", ("star",), ("",), b"\x01", (LATEST_S * 10**6,))
