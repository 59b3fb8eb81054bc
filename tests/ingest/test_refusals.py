"""What a caller may not send: the right status, a message that names field and rule, details that say the same, and nothing appended."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.ingest.harness import NOW_S, HeldLog, follow, refusal, request, serving
from watertower.errors import MESSAGE_VIOLATIONS_MAX, Reason
from watertower.rpc import DETAILS_VIOLATIONS_MAX
from watertower.v1 import common_pb2
from watertower.v1.writer_pb2 import Event, RecordEventsRequest

COMMENT: dict[str, Any] = {"kind": common_pb2.KIND_COMMENT, "ref": "c1"}
LIKE: dict[str, Any] = {"kind": common_pb2.KIND_LIKE}

BAD_EVENTS: dict[str, tuple[Event, str, Reason]] = {
    "empty actor": (follow(actor=""), "actor", Reason.ID_LENGTH),
    "129-byte actor": (follow(actor="a" * 129), "actor", Reason.ID_LENGTH),
    "129-byte actor of 43 characters": (follow(actor="€" * 43), "actor", Reason.ID_LENGTH),
    "132-byte actor of 33 characters": (follow(actor="🌊" * 33), "actor", Reason.ID_LENGTH),
    "empty subject": (follow(subject=""), "subject", Reason.ID_LENGTH),
    "129-byte subject": (follow(subject="s" * 129), "subject", Reason.ID_LENGTH),
    "NUL in actor": (follow(actor="a\0"), "actor", Reason.ID_CONTROL_CHARACTER),
    "line feed in subject": (follow(subject="a\nb"), "subject", Reason.ID_CONTROL_CHARACTER),
    "DEL in subject": (follow(subject="\x7f"), "subject", Reason.ID_CONTROL_CHARACTER),
    "C1 control in actor": (follow(actor="a\x9f"), "actor", Reason.ID_CONTROL_CHARACTER),
    "control in ref": (follow(**COMMENT | {"ref": "a\x1fb"}), "ref", Reason.ID_CONTROL_CHARACTER),
    "129-byte ref": (follow(**COMMENT | {"ref": "c" * 129}), "ref", Reason.ID_LENGTH),
    "no kind": (follow(kind=0), "kind", Reason.KIND_UNKNOWN),
    "unknown kind": (follow(kind=99), "kind", Reason.KIND_UNKNOWN),
    "kind above a byte": (follow(kind=257), "kind", Reason.KIND_UNKNOWN),
    "negative kind": (follow(kind=-1), "kind", Reason.KIND_UNKNOWN),
    "no state": (follow(state=0), "state", Reason.STATE_UNKNOWN),
    "unknown state": (follow(state=3), "state", Reason.STATE_UNKNOWN),
    "negative state": (follow(state=-2), "state", Reason.STATE_UNKNOWN),
    "ref on a follow": (follow(ref="r"), "ref", Reason.REF_NOT_ALLOWED),
    "ref on a like": (follow(**LIKE | {"ref": "r"}), "ref", Reason.REF_NOT_ALLOWED),
    "no ref on a comment": (follow(**COMMENT | {"ref": ""}), "ref", Reason.REF_REQUIRED),
    "following oneself": (follow(actor="ann", subject="ann"), "subject", Reason.SELF_NOT_ALLOWED),
    "no occurred_at": (follow(occurred_at=None), "occurred_at", Reason.OCCURRED_AT_REQUIRED),
    "occurred_at of 1970": (follow(occurred_at=Timestamp()), "occurred_at", Reason.OCCURRED_AT_PAST),
    "before 2000": (follow(occurred_at=Timestamp(seconds=946_684_799, nanos=999_999_999)), "occurred_at", Reason.OCCURRED_AT_PAST),
    "more than 5 s ahead": (follow(occurred_at=Timestamp(seconds=NOW_S + 5, nanos=1_000)), "occurred_at", Reason.OCCURRED_AT_FUTURE),
    "year 300000": (follow(occurred_at=Timestamp(seconds=2**43)), "occurred_at", Reason.OCCURRED_AT_FUTURE),
    "negative nanos": (follow(occurred_at=Timestamp(seconds=NOW_S - 9, nanos=-1)), "occurred_at", Reason.OCCURRED_AT_INVALID),
    "nanos of a second": (follow(occurred_at=Timestamp(seconds=NOW_S - 9, nanos=1_000_000_000)), "occurred_at", Reason.OCCURRED_AT_INVALID),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_a_bad_event_refuses_the_whole_call_and_names_field_and_rule(name: str) -> None:
    """INVALID_ARGUMENT with the path and the rule in message, BadRequest and ErrorInfo; the good events beside it are not appended."""
    bad, field, reason = BAD_EVENTS[name]

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            refused = await refusal(ingest.stub.RecordEvents(request(follow("bob"), bad, follow("eve"))))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.message == f"events[1].{field} {reason.rule}"
        assert refused.violations == [(f"events[1].{field}", reason.name)]
        assert refused.bad_request.field_violations[0].description == reason.rule
        assert (refused.info.domain, refused.info.reason) == ("watertower.v1", reason.name)
        assert refused.retry_s is None
        assert refused.pushback_ms is None
        assert log.records == []

    asyncio.run(scenario())


GOOD_EVENTS: dict[str, Event] = {
    "128-byte ids": follow(actor="a" * 128, subject="s" * 128),
    "128 bytes in 64 characters": follow(actor="é" * 64),
    "128 bytes in 32 characters": follow(actor="🌊" * 32),
    "space, no-break space, zero-width joiner": follow(actor=" ", subject="\u00a0\u200d"),
    "liking one's own post": follow("ann", "ann", **LIKE),
    "commenting on oneself": follow("ann", "ann", **COMMENT),
    "128-byte ref": follow(**COMMENT | {"ref": "c" * 128}),
    "the first moment of 2000": follow(occurred_at=Timestamp(seconds=946_684_800)),
    "5 s ahead, truncated": follow(occurred_at=Timestamp(seconds=NOW_S + 5, nanos=999)),
    "removed": follow(state=common_pb2.STATE_REMOVED),
}


@pytest.mark.parametrize("name", GOOD_EVENTS)
def test_what_is_just_allowed_is_appended_as_it_was_sent(name: str) -> None:
    """Each limit is met exactly: the event is in the log, field by field."""
    event = GOOD_EVENTS[name]

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            await ingest.stub.RecordEvents(request(event))
        (record,) = log.records
        batch = record.events
        assert (list(batch.actors), list(batch.subjects), list(batch.refs)) == ([event.actor], [event.subject], [event.ref])
        assert (list(batch.kinds), list(batch.actives)) == ([event.kind], [event.state == common_pb2.STATE_ACTIVE])
        assert list(batch.occurred_at) == [event.occurred_at.seconds * 1_000_000 + event.occurred_at.nanos // 1_000]

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [0, 1_001, 200_000])
def test_a_call_must_have_1_to_1000_events(count: int) -> None:
    """Empty and too long calls are refused for their count alone, however much longer than the queue they are."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            refused = await refusal(ingest.stub.RecordEvents(request(*[Event()] * count)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.violations == [("events", Reason.EVENTS_COUNT.name)]
        assert refused.message == f"events {Reason.EVENTS_COUNT.rule}"
        assert log.records == []

    asyncio.run(scenario())


