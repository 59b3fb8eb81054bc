"""The open loop: latency counts from when a call was due, whatever held it up, and a generator that is late says so."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.client.fake import run
from watertower.client import Unavailable
from watertower.clock import SystemClock
from watertower.load import generator
from watertower.load.generator import Generator
from watertower.load.measure import Recorder
from watertower.load.schedule import COUNTS, Arrival, Phase

CLOCK = SystemClock()


async def sent(send: Callable[[Arrival], Awaitable[object]], moments: list[float]) -> Recorder:
    recorder = Recorder([Phase("only", 0.0, 1.0)])
    arrivals = iter([Arrival(at, COUNTS, "bob") for at in moments])
    await Generator(send, recorder, CLOCK).run(arrivals, CLOCK.monotonic_s())
    return recorder


def test_calls_go_when_they_are_due_and_wait_for_no_answer() -> None:
    """Ten that take 0.2 s each, 10 ms apart, take no 2 s. None is sent early."""
    started: list[float] = []

    async def slow(arrival: Arrival) -> None:
        started.append(CLOCK.monotonic_s() - arrival.at_s)
        await asyncio.sleep(0.2)

    async def test() -> None:
        begun = CLOCK.monotonic_s()
        recorder = await sent(slow, [number * 0.01 for number in range(10)])
        assert CLOCK.monotonic_s() - begun < 1.5
        assert min(started) >= begun
        calls = recorder.calls["only", COUNTS]
        assert calls.latencies.count == 10
        assert (calls.latencies.percentile_s(0.0) or 0.0) >= 0.19

    run(test)


def test_a_generator_that_is_held_up_is_late_and_hides_nothing() -> None:
    """The loop stands still for 0.3 s: the calls that were due meanwhile are that much late, in their latencies as well as in `late`."""

    async def stumbles(arrival: Arrival) -> None:
        if arrival.at_s == 0.0:
            time.sleep(0.3)  # noqa: ASYNC251 - that is the point

    async def test() -> None:
        recorder = await sent(stumbles, [0.0, 0.05, 0.06, 0.07])
        assert 0.2 < recorder.late.max_s < 2.0
        latencies = recorder.calls["only", COUNTS].latencies
        assert latencies.count == 4
        assert (latencies.percentile_s(0.0) or 0.0) > 0.2
        assert recorder.timeline()[0]["late_max_ms"] > 200.0

    run(test)


def test_calls_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above are not sent, are counted, and count as failed."""
    monkeypatch.setattr(generator, "IN_FLIGHT_MAX", 3)

    async def test() -> None:
        recorder = await sent(lambda arrival: asyncio.sleep(0.3), [0.0] * 5)
        calls = recorder.calls["only", COUNTS]
        assert (recorder.unsent, calls.unsent, calls.failed, calls.latencies.count, calls.count) == (2, 2, 2, 3, 5)

    run(test)


def test_answers_are_looked_at_while_it_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls are due: otherwise none would end before all are sent."""
    monkeypatch.setattr(generator, "BURST_MAX", 10)
    most, under_way = 0, 0

    async def quick(arrival: Arrival) -> None:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    async def test() -> None:
        await sent(quick, [0.0] * 1_000)
        assert most <= 30

    run(test)


def test_a_failed_call_is_counted_by_its_name_and_no_latency() -> None:
    async def fails(arrival: Arrival) -> None:
        raise Unavailable("nothing answers")

    async def test() -> None:
        calls = (await sent(fails, [0.0, 0.0])).calls["only", COUNTS]
        assert (dict(calls.errors), calls.latencies.count, calls.failed) == ({"Unavailable": 2}, 0, 2)

    run(test)


def test_a_fault_of_the_load_test_itself_ends_it() -> None:
    """It is no failure of the service."""

    async def faulty(arrival: Arrival) -> None:
        raise ZeroDivisionError

    async def test() -> None:
        with pytest.raises(ZeroDivisionError):
            await sent(faulty, [0.0])

    run(test)


def test_a_fault_ends_it_at_once() -> None:
    """Neither the rest of the schedule nor an answer that is long in coming is waited for."""
    calls: list[float] = []

    async def faulty(arrival: Arrival) -> None:
        calls.append(arrival.at_s)
        if arrival.at_s == 0.05:
            raise ZeroDivisionError
        await asyncio.sleep(60.0)

    async def test() -> None:
        for rest in ([0.1, 60.0], []):
            calls.clear()
            with pytest.raises(ZeroDivisionError):
                async with asyncio.timeout(10.0):
                    await sent(faulty, [0.0, 0.05, *rest])
            assert calls == [0.0, 0.05]

    run(test)
