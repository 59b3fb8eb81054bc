"""The projector's loop on a log in memory and the real embedded store: resumes, backs off, stops what it must, says how fresh it is."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from watertower import failpoints
from watertower.audit import Difference, audit
from watertower.backends import rocksdb_keys as keys
from watertower.backends.memory_log import MemoryLog
from watertower.backends.rocksdb import RocksDbReader, RocksDbScanner, RocksDbStore
from watertower.codec import encode_batch, record_id
from watertower.config import ProjectorSettings
from watertower.core.model import EventBatch, Kind, Metric, Progress, Shard
from watertower.core.sharding import partition_of
from watertower.errors import BackendRefused, StartRefused
from watertower.ports import FeedMessage, LogIdentity, LogRecord, StoreIdentity
from watertower.projector.projector import Projector
from watertower.testing.clock import FakeClock

LOG = LogIdentity("log-1", 2)
FLUSH_POINTS = [point for point in failpoints.POINTS if point.startswith("projector.") and point != "projector.after_commit"]


def batch(*actors: str, subject: str = "star", active: bool = True, at: int = 1) -> EventBatch:
    n = len(actors)
    return EventBatch(list(actors), bytes([Kind.FOLLOW]) * n, [subject] * n, [""] * n, bytes([active]) * n, [at] * n)


def of_a_later_version() -> bytes:
    """A record that this version cannot decode."""
    payload = bytearray(encode_batch(batch("a")))
    payload[2] += 1
    return bytes(payload)


class GroupLog(MemoryLog):
    """Its partitions come and go; it may be far away."""

    def __init__(self, identity: LogIdentity) -> None:
        super().__init__(identity)
        self.assigned = frozenset(range(identity.partitions))
        self.far = False
        """Whether only every other read finds something at hand."""
        self._at_hand = False

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        self._at_hand = not self.far or not self._at_hand
        return super().read(after, records_max, bytes_max) if self._at_hand else []

    def owned(self) -> frozenset[int]:
        return self.assigned


class Bench:
    """A projector with its back ends, which can be restarted."""

    def __init__(self, home: Path, **settings: int) -> None:
        self.home, self.clock, self.log = home, FakeClock(), GroupLog(LOG)
        self.settings = ProjectorSettings(**settings)
        self.offsets = [0, 0]
        self.open()

    def open(self) -> None:
        self.store = RocksDbStore(self.home / "store", StoreIdentity(LOG, 1), 1 << 22, 1 << 22, 100)
        self.projector = Projector(self.log, self.store, self.store.feed, self.settings, self.clock, random.Random(1))
        self.reader = RocksDbReader(self.home / "store", self.home / "secondary", StoreIdentity(LOG, 1), 1 << 22)
        self.reader.poll()

    def restart(self) -> None:
        self.close()
        self.open()
        self.projector.start()

    def close(self) -> None:
        self.reader.close()
        self.store.close()

    def append(self, partition: int, events: EventBatch) -> int:
        return self.log.append(partition, encode_batch(events), self.clock.now_us()).result()

    def drain(self) -> int:
        total = 0
        for _ in range(1_000):
            step = self.projector.step()
            total += step.events
            self.clock.advance(step.wait_s)
            if not step.events and step.wait_s == self.settings.poll_idle_ms / 1e3:
                return total
        raise AssertionError("the projector does not come to rest")

    def followers(self) -> dict[int, Shard]:
        self.reader.catch_up()
        return {shard: row for (metric, shard), row in self.reader.read_entities(["star"])[0].items() if metric == Metric.FOLLOWERS}

    def messages(self) -> list[FeedMessage]:
        return self.reader.poll()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    failpoints.disarm()
    bench.close()


def test_a_flush_covers_all_partitions_and_is_published_with_its_ranges(bench: Bench) -> None:
    """One step applies the records of both partitions; the feed carries absolute values, positions and (after, end]."""
    bench.projector.start()
    bench.append(0, batch("a", "b"))
    bench.append(0, batch("c"))
    bench.append(1, batch("d"))
    assert bench.projector.step().events == 4
    assert bench.followers() == {0: Shard(3, 3, (), 1), 1: Shard(1, 1, (), 0)}
    messages = {m.partition: m for m in bench.messages()}
    assert {(m.partition, m.after, m.end) for m in messages.values()} == {(0, -1, 1), (1, -1, 0)}
    star = messages[0].entities.index("star")
    assert (messages[0].metrics[star], messages[0].values[star], messages[0].offsets[star]) == (Metric.FOLLOWERS, 3, 1)


def test_it_resumes_from_progress_and_counts_nothing_twice(bench: Bench) -> None:
    """After a restart the store's progress decides where to go on, not what was committed to the log."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.drain()
    bench.restart()
    bench.append(0, batch("b"))
    bench.append(0, batch("a"))  # the same event once more
    assert bench.drain() == 2
    assert bench.followers() == {0: Shard(2, 2, (), 2)}


