"""What ingest promises about calls that are valid: durable before acknowledged, coalesced, bounded, dropped when nobody waits."""

import asyncio
import threading
from collections.abc import Iterator

import grpc
import pytest

from tests.deadlines import half_of_the_time_left
from tests.ingest.harness import UNAVAILABLE, HeldLog, Ingest, SetClock, actor_in, follow, refusal, request, serving, until
from watertower import failpoints
from watertower.config import IngestSettings
from watertower.core.positions import TOKEN_BYTES_MAX, Position, decode_position
from watertower.errors import BackendRefused, Reason
from watertower.ingest.service import IngestService
from watertower.rpc import patience_s
from watertower.v1.writer_pb2 import RecordEventsResponse


@pytest.fixture
def armed() -> Iterator[None]:
    """Failpoints are off again afterwards."""
    yield
    failpoints.disarm()


async def record(ingest: Ingest, *actors: str, timeout_s: float | None = None) -> RecordEventsResponse:
    response: RecordEventsResponse = await ingest.stub.RecordEvents(request(*map(follow, actors)), timeout=timeout_s)
    return response


def test_the_write_token_says_where_every_event_is() -> None:
    """Per partition the offset of the record that holds the call's events, in the generation of the rows."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            response = await record(ingest, actor_in(2), actor_in(0), actor_in(2, skip=1))
        assert decode_position(response.write_token) == Position(3, {r.partition: r.offset for r in log.records})
        assert {r.partition for r in log.records} == {0, 2}
        assert len(response.write_token) <= TOKEN_BYTES_MAX

    asyncio.run(scenario())


def test_nothing_is_acknowledged_before_the_log_has_it() -> None:
    """A call waits for the records of all its partitions, whatever lands first."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            call = asyncio.create_task(record(ingest, actor_in(0), actor_in(1)))
            await until(lambda: len(log.records) == 2)
            log.records[1].land()
            await until(lambda: ingest.service.queue_events == 1)
            await asyncio.sleep(0)
            assert not call.done()
            log.records[0].land()
            await call

    asyncio.run(scenario())


def test_while_a_record_is_in_flight_the_next_one_fills() -> None:
    """Calls that arrive meanwhile share one record, in their order; other partitions do not wait. Threads of the log may land them."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            calls = [asyncio.create_task(record(ingest, actor_in(0)))]
            await until(lambda: len(log.records) == 1)
            for skip in (1, 2, 3):
                calls.append(asyncio.create_task(record(ingest, actor_in(0, skip=skip))))
                await until(lambda waiting=skip + 1: ingest.service.queue_events == waiting)
            other = asyncio.create_task(record(ingest, actor_in(1)))
            await until(lambda: len(log.records) == 2)
            assert log.records[1].partition == 1
            await _land_in_a_thread(log)
            await until(lambda: len(log.records) == 3)
            assert list(log.records[2].events.actors) == [actor_in(0, skip=skip) for skip in (1, 2, 3)]
            await _land_in_a_thread(log)
            tokens = [decode_position((await call).write_token).offsets for call in [*calls, other]]
            first, second, third = (r.offset for r in log.records)
            assert tokens == [{0: first}, {0: third}, {0: third}, {0: third}, {1: second}]

    asyncio.run(scenario())


async def _land_in_a_thread(log: HeldLog) -> None:
    landing = [r for r in log.records if not r.future.done()]
    thread = threading.Thread(target=lambda: [r.land() for r in landing])
    thread.start()
    await asyncio.to_thread(thread.join)


@pytest.mark.parametrize("limits", [{"record_events_max": 2}, {"record_bytes_max": 25}])
def test_a_record_stays_below_its_limits(limits: dict[str, int]) -> None:
    """record_events_max and record_bytes_max: a call that is larger takes several records, one after the other, and one token."""

    async def scenario() -> None:
        log = HeldLog()
        actors = [f"actor-{number}" for number in range(5)]  # 7 + 4 bytes each
        async with serving(log, **limits) as ingest:
            response = await record(ingest, *actors)
        assert sorted(log.actors()) == actors
        assert max(len(r.events.actors) for r in log.records) <= 2
        assert decode_position(response.write_token).offsets == {r.partition: r.offset for r in log.records}

    asyncio.run(scenario())


@pytest.mark.parametrize("limits", [{"queue_events_max": 2}, {"queue_bytes_max": 2 * (len(actor_in(0)) + 4)}])
def test_a_full_queue_sheds_before_any_work(limits: dict[str, int]) -> None:
    """queue_events_max and queue_bytes_max count what waits and what is in flight; RESOURCE_EXHAUSTED says when to come back."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log, retry_after_ms=123, **limits) as ingest:
            calls = [asyncio.create_task(record(ingest, actor_in(0)))]
            await until(lambda: len(log.records) == 1)
            calls.append(asyncio.create_task(record(ingest, actor_in(0))))
            await until(lambda: ingest.service.queue_events == 2)
            refused = await refusal(record(ingest, actor_in(1)))
            assert (refused.code, refused.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUEUE_FULL.name)
            assert refused.message == Reason.QUEUE_FULL.rule
            assert (refused.retry_s, refused.pushback_ms) == (0.123, "123")
            assert len(log.records) == 1
            log.held = False
            log.records[0].land()
            await asyncio.gather(*calls)
            await record(ingest, actor_in(1))
        assert ingest.service.queue_events == 0

    asyncio.run(scenario())


