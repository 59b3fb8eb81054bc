"""Load on a running service: callers that record and repeat, readers that hold the answers against what is promised."""

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc

from tests.calls import CALL_S, CLOCK, Event, counts_request, reading, record, refusal, writing
from tests.expected import Expected
from watertower.client.errors import RETRYABLE
from watertower.core.positions import Position, decode_position
from watertower.testing.service import NotInTime
from watertower.v1 import common_pb2, reader_pb2

RETRY_S = 0.05
"""Pause between two attempts."""


class World(NamedTuple):
    """Who acts on what."""

    actors: int = 200
    subjects: int = 150
    refs: int = 4
    late_us: int = 60_000_000  # how far back an event may lie

    def event(self, rng: random.Random) -> Event:
        """Any event. Some are late, some remove what never was, some say what is so already."""
        actor, subject = f"a{rng.randrange(self.actors)}", f"s{int(self.subjects * rng.random() ** 3)}"
        kind = rng.choice((1, 1, 1, 2, 3))
        ref = f"c{rng.randrange(self.refs)}" if kind == 3 else ""
        late = rng.randrange(self.late_us) if rng.random() < 0.1 else 0
        return Event(actor, kind, subject, ref, rng.random() < 0.7, CLOCK.now_us() - late)

    @property
    def entities(self) -> list[str]:
        return [f"a{n}" for n in range(self.actors)] + [f"s{n}" for n in range(self.subjects)]