@pytest.mark.parametrize("point", FLUSH_POINTS)
def test_a_flush_that_fails_at_any_step_is_repeated_and_counts_once(bench: Bench, point: str) -> None:
    """The step backs off with full jitter and tries again from progress; another restart on top changes nothing."""
    bench.projector.start()
    bench.append(0, batch("a", "b"))
    failpoints.arm(f"{point}=error:1")
    step = bench.projector.step()
    assert step.events == 0
    assert 0 <= step.wait_s <= bench.settings.retry_cap_ms / 1e3
    failpoints.disarm()
    bench.drain()
    bench.restart()
    bench.drain()
    assert bench.followers() == {0: Shard(2, 2, (), 0)}


@pytest.mark.parametrize("point", [point for point in FLUSH_POINTS if point != "projector.after_sync"])
def test_a_flush_that_failed_leaves_nothing_behind(bench: Bench, point: str) -> None:
    """What it held back never shows, not with a later sync either; the repeated flush is on the feed once."""
    bench.projector.start()
    bench.append(0, batch("a"))
    failpoints.arm(f"{point}=error:1")
    bench.projector.step()
    failpoints.disarm()
    bench.store.sync()
    assert (bench.followers(), bench.messages(), bench.store.read_progress()) == ({}, [], {})
    bench.drain()
    assert bench.followers() == {0: Shard(1, 1, (), 0)}
    assert [(m.after, m.end) for m in bench.messages() if m.partition == 0 and m.entities] == [(-1, 0)]


@pytest.mark.parametrize("far", [False, True])
def test_retries_wait_longer_up_to_the_cap(tmp_path: Path, far: bool) -> None:
    """Reaches retry_cap_ms: no wait is longer, and later ones use the whole interval; also where the log has the records at hand only
    some steps later, which is no success."""
    bench = Bench(tmp_path, retry_base_ms=10, retry_cap_ms=80)
    bench.log.far = far
    try:
        bench.projector.start()
        bench.append(0, batch("a"))
        failpoints.arm("projector.after_fold=error:1")
        waits = [bench.projector.step().wait_s for _ in range(60)]
        assert waits[0] <= 0.010
        assert 0.040 < max(waits) <= 0.080
        failpoints.disarm()
        bench.log.far = False
        bench.drain()
        assert bench.followers() == {0: Shard(1, 1, (), 0)}
        bench.clock.advance(1.0)
        bench.drain()
        bench.append(0, batch("b"))
        failpoints.arm("projector.after_fold=error:1")
        assert bench.projector.step().wait_s <= 0.010  # the failures before are forgotten
    finally:
        failpoints.disarm()
        bench.close()


def test_a_flush_takes_whole_records_up_to_its_limit(tmp_path: Path) -> None:
    """Reaches flush_events_max: 3 records of 2 events, limit 4: two records, then one. A larger record goes alone."""
    bench = Bench(tmp_path, flush_events_max=4)
    try:
        bench.projector.start()
        for names in (("a", "b"), ("c", "d"), ("e", "f"), tuple("ghijklm")):
            bench.append(0, batch(*names))
        assert [bench.projector.step().events for _ in range(4)] == [4, 2, 7, 0]
    finally:
        bench.close()


