"""Who is let in: shedding by measured waits, the gate of a method, room in the process."""

import asyncio
import math
import random
from itertools import pairwise
from typing import Any

import pytest

from watertower.admission import BULK_BYTES_MIN, RETRY_AFTER_S_MAX, TURN_ROUNDS, WAITS_KEPT, Admission, Gate, Shedding, Turns, Work
from watertower.config import QuerySettings
from watertower.errors import CallRefused, Reason

WORKS = {"Write": Work.WRITE, "Store": Work.STORE_READ, "Cached": Work.CACHED_READ}


def waited(shedding: Shedding, wait_s: float, times: int = WAITS_KEPT) -> Shedding:
    for _ in range(times):
        shedding.observe(wait_s)
    return shedding


def shedding(uniform: float = 0.5) -> Shedding:
    """Thresholds 0.1, 0.2, 0.4, 0.8 and 1.6 s."""
    return Shedding(0.1, 1.6, 0.5, lambda: uniform)


def admission(gates: dict[str, Gate] | None = None, **limits: Any) -> Admission:
    return Admission(QuerySettings(**limits), WORKS, gates or {}, lambda: 0.5)


def test_classes_are_shed_in_order() -> None:
    """The longer calls wait, the more classes are refused: bulk writes first, reads from memory last, and those too in the end."""
    found = [[work for work in Work if waited(shedding(), wait_s).sheds(work)] for wait_s in (0.09, 0.16, 0.31, 0.61, 1.21, 2.5)]
    assert found == [list(Work)[:n] for n in range(6)]


def test_a_burst_that_is_worked_off_is_no_overload() -> None:
    """One short wait among the last ones and nothing is refused."""
    policy = waited(shedding(0.0), 9.0, WAITS_KEPT - 1)
    assert not policy.sheds(Work.BULK_WRITE)  # not enough was measured
    policy.observe(9.0)
    assert policy.sheds(Work.CACHED_READ)
    policy.observe(0.05)
    assert not any(policy.sheds(work) for work in Work)


def test_the_refused_share_grows_with_the_wait() -> None:
    """From nothing at the threshold to everything at twice that, in proportion: the wait can settle in between."""
    rng = random.Random(1)
    policy = Shedding(0.1, 1.6, 0.5, rng.random)
    shares = []
    for wait_s in (0.1, 0.125, 0.15, 0.175, 0.2):
        waited(policy, wait_s)
        shares.append(sum(policy.sheds(Work.BULK_WRITE) for _ in range(4_000)) / 4_000)
    assert shares == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.04)


def test_a_call_that_is_not_taken_at_all_counts_as_an_endless_wait() -> None:
    """Then even reads from memory are refused, and told to come back after the longest time."""
    policy = waited(shedding(), math.inf)
    assert all(policy.sheds(work) for work in Work)
    assert policy.retry_after_s() == RETRY_AFTER_S_MAX


def test_refused_callers_come_back_later_the_longer_the_wait_is() -> None:
    """`retry_after_ms` and the wait in thresholds on top; `RETRY_AFTER_S_MAX` bounds it."""
    assert shedding().retry_after_s() == 0.5
    assert waited(shedding(), 0.3).retry_after_s() == pytest.approx(2.0)
    assert waited(shedding(), 1e6).retry_after_s() == RETRY_AFTER_S_MAX


@pytest.mark.parametrize(("method", "small", "bulk"), [("Write", 0.41, 0.21), ("Cached", 1.61, 0.33), ("Store", 0.91, 0.33)])
def test_a_large_request_is_bulk(method: str, small: float, bulk: float) -> None:
    """From `BULK_BYTES_MIN` bytes on, a call belongs to a class that goes earlier; one byte less does not."""

    doors = admission(shed_first_ms=100, shed_last_ms=1_600)
    waited(doors.shedding, 0.39)  # bulk reads at 0.2 are refused by 0.95, writes at 0.4 not yet
    with pytest.raises(CallRefused) as refused:
        doors.enter(method, BULK_BYTES_MIN, math.inf)
    assert refused.value.reason is Reason.OVERLOADED
    doors.enter(method, BULK_BYTES_MIN - 1, math.inf)


def test_a_call_whose_deadline_has_passed_costs_no_work() -> None:
    """Nobody waits for its answer."""
    with pytest.raises(CallRefused) as refused:
        admission().enter("Cached", 10, 0.0)
    assert refused.value.reason is Reason.DEADLINE_PASSED


def test_calls_in_the_process_are_bounded() -> None:
    """`calls_max` at once, whatever they do; the next one is refused and told when to come back, until one is over."""
    doors = admission(calls_max=2)
    doors.arrive()
    doors.arrive()
    with pytest.raises(CallRefused) as refused:
        doors.arrive()
    assert refused.value.reason is Reason.CALLS_FULL
    assert refused.value.retry_after_s
    doors.depart()
    doors.arrive()
    assert doors.calls == 2


