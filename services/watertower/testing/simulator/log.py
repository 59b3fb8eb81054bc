"""The log of a run: what has landed in it is durable; who appended may hear of it late, wrongly or never."""

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future

from watertower.errors import BackendRefused, BackendUnavailable
from watertower.ports import LogIdentity, LogRecord
from watertower.testing.simulator.faults import Faults
from watertower.testing.simulator.kernel import VirtualTimeLoop, wait

TIMEOUT_S = 3.0


class SimulatedLog:
    """The partitions. `landed` hears of every record."""

    def __init__(
        self, loop: VirtualTimeLoop, faults: Faults, rng: random.Random, identity: LogIdentity, landed: Callable[[LogRecord], None]
    ) -> None:
        self.loop, self.faults, self.rng, self.landed = loop, faults, rng, landed
        self.identity = identity
        self.records: list[list[LogRecord]] = [[] for _ in range(identity.partitions)]
        self.next_offsets = [0] * identity.partitions
        self.starts = [0] * identity.partitions

    def ends(self) -> dict[int, int]:
        """The offset of the last record of each partition; -1 where there is none."""
        return {partition: records[-1].offset if records else -1 for partition, records in enumerate(self.records)}

    def land(self, partition: int, payload: bytes, appended_at: int) -> int:
        """Puts a record at the end of a partition. Returns its offset."""
        if self.faults.strikes("offset_gap"):
            self.next_offsets[partition] += self.faults.stream("offset_gap").randint(1, 3)
        offset = self.next_offsets[partition]
        self.next_offsets[partition] += 1
        record = LogRecord(partition, offset, appended_at, payload)
        self.records[partition].append(record)
        self.landed(record)
        return offset

    def record_at(self, partition: int, offset: int) -> LogRecord | None:
        return next((record for record in reversed(self.records[partition]) if record.offset == offset), None)


class SimulatedLogWriter:
    """ports.LogWriter of one ingest. What it sent arrives whether or not that ingest still lives."""

    def __init__(self, log: SimulatedLog) -> None:
        self._log = log

    @property
    def identity(self) -> LogIdentity:
        return self._log.identity

    def append(self, partition: int, payload: bytes, appended_at: int, traceparent: str = "") -> "Future[int]":
        log = self._log
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()

        def fail() -> None:
            future.set_exception(BackendUnavailable("the log did not answer"))

        def arrive() -> None:
            offset = log.land(partition, payload, appended_at)
            if log.faults.strikes("append_unacknowledged"):
                log.loop.call_later(TIMEOUT_S, fail)
            else:
                log.loop.call_later(log.rng.uniform(0.001, 0.01), future.set_result, offset)

        if log.faults.strikes("append_lost"):
            log.loop.call_later(TIMEOUT_S, fail)
        else:
            log.loop.call_later(log.rng.uniform(0.001, 0.02), arrive)
        return future

    def close(self) -> None:
        """Nothing to let go of."""


class SimulatedLogReader:
    """ports.LogReader of one projector. Its methods block in virtual time (kernel.wait)."""

    def __init__(self, log: SimulatedLog, owned: Callable[[], Collection[int]]) -> None:
        self._log, self._owned = log, owned

    @property
    def identity(self) -> LogIdentity:
        return self._log.identity

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        self._travel()
        found = [
            record
            for partition, offset in after.items()
            for record in self._log.records[partition]
            if record.offset > offset and record.offset >= self._log.starts[partition]
        ]
        # The partitions mixed at random, each one's records in order.
        turns = [record.partition for record in found]
        self._log.rng.shuffle(turns)
        queues = {partition: iter([record for record in found if record.partition == partition]) for partition in after}
        taken: list[LogRecord] = []
        size = 0
        for partition in turns[:records_max]:
            record = next(queues[partition])
            size += len(record.payload)
            if taken and size > bytes_max:
                break
            taken.append(record)
        return taken

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        self._travel()
        return {partition: self._log.ends()[partition] for partition in partitions}

    def owned(self) -> frozenset[int]:
        return frozenset(self._owned())

    def start(self, partition: int) -> int:
        self._travel()
        return self._log.starts[partition]

    def record_at(self, partition: int, offset: int) -> LogRecord | None:
        self._travel()
        return self._log.record_at(partition, offset) if offset >= self._log.starts[partition] else None

    def set_aside(self, record: LogRecord, reason: str) -> None:
        raise BackendRefused("this log sets nothing aside")

    def commit(self, ends: Mapping[int, int]) -> None:
        self._travel()

    def close(self) -> None:
        """Nothing to let go of."""

    def _travel(self) -> None:
        wait(asyncio.sleep(self._log.rng.uniform(0.0005, 0.002)))
        if self._log.faults.strikes("log_read_failed"):
            raise BackendUnavailable("the log did not answer")