def test_a_call_whose_deadline_passes_while_queued_is_not_appended() -> None:
    """Its place in the queue is free again; what was in flight stays and is acknowledged."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            first = asyncio.create_task(record(ingest, actor_in(0)))
            await until(lambda: len(log.records) == 1)
            late = await refusal(record(ingest, actor_in(0, skip=1), timeout_s=1))
            assert (late.code, late.info.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.LOG_UNAVAILABLE.name)
            await until(lambda: ingest.service.queue_events == 1)
            third = asyncio.create_task(record(ingest, actor_in(0, skip=2)))
            await until(lambda: ingest.service.queue_events == 2)
            log.held = False
            log.records[0].land()
            await asyncio.gather(first, third)
        assert log.actors() == [actor_in(0), actor_in(0, skip=2)]

    asyncio.run(scenario())


def test_a_back_end_may_take_nearly_all_of_a_calls_time() -> None:
    """The rest, a tenth and 0.3 s at most, is for the answer."""
    assert (patience_s(1.0), patience_s(3.0), patience_s(60.0)) == (0.9, 2.7, 59.7)


def test_a_log_that_hangs_is_said_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whose events are on their way hears UNAVAILABLE and when to come back in its time, not DEADLINE_EXCEEDED after it."""
    half_of_the_time_left(monkeypatch)

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            refused = await refusal(record(ingest, actor_in(0), timeout_s=3))
            assert (refused.code, refused.info.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.LOG_UNAVAILABLE.name)
            assert refused.retry_s is not None
            log.held = False
            log.records[0].land()
            await record(ingest, actor_in(0, skip=1))
        assert log.actors() == [actor_in(0), actor_in(0, skip=1)]

    asyncio.run(scenario())