@pytest.mark.parametrize(("setting", "value"), [("flush_records_max", 2), ("flush_bytes_max", 1)])
def test_a_flush_reads_no_more_of_the_log_than_its_limits(tmp_path: Path, setting: str, value: int) -> None:
    """Reaches flush_records_max and flush_bytes_max: at most that much is read ahead, and everything is applied in the end."""
    bench = Bench(tmp_path, **{setting: value})
    try:
        bench.projector.start()
        for name in "abcde":
            bench.append(0, batch(name))
        assert bench.projector.step().events <= 2
        bench.drain()
        assert bench.followers() == {0: Shard(5, 5, (), 4)}
    finally:
        bench.close()


def test_a_record_that_cannot_be_decoded_stops_its_partition_only(bench: Bench) -> None:
    """Upgrade projectors before ingest: skipping what one does not understand would lose events. The other partition goes on."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.log.append(0, of_a_later_version(), bench.clock.now_us())
    bench.append(0, batch("b"))
    bench.append(1, batch("c"))
    bench.drain()
    bench.append(1, batch("d"))
    bench.drain()
    assert bench.followers() == {0: Shard(1, 1, (), 0), 1: Shard(2, 2, (), 1)}
    assert list(bench.projector.stopped) == [0]
    assert "offset 1" in bench.projector.stopped[0]


@pytest.mark.parametrize("disturbed", ["rebalance", "error"])
def test_what_lies_before_a_record_that_cannot_be_decoded_is_applied(tmp_path: Path, disturbed: str) -> None:
    """Also where what was read ahead is forgotten meanwhile, because another partition comes or a flush fails."""
    bench = Bench(tmp_path, flush_events_max=1)
    bench.log.assigned = frozenset({0})
    bench.projector.start()
    for actor in "abc":
        bench.append(0, batch(actor))
    bench.log.append(0, of_a_later_version(), bench.clock.now_us())
    bench.append(0, batch("d"))
    bench.projector.step()
    assert list(bench.projector.stopped) == [0]
    if disturbed == "rebalance":
        bench.log.assigned = frozenset({0, 1})
    else:
        failpoints.arm("projector.after_derived=error")
        bench.projector.step()
        failpoints.disarm()
    bench.drain()
    assert bench.projector.positions[0] == 2
    assert list(bench.projector.stopped) == [0]
    assert bench.followers() == {0: Shard(3, 3, (), 2)}
    bench.close()


def test_an_edge_ahead_of_its_shard_stops_its_partition_only(bench: Bench) -> None:
    """The alarm: somebody lost a count row. Nothing more is written for that partition; the others go on."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.drain()
    bench.store.write_derived({("star", int(Metric.FOLLOWERS), 0): Shard(0, 0, (), -1)}, {})
    bench.store.sync()
    bench.append(0, batch("a", active=False, at=2))
    bench.append(1, batch("c"))
    bench.drain()
    assert list(bench.projector.stopped) == [0]
    assert "its shard" in bench.projector.stopped[0]
    assert bench.projector.positions == {0: 0, 1: 0}


def test_a_lost_shard_of_an_actor_is_left_to_the_audit(bench: Bench) -> None:
    """The alarm is silent where the actor's shard is gone, because its edges are not read then (decision 0007)."""
    partition = partition_of("a", LOG.partitions)
    bench.projector.start()
    bench.append(partition, batch("a"))
    bench.drain()
    (row,) = keys.shard_keys([("a", int(Metric.FOLLOWING), partition)], keys.Ids())
    bench.store._batch.delete(row)
    bench.store.sync()
    bench.append(partition, batch("a", at=2))
    bench.drain()
    assert bench.projector.stopped == {}
    found: list[Difference] = []
    with contextlib.closing(RocksDbScanner(bench.home / "store", bench.home / "scan", StoreIdentity(LOG, 1))) as scanner:
        audit(scanner, found.append)
    assert ("star", Metric.FOLLOWERS.name.lower(), 1, 2) in [(d.key.get("entity"), d.key.get("metric"), d.expected, d.found) for d in found]


