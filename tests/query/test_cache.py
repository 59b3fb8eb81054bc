"""The cache against every order in which loads, feed messages, losses and ages may meet. No threads, no waiting: a list of steps."""

import logging
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
import structlog
from hypothesis import strategies as st

from tests.query.fakes import FakeClock, FakeStore
from watertower.core.model import Metric, Shard
from watertower.ports import FeedMessage
from watertower.query.answers import shape_of
from watertower.query.cache import APPLY_ENTRIES_MAX, ENTRY_BYTES, REFRESH_SHARE, SHARD_BYTES, SPARED_MAX, CountsCache, Entry, Load, hottest
from watertower.query.tail import FeedTail

ENTITIES = ("a", "b", "c")
PARTITIONS = 2
AGE_S = 60.0
UNKNOWN_AGE_S = 1.0
STALE_AGE_S = 600.0
ROOM = ENTRY_BYTES + 2 * SHARD_BYTES + 2
"""Bytes of an entry here, at most."""
QUIET = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

Step = tuple[str, int]
NAMES = ["write", "write", "silent-write", "deliver", "deliver", "reorder", "repeat", "lose", "beat", "half-apply"]
NAMES += ["read", "read", "begin", "finish", "fail", "age"]
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([0, 0, 0, 1, 2, 3])), max_size=60)


class World:
    """A store, a feed that loses, repeats and reorders, one cache, and a caller that remembers what it saw."""

    def __init__(self, cache_type: type[CountsCache] = CountsCache, entities_max: int = 2, lag: int = 0) -> None:
        self.store, self.clock, self.lag = FakeStore(PARTITIONS), FakeClock(), lag
        self.cache = cache_type(entities_max * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, random.Random(0).random)
        self.tail = FeedTail(self.store, self.store, self.cache, self.clock, QUIET, PARTITIONS, 10_000, 10, ThreadPoolExecutor(1))
        self.wire: list[FeedMessage] = []
        self.history: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (entity, partition) -> (offset, value), in order
        self.seen: dict[tuple[str, int], int] = {}  # the greatest offset the caller was shown
        self.offset = 0
        self.queued: list[tuple[Load, str, dict[int, int]]] = []  # with the claim of the caller that waits
        self.begun: list[tuple[Load, str, dict[int, int], dict[tuple[int, int], Shard]]] = []
        self.applying: list[Iterator[None]] = []

    def claim(self) -> dict[int, int]:
        return dict(enumerate(self.tail._ends))

    def step(self, name: str, pick: int) -> None:
        entity, partition = ENTITIES[pick % 3], pick % PARTITIONS
        message = self.wire[pick % len(self.wire)] if self.wire else None
        if name in ("write", "silent-write"):
            self.offset += 1
            value = self.offset * 10
            self.history.setdefault((entity, partition), []).append((self.offset, value))
            written = self.store.write(entity, Metric.FOLLOWERS, partition, value, self.offset, self.clock.us, publish=False)
            if name == "write":
                self.wire.append(written)
        elif name == "beat":
            self.store.beat(partition, self.clock.us)
            self.wire.append(self.store.feed.pop())
        elif name == "deliver" and self.wire:
            self.deliver(self.wire.pop(0))
        elif name == "reorder" and message:
            self.wire.remove(message)
            self.deliver(message)
        elif name == "repeat" and message:
            self.deliver(message)
        elif name == "lose" and message:
            self.wire.remove(message)
        elif name == "half-apply" and self.wire and not self.applying:
            self.applying.append(self.tail.take(self.wire.pop(0)))
            next(self.applying[0], None)
        elif name == "read":
            self.read(entity)
        elif name == "begin" and self.queued:
            load, of, claim = self.queued.pop(0)
            self.cache.begin(load, self.clock.monotonic_s())
            self.begun.append((load, of, claim, self.view(of)))
        elif name == "finish" and self.begun:
            load, of, claim, row = self.begun.pop(pick % len(self.begun))
            self.cache.finish(load, [row])
            self.check(of, load.entries[0], claim)
        elif name == "fail" and self.begun:
            self.cache.abandon(self.begun.pop(pick % len(self.begun))[0])
        elif name == "age":
            self.clock.sleep(AGE_S / 4)

    def view(self, entity: str) -> dict[tuple[int, int], Shard]:
        """The store's row; with `lag`, as it was that many writes ago."""
        row = {}
        for partition in range(PARTITIONS):
            kept = [(o, v) for o, v in self.history.get((entity, partition), []) if o <= self.offset - self.lag]
            if kept:
                row[int(Metric.FOLLOWERS), partition] = Shard(kept[-1][1], 0, (), kept[-1][0])
        return row

    def deliver(self, message: FeedMessage) -> None:
        for unfinished in self.applying:  # one message at a time
            for _ in unfinished:
                pass
        self.applying.clear()
        for _ in self.tail.take(message):
            pass

    def read(self, entity: str) -> None:
        entries, cold, _ = self.cache.lookup([entity], self.clock.monotonic_s())
        if not cold:
            self.check(entity, entries[0], self.claim())
        elif self.cache.under_way(entity) is None:
            load = Load()
            self.cache.register(entity, load)
            self.queued.append((load, entity, self.claim()))

    def check(self, entity: str, entry: Entry, claim: Mapping[int, int]) -> None:
        """What a caller is shown: true values, all that is claimed, never back."""
        assert len(self.cache) <= 2
        assert entry.totals[Metric.FOLLOWERS] == sum(value for value, _ in entry.shards.values())
        for partition in range(PARTITIONS):
            history = self.history.get((entity, partition), [])
            value, offset = entry.shards.get((Metric.FOLLOWERS, partition), (0, -1))
            assert offset == -1 or (offset, value) in history, "a value that never was"
            assert all(o <= offset for o, _ in history if o <= claim[partition]), "less than claimed"
            key = entity, partition
            # An evicted entry starts again from the store, which is never behind what the feed brought.
            assert offset >= self.seen.get(key, -1), "backwards"
            self.seen[key] = offset

    def finish_loads(self) -> None:
        while self.queued:
            self.step("begin", 0)
        while self.begun:
            self.step("finish", 0)

    def settle(self) -> None:
        """Everything arrives; then every entity is read."""
        for partition in range(PARTITIONS):
            self.step("beat", partition)
        while self.wire:
            self.deliver(self.wire.pop(0))
        self.lag = 0
        self.finish_loads()
        for entity in ENTITIES:
            self.read(entity)
            self.finish_loads()
            self.read(entity)
            entries, cold, _ = self.cache.lookup([entity], self.clock.monotonic_s())
            assert not cold
            for partition in range(PARTITIONS):
                history = self.history.get((entity, partition), [(-1, 0)])
                assert entries[0].shards.get((Metric.FOLLOWERS, partition), (0, -1)) == history[-1][::-1], "did not converge"