def test_a_cancelled_call_is_dropped_from_the_queue_but_not_from_the_log() -> None:
    """Of a call over two partitions, the part in flight stays in flight, the part that waits is forgotten."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            first = asyncio.create_task(record(ingest, actor_in(0)))
            await until(lambda: len(log.records) == 1)
            call = ingest.stub.RecordEvents(request(follow(actor_in(0, skip=1)), follow(actor_in(1))))
            await until(lambda: len(log.records) == 2)
            call.cancel()
            await until(lambda: ingest.service.queue_events == 2)
            log.held = False
            for appended in list(log.records):
                appended.land()
            await first
            await ingest.service.drain()
        assert log.actors() == [actor_in(0), actor_in(1)]

    asyncio.run(scenario())


def test_a_failed_record_fails_its_calls_alone() -> None:
    """LOG_UNAVAILABLE with RetryInfo for the calls in it; the next record and other partitions go on. No detail of the log leaks."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log, retry_after_ms=250) as ingest:
            failing = asyncio.create_task(refusal(record(ingest, actor_in(0))))
            other = asyncio.create_task(record(ingest, actor_in(1)))
            await until(lambda: len(log.records) == 2)
            waiting = asyncio.create_task(record(ingest, actor_in(0, skip=1)))
            await until(lambda: ingest.service.queue_events == 3)
            log.held = False
            next(r for r in log.records if r.partition == 0).future.set_exception(UNAVAILABLE)
            refused = await failing
            await waiting
            next(r for r in log.records if r.partition == 1).land()
            await other
        assert (refused.code, refused.info.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.LOG_UNAVAILABLE.name)
        assert refused.message == Reason.LOG_UNAVAILABLE.rule
        assert (refused.retry_s, refused.pushback_ms) == (0.25, "250")

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [UNAVAILABLE, BackendRefused("the folder is read-only")])
def test_a_log_that_refuses_at_once_fails_the_call_and_recovers(error: Exception) -> None:
    """An error of append itself is not acknowledged either; when the log works again, so does ingest."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            log.broken = error
            refused = await refusal(record(ingest, actor_in(0), actor_in(1)))
            log.broken = None
            await record(ingest, actor_in(0))
        assert refused.info.reason == Reason.LOG_UNAVAILABLE.name
        assert log.actors() == [actor_in(0)]

    asyncio.run(scenario())


def test_an_unexpected_error_is_internal_and_says_nothing() -> None:
    """INTERNAL; what happened is for the log of the service, not for the caller."""

    async def scenario() -> None:
        log = HeldLog()
        log.broken = ZeroDivisionError("secret")
        async with serving(log) as ingest:
            refused = await refusal(record(ingest, actor_in(0)))
        assert (refused.code, refused.message) == (grpc.StatusCode.INTERNAL, "internal error")

    asyncio.run(scenario())


def test_draining_waits_for_what_is_in_and_refuses_what_is_new() -> None:
    """STOPPING with RetryInfo for new calls; drain returns when the last record has landed."""

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:
            call = asyncio.create_task(record(ingest, actor_in(0)))
            await until(lambda: len(log.records) == 1)
            drain = asyncio.create_task(ingest.service.drain())
            await asyncio.sleep(0)
            refused = await refusal(record(ingest, actor_in(1)))
            assert (refused.code, refused.info.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STOPPING.name)
            assert refused.retry_s == 0.5
            assert not drain.done()
            log.records[0].land()
            await drain
            await call
        assert log.actors() == [actor_in(0)]

    asyncio.run(scenario())


def test_an_idle_ingest_drains_at_once() -> None:
    """Nothing in, nothing to wait for."""
    asyncio.run(asyncio.wait_for(IngestService(HeldLog(), IngestSettings(), SetClock()).drain(), 10))


def test_appended_at_never_falls_along_a_partition() -> None:
    """A wall clock that is set back does not take the log with it."""

    async def scenario() -> None:
        log, clock = HeldLog(), SetClock()
        start_us = clock.wall_us
        async with serving(log, clock) as ingest:
            await record(ingest, actor_in(0))
            clock.wall_us = start_us - 3_000_000
            await record(ingest, actor_in(0))
            await record(ingest, actor_in(1))
            clock.wall_us = start_us + 1
            await record(ingest, actor_in(0))
        assert [r.appended_at - start_us for r in log.records] == [0, 0, -3_000_000, 1]

    asyncio.run(scenario())


@pytest.mark.usefixtures("armed")
@pytest.mark.parametrize(("point", "appended"), [("ingest.before_append", 0), ("ingest.after_append", 1), ("ingest.before_acknowledge", 1)])
def test_an_error_at_a_failpoint_is_not_acknowledged(point: str, appended: int) -> None:
    """UNAVAILABLE, whether the record is in the log already or not; ingest goes on afterwards."""

    async def scenario() -> None:
        log = HeldLog()
        async with serving(log) as ingest:
            failpoints.arm(f"{point}=error")
            refused = await refusal(record(ingest, actor_in(0)))
            assert refused.info.reason == Reason.LOG_UNAVAILABLE.name
            assert len(log.records) == appended
            failpoints.disarm()
            await record(ingest, actor_in(0, skip=1))

    asyncio.run(scenario())


def test_a_record_carries_the_trace_of_the_first_call_that_has_one() -> None:
    """W3C trace context travels from the call's metadata into the log; what is malformed is ignored."""
    traces = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2)]

    async def scenario() -> None:
        log = HeldLog(held=True)
        async with serving(log) as ingest:

            def call(number: int, *metadata: tuple[str, str]) -> asyncio.Task[RecordEventsResponse]:
                asked = ingest.stub.RecordEvents(request(follow(actor_in(0, skip=number))), metadata=metadata)
                return asyncio.ensure_future(asked)

            calls = [call(0)]
            await until(lambda: len(log.records) == 1)
            for number, metadata in enumerate([("traceparent", "not a trace"), *(("traceparent", trace) for trace in traces)], 1):
                calls.append(call(number, metadata))
                await until(lambda number=number: ingest.service.queue_events == number + 1)
            log.records[0].land()
            await until(lambda: len(log.records) == 2)
            log.records[1].land()
            await asyncio.gather(*calls)
        assert [record.traceparent for record in log.records] == ["", traces[0]]

    asyncio.run(scenario())
