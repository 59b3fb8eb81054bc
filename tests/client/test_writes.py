"""Writes: batches, stamps, retries and errors, against a scripted server."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from tests.client.fake import AWAY, SHED, FakeServer, Naps, Never, Refusal, refused, run, served, serving, until
from watertower.client import (
    Client,
    ClientClosed,
    ClientError,
    ClientOptions,
    DeadlineExceeded,
    Event,
    InvalidRequest,
    Kind,
    Overloaded,
    Refused,
    Throttled,
    TooManyWaiting,
    Unavailable,
)
from watertower.client.batching import Entry
from watertower.client.retries import THROTTLE_WINDOW_S
from watertower.core.positions import decode_position
from watertower.errors import Reason, Violation
from watertower.testing.clock import FakeClock
from watertower.testing.service import free_port
from watertower.v1 import common_pb2


def events_of(fake: FakeServer) -> list[list[str]]:
    return [[event.actor for event in request.events] for request in fake.records]


def test_what_each_write_sends() -> None:
    """Kind, state and ref are those of the word that the caller used."""

    async def test() -> None:
        async with served() as (fake, client):
            await client.follow("a", "b")
            await client.unfollow("a", "b")
            await client.like("a", "p")
            await client.unlike("a", "p")
            await client.comment("a", "p", "c1")
            await client.delete_comment("a", "p", "c1")
            sent = [event for request in fake.records for event in request.events]
            assert [(e.kind, e.state, e.subject, e.ref) for e in sent] == [
                (common_pb2.KIND_FOLLOW, common_pb2.STATE_ACTIVE, "b", ""),
                (common_pb2.KIND_FOLLOW, common_pb2.STATE_REMOVED, "b", ""),
                (common_pb2.KIND_LIKE, common_pb2.STATE_ACTIVE, "p", ""),
                (common_pb2.KIND_LIKE, common_pb2.STATE_REMOVED, "p", ""),
                (common_pb2.KIND_COMMENT, common_pb2.STATE_ACTIVE, "p", "c1"),
                (common_pb2.KIND_COMMENT, common_pb2.STATE_REMOVED, "p", "c1"),
            ]

    run(test)


def test_a_retry_carries_the_same_moment() -> None:
    """occurred_at is taken once, before the first attempt; the answer says what it was."""

    async def test() -> None:
        clock = FakeClock(1_700_000_000_000_000)
        async with served(clock, random.Random(1), Naps(clock)) as (fake, client):
            fake.on_record = lambda number, request: AWAY if number < 3 else None
            written = await client.follow("a", "b")
            assert len(fake.records) == 4
            assert all(request == fake.records[0] for request in fake.records)
            assert fake.records[0].events[0].occurred_at.ToMicroseconds() == 1_700_000_000_000_000
            assert written.occurred_at == (datetime.fromtimestamp(1_700_000_000, UTC),)
            assert written.token

    run(test)


def test_a_callers_moment_is_kept() -> None:
    """To the microsecond, from any time zone; one without a zone is refused, since it could mean anything."""

    async def test() -> None:
        async with served() as (fake, client):
            moment = datetime(2024, 5, 1, 12, 0, 0, 123_456, UTC)
            await client.follow("a", "b", occurred_at=moment)
            assert fake.records[0].events[0].occurred_at.ToMicroseconds() == 1_714_564_800_123_456
            with pytest.raises(ValueError, match="time zone"):
                await client.follow("a", "b", occurred_at=datetime(2024, 5, 1))

    run(test)


def test_moments_go_forward() -> None:
    """A follow and the unfollow after it keep their order in one microsecond, and when the clock is set back a little; not when it is set
    back by more, since the service would refuse moments so far ahead."""

    async def test() -> None:
        clock = FakeClock(1_700_000_000_000_000)
        async with served(clock) as (_, client):
            moments = [(await client.follow("a", "b")).occurred_at[0] for _ in range(3)]
            clock.set_wall(1_699_999_999_500_000)
            moments.append((await client.unfollow("a", "b")).occurred_at[0])
            assert moments == sorted(set(moments))
            clock.set_wall(1_699_999_998_000_000)
            assert (await client.unfollow("a", "b")).occurred_at[0] == datetime.fromtimestamp(1_699_999_998, UTC)

    run(test)


def test_the_server_says_when_to_come_back() -> None:
    """RetryInfo or pushback metadata, whichever is longer, and jitter on top: 0 to 50 ms, then to 100 ms."""

    async def test() -> None:
        clock = FakeClock()
        naps = Naps(clock)
        async with served(clock, random.Random(2), naps) as (fake, client):
            only_pushback = Refusal(grpc.StatusCode.UNAVAILABLE, "later", (("grpc-retry-pushback-ms", "1500"),))
            longer_pushback = refused(Reason.LOG_UNAVAILABLE, 0.5, pushback="2000")
            refusals = [refused(Reason.LOG_UNAVAILABLE, 0.7), only_pushback, longer_pushback]
            fake.on_record = lambda number, request: refusals[number] if number < 3 else None
            await client.follow("a", "b")
            for wait, asked, jitter in zip(naps.waits, (0.7, 1.5, 2.0), (0.05, 0.1, 0.2), strict=True):
                assert asked <= wait < asked + jitter

    run(test)


@pytest.mark.parametrize("pushback", ["-1", "soon", ""])
def test_a_server_may_say_not_to_come_back(pushback: str) -> None:
    """A negative or unreadable pushback ends the call at once, whatever the status is."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.on_record = lambda number, request: refused(Reason.LOG_UNAVAILABLE, 0.1, pushback=pushback)
            with pytest.raises(Unavailable) as caught:
                await client.follow("a", "b")
            assert (caught.value.reason, len(fake.records)) == ("LOG_UNAVAILABLE", 1)

    run(test)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (AWAY, Unavailable),
        (refused(Reason.LOG_UNAVAILABLE, 0.1), Unavailable),
        (SHED, Overloaded),
        (refused(Reason.DEADLINE_PASSED, 0.1), DeadlineExceeded),
        (Refusal(grpc.StatusCode.CANCELLED), Unavailable),
    ],
)
def test_what_passes_is_tried_again_for_a_bounded_number_of_times(refusal: Refusal, error: type[ClientError]) -> None:
    """attempts_max, and then the error that says what it was, and that it may be worth repeating."""

    async def test() -> None:
        async with served(sleep=Naps(), attempts_max=3, rng=Never()) as (fake, client):
            fake.on_record = lambda number, request: refusal
            with pytest.raises(error) as caught:
                await client.follow("a", "b")
            assert len(fake.records) == 3
            assert caught.value.retryable
            assert caught.value.status is refusal.status

    run(test)


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.INTERNAL),
        Refusal(grpc.StatusCode.UNIMPLEMENTED),
        Refusal(grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_what_does_not_pass_is_not_tried_again(refusal: Refusal) -> None:
    """A fault, a wrong address, a missing right: one attempt, and an error that names the status."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.on_record = lambda number, request: refusal
            with pytest.raises(Refused, match=refusal.status.name) as caught:
                await client.follow("a", "b")
            assert (len(fake.records), caught.value.retryable) == (1, False)

    run(test)


def test_the_retry_budget_ends_retries() -> None:
    """A service that refuses everything gets the requests, a tenth of them again, and the reserve; not ten times as many."""

    async def test() -> None:
        clock = FakeClock()
        options: dict[str, Any] = {"batch_items_max": 1, "batch_calls_max": 1, "retry_reserve_max": 5}
        async with served(clock, sleep=Naps(), **options) as (fake, client):
            fake.on_record = lambda number, request: AWAY
            for number in range(100):
                with pytest.raises(Unavailable):
                    await client.follow(f"a{number}", "b")
            assert len(fake.records) == 100 + 100 // 10 + 5

    run(test)


def test_a_client_whose_calls_are_shed_sends_less() -> None:
    """Throttled calls are refused at once and never sent; when the service accepts again, all of them get through again in two minutes."""

    async def test() -> None:
        clock = FakeClock()
        async with served(clock, random.Random(3), Naps(clock), attempts_max=1) as (fake, client):
            fake.on_record = lambda number, request: SHED
            outcomes = []
            for _ in range(200):
                with pytest.raises(Overloaded) as caught:
                    await client.follow("a", "b")
                outcomes.append(type(caught.value))
            assert outcomes[0] is Overloaded
            assert outcomes.count(Throttled) + len(fake.records) == 200
            assert len(fake.records) < 20
            clock.advance(THROTTLE_WINDOW_S)
            fake.on_record = lambda number, request: None
            for _ in range(20):
                await client.follow("a", "b")

    run(test)


def test_calls_of_one_turn_go_in_one_request() -> None:
    """Up to 1,000 events; every caller gets a token; nothing is sent twice."""

    async def test() -> None:
        async with served() as (fake, client):
            written = await asyncio.gather(*(client.follow(f"a{n}", "star") for n in range(2_500)))
            assert sorted(len(request.events) for request in fake.records) == [500, 1_000, 1_000]
            assert fake.followers["star"] == 2_500
            assert all(one.token for one in written)

    run(test)


def test_a_lone_caller_waits_for_nobody() -> None:
    """With nothing under way a call goes at once: a wait for others of a minute is not waited."""

    async def test() -> None:
        async with served(batch_wait_ms_max=60_000) as (fake, client):
            async with asyncio.timeout(10):
                for number in range(3):
                    await client.follow(f"a{number}", "b")
            assert len(fake.records) == 3

    run(test)


def test_calls_collect_while_a_request_is_on_its_way() -> None:
    """They go together when it is answered; or, if it takes long, after the wait, in a request of their own."""

    async def test() -> None:
        for wait_ms, answered_first in ((60_000, True), (1, False)):
            async with served(batch_wait_ms_max=wait_ms) as (fake, client):
                gate = asyncio.Event()

                async def hold(number: int, request: Any, gate: asyncio.Event = gate) -> None:
                    if number == 0:
                        await gate.wait()

                fake.on_record = hold
                first = asyncio.create_task(client.follow("first", "b"))
                await until(lambda fake=fake: fake.records, "the first request is there")
                others = [asyncio.create_task(client.follow(f"a{n}", "b")) for n in range(5)]
                if answered_first:
                    await asyncio.sleep(0)
                    gate.set()
                await asyncio.gather(*others)
                assert first.done() == answered_first
                gate.set()
                await first
                assert events_of(fake) == [["first"], [f"a{n}" for n in range(5)]]

    run(test)


def test_what_is_full_or_freed_goes_at_once() -> None:
    """A batch into which the next call does not fit, and one that waits when any request is answered: neither waits for its time."""

    async def test() -> None:
        async with served(batch_wait_ms_max=60_000, batch_items_max=3) as (fake, client):
            gates = [asyncio.Event(), asyncio.Event()]
            fake.on_record = lambda number, request: _until_set(gates[number]) if number < 2 else None
            first = asyncio.create_task(client.follow("first", "b"))
            await until(lambda: fake.records, "the first request is there")
            pairs = [[Event(f"{name}{n}", Kind.FOLLOW, "b") for n in range(2)] for name in "pq"]
            calls = [asyncio.create_task(client.record_many(pair)) for pair in pairs]
            await until(lambda: len(fake.records) == 2, "the pair that is as good as full is there")
            gates[1].set()
            async with asyncio.timeout(10):
                await asyncio.gather(*calls)
            assert not first.done()
            assert events_of(fake) == [["first"], ["p0", "p1"], ["q0", "q1"]]
            gates[0].set()
            await first

    run(test)


def test_requests_under_way_are_bounded() -> None:
    """batch_calls_max of them; the rest waits its turn."""

    async def test() -> None:
        async with served(batch_items_max=1, batch_calls_max=3) as (fake, client):
            under_way = most = 0

            async def hold(number: int, request: Any) -> None:
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.005)
                under_way -= 1

            fake.on_record = hold
            await asyncio.gather(*(client.follow(f"a{n}", "b") for n in range(20)))
            assert (most, len(fake.records)) == (3, 20)

    run(test)


def test_waiting_items_are_bounded() -> None:
    """A call above waiting_items_max is refused at once; when others have their answers there is room again."""

    async def test() -> None:
        async with served(batch_items_max=3, waiting_items_max=3) as (fake, client):
            gate = asyncio.Event()
            fake.on_record = lambda number, request: _until_set(gate)
            waiting = [asyncio.create_task(client.follow(f"a{n}", "b")) for n in range(3)]
            await until(lambda: fake.records, "a request is there")
            with pytest.raises(TooManyWaiting, match="waiting_items_max"):
                await client.follow("a4", "b")
            gate.set()
            await asyncio.gather(*waiting)
            await client.follow("a4", "b")
            assert fake.followers["b"] == 4

    run(test)


def test_a_call_may_be_larger_than_what_may_wait() -> None:
    """Its parts take turns in what there is room for, and all of it is recorded; it is refused whole, and unsent, where there is none."""

    async def test() -> None:
        async with served(batch_items_max=2, batch_calls_max=2, waiting_items_max=5) as (fake, client):
            many = [Event(f"a{n}", Kind.FOLLOW, "b") for n in range(101)]
            written = await client.record_many(many)
            assert fake.followers["b"] == 101
            assert decode_position(written.token) == fake.written
            found = await client.counts_many([f"e{n}" for n in range(51)])
            assert len(found) == 51
            gate = asyncio.Event()
            fake.on_record = lambda number, request: _until_set(gate)
            waiting = [asyncio.create_task(client.follow(f"x{n}", "c")) for n in range(2)]
            before = len(fake.records)
            await until(lambda: len(fake.records) > before, "a request is there")
            with pytest.raises(TooManyWaiting):
                await client.record_many(many)
            assert len(fake.records) == before + 1
            gate.set()
            await asyncio.gather(*waiting)

    run(test)


def test_a_full_part_of_a_call_may_wait() -> None:
    """Fewer waiting items than one request holds would refuse every large call for ever: refused where it is set."""
    with pytest.raises(ValueError, match=r"waiting_items_max is 999: must be batch_items_max \(1000\) or more"):
        ClientOptions(waiting_items_max=999)
    ClientOptions(batch_items_max=999, waiting_items_max=999)


class _LetsOneIn(random.Random):
    """The first coin lets a call through; all others refuse it."""

    first = True

    def random(self) -> float:
        first, self.first = self.first, False
        return 0.999_999 if first else 0.0


def test_a_call_is_throttled_as_one() -> None:
    """Whether a call of many parts is sent is decided once, before any of them is."""

    async def test() -> None:
        async with served(rng=_LetsOneIn(), batch_items_max=2) as (fake, client):
            client._transport._writer._throttle.answered(1_000, shed=True)
            many = [Event(f"a{n}", Kind.FOLLOW, "b") for n in range(10)]
            await client.record_many(many)
            assert fake.followers["b"] == 10
            with pytest.raises(Throttled):
                await client.record_many(many)
            assert len(fake.records) == 5

    run(test)


def test_a_call_that_fails_in_the_middle_says_so() -> None:
    """How much was recorded, and where: the session reads it. No further part is sent."""

    async def test() -> None:
        async with served(batch_items_max=2, batch_calls_max=1) as (fake, client):
            fake.on_record = lambda number, request: Refusal(grpc.StatusCode.INTERNAL) if number == 1 else None
            session = client.session()
            with pytest.raises(Refused, match="1 of 3 parts of the call were recorded") as caught:
                await session.record_many([Event(f"a{n}", Kind.FOLLOW, "b") for n in range(6)])
            assert decode_position(caught.value.token) == fake.written
            assert session.token == caught.value.token
            assert len(caught.value.occurred_at) == 6
            assert events_of(fake) == [["a0", "a1"], ["a2", "a3"]]

    run(test)


def test_a_failed_write_can_be_repeated_as_it_was() -> None:
    """Its error has the moments of its events; with them the same request is sent again."""

    async def test() -> None:
        clock = FakeClock(1_700_000_000_000_000)
        async with served(clock, attempts_max=1) as (fake, client):
            fake.on_record = lambda number, request: AWAY if number == 0 else None
            events = [Event("a", Kind.FOLLOW, "b"), Event("c", Kind.FOLLOW, "b")]
            with pytest.raises(Unavailable) as caught:
                await client.record_many(events)
            clock.advance(5.0)
            again = [replace(event, occurred_at=at) for event, at in zip(events, caught.value.occurred_at, strict=True)]
            await client.record_many(again)
            assert fake.records[0] == fake.records[1]

    run(test)


def test_taking_out_what_was_refused_has_a_bound() -> None:
    """Where more is wrong than the service names, sending the rest again comes out of the retry budget; when that is used up the rest hears
    that it may be repeated. Where all is named, it is sent once more without."""

    async def test() -> None:
        async with served(retry_reserve_max=2) as (fake, client):
            fake.on_record = refuse_ahead
            results = await asyncio.gather(*(client.follow(f"ahead{n}", "b") for n in range(1_000)), return_exceptions=True)
            assert len(fake.records) == 3
            assert Counter(map(type, results)) == {InvalidRequest: 60, Unavailable: 940}
            assert "retries ran out" in str(results[-1])
        async with served(retry_reserve_max=0, retry_percent_max=0) as (fake, client):
            fake.on_record = refuse_ahead
            await asyncio.gather(*(client.follow(actor, "b") for actor in ("ahead", "a", "c")), return_exceptions=True)
            assert fake.followers["b"] == 2

    run(test)


async def _until_set(event: asyncio.Event) -> None:
    await event.wait()


def refuse_ahead(number: int, request: Any) -> Refusal | None:
    """As the service does for actors whose clock is ahead: all of them named, or the first 20."""
    found = [
        Violation(f"events[{index}].occurred_at", Reason.OCCURRED_AT_FUTURE)
        for index, event in enumerate(request.events)
        if event.actor.startswith("ahead")
    ]
    return refused(Reason.OCCURRED_AT_FUTURE, violations=found) if found else None


def test_one_callers_mistake_is_not_anothers() -> None:
    """Of a batch that is refused, the callers of the named events hear what was wrong; the others are sent again with the same moments."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.on_record = refuse_ahead
            actors = [f"ahead{n}" if n % 20 == 7 else f"a{n}" for n in range(1_000)]  # 50 are named in three refusals
            results = await asyncio.gather(*(client.follow(actor, "b") for actor in actors), return_exceptions=True)
            assert fake.followers["b"] == 950
            assert len(fake.records) == 4
            for actor, result in zip(actors, results, strict=True):
                if actor.startswith("ahead"):
                    assert isinstance(result, InvalidRequest)
                    (violation,) = result.violations
                    assert (violation.field, violation.reason) == ("events[0].occurred_at", "OCCURRED_AT_FUTURE")
                    assert str(result) == f"events[0].occurred_at {Reason.OCCURRED_AT_FUTURE.rule}"
                else:
                    assert not isinstance(result, BaseException)
            first = {event.actor: event.occurred_at.ToMicroseconds() for event in fake.records[0].events}
            for event in fake.records[-1].events:
                assert event.occurred_at.ToMicroseconds() == first[event.actor]

    run(test)


def test_violations_count_as_the_caller_does() -> None:
    """The index is that of the caller's own list, in a batch with others, and over the bounds of several requests."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.on_record = refuse_ahead
            mine = [Event("x", Kind.FOLLOW, "b"), Event("ahead", Kind.FOLLOW, "b")]
            results = await asyncio.gather(client.follow("other", "b"), client.record_many(mine), return_exceptions=True)
            assert isinstance(results[1], InvalidRequest)
            assert [violation.field for violation in results[1].violations] == ["events[1].occurred_at"]
            assert events_of(fake)[-1] == ["other"]
            many = [Event("ahead" if n == 1_234 else f"y{n}", Kind.FOLLOW, "c") for n in range(1_500)]
            with pytest.raises(InvalidRequest) as caught:
                await client.record_many(many)
            assert [violation.field for violation in caught.value.violations] == ["events[1234].occurred_at"]
            assert fake.followers["c"] == 1_000  # the first request is whole, the second was refused whole

    run(test)


def test_a_refusal_of_the_whole_request_is_everyones() -> None:
    """Where the service names no event, each caller hears what is said of its own alone."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.on_record = lambda number, request: refused(Reason.MESSAGE_MALFORMED, violations=[Violation("", Reason.MESSAGE_MALFORMED)])
            results = await asyncio.gather(client.follow("a", "b"), client.follow("c", "d"), return_exceptions=True)
            assert [type(result) for result in results] == [InvalidRequest] * 2
            assert events_of(fake) == [["a", "c"], ["a"], ["c"]]

    run(test)


@pytest.mark.parametrize(
    ("event", "field", "reason"),
    [
        (Event("", Kind.FOLLOW, "b"), "actor", "ID_LENGTH"),
        (Event("a", Kind.FOLLOW, "b" * 129), "subject", "ID_LENGTH"),
        (Event("a\n", Kind.FOLLOW, "b"), "actor", "ID_CONTROL_CHARACTER"),
        (Event("\udcff", Kind.FOLLOW, "b"), "actor", "MESSAGE_MALFORMED"),
        (Event("a", Kind.COMMENT, "b", "\udcff"), "ref", "MESSAGE_MALFORMED"),
        (Event("a", Kind.FOLLOW, "a"), "subject", "SELF_NOT_ALLOWED"),
        (Event("a", Kind.COMMENT, "b"), "ref", "REF_REQUIRED"),
        (Event("a", Kind.LIKE, "b", "c"), "ref", "REF_NOT_ALLOWED"),
        (Event("a", 9, "b"), "kind", "KIND_UNKNOWN"),  # type: ignore[arg-type] # what a caller without types may do
        (Event("a", Kind.LIKE, "b", occurred_at=datetime(1999, 1, 1, tzinfo=UTC)), "occurred_at", "OCCURRED_AT_PAST"),
    ],
)
def test_mistakes_that_need_no_service_cost_no_request(event: Event, field: str, reason: str) -> None:
    """The same rules and words as those of the service."""

    async def test() -> None:
        async with served() as (fake, client):
            with pytest.raises(InvalidRequest) as caught:
                await client.record_many([Event("x", Kind.FOLLOW, "y"), event])
            assert [(v.field, v.reason) for v in caught.value.violations] == [(f"events[1].{field}", reason)]
            assert caught.value.reason == reason
            assert not fake.records
            with pytest.raises(InvalidRequest, match="events must have 1 to 1000 events"):
                await client.record_many([])

    run(test)


def test_a_cancelled_caller_is_left_out() -> None:
    """Before its event is sent; the others of its batch are not touched."""

    async def test() -> None:
        async with served(batch_wait_ms_max=60_000) as (fake, client):
            gate = asyncio.Event()
            fake.on_record = lambda number, request: _until_set(gate) if number == 0 else None
            first = asyncio.create_task(client.follow("first", "b"))
            await until(lambda: fake.records, "the first request is there")
            gone, stays = (asyncio.create_task(client.follow(actor, "b")) for actor in ("gone", "stays"))
            await asyncio.sleep(0)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            gate.set()
            await asyncio.gather(first, stays)
            assert events_of(fake) == [["first"], ["stays"]]

    run(test)


def test_a_cancelled_caller_does_not_cancel_a_request_under_way() -> None:
    """What was sent with its event belongs to the others, too."""

    async def test() -> None:
        async with served() as (fake, client):
            gate = asyncio.Event()
            fake.on_record = lambda number, request: _until_set(gate)
            gone, stays = (asyncio.create_task(client.follow(actor, "b")) for actor in ("gone", "stays"))
            await until(lambda: fake.records, "the request is there")
            gone.cancel()
            gate.set()
            assert (await stays).token
            assert fake.followers["b"] == 2

    run(test)


def test_each_caller_has_its_own_deadline() -> None:
    """A short one ends in time though others of the batch wait on; the attempt lasts for the longest."""

    async def test() -> None:
        async with served(attempt_timeout_ms=8_000) as (fake, client):
            gate = asyncio.Event()
            fake.on_record = lambda number, request: _until_set(gate)
            patient = asyncio.create_task(client.follow("patient", "b", timeout_s=30))
            with pytest.raises(DeadlineExceeded, match="deadline"):
                await client.follow("hasty", "b", timeout_s=0.05)
            assert 7 < fake.deadlines[0] <= 8
            gate.set()
            await patient

    run(test)


def test_who_has_no_time_for_a_retry_hears_why() -> None:
    """At once, and what the service said; the others are tried again."""

    async def test() -> None:
        clock = FakeClock()
        async with served(clock, Never(), Naps(clock)) as (fake, client):
            fake.on_record = lambda number, request: refused(Reason.LOG_UNAVAILABLE, 3.0) if number == 0 else None
            results = await asyncio.gather(
                client.follow("hasty", "b", timeout_s=2), client.follow("patient", "b", timeout_s=20), return_exceptions=True
            )
            assert isinstance(results[0], Unavailable)
            assert (results[0].reason, results[0].retry_after_s) == ("LOG_UNAVAILABLE", 3.0)
            assert events_of(fake) == [["hasty", "patient"], ["patient"]]
            fake.on_record = lambda number, request: refused(Reason.LOG_UNAVAILABLE, 3.0)
            with pytest.raises(Unavailable):  # nobody is left: no retry is waited for
                await client.follow("hasty", "b", timeout_s=2)
            assert len(fake.records) == 3

    run(test)


def test_who_has_time_for_a_retry_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each caller by itself: none is looked for among the others, of which there may be a thousand."""

    def compared(entry: object, other: object) -> bool:
        raise AssertionError("a caller was looked for among others")

    async def test() -> None:
        clock = FakeClock()
        async with served(clock, Never(), Naps(clock)) as (fake, client):
            fake.on_record = lambda number, request: refused(Reason.LOG_UNAVAILABLE, 3.0) if number == 0 else None
            monkeypatch.setattr(Entry, "__eq__", compared)
            calls = [client.follow(f"a{n}", "b", timeout_s=2 if n % 2 else 20) for n in range(6)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(result, Unavailable) for result in results] == [False, True] * 3
            assert events_of(fake)[1] == ["a0", "a2", "a4"]

    run(test)


def test_an_attempt_that_hangs_is_given_up() -> None:
    """After attempt_timeout_ms, for another attempt within the call's own time."""

    async def test() -> None:
        async with served(attempt_timeout_ms=50) as (fake, client):
            gate = asyncio.Event()
            fake.on_record = lambda number, request: _until_set(gate) if number == 0 else None
            await client.follow("a", "b", timeout_s=30)
            assert len(fake.records) == 2
            gate.set()

    run(test)


def test_a_request_that_is_too_large_is_not_repeated() -> None:
    """RESOURCE_EXHAUSTED from the transport, without a time to come back, is the size of the request and no load."""

    async def test() -> None:
        async with served() as (fake, client):
            fake.on_record = lambda number, request: Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max")
            with pytest.raises(Refused):
                await client.follow("a", "b")
            assert len(fake.records) == 1

    run(test)


def test_closing_ends_what_waits() -> None:
    """Calls under way and calls after it end with ClientClosed, not by hanging or by a cancellation that nobody asked for."""

    async def test() -> None:
        async with served(batch_items_max=1, batch_calls_max=1) as (fake, client):
            gate = asyncio.Event()
            fake.on_record = fake.on_read = lambda number, request: _until_set(gate)
            calls = [client.follow("a", "b"), client.follow("c", "d"), client.counts("b"), client.check("a", ["b"])]
            waiting = [asyncio.ensure_future(call) for call in calls]
            await until(lambda: fake.records and len(fake.reads) == 2, "the requests are there")
            await client.close()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [ClientClosed] * 4
            with pytest.raises(ClientClosed):
                await client.follow("a", "b")
            with pytest.raises(ClientClosed):
                await anext(client.watch(["a"]))
            await client.close()
            gate.set()

    run(test)


def test_closing_ends_what_waits_for_its_retry() -> None:
    """A call or a watch that is told to come back in an hour hears at once that the client was closed."""

    async def test() -> None:
        async with served() as (fake, client):
            later = refused(Reason.STOPPING, 3_600.0)
            fake.on_record = fake.on_read = lambda number, request: later
            fake.updates.put_nowait(later)
            long: dict[str, float] = {"timeout_s": 7_200.0}
            calls: list[Any] = [
                client.follow("a", "b", **long),
                client.counts("b", **long),
                client.check("a", ["b"], **long),
                client.list_actors("b", **long),
                client.list_subjects("a", **long),
                anext(client.watch(["b"])),
            ]
            waiting = [asyncio.ensure_future(call) for call in calls]
            await until(lambda: fake.records and len(fake.reads) == 4 and fake.watches, "all of them were refused")
            await asyncio.sleep(0.05)  # the refusals are on their way
            await client.close()
            async with asyncio.timeout(10):
                results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [ClientClosed] * len(calls)

    run(test)


def test_closing_ends_what_was_not_begun() -> None:
    """A request whose task has not run when the client is closed: its caller hears of that, not of a deadline."""

    async def test() -> None:
        async with served() as (fake, client):
            caller = asyncio.create_task(client.follow("a", "b", timeout_s=60))
            under_way = client._transport._events._under_way
            while not under_way:  # noqa: ASYNC110 - a turn of the loop at a time: no further than to the task
                await asyncio.sleep(0)
            await client.close()
            with pytest.raises(ClientClosed):
                async with asyncio.timeout(10):
                    await caller
            assert not fake.records

    run(test)


def test_a_service_that_starts_late_is_found() -> None:
    """A call waits for a connection in the time that it has, at the cost of one retry."""

    async def test() -> None:
        port = free_port()
        async with Client(f"127.0.0.1:{port}", f"127.0.0.1:{port}", ClientOptions(retry_reserve_max=1)) as client:
            early = asyncio.create_task(client.follow("a", "b", timeout_s=30))
            failures: Any = client._transport._writer._budget._window
            await until(lambda: failures.sums() == (1, 1), "nothing answered, and the retry waits")
            async with serving(port) as fake:
                await early
                assert fake.followers["b"] == 1

    run(test)


def test_addresses_take_turns() -> None:
    """Of several addresses all get requests, and one that is away costs nothing but the turn."""

    async def test() -> None:
        async with serving() as one, serving() as other:
            target = f"ipv4:{one.target},{other.target},127.0.0.1:{free_port()}"
            async with Client(target, target) as client:
                for number in range(20):
                    await client.follow(f"a{number}", "b")
                    if one.records and other.records:
                        await client.follow("last", "b")
                        break
                assert one.records
                assert other.records

    run(test)


def test_nothing_answers() -> None:
    """An address without a service is an error that names it, in the time that the call has."""

    async def test() -> None:
        async with Client("127.0.0.1:1", "127.0.0.1:1") as client:
            with pytest.raises((Unavailable, DeadlineExceeded), match=r"127\.0\.0\.1:1"):
                await client.follow("a", "b", timeout_s=0.3)

    run(test)