def test_heartbeats_carry_the_time_when_there_is_nothing_to_do(bench: Bench) -> None:
    """Every heartbeat_ms each partition without news says up to when it is known to have none; the range is empty."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.drain()
    bench.messages()
    bench.clock.advance(1.0)
    before = bench.clock.now_us()
    bench.projector.step()
    beats = bench.messages()
    assert {(m.partition, m.after, m.end) for m in beats} == {(0, 0, 0), (1, -1, -1)}
    assert all(m.as_of == before for m in beats)
    bench.projector.step()
    assert bench.messages() == []  # not again before heartbeat_ms


def test_a_stopped_partition_claims_no_freshness(bench: Bench) -> None:
    """Its as_of stays where it stopped, so that answers become stale and say so."""
    bench.projector.start()
    bench.log.append(0, of_a_later_version(), bench.clock.now_us())
    bench.drain()
    bench.clock.advance(1.0)
    bench.messages()
    bench.projector.step()
    assert {m.partition for m in bench.messages()} == {1}


def test_a_partition_whose_record_waits_claims_no_freshness(tmp_path: Path) -> None:
    """A read that takes one record of two leaves the other partition's for later; until then its as_of stays before that record."""
    bench = Bench(tmp_path, flush_records_max=1)
    try:
        bench.projector.start()
        bench.drain()
        bench.clock.advance(1.0)
        appended_at = bench.clock.now_us()
        for partition in range(LOG.partitions):
            bench.append(partition, batch("a"))
        bench.clock.advance(1.0)
        bench.messages()
        bench.projector.step()
        (waits,) = [partition for partition, end in bench.projector.positions.items() if end < 0]
        assert [m for m in bench.messages() if m.partition == waits and m.as_of >= appended_at] == []
        bench.drain()
        assert next(m.end for m in bench.messages() if m.partition == waits and m.as_of >= appended_at) == 0
    finally:
        bench.close()


def test_what_is_applied_is_committed_to_the_log(bench: Bench) -> None:
    """Now and then, and at the latest on close; the record at `end` stays as proof of identity."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.append(0, batch("b"))
    bench.drain()
    assert bench.log.start(0) == 1
    bench.append(0, batch("c"))
    bench.projector.step()
    assert bench.projector.positions[0] == 2
    assert bench.log.start(0) == 1  # the next commit is not due yet
    bench.projector.close()
    assert bench.log.start(0) == 2
    assert bench.log.record_at(0, 2) is not None
    bench.restart()


# --- what must hold before the first step


def test_another_log_is_refused(bench: Bench) -> None:
    """A re-created log has another id."""
    bench.log = GroupLog(LogIdentity("log-2", 2))
    projector = Projector(bench.log, bench.store, bench.store.feed, bench.settings, bench.clock, random.Random(1))
    with pytest.raises(StartRefused, match=r"made from log log-1 .* this is log log-2"):
        projector.start()


def test_a_rewound_log_is_refused(bench: Bench) -> None:
    """Offsets were used again: the record at `progress` is not the one that was applied."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.drain()
    bench.log = GroupLog(LOG)
    bench.append(0, batch("somebody-else"))
    with pytest.raises(StartRefused, match="rewound"):
        bench.restart()


