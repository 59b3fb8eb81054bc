"""What the tests with real processes share: the command line, clients, a load whose outcome is recounted, and the comparison with it."""

import contextlib
import csv
import io
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from watertower.cli.connection import RETRYABLE
from watertower.cli.options import opened_scanner
from watertower.clock import SystemClock
from watertower.core.positions import Position, decode_position
from watertower.testing.service import NotInTime, clean_environment, wait_until
from watertower.v1 import common_pb2, reader_pb2, reader_pb2_grpc, writer_pb2, writer_pb2_grpc

CLOCK = SystemClock()

CALL_S = 5.0
"""Deadline of one attempt."""

RETRY_S = 0.05
"""Pause between two attempts."""

QUICK = {"restart_base_ms": 50, "restart_cap_ms": 200}
"""Settings for tests that kill roles often."""

METRICS = ("followers", "following", "likes", "likes_given", "comments", "comments_written")
"""In the order of the API's numbers, from 1."""

_CHANNEL = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


# --- the command line


class Ran(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


def watertower(*arguments: object, environment: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Ran:
    """Runs `watertower ARGUMENTS` as a process of its own, without settings from this one's environment."""
    done = subprocess.run(
        [sys.executable, "-m", "watertower", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean_environment(environment),
        timeout=timeout_s,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def exported_counts(data: Path) -> dict[tuple[str, str], int]:
    """(entity, metric) -> value, of `watertower export counts`."""
    ran = watertower("export", "counts", "--data", data)
    assert ran.code == 0, ran.err
    rows = list(csv.reader(io.StringIO(ran.out)))
    assert rows[0] == ["entity", "metric", "value"]
    counts = {(entity, metric): int(value) for entity, metric, value in rows[1:]}
    assert len(counts) == len(rows) - 1, "an entity's metric is exported twice"
    return counts


def assert_audit_is_clean(data: Path) -> dict[str, Any]:
    """`watertower audit` finds nothing. Its totals."""
    ran = watertower("audit", "--data", data, "--json")
    assert ran.code == 0, f"audit found differences: {ran.out}{ran.err}"
    totals: dict[str, Any] = json.loads(ran.out)
    assert totals["clean"] is True
    return totals


# --- clients


@contextlib.contextmanager
def writing(target: str) -> Iterator[writer_pb2_grpc.EngagementWriterStub]:
    with grpc.insecure_channel(target, options=_CHANNEL) as channel:
        yield writer_pb2_grpc.EngagementWriterStub(channel)


@contextlib.contextmanager
def reading(target: str) -> Iterator[reader_pb2_grpc.EngagementReaderStub]:
    with grpc.insecure_channel(target, options=_CHANNEL) as channel:
        yield reader_pb2_grpc.EngagementReaderStub(channel)


def refusal(error: grpc.RpcError) -> tuple[str, float | None]:
    """(reason, seconds that RetryInfo says) of a refused call; ("", None) if it says neither."""
    reason, retry_s = "", None
    trailing: Any = error.trailing_metadata()  # the published types of an item are not those of the pairs that it is
    for key, value in trailing or ():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if packed.Unpack(info):
                    reason = info.reason
                elif packed.Unpack(retry):
                    retry_s = retry.retry_delay.ToMicroseconds() / 1e6
    return reason, retry_s


class Event(NamedTuple):
    """One event as a caller thinks of it."""

    actor: str
    kind: int
    subject: str
    ref: str
    active: bool
    occurred_at: int

    def message(self) -> writer_pb2.Event:
        event = writer_pb2.Event(
            actor=self.actor,
            kind=common_pb2.Kind.Name(self.kind),
            subject=self.subject,
            ref=self.ref,
            state=common_pb2.STATE_ACTIVE if self.active else common_pb2.STATE_REMOVED,
        )
        event.occurred_at.FromMicroseconds(self.occurred_at)
        return event


def record(stub: Any, events: Sequence[Event], timeout_s: float = CALL_S) -> Position:
    """One attempt. The position of the write token. Raises grpc.RpcError."""
    request = writer_pb2.RecordEventsRequest(events=[event.message() for event in events])
    return decode_position(stub.RecordEvents(request, timeout=timeout_s).write_token)


def follow(actor: str, subject: str, active: bool = True) -> Event:
    return Event(actor, 1, subject, "", active, CLOCK.now_us())


def counts_request(entities: Sequence[str]) -> reader_pb2.BatchGetCountsRequest:
    return reader_pb2.BatchGetCountsRequest(entities=entities, metrics=[f"METRIC_{metric.upper()}" for metric in METRICS])


def read_counts(stub: Any, entities: Sequence[str]) -> tuple[list[dict[str, int]], Position]:
    """(counts by metric of each entity, the answer's position). One attempt."""
    counts: list[dict[str, int]] = []
    position = b""
    for at in range(0, len(entities), 1_000):
        answer = stub.BatchGetCounts(counts_request(entities[at : at + 1_000]), timeout=CALL_S)
        counts += [dict(zip(METRICS, row.values, strict=True)) for row in answer.counts]
        position = position or answer.freshness.position
    return counts, decode_position(position)


def wait_visible(target: str, wanted: Mapping[int, int], seconds: float = 60.0) -> None:
    """Waits until the reader says that its answers include these offsets by partition."""
    with reading(target) as stub:

        def visible() -> bool:
            try:
                _, position = read_counts(stub, ["nobody"])
            except grpc.RpcError as error:
                if error.code() not in RETRYABLE:
                    raise
                return False
            return all(position.offsets.get(p, -1) >= end for p, end in wanted.items())

        wait_until(visible, f"the reader includes {dict(wanted)}", seconds)


# --- what should be there, recounted without the service's code


class Expected:
    """The last writer of each edge among acknowledged events, by (occurred_at, REMOVED > ACTIVE)."""

    def __init__(self) -> None:
        self.edges: dict[tuple[str, int, str, str], tuple[int, bool]] = {}  # (occurred_at, removed)
        self.ends: dict[int, int] = {}  # the largest acknowledged offset by partition
        self.events = 0

    def take(self, events: Sequence[Event], position: Position | None) -> None:
        """Events that were acknowledged, at this position."""
        edges = self.edges
        for actor, kind, subject, ref, active, occurred_at in events:
            key, state = (actor, kind, subject, ref), (occurred_at, not active)
            if key not in edges or state > edges[key]:
                edges[key] = state
        self.events += len(events)
        for partition, offset in position.offsets.items() if position else ():
            self.ends[partition] = max(offset, self.ends.get(partition, -1))

    def merge(self, other: "Expected") -> None:
        for key, state in other.edges.items():
            self.edges[key] = max(state, self.edges.get(key, state))
        for partition, end in other.ends.items():
            self.ends[partition] = max(end, self.ends.get(partition, -1))
        self.events += other.events

    def counts(self) -> Counter[tuple[str, str]]:
        """(entity, metric) -> count. Zero for an entity all of whose edges are removed."""
        counts: Counter[tuple[str, str]] = Counter()
        for (actor, kind, subject, _), (_, removed) in self.edges.items():
            counts[subject, METRICS[2 * kind - 2]] += not removed
            counts[actor, METRICS[2 * kind - 1]] += not removed
        return counts


def assert_store_equals(data: Path, expected: Expected) -> None:
    """Every edge, count and list of the data folder is what the acknowledged events say, and `audit` agrees."""
    with opened_scanner(data) as scanner:
        found = {key: (edge.occurred_at, not edge.active) for key, edge in scanner.edges()}
        listed = Counter((actor, kind, subject, ref) for subject, kind, _, _, _, actor, ref in scanner.subject_lists())
        of_actors = Counter(scanner.actor_lists())
    wrong = {
        key: (found.get(key), expected.edges.get(key))
        for key in found.keys() | expected.edges.keys()
        if found.get(key) != expected.edges.get(key)
    }
    assert not wrong, f"{len(wrong)} edges differ (found, expected): {dict(list(wrong.items())[:5])}"
    active = Counter(key for key, (_, removed) in expected.edges.items() if not removed)
    assert listed == active
    assert of_actors == active
    counts, exported = expected.counts(), exported_counts(data)
    differ = {key: (exported.get(key), counts.get(key)) for key in exported.keys() | counts.keys() if exported.get(key, 0) != counts[key]}
    assert not differ, f"{len(differ)} counts differ (found, expected): {dict(list(differ.items())[:5])}"
    assert_audit_is_clean(data)


# --- load


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

    def __init__(self, target: str, threads: int, rng: random.Random, world: World | None = None, events_max: int = 40) -> None:
        self._target, self._events_max, self._world = target, events_max, world or World()
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
    position = decode_position(freshness.position)
    if position.offsets:
        return position
    assert freshness.stale, "an answer claims nothing and does not say that it is stale"
    assert not freshness.HasField("as_of")
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
