"""The projector's loop, as steps that something else drives: a process's main thread, a test, a simulator.

Correctness is decided in core/fold.py; this is the shell that reads, writes and publishes in the order given there, and does nothing
else between the steps than to reach their failpoints.
"""

import random
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from watertower import failpoints
from watertower.codec import ForeignRecord, UndecodableRecord, decode_batch, record_id
from watertower.config import ProjectorSettings
from watertower.core.backoff import full_jitter
from watertower.core.fold import Flush, ShardBehindEdge, fold, touched
from watertower.core.model import EventBatch, Progress, Record
from watertower.counters import WRITE_BOUNDS_S, Durations
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.ports import Clock, CountsFeed, FeedMessage, LogReader, LogRecord, Store
from watertower.projector.start import check_identity, resume_points
from watertower.pulse import Pulse

_COMMIT_INTERVAL_S = 0.5
"""Seconds between two commits to the log. They are a convenience (the log drops what lies behind), so they need not be frequent."""


_NO_EVENTS = EventBatch((), b"", (), (), b"", ())


class Step(NamedTuple):
    """What a step did."""

    events: int  # applied and durable
    wait_s: float  # seconds after which the next step makes sense; 0 for at once


class FlushCounters:
    """What was done since the start."""

    def __init__(self) -> None:
        self.events = 0  # applied and durable
        self.failures = 0  # steps that backed off
        self.durations = Durations(WRITE_BOUNDS_S)  # of flushes