def run(steps: Sequence[Step], make: Callable[[], World] = World) -> None:
    world = make()
    for name, pick in steps:
        world.step(name, pick)
    world.settle()


@pytest.mark.slow
@hypothesis.settings(max_examples=1_000, deadline=None)
@hypothesis.given(STEPS)
def test_no_order_of_loads_messages_losses_and_ages_shows_a_wrong_count(steps: list[Step]) -> None:
    """An answer holds all that its freshness claims, no shard goes back, and in the end the cache says what the store says."""
    run(steps)


class Overwrites(CountsCache):
    """A load that replaces what the feed brought meanwhile."""

    def finish(self, load: Load, rows: Sequence[Mapping[tuple[int, int], Shard]]) -> None:
        for entry in load.entries:
            entry.shards.clear()
            entry.totals = [0] * len(entry.totals)
        super().finish(load, rows)


class RegistersLate(CountsCache):
    """An entry that the feed does not reach before it is loaded."""

    def apply(self, message: FeedMessage) -> Iterator[None]:
        if all(entity in self._entries and self._entries[entity].epoch >= 0 for entity in message.entities):
            yield from super().apply(message)


class IgnoresGaps(CountsCache):
    """A cache that trusts in every message arriving."""

    def gap(self) -> None:
        pass


class JoinsAnyLoad(CountsCache):
    """A caller waits for a load that began before the gap."""

    def under_way(self, entity: str) -> tuple[Entry, Load] | None:
        entry = self._entries.get(entity)
        return None if entry is None or entry.load is None else (entry, entry.load)

    def finish(self, load: Load, rows: Sequence[Mapping[tuple[int, int], Shard]]) -> None:
        load.epoch = self.epoch
        super().finish(load, rows)


class LastWriteWins(CountsCache):
    """A feed that is applied without looking at positions."""

    def apply(self, message: FeedMessage) -> Iterator[None]:
        for entity, metric in zip(message.entities, message.metrics, strict=True):
            if entity in self._entries:
                self._entries[entity].shards.pop((metric, message.partition), None)
                self._entries[entity].totals[metric] = sum(v for v, _ in self._entries[entity].shards.values())
        yield from super().apply(message)