class Writers:
    """Threads that record events and repeat each call, identical, until it is acknowledged.

    `with` starts them; `finish` lets each end its call and gives what was acknowledged.
    """

    def __init__(
        self, target: str, threads: int, rng: random.Random, world: World | None = None, events_max: int = 40, pause_s: float = 0.0
    ) -> None:
        """Each thread calls with up to `events_max` events, and waits `pause_s` seconds between two calls."""
        self._target, self._events_max, self._pause_s, self._world = target, events_max, pause_s, world or World()
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._attempts = threading.Semaphore(threads)
        self._going = threading.Event()
        self._going.set()
        self._seeds = [rng.randrange(2**32) for _ in range(threads)]
        self._expected = [Expected() for _ in range(threads)]
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)]
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self.repeated = 0
        self.unacknowledged = 0
        self.refusals: Counter[tuple[str, str, bool]] = Counter()
        """How often attempts failed, by (status, reason of ErrorInfo or "", whether RetryInfo came with it)."""

    @property
    def acknowledged(self) -> int:
        """Events, so far."""
        return sum(expected.events for expected in self._expected)

    def acknowledged_more_than(self, before: int) -> bool:
        return self.acknowledged > before

    def refused_for(self, status: str, reason: str) -> bool:
        """Whether an attempt failed so, with a RetryInfo."""
        return self.refusals[status, reason, True] > 0

    def snapshot(self) -> Expected:
        """What was acknowledged so far."""
        total = Expected()
        with self._lock:
            for expected in self._expected:
                total.merge(expected)
        return total

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No call is on its way within."""
        self._going.clear()
        for _ in self._threads:
            self._attempts.acquire()
        try:
            yield
        finally:
            self._attempts.release(len(self._threads))
            self._going.set()

    def finish(self, seconds: float = 30.0) -> Expected:
        """What was acknowledged. Every call that was begun is among it."""
        self._stop.set()
        for thread in self._threads:
            thread.join(seconds)
        if any(thread.is_alive() for thread in self._threads):
            raise NotInTime("the service does not acknowledge any more")
        if self._errors:
            raise self._errors[0]
        return self.snapshot()

    def _run(self, number: int) -> None:
        rng, expected = random.Random(self._seeds[number]), self._expected[number]
        try:
            with writing(self._target) as stub:
                while not self._stop.is_set():
                    events = [self._world.event(rng) for _ in range(rng.randint(1, self._events_max))]
                    if rng.random() < 0.1:
                        events += events[: len(events) // 2]
                    position = self._until_acknowledged(stub, events)
                    if position is None:
                        self.unacknowledged += len(events)
                        return
                    with self._lock:
                        expected.take(events, position)
                    if rng.random() < 0.05:  # a caller that did not hear the acknowledgement
                        again = self._until_acknowledged(stub, events)
                        with self._lock:
                            expected.take((), again)
                    self._stop.wait(self._pause_s)
        except BaseException as error:
            self._errors.append(error)

    def _until_acknowledged(self, stub: Any, events: Sequence[Event]) -> Position | None:
        while not self._give_up.is_set():
            self._going.wait()
            try:
                with self._attempts:
                    return record(stub, events)
            except grpc.RpcError as error:
                if error.code() not in RETRYABLE:
                    raise
                reason, retry_s = refusal(error)
                with self._lock:
                    self.refusals[error.code().name, reason, retry_s is not None] += 1
                    self.repeated += 1
            self._give_up.wait(RETRY_S)
        return None

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._give_up.set()
        for thread in self._threads:
            thread.join()


def _claim(freshness: common_pb2.Freshness) -> Position | None:
    """What an answer claims to include: of a log of which nothing is applied yet, nothing; None where it does not say."""
    position = decode_position(freshness.position)
    if position.offsets or freshness.HasField("as_of"):
        return position
    assert freshness.stale, "an answer claims nothing and does not say that it is stale"
    return None


class Readers:
    """Threads that read counts, edges and lists, and hold the answers against what is promised while things die."""

    def __init__(self, target: str, threads: int, rng: random.Random, world: World | None = None) -> None:
        self._target, self._world = target, world or World()
        self._stop = threading.Event()
        self._seeds = [rng.randrange(2**32) for _ in range(threads)]
        self._threads = [threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in self._seeds]
        self._errors: list[BaseException] = []
        self.answers = 0
        self.failures = 0
        self.unknown_age = 0
        """Answers from memory while the store could not be read: they say that they are stale and claim nothing."""

    def answered_more_than(self, before: int) -> bool:
        return self.answers > before

    def finish(self) -> None:
        """Ends them; raises what the first of them found wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        seen: dict[int, int] = {}
        try:
            with reading(self._target) as stub:
                while not self._stop.is_set():
                    try:
                        position = self._read(stub, rng)
                    except grpc.RpcError as error:
                        if error.code() not in RETRYABLE:
                            raise
                        self.failures += 1
                        self._stop.wait(RETRY_S)
                        continue
                    self.answers += 1
                    if position is None:
                        self.unknown_age += 1
                        continue
                    back = {p: (end, position.offsets.get(p, -1)) for p, end in seen.items() if position.offsets.get(p, -1) < end}
                    assert not back, f"the position of an answer lies behind that of an earlier one (then, now): {back}"
                    seen.update(position.offsets)
                    self._stop.wait(0.002)
        except BaseException as error:
            self._errors.append(error)

    def _read(self, stub: Any, rng: random.Random) -> Position | None:
        """The position that the answer claims; None if it claims nothing."""
        entities = self._world.entities
        what = rng.random()
        if what < 0.6:
            # One of them nobody knows, so that there is always something to load.
            asked = [*rng.sample(entities, 20), f"nobody-{rng.randrange(10**9)}"]
            counts = stub.BatchGetCounts(counts_request(asked), timeout=CALL_S)
            assert all(value >= 0 for row in counts.counts for value in row.values), counts
            assert not any(counts.counts[-1].values)
            return _claim(counts.freshness)
        if what < 0.8:
            subjects = [f"s{n}" for n in range(self._world.subjects)]
            request = reader_pb2.CheckEdgesRequest(
                actor=f"a{rng.randrange(self._world.actors)}", kind=common_pb2.KIND_FOLLOW, subjects=subjects
            )
            answer = stub.CheckEdges(request, timeout=CALL_S)
            assert len(answer.active) == len(subjects)
            return _claim(answer.freshness)
        page = stub.ListActors(
            reader_pb2.ListActorsRequest(subject=f"s{rng.randrange(20)}", kind=common_pb2.KIND_FOLLOW, page_size=1_000), timeout=CALL_S
        )
        rows = [(-item.occurred_at.ToMicroseconds(), item.actor) for item in page.items]
        assert [when for when, _ in rows] == sorted(when for when, _ in rows), "newest first"
        assert len({actor for _, actor in rows}) == len(rows), "an actor twice in one list"
        return _claim(page.freshness)

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