class Projector:
    """Applies the partitions that its log reader owns to the store, each strictly in sequence.

    What another member of the group takes over is let go of at the next step. Until then both may write: whatever comes late loses to
    what is newer (core/fold.py), so nothing is fenced off.
    """

    def __init__(
        self,
        log: LogReader,
        store: Store,
        feed: CountsFeed,
        settings: ProjectorSettings,
        clock: Clock,
        rng: random.Random,
        pulse: Pulse | None = None,
    ) -> None:
        """`pulse` beats with every step."""
        self._log, self._store, self._feed = log, store, feed
        self._settings, self._clock, self._rng = settings, clock, rng
        self._logger = structlog.get_logger("watertower.projector")
        self._progress: dict[int, Progress] = {}
        self._as_of: dict[int, int] = {}
        self._read_to: dict[int, int] = {}  # inclusive offset of the last record taken from the log, per partition that goes on
        self._pending: deque[Record] = deque()  # read, decoded, not yet applied
        self._failures = 0
        self._heartbeat_at = self._commit_at = 0.0
        self._committed: dict[int, int] = {}
        self._unreadable: dict[int, int] = {}  # partition -> offset of the record that stopped it; what lies before is still applied
        self.stopped: dict[int, str] = {}
        """Partitions that do not go on, with the reason. Not empty means: not ready."""
        self.counters = FlushCounters()
        self.lag: dict[int, int] = {}
        """What `behind` last said, of the partitions that are still owned."""
        self._pulse = pulse or Pulse(clock)

    @property
    def positions(self) -> dict[int, int]:
        """Per partition the inclusive offset up to which everything is applied."""
        return {partition: progress.end for partition, progress in self._progress.items()}

    @property
    def as_of(self) -> dict[int, int]:
        """Per owned partition up to when everything that was acknowledged is applied, microseconds; 0: it has not been looked at yet. For
        any thread."""
        return dict(self._as_of)

    def start(self) -> None:
        """Checks that log and store belong together, and takes up what it owns already. Raises StartRefused, BackendUnavailable."""
        check_identity(self._log, self._store)
        self._follow_owned()

    def behind(self) -> dict[int, int]:
        """Per owned partition how far what is applied lies behind the end of the log, in offsets. Raises BackendUnavailable."""
        self.lag = {partition: max(end - self._progress[partition].end, 0) for partition, end in self._log.ends(self._progress).items()}
        return self.lag

    def step(self) -> Step:
        """Applies what one flush takes, or says on the feed that there is nothing. Never raises BackendUnavailable: it backs off.

        Raises StartRefused where the log of a partition that it takes up does not belong to the store."""
        self._pulse.beat()
        try:
            self._follow_owned()
            looked_at = self._clock.now_us()
            if not self._pending:
                self._fill()
            records = self._take()
            events = self._flush(records) if records else 0
            nothing_left = self._heartbeat(looked_at, busy={record.partition for record in records})
            self._commit()
        except BackendUnavailable as error:
            self._store.abandon()
            self._rewind()
            wait_s = full_jitter(self._failures, self._settings.retry_base_ms / 1e3, self._settings.retry_cap_ms / 1e3, self._rng.random())
            self._failures += 1
            self.counters.failures += 1
            self._logger.warning("flush_failed", error=str(error), attempt=self._failures, retry_in_s=round(wait_s, 3))
            return Step(0, wait_s)
        if records or nothing_left:  # a log that has nothing at hand yet, as right after a rewind, says nothing about the store
            self._failures = 0
        return Step(events, 0.0 if records else self._settings.poll_idle_ms / 1e3)

    def close(self) -> None:
        """Hands the log its last commit. What is read but not applied stays in the log."""
        self._commit(now=True)

    # --- one flush

    def _flush(self, records: Sequence[Record]) -> int:
        began_s = self._clock.monotonic_s()
        events = self._apply(records)
        self.counters.durations.add(self._clock.monotonic_s() - began_s)
        self.counters.events += events
        return events

    def _apply(self, records: Sequence[Record]) -> int:
        keys = touched(records)
        edges, shards = self._store.read_touched(keys)
        failpoints.reach("projector.after_read")
        try:
            flush = fold(records, edges, shards)
        except ShardBehindEdge as error:
            self._stop_partition(error.shard[2], str(error))
            return 0  # nothing is written; the other partitions' records are read again
        failpoints.reach("projector.after_fold")
        self._store.write_derived(flush.shards, flush.lists)
        failpoints.reach("projector.after_derived")
        self._store.write_edges(flush.edges)
        failpoints.reach("projector.after_edges")
        self._store.write_progress(flush.progress)
        failpoints.reach("projector.after_progress")
        self._feed.publish(messages(flush, self._progress, self._as_of))
        failpoints.reach("projector.after_publish")
        self._store.sync()
        failpoints.reach("projector.after_sync")
        self._progress.update(flush.progress)
        for partition, progress in flush.progress.items():
            self._as_of[partition] = max(self._as_of[partition], progress.appended_at)
        return sum(len(record.events.kinds) for record in records)

    # --- which partitions

    def _follow_owned(self) -> None:
        """Lets go of what is no longer owned and takes up what is."""
        owned = self._log.owned()
        if owned == self._progress.keys():
            return
        self._let_go(self._progress.keys() - owned)
        self._take_up(owned - self._progress.keys())

    def _take_up(self, partitions: Collection[int]) -> None:
        """Goes on where the store says."""
        points = resume_points(self._log, self._store.read_progress(), partitions, self._pulse.beat)
        for partition, progress in points.items():
            self._as_of[partition] = progress.appended_at
        self._progress.update(points)
        self._rewind()
        if points:
            self._logger.info("partitions_taken_up", positions={p: progress.end for p, progress in sorted(points.items())})

    def _let_go(self, partitions: Collection[int]) -> None:
        states: tuple[dict[int, Any], ...] = (self._progress, self._as_of, self._read_to, self._committed, self._unreadable, self.stopped)
        for partition in partitions:
            for state in states:
                state.pop(partition, None)
        self.lag = {partition: records for partition, records in self.lag.items() if partition in self._progress}
        self._pending = deque(record for record in self._pending if record.partition in self._progress)
        if partitions:
            self._logger.info("partitions_let_go", partitions=sorted(partitions))

    # --- reading the log

    def _fill(self) -> None:
        """Reads and decodes what comes next. A record that this version cannot decode stops its partition, unless it is none of ours."""
        for raw in self._log.read(self._read_to, self._settings.flush_records_max, self._settings.flush_bytes_max):
            if raw.offset >= self._unreadable.get(raw.partition, raw.offset + 1):
                self._read_to.pop(raw.partition, None)
                continue
            try:
                record = _decoded(raw)
            except UndecodableRecord as error:
                if not (isinstance(error, ForeignRecord) and self._set_aside(raw, error)):
                    self._unreadable[raw.partition] = raw.offset
                    self._stop_partition(raw.partition, f"record at offset {raw.offset}: {error}", rewind=False)
                    continue
                record = Record(raw.partition, raw.offset, record_id(raw.payload), raw.appended_at, _NO_EVENTS)
            self._pending.append(record)
            self._read_to[raw.partition] = raw.offset

    def _set_aside(self, raw: LogRecord, error: ForeignRecord) -> bool:
        """Whether the log keeps a record that no ingest wrote for people to look at; then it counts as one without events."""
        try:
            self._log.set_aside(raw, str(error))
        except BackendRefused:
            return False
        self._logger.error("record_set_aside", partition=raw.partition, offset=raw.offset, reason=str(error))
        return True

    def _take(self) -> list[Record]:
        """Whole records, up to flush_events_max events, at least one record if there is any."""
        taken: list[Record] = []
        events = 0
        while self._pending and (not taken or events + len(self._pending[0].events.kinds) <= self._settings.flush_events_max):
            record = self._pending.popleft()
            events += len(record.events.kinds)
            taken.append(record)
        return taken

    def _rewind(self) -> None:
        """Forgets what was read but not applied, to read it again: also what lies before a record that stopped its partition."""
        self._pending.clear()
        goes_on = self._progress.keys() - (self.stopped.keys() - self._unreadable.keys())
        self._read_to = {partition: progress.end for partition, progress in self._progress.items() if partition in goes_on}

    def _stop_partition(self, partition: int, reason: str, *, rewind: bool = True) -> None:
        """Counting on past a contradiction, or a record that cannot be read, would make it worse. The others go on."""
        self.stopped[partition] = reason
        self._logger.error("partition_stopped", partition=partition, reason=reason)
        if rewind:
            self._unreadable.pop(partition, None)
            self._rewind()
        else:
            self._read_to.pop(partition, None)

    # --- saying so

    def _heartbeat(self, looked_at: int, busy: set[int]) -> bool:
        """Says on the feed, every heartbeat_ms, up to when the partitions without news are known to have none. Returns whether that is
        so of all of them."""
        now = self._clock.monotonic_s()
        if now < self._heartbeat_at or self._pending:
            return False
        quiet = {p: end for p, end in self._read_to.items() if p not in busy and end == self._progress[p].end}
        # `looked_at` lies before this look, so that whatever was acknowledged before it would be seen.
        ends = self._log.ends(quiet) if quiet else {}
        quiet = {partition: end for partition, end in quiet.items() if ends[partition] <= end}
        for partition in quiet:
            self._as_of[partition] = max(self._as_of[partition], looked_at)
        if quiet:
            self._feed.publish(FeedMessage(p, end, end, self._as_of[p], (), b"", (), ()) for p, end in quiet.items())
            self._store.sync()
        self._heartbeat_at = now + self._settings.heartbeat_ms / 1e3
        return quiet.keys() == self._read_to.keys()

    def _commit(self, *, now: bool = False) -> None:
        time = self._clock.monotonic_s()
        ends = {partition: progress.end for partition, progress in self._progress.items() if progress.end >= 0}
        if ends != self._committed and (now or time >= self._commit_at):
            try:
                self._log.commit(ends)
                self._committed = ends
            except BackendUnavailable as error:  # what is applied is applied; the log keeps a little more for a while
                self._logger.warning("commit_failed", error=str(error))
            self._commit_at = time + _COMMIT_INTERVAL_S
            failpoints.reach("projector.after_commit")


def messages(flush: Flush, progress: Mapping[int, Progress], as_of: Mapping[int, int]) -> list[FeedMessage]:
    """What the feed says of a flush: one message per partition. `progress` and `as_of` are those before the flush."""
    columns: dict[int, tuple[list[str], bytearray, list[int], list[int]]] = {
        partition: ([], bytearray(), [], []) for partition in flush.progress
    }
    for (entity, metric, partition), shard in flush.published.items():
        entities, metrics, values, offsets = columns[partition]
        entities.append(entity)
        metrics.append(metric)
        values.append(shard.value)
        offsets.append(shard.offset)
    return [
        FeedMessage(
            partition,
            progress[partition].end,
            flush.progress[partition].end,
            max(as_of[partition], flush.progress[partition].appended_at),
            entities,
            bytes(metrics),
            values,
            offsets,
        )
        for partition, (entities, metrics, values, offsets) in columns.items()
    ]


def _decoded(raw: LogRecord) -> Record:
    return Record(raw.partition, raw.offset, record_id(raw.payload), raw.appended_at, decode_batch(raw.payload))