HISTORIES: dict[type[CountsCache], str] = {
    Overwrites: "read begin write deliver finish read",
    RegistersLate: "read begin write deliver finish read",
    IgnoresGaps: "write deliver read begin finish silent-write beat deliver read",
    JoinsAnyLoad: "write deliver read begin silent-write beat deliver read finish read",
    LastWriteWins: "write write read begin finish deliver read",
}


@pytest.mark.parametrize("wrong", HISTORIES)
def test_each_rule_has_a_history_that_needs_it(wrong: type[CountsCache]) -> None:
    """Without any one of its rules the cache shows a wrong count, and the checks above see it; with all of them it does not."""
    steps = steps_of(HISTORIES[wrong])
    run(steps)
    assert fails(steps, lambda: World(wrong))


def test_a_load_older_than_the_feed_is_wrong_whatever_the_cache_does() -> None:
    """The promise of the ports that a load sees what the feed has brought is needed."""
    steps = steps_of("write write deliver deliver read begin finish")
    run(steps)
    assert fails(steps, lambda: World(lag=1))


def steps_of(names: str) -> list[Step]:
    """Steps that are all about one shard of one entity."""
    return [(name, 0) for name in names.split()]


def fails(steps: Sequence[Step], make: Callable[[], World]) -> bool:
    try:
        run(steps, make)
    except AssertionError:
        return True
    return False


def loaded(cache: CountsCache, entity: str, row: Mapping[tuple[int, int], Shard], now_s: float = 0.0) -> Entry:
    load = Load()
    entry = cache.register(entity, load)
    cache.begin(load, now_s)
    cache.finish(load, [row])
    return entry


ROW = {(int(Metric.FOLLOWERS), 0): Shard(3, 3, (), 5)}