def test_a_call_may_have_1000_events() -> None:
    """All of them are appended, each actor's to its partition."""

    async def scenario() -> None:
        log = HeldLog()
        actors = [f"actor-{number}" for number in range(1_000)]
        async with serving(log) as ingest:
            await ingest.stub.RecordEvents(request(*map(follow, actors)))
        assert sorted(log.actors()) == sorted(actors)
        assert {record.partition for record in log.records} == {0, 1, 2, 3}

    asyncio.run(scenario())


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


MALFORMED: dict[str, bytes] = {
    "garbage": b"\xff\xff\xff\xff",
    "cut off": request(follow()).SerializeToString()[:-1],
    "text": b"follow ann star",
    "actor not UTF-8": _field(1, _field(1, b"ann\xff")),
    "actor in UTF-8 of more bytes than needed": _field(1, _field(1, b"\xc0\x80")),
    "subject with half a surrogate pair": _field(1, _field(3, b"\xed\xa0\x80")),
    "ref not UTF-8": _field(1, _field(4, b"\x80")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_bytes_that_are_no_message_are_the_callers_fault(name: str) -> None:
    """INVALID_ARGUMENT with MESSAGE_MALFORMED, never INTERNAL."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            refused = await refusal(ingest.send_raw(MALFORMED[name]))
            assert await ingest.send_raw(request(follow()).SerializeToString())
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.message == Reason.MESSAGE_MALFORMED.rule
        assert refused.info.reason == Reason.MESSAGE_MALFORMED.name
        assert refused.violations == [("", Reason.MESSAGE_MALFORMED.name)]
        assert log.actors() == ["ann"]

    asyncio.run(scenario())


def test_fields_of_a_later_version_are_ignored() -> None:
    """A client that knows more than this service is served."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            await ingest.send_raw(request(follow()).SerializeToString() + _field(15, b"later"))
        assert log.actors() == ["ann"]

    asyncio.run(scenario())


def test_a_message_over_the_size_limit_is_refused_by_the_transport() -> None:
    """message_bytes_max is a limit on the bytes of a request, and one byte less passes."""

    async def scenario() -> None:
        log = HeldLog()
        message = request(follow())
        limit = message.ByteSize()
        async with serving(log, message_bytes_max=limit) as ingest:
            await ingest.stub.RecordEvents(message)
            refused = await refusal(ingest.stub.RecordEvents(request(follow(actor="anna"))))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(limit) in refused.message
        assert log.actors() == ["ann"]

    asyncio.run(scenario())


def test_every_broken_rule_is_named() -> None:
    """Not only the first: several rules of one event, and several events."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            refused = await refusal(ingest.stub.RecordEvents(request(Event(), follow(), follow(ref="r", state=9))))
        assert refused.violations == [
            ("events[0].actor", "ID_LENGTH"),
            ("events[0].kind", "KIND_UNKNOWN"),
            ("events[0].subject", "ID_LENGTH"),
            ("events[0].state", "STATE_UNKNOWN"),
            ("events[0].occurred_at", "OCCURRED_AT_REQUIRED"),
            ("events[2].ref", "REF_NOT_ALLOWED"),
            ("events[2].state", "STATE_UNKNOWN"),
        ]
        assert refused.message.endswith("; and 2 more")
        assert log.records == []

    asyncio.run(scenario())


def test_a_thousand_bad_events_fit_into_the_headers() -> None:
    """5,000 broken rules: the first ones are spelled out, the rest counted, and the caller still gets the details."""

    async def scenario() -> None:
        async with serving(HeldLog()) as ingest:
            refused = await refusal(ingest.stub.RecordEvents(RecordEventsRequest(events=[Event()] * 1_000)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert len(refused.violations) == DETAILS_VIOLATIONS_MAX
        assert refused.info.metadata["violations"] == "5000"
        assert refused.message.count("; ") == MESSAGE_VIOLATIONS_MAX
        assert refused.message.endswith(f"; and {5_000 - MESSAGE_VIOLATIONS_MAX} more")

    asyncio.run(scenario())


def test_how_far_ahead_a_clock_may_be_is_a_setting() -> None:
    """clock_ahead_ms_max moves the limit, to the microsecond."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log, clock_ahead_ms_max=1) as ingest:
            await ingest.stub.RecordEvents(request(follow(occurred_at=Timestamp(seconds=NOW_S, nanos=1_000_000))))
            refused = await refusal(ingest.stub.RecordEvents(request(follow(occurred_at=Timestamp(seconds=NOW_S, nanos=1_001_000)))))
        assert refused.info.reason == Reason.OCCURRED_AT_FUTURE.name
        assert not any(character.isdigit() for character in refused.message.partition("occurred_at ")[2])  # the limit is not always 5 s
        assert len(log.records) == 1

    asyncio.run(scenario())
