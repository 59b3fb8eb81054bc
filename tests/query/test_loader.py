"""Store reads: one per entity, bounded, and what happens when the store fails."""

import asyncio
import gc
import random
import threading
import traceback
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.query.fakes import FakeClock, FakeStore, unavailable
from tests.query.serving import until
from watertower import failpoints
from watertower.core.model import Metric
from watertower.errors import BackendUnavailable, CallRefused, Reason
from watertower.ports import ListCursor
from watertower.query.cache import CountsCache
from watertower.query.loader import LOAD_ENTITIES_MAX, StoreReads

FOLLOWERS = int(Metric.FOLLOWERS)
STALE_AGE_S = 600.0


def with_reads(
    test: Callable[[StoreReads, FakeStore, CountsCache], Coroutine[Any, Any, None]],
    concurrent_max: int = 2,
    waiting_max: int = 10_000,
    patience_s: float = 30.0,
) -> None:
    """Runs a test on an event loop of its own."""

    async def run() -> None:
        store, clock = FakeStore(), FakeClock()
        cache = CountsCache(1 << 24, 60.0, 1.0, STALE_AGE_S, random.Random(0).random)
        reads = StoreReads(store, cache, clock, concurrent_max, waiting_max, 0.5, patience_s, ThreadPoolExecutor(concurrent_max))
        try:
            await test(reads, store, cache)
        finally:
            store.open.set()
            await reads.close()

    asyncio.run(run())


def test_a_thousand_callers_share_one_read() -> None:
    """Single flight: however many wait for an entity, the store is asked once."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.write("star", FOLLOWERS, 0, 7, 1, 1)
        store.open.clear()
        callers = [asyncio.create_task(reads.load(["star"])) for _ in range(1_000)]
        await until(lambda: store.concurrent == 1)
        store.open.set()
        answers = await asyncio.gather(*callers)
        assert store.reads == ["star"]
        assert {entries[0].totals[FOLLOWERS] for entries, complete in answers if complete} == {7}

    with_reads(test)


def test_a_caller_that_gives_up_takes_nobody_with_it() -> None:
    """A shared read goes on when one of those who wait is cancelled."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        first, second = (asyncio.create_task(reads.load(["star"])) for _ in range(2))
        await until(lambda: store.concurrent == 1)
        first.cancel()
        await asyncio.wait([first])
        store.open.set()
        assert (await second)[1]

    with_reads(test)


def test_many_cold_entities_take_few_hops() -> None:
    """A batch goes into threads in loads of LOAD_ENTITIES_MAX, and answers in place."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        names = [f"e{number}" for number in range(1_000)]
        for number, name in enumerate(names):
            store.write(name, FOLLOWERS, 0, number, number, 1)
        hops = 0
        hop = reads._hop

        def counting(job: Any) -> Any:
            nonlocal hops
            hops += 1
            return hop(job)

        reads._hop = counting  # type: ignore[method-assign] # to count
        entries, complete = await reads.load(names)
        assert complete
        assert [entry.totals[FOLLOWERS] for entry in entries] == list(range(1_000))
        assert sorted(store.reads) == sorted(names)
        assert hops == 1_000 // LOAD_ENTITIES_MAX

    with_reads(test)


def test_at_most_so_many_reads_are_under_way() -> None:
    """loads_concurrent_max holds for loads and other reads together, and is reached."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(reads.load([f"e{n}"])) for n in range(50)]
        tasks += [asyncio.create_task(reads.read(lambda reader: reader.list_actors("star", 1, None, 10))) for _ in range(50)]
        await until(lambda: store.concurrent == 2)
        store.open.set()
        await asyncio.gather(*tasks)
        assert store.concurrent_seen_max == 2

    with_reads(test, concurrent_max=2)


