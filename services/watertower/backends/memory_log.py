"""The log in memory: for tests and the simulator. Every append is durable at once, as far as that word goes here."""

import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from itertools import takewhile

from watertower.ports import LogIdentity, LogRecord


class MemoryLog:
    """ports.LogWriter and ports.LogReader in one object. Any thread may call it; what was appended outlives `close`."""

    def __init__(self, identity: LogIdentity) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._records: list[dict[int, LogRecord]] = [{} for _ in range(identity.partitions)]
        self._next_offsets = [0] * identity.partitions
        self._turn = 0
        self.aside: list[tuple[LogRecord, str]] = []
        """Records that were set aside, with the reason."""

    @property
    def identity(self) -> LogIdentity:
        return self._identity

    def append(self, partition: int, payload: bytes, appended_at: int, traceparent: str = "") -> "Future[int]":
        """See ports.LogWriter. The future is done when this returns. Raises ValueError for a partition that the log does not have."""
        if not 0 <= partition < self._identity.partitions:
            raise ValueError(f"partition {partition} of {self._identity.partitions}")
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            offset = self._next_offsets[partition]
            self._next_offsets[partition] += 1
            self._records[partition][offset] = LogRecord(partition, offset, appended_at, payload)
        future.set_result(offset)
        return future

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        """See ports.LogReader. The partitions take turns, record by record, another one first each time."""
        with self._lock:
            self._turn += 1
            order = sorted(after, key=lambda partition: (partition + self._turn) % self._identity.partitions)
            queues = {partition: self._after(partition, after[partition]) for partition in order}
            records: list[LogRecord] = []
            size = 0
            while queues and len(records) < records_max:
                for partition in list(queues):
                    record = queues[partition].pop() if queues[partition] else None
                    if record is None or (records and size + len(record.payload) > bytes_max) or len(records) >= records_max:
                        del queues[partition]
                        continue
                    records.append(record)
                    size += len(record.payload)
        return records

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """See ports.LogReader."""
        with self._lock:
            return {partition: self._next_offsets[partition] - 1 for partition in partitions}

    def owned(self) -> frozenset[int]:
        """See ports.LogReader."""
        return frozenset(range(self._identity.partitions))

    def start(self, partition: int) -> int:
        """See ports.LogReader."""
        with self._lock:
            return min(self._records[partition], default=self._next_offsets[partition])

    def record_at(self, partition: int, offset: int) -> LogRecord | None:
        """See ports.LogReader."""
        with self._lock:
            return self._records[partition].get(offset)

    def set_aside(self, record: LogRecord, reason: str) -> None:
        """See ports.LogReader."""
        self.aside.append((record, reason))

    def commit(self, ends: Mapping[int, int]) -> None:
        """See ports.LogReader. Drops what lies before the ends at once; an end without its record is not believed."""
        with self._lock:
            for partition, end in ends.items():
                if end in self._records[partition]:
                    for offset in [offset for offset in self._records[partition] if offset < end]:
                        del self._records[partition][offset]

    def close(self) -> None:
        """Nothing to let go of."""

    def _after(self, partition: int, offset: int) -> list[LogRecord]:
        """What follows an offset, last first."""
        return list(takewhile(lambda record: record.offset > offset, reversed(self._records[partition].values())))