def test_calls_wait_for_their_turn_in_order() -> None:
    """A gate lets so many in; whoever leaves hands its place to the one that waits longest."""

    async def scenario() -> None:
        gate, order = Gate(1, 60.0), list[int]()
        assert gate.enter_at_once()

        async def call(number: int) -> None:
            assert not gate.enter_at_once()
            await gate.enter(math.inf)
            order.append(number)
            gate.leave()

        calls = [asyncio.create_task(call(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert order == []
        gate.leave()
        await asyncio.gather(*calls)
        assert (order, gate.under_way) == ([0, 1, 2], 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(("queue_s", "left_s", "reason"), [(0.01, 60.0, Reason.CALLS_FULL), (60.0, 0.01, Reason.DEADLINE_PASSED)])
def test_nobody_waits_for_a_turn_without_a_bound(queue_s: float, left_s: float, reason: Reason) -> None:
    """`store_queue_ms_max`, or the call's own deadline where that is sooner; the place is then for the next one."""

    async def scenario() -> None:
        gate = Gate(1, queue_s)
        doors = admission({"Store": gate})
        async with doors.gate("Store", math.inf):
            with pytest.raises(CallRefused) as refused:
                async with doors.gate("Store", left_s):
                    pass
            assert refused.value.reason is reason
            assert refused.value.retry_after_s
        assert gate.under_way == 0
        async with doors.gate("Store", math.inf):
            assert gate.under_way == 1

    asyncio.run(scenario())


def test_a_caller_that_is_gone_keeps_no_place() -> None:
    """Cancelled while it waits, or at the very moment at which it gets its turn."""

    async def scenario() -> None:
        for turn_comes in (False, True):
            gate = Gate(1, 60.0)
            assert gate.enter_at_once()
            waiting = asyncio.create_task(gate.enter(math.inf))
            await asyncio.sleep(0)
            if turn_comes:
                gate.leave()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            if not turn_comes:
                gate.leave()
            assert gate.under_way == 0

    asyncio.run(scenario())


def test_between_two_pieces_of_bulk_work_others_have_their_turn() -> None:
    """However many come at once: they are done in order, with TURN_ROUNDS of the event loop between two of them."""

    async def scenario() -> None:
        turns, rounds, done = Turns(), 0, list[tuple[int, int]]()

        async def piece(number: int) -> None:
            await turns.take()
            done.append((number, rounds))

        pieces = [asyncio.create_task(piece(number)) for number in range(3)]
        while not all(task.done() for task in pieces):
            await asyncio.sleep(0)
            rounds += 1
        assert [number for number, _ in done] == [0, 1, 2]
        assert all(after - before >= TURN_ROUNDS for (_, before), (_, after) in pairwise(done))

    asyncio.run(scenario())


@pytest.mark.parametrize("rounds", range(2 * TURN_ROUNDS + 4))
def test_a_turn_that_nobody_wants_any_more_goes_to_the_next(rounds: int) -> None:
    """Whoever gives up, while waiting or when the turn has just come, holds up nobody and is told of nothing else."""

    async def scenario() -> None:
        turns = Turns()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        await turns.take()
        first, second, third = (asyncio.create_task(turns.take()) for _ in range(3))
        for _ in range(rounds):
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.wait_for(third, 60)
        await asyncio.wait_for(turns.take(), 60)
        for task in (first, second):
            assert task.cancelled() or task.exception() is None

    raised: list[object] = []
    asyncio.run(scenario())
    assert raised == []


def test_bulk_calls_do_not_wait_for_their_turn_without_a_bound() -> None:
    """A bulk call is refused when the next in turn has waited for the threshold of its class; small ones are not; and a call whose
    deadline has passed meanwhile costs no more work."""

    async def scenario() -> None:
        doors, left_s = admission(shed_first_ms=1, shed_last_ms=16), 1.0
        assert doors.enter("Cached", BULK_BYTES_MIN, math.inf)
        await doors.turn(lambda: left_s)
        waiting = asyncio.ensure_future(doors.turn(lambda: left_s))
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        await asyncio.sleep(0)
        while loop.time() < since_s + 0.005:  # without giving anybody a turn
            pass
        with pytest.raises(CallRefused) as refused:
            doors.enter("Cached", BULK_BYTES_MIN, math.inf)
        assert refused.value.reason is Reason.OVERLOADED
        assert not doors.enter("Cached", BULK_BYTES_MIN - 1, math.inf)
        left_s = 0.0
        with pytest.raises(CallRefused) as refused:
            await waiting
        assert refused.value.reason is Reason.DEADLINE_PASSED

    asyncio.run(scenario())