def test_a_call_above_the_waiting_reads_is_shed_before_it_reads() -> None:
    """loads_waiting_max: what fits is served later, what does not is refused at once and registers nothing."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        busy = [asyncio.create_task(reads.load([f"busy{n}"])) for n in range(2)]
        await until(lambda: store.concurrent == 2)
        waiting = asyncio.create_task(reads.load(["a", "b", "c"]))
        listing = asyncio.create_task(reads.read(lambda reader: reader.list_actors("star", 1, None, 10)))
        await asyncio.sleep(0)
        for call in (reads.load(["d", "e"]), reads.load(["x", "y", "z", "a"])):
            with pytest.raises(CallRefused) as refused:
                await call
            assert refused.value.reason is Reason.READS_FULL
            assert refused.value.retry_after_s == 0.5
        joined = asyncio.create_task(reads.load(["a", "b", "busy0"]))  # nothing new to read: welcome
        last = asyncio.create_task(reads.load(["d"]))
        await asyncio.sleep(0)
        with pytest.raises(CallRefused):
            await reads.read(lambda reader: reader.list_actors("star", 1, None, 10))
        store.open.set()
        await asyncio.gather(*busy, waiting, listing, joined, last)
        assert sorted(store.reads) == ["a", "b", "busy0", "busy1", "c", "d"]
        assert len(cache) == 6

    with_reads(test, concurrent_max=2, waiting_max=5)


def test_a_check_is_as_many_reads_as_it_has_subjects() -> None:
    """Each subject once, in hops that others come between, and refused as a whole where they do not all fit."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        names = [f"s{number}" for number in range(250)]
        store.lists["ListSubjects", "fan", 1] = [ListCursor(1, name, "") for name in names[::2]]
        asked: list[list[str]] = []
        check_edges = store.check_edges

        def noting(actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
            asked.append(list(subjects))
            return check_edges(actor, kind, subjects)

        store.check_edges = noting  # type: ignore[method-assign] # to see what is asked
        answers = await reads.check_edges("fan", 1, names + names[:10])
        assert answers == [number % 2 == 0 for number in [*range(250), *range(10)]]
        assert [len(piece) for piece in asked] == [LOAD_ENTITIES_MAX, LOAD_ENTITIES_MAX, 50]
        assert [name for piece in asked for name in piece] == names
        store.open.clear()
        busy = asyncio.create_task(reads.load(["busy"]))
        await until(lambda: store.concurrent == 1)
        waiting = asyncio.create_task(reads.check_edges("fan", 1, names))
        await asyncio.sleep(0)
        with pytest.raises(CallRefused) as refused:
            await reads.check_edges("fan", 1, names[:51])
        assert refused.value.reason is Reason.READS_FULL
        last = asyncio.create_task(reads.check_edges("fan", 1, names[:50]))
        await asyncio.sleep(0)
        store.open.set()
        await asyncio.gather(busy, waiting, last)

    with_reads(test, concurrent_max=1, waiting_max=300)


def test_a_read_whose_caller_gave_up_is_not_done() -> None:
    """What waits for a thread and is cancelled costs the store nothing."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        busy = asyncio.create_task(reads.load(["busy"]))
        await until(lambda: store.concurrent == 1)
        asked: list[int] = []
        given_up = asyncio.create_task(reads.read(lambda reader: asked.append(1)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        store.open.set()
        await busy
        await reads.read(lambda reader: None)
        assert asked == []

    with_reads(test, concurrent_max=1)


def test_calls_that_gave_up_leave_their_places_to_others() -> None:
    """At once, also while a store that hangs keeps every thread."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        busy = asyncio.create_task(reads.load(["busy"]))
        await until(lambda: store.concurrent == 1)
        calls: list[Any] = [reads.read(lambda reader: reader.list_actors("star", 1, None, 10)) for _ in range(100)]
        calls.append(reads.check_edges("fan", 1, [f"s{number}" for number in range(200)]))
        given_up = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0)
        assert reads.counters.waiting == 300
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        assert reads.counters.waiting == 0
        waiting = asyncio.create_task(reads.load([f"e{number}" for number in range(300)]))
        await asyncio.sleep(0)
        assert reads.counters.waiting == 300
        store.open.set()
        assert (await waiting)[1]
        await busy
        assert reads.counters.waiting == 0

    with_reads(test, concurrent_max=1, waiting_max=300)