def test_a_log_that_is_older_than_the_store_is_refused(bench: Bench) -> None:
    """The log lacks the record up to which the store has applied it."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.append(0, batch("b"))
    bench.drain()
    bench.log = GroupLog(LOG)
    bench.append(0, batch("a"))
    with pytest.raises(StartRefused, match="older than the store"):
        bench.restart()


def test_a_log_that_starts_past_progress_is_refused(bench: Bench) -> None:
    """What lies between is lost; going on from "earliest" would hide it."""
    for name in "abc":
        bench.append(0, batch(name))
    bench.log.commit({0: 2})
    assert bench.log.start(0) == 2
    with pytest.raises(StartRefused, match=r"starts at offset 2 but the store has applied it only up to -1"):
        bench.projector.start()


def test_progress_is_what_the_store_holds(bench: Bench) -> None:
    """`end` inclusive, the hash of the record, the time of its append."""
    bench.projector.start()
    appended_at = bench.clock.now_us()
    bench.append(1, batch("a"))
    bench.drain()
    progress = bench.store.read_progress()
    assert progress == {1: Progress(0, record_id(encode_batch(batch("a"))), appended_at)}
    assert len(progress[1].record_id) == 8


def test_partitions_come_and_go(bench: Bench) -> None:
    """It applies what it owns, lets go of the rest with what it had read of it, and goes on where the store says when it comes back."""
    bench.log.assigned = frozenset()
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.append(1, batch("d"))
    assert bench.projector.step().events == 0
    bench.log.assigned = frozenset({1})
    assert bench.drain() == 1
    assert bench.projector.positions == {1: 0}
    bench.log.assigned = frozenset({0})
    assert bench.drain() == 1
    assert bench.projector.positions == {0: 0}
    bench.append(1, batch("e"))
    bench.log.assigned = frozenset({0, 1})
    assert bench.drain() == 1
    assert {partition: shard.value for partition, shard in bench.followers().items()} == {0: 1, 1: 2}
    assert {m.partition for m in bench.messages()} == {0, 1}


def test_what_was_read_of_a_lost_partition_is_not_applied(tmp_path: Path) -> None:
    """A record that waits for the next flush when its partition goes is left to the next owner."""
    bench = Bench(tmp_path, flush_events_max=1)
    bench.projector.start()
    for actor in ("a", "b", "c"):
        bench.append(0, batch(actor))
    assert bench.projector.step().events == 1
    bench.log.assigned = frozenset({1})
    assert bench.drain() == 0
    bench.log.assigned = frozenset({0})
    assert bench.drain() == 2
    bench.close()


def test_a_partition_that_is_taken_up_must_belong_to_the_store(bench: Bench) -> None:
    """Its record at progress is looked at then, not only at the process's start."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.drain()
    bench.log.assigned = frozenset({1})
    bench.drain()
    rewound = GroupLog(LOG)
    rewound.append(0, encode_batch(batch("somebody-else")), 1)
    bench.log._records = rewound._records
    bench.log.assigned = frozenset({0, 1})
    with pytest.raises(StartRefused, match="partition 0"):
        bench.projector.step()


def test_it_says_how_far_it_is_behind(bench: Bench) -> None:
    """In offsets, per partition that it owns."""
    bench.projector.start()
    bench.append(0, batch("a"))
    bench.append(0, batch("b"))
    assert bench.projector.behind() == {0: 2, 1: 0}
    bench.drain()
    assert bench.projector.behind() == {0: 0, 1: 0}


def test_a_record_that_no_ingest_wrote_is_set_aside_and_passed(bench: Bench) -> None:
    """Somebody else wrote to the log: it is kept for people to look at, counts as nothing, and what comes after it is applied."""
    bench.projector.start()
    bench.append(0, batch("a"))
    foreign = [b"", b"{}", b"hello, this is somebody else's message"]
    for payload in foreign:
        bench.log.append(0, payload, 7).result()
    bench.append(0, batch("b"))
    assert bench.drain() == 2
    assert bench.projector.stopped == {}
    assert bench.projector.positions[0] == 4
    assert [(record.offset, record.payload) for record, _ in bench.log.aside] == [(1 + n, payload) for n, payload in enumerate(foreign)]
    assert bench.followers()[0].value == 2
    bench.restart()  # the record at progress is one of them
    bench.log.append(0, b"last", 7).result()
    bench.drain()
    bench.restart()
    assert bench.projector.positions[0] == 5


def test_where_nothing_can_be_set_aside_it_stops_the_partition(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any record that cannot be decoded does."""

    def refuse(record: object, reason: str) -> None:
        raise BackendRefused("no place")

    monkeypatch.setattr(bench.log, "set_aside", refuse)
    bench.projector.start()
    bench.log.append(0, b"{}", 7).result()
    bench.append(0, batch("a"))
    bench.append(1, batch("d"))
    assert bench.drain() == 1
    assert list(bench.projector.stopped) == [0]


def test_a_record_of_a_later_version_is_never_set_aside(bench: Bench) -> None:
    """It is ours: it waits for a projector that can read it."""
    bench.projector.start()
    bench.log.append(0, of_a_later_version(), 7).result()
    bench.drain()
    assert list(bench.projector.stopped) == [0]
    assert bench.log.aside == []