def test_what_was_read_stays() -> None:
    """cache_bytes_max is never passed, and what goes is what was not read."""
    room = ENTRY_BYTES + SHARD_BYTES + 2
    cache = CountsCache(3 * room, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    for entity in ("a", "b", "c"):
        loaded(cache, entity, ROW)
    for entity, gone in (("d", "b"), ("e", "c")):
        cache.lookup(["a"], 1.0)
        loaded(cache, entity, ROW)
        assert len(cache) == 3
        assert cache.bytes == 3 * room
        assert cache.held(gone) is None
    assert cache.held("a") is not None


def test_an_eviction_does_not_walk_through_everything() -> None:
    """Where all were read since, it passes over SPARED_MAX entries and takes the next."""
    room = ENTRY_BYTES + SHARD_BYTES + 8
    names = [f"n{number:03d}" for number in range(4 * SPARED_MAX)]
    cache = CountsCache(len(names) * room, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    for name in names:
        loaded(cache, name, ROW)
    cache.lookup(names, 1.0)
    loaded(cache, "late", ROW)
    assert cache.held(names[SPARED_MAX]) is None
    assert len(cache) == len(names)


def test_shards_that_the_feed_brings_count_too() -> None:
    """An entry that grows makes others go; the estimate is that of what is left."""
    cache = CountsCache(2 * (ENTRY_BYTES + 2 * SHARD_BYTES), AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    for entity in ("a", "b"):
        loaded(cache, entity, ROW)
    assert len(cache) == 2
    for partition in range(1, 8):
        for _ in cache.apply(FeedMessage(partition, 5, 6, 0, ["b"], bytes([1]), [4], [6])):
            pass
    assert cache.held("a") is None
    assert cache.bytes == ENTRY_BYTES + 2 + 8 * SHARD_BYTES


@pytest.mark.parametrize("shards", [1, 4, 64])
def test_the_estimate_of_an_entry_is_what_it_takes(shards: int) -> None:
    """Within a third of what Python allocates, for small and for big accounts, loads and rows that are ready included."""
    count = 2_000
    rows = [{(1, shard): Shard(10**6 + number, 0, (), 10**6 + shard + number) for shard in range(shards)} for number in range(count)]
    cache = CountsCache(1 << 40, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    loaded(cache, "warm-up", rows[0])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, row in enumerate(rows):
            # As they come from a store: numbers of their own.
            own = {(key[0], key[1]): Shard(int(str(shard.value)), 0, (), int(str(shard.offset))) for key, shard in row.items()}
            shape_of((1,)).row(loaded(cache, f"account-{number:08d}", own))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    print(f"{shards} shards: {taken / count:.0f} bytes an entry, estimated {cache.bytes / count:.0f}")
    assert 0.67 < cache.bytes / taken < 1.5


def test_what_is_read_at_the_end_of_its_age_is_loaded_ahead() -> None:
    """It is served, and named as ageing, in the last REFRESH_SHARE of its age; an unknown entity is not."""
    cache = CountsCache(3 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    loaded(cache, "a", ROW)
    loaded(cache, "b", {})
    assert cache.lookup(["b"], UNKNOWN_AGE_S - 0.001)[1:] == ([], [])
    from_s = AGE_S * (1 - REFRESH_SHARE)
    assert cache.lookup(["a"], from_s - 0.001)[1:] == ([], [])
    assert cache.lookup(["a"], from_s)[1:] == ([], [0])
    assert cache.lookup(["a"], AGE_S)[1:] == ([0], [])


def test_the_last_known_values_stand_in_up_to_their_age() -> None:
    """stale_age_ms_max, from the beginning of the last load that ended; nothing stands in for what was never loaded."""
    cache = CountsCache(3 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    entry = loaded(cache, "a", ROW, now_s=10.0)
    assert cache.may_stand_in(entry, 10.0 + STALE_AGE_S)
    assert not cache.may_stand_in(entry, 10.1 + STALE_AGE_S)
    assert not cache.may_stand_in(cache.register("b", Load()), 0.0)


def test_the_hottest_are_those_read_last() -> None:
    """Known entities by their last read, as many as are asked for."""
    cache = CountsCache(9 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    for entity in ("a", "b", "c"):
        loaded(cache, entity, ROW)
    loaded(cache, "nobody", {})
    for now_s, entity in enumerate(("b", "c", "nobody", "a", "b")):
        cache.lookup([entity], now_s / 10)
    assert hottest(cache.items(), 2) == ["b", "a"]
    assert hottest(cache.items(), 9) == ["b", "a", "c"]


@pytest.mark.parametrize(("uniform", "age_s"), [(0.0, 60.0), (0.999, 48.1)])
def test_an_entry_ages_from_the_beginning_of_its_load(uniform: float, age_s: float) -> None:
    """cache_age_ms_max less up to a fifth at random; the feed does not prolong it."""
    cache = CountsCache(3 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: uniform)
    loaded(cache, "a", ROW, now_s=100.0)
    for _ in cache.apply(FeedMessage(0, 5, 6, 0, ["a"], bytes([1]), [4], [6])):
        pass
    assert cache.lookup(["a"], 100.0 + age_s - 0.1)[1] == []
    assert cache.lookup(["a"], 100.0 + age_s + 0.1)[1] == [0]


def test_an_unknown_entity_is_remembered_for_a_short_time() -> None:
    """unknown_age_ms_max; and the feed makes it known at once."""
    cache = CountsCache(3 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    entry = loaded(cache, "a", {})
    assert not entry.shards
    assert cache.lookup(["a"], 0.9)[1] == []
    assert cache.lookup(["a"], 1.1)[1] == [0]
    for _ in cache.apply(FeedMessage(0, 0, 6, 0, ["a"], bytes([1]), [4], [6])):
        pass
    assert entry.totals[Metric.FOLLOWERS] == 4
    assert entry.shards


def test_the_feed_creates_no_entries() -> None:
    """A surge of followers whom nobody reads takes no memory."""
    cache = CountsCache(3 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    for _ in cache.apply(FeedMessage(0, 0, 6, 0, ["a"], bytes([1]), [4], [6])):
        pass
    assert len(cache) == 0


def test_a_big_message_is_applied_in_slices() -> None:
    """Reads get their turn after every APPLY_ENTRIES_MAX entries, and none is left out."""
    cache = CountsCache(10_000 * ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    names = [f"e{number}" for number in range(2 * APPLY_ENTRIES_MAX + 1)]
    entries = [loaded(cache, name, {}) for name in names]
    count = len(names)
    message = FeedMessage(0, 0, 6, 0, names, bytes([1]) * count, range(count), [6] * count)
    done = [sum(bool(entry.shards) for entry in entries) for _ in cache.apply(message)]
    assert done == [APPLY_ENTRIES_MAX, 2 * APPLY_ENTRIES_MAX, count]
    assert [entry.totals[Metric.FOLLOWERS] for entry in entries] == list(range(count))


def test_an_entity_that_is_evicted_while_it_loads_is_answered_all_the_same() -> None:
    """Callers hold the entry that they wait for, even when it returns into the same load."""
    cache = CountsCache(ROOM, AGE_S, UNKNOWN_AGE_S, STALE_AGE_S, lambda: 0.0)
    load = Load()
    entries = [cache.register(entity, load) for entity in ("a", "b", "a")]
    cache.begin(load, 0.0)
    cache.finish(load, [ROW, {}, ROW])
    assert [entry.totals[Metric.FOLLOWERS] for entry in entries] == [3, 0, 3]
    assert len(cache) == 1