def test_the_last_known_value_outlives_the_store() -> None:
    """When a load fails, what was known is served and said to be incomplete; what was never known is an error."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.write("star", FOLLOWERS, 0, 7, 1, 1)
        await reads.load(["star"])
        store.broken = unavailable()
        entries, complete = await reads.load(["star"])
        assert (entries[0].totals[FOLLOWERS], complete) == (7, False)
        with pytest.raises(BackendUnavailable):
            await reads.load(["star", "never seen"])
        store.broken = None
        entries, complete = await reads.load(["star", "never seen"])
        assert (entries[0].totals[FOLLOWERS], complete) == (7, True)

    with_reads(test)


def test_an_error_does_not_grow_with_its_callers() -> None:
    """Each caller of a load that failed raises it as it left the thread, without the frames of the others."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.broken = unavailable()
        found = await asyncio.gather(*(reads.load(["star"]) for _ in range(100)), return_exceptions=True)
        assert len(found) == 100
        for error in found:
            assert isinstance(error, BackendUnavailable)
            names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            assert "read_entities" in names
            assert names.count("load") == 1

    with_reads(test)


@pytest.mark.parametrize("point", ["query.before_load", "query.after_load"])
def test_failpoints_around_a_load(point: str) -> None:
    """A read that fails before or after the store was asked leaves nothing behind: the next one works."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        failpoints.arm(f"{point}=error")
        try:
            with pytest.raises(BackendUnavailable):
                await reads.load(["star"])
        finally:
            failpoints.disarm()
        assert (await reads.load(["star"]))[1]

    with_reads(test)


def test_closing_refuses_what_waits() -> None:
    """What is under way ends well; what waits, and what comes later, is refused with STOPPING."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        busy = asyncio.create_task(reads.load(["busy"]))
        await until(lambda: store.concurrent == 1)
        waiting = asyncio.create_task(reads.load(["waiting"]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(reads.close())
        with pytest.raises(CallRefused) as refused:
            await waiting
        assert refused.value.reason is Reason.STOPPING
        with pytest.raises(CallRefused):
            await reads.load(["late"])
        store.open.set()
        await closing
        assert (await busy)[1]

    with_reads(test, concurrent_max=1)


def test_a_store_that_does_not_answer_is_not_waited_for_where_memory_can() -> None:
    """What was loaded before is given after patience_s, as not complete; what was not is waited for. Neither starts another read."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.write("star", FOLLOWERS, 0, 7, 1, 1)
        await reads.load(["star"])
        store.write("star", FOLLOWERS, 0, 8, 2, 2)
        cache.gap()
        store.open.clear()
        for _ in range(2):
            entries, complete = await reads.load(["star"])
            assert (entries[0].totals[FOLLOWERS], complete) == (7, False)
        unknown = asyncio.create_task(reads.load(["star", "new"]))
        await until(lambda: store.concurrent == 2)
        await asyncio.sleep(0.1)
        assert not unknown.done()
        store.open.set()
        entries, _ = await unknown
        await until(lambda: cache.under_way("star") is None)  # in a thread of its own, it may come after the new one
        assert entries[0].totals[FOLLOWERS] == 8
        assert store.reads == ["star", "star", "new"]

    with_reads(test, patience_s=0.02)


def test_a_late_failure_is_nobodys() -> None:
    """A load that fails after its callers have gone on from memory leaves no word behind, and the next read starts another."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        unheard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        store.write("star", FOLLOWERS, 0, 7, 1, 1)
        await reads.load(["star"])
        cache.gap()
        store.open.clear()
        assert not (await reads.load(["star"]))[1]
        store.broken = unavailable()
        store.open.set()
        await until(lambda: cache.under_way("star") is None)
        store.broken = None
        assert (await reads.load(["star"]))[1]
        gc.collect()
        assert unheard == []

    with_reads(test, patience_s=0.02)


def test_only_the_first_caller_waits_for_a_store_that_hangs() -> None:
    """Those who join its load later get what memory has at once."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        await reads.load(["star"])
        cache.gap()
        store.open.clear()
        loop = asyncio.get_running_loop()
        took = []
        for _ in range(3):
            began = loop.time()
            assert not (await reads.load(["star"]))[1]
            took.append(loop.time() - began)
        assert took[0] >= 1.0
        assert max(took[1:]) < 0.9

    with_reads(test, patience_s=1.0)


def test_a_load_that_is_late_holds_up_only_what_it_is_for() -> None:
    """A new entity that was loaded is given beside a known one whose load hangs, whichever was asked for first."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        for name in ("star", "new", "newer"):
            store.write(name, FOLLOWERS, 0, 7, 1, 1)
        await reads.load(["star"])
        hung = threading.Event()
        read_entities = store.read_entities

        def hanging(entities: Sequence[str]) -> Any:
            if "star" in entities and not hung.wait(timeout=30):
                raise RuntimeError("the test forgot to go on")
            return read_entities(entities)

        store.read_entities = hanging  # type: ignore[method-assign] # to hang
        cache.gap()
        first = asyncio.create_task(reads.load(["star"]))
        await asyncio.sleep(0)
        for asked in (["star", "new"], ["newer", "star"]):
            entries, complete = await reads.load(asked)
            assert ([entry.totals[FOLLOWERS] for entry in entries], complete) == ([7, 7], False)
        hung.set()
        await first

    with_reads(test, patience_s=0.3)


def test_where_too_many_reads_wait_memory_answers() -> None:
    """What is known is given, as not complete; a call with something that is not is shed; nothing more is read for either."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.write("star", FOLLOWERS, 0, 7, 1, 1)
        await reads.load(["star"])
        cache.gap()
        store.open.clear()
        busy = [asyncio.create_task(reads.load([name])) for name in ("busy", "waiting")]
        await until(lambda: store.concurrent == 1)
        entries, complete = await reads.load(["star"])
        assert (entries[0].totals[FOLLOWERS], complete) == (7, False)
        with pytest.raises(CallRefused) as refused:
            await reads.load(["star", "new"])
        assert refused.value.reason is Reason.READS_FULL
        store.open.set()
        await asyncio.gather(*busy)
        assert store.reads == ["star", "busy", "waiting"]

    with_reads(test, concurrent_max=1, waiting_max=1)


def test_values_that_are_too_old_stand_in_for_nothing() -> None:
    """stale_age_ms_max: after it the store's error is what the caller hears."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        await reads.load(["star"])
        store.broken = unavailable()
        clock: Any = reads._clock
        clock.sleep(STALE_AGE_S)
        assert not (await reads.load(["star"]))[1]
        clock.sleep(0.001)
        with pytest.raises(BackendUnavailable):
            await reads.load(["star"])

    with_reads(test)


def test_loads_ahead_leave_room_for_callers() -> None:
    """They fill half of the waiting room at most, go once per entity, and nobody hears of their failures."""

    async def test(reads: StoreReads, store: FakeStore, cache: CountsCache) -> None:
        store.open.clear()
        busy = asyncio.create_task(reads.load(["busy"]))
        await until(lambda: store.concurrent == 1)
        for _ in range(2):
            reads.load_ahead([f"e{number}" for number in range(10)])
        waiting = asyncio.create_task(reads.load([f"caller-{number}" for number in range(5)]))
        await asyncio.sleep(0)
        store.open.set()
        await asyncio.gather(busy, waiting)
        await until(lambda: cache.under_way("e4") is None)
        assert store.reads == ["busy", *(f"e{number}" for number in range(5)), *(f"caller-{number}" for number in range(5))]
        store.broken = unavailable()
        reads.load_ahead(["star"])
        await until(lambda: cache.under_way("star") is None)

    with_reads(test, concurrent_max=1, waiting_max=10)
