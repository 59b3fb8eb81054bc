"""Records of a topic's partitions, fetched ahead of whoever reads them, and without a hole.

The driver fetches in a thread of its own: a look at it takes what has arrived and sends the next request, so the next records are on
their way while the caller applies these. What has arrived waits here; above a number of bytes the driver is not looked at any more,
and so asks for no more. Brokers let the partitions of a fetch take turns, so none of them fills the room for good.

The driver is assigned exactly the partitions that are asked for, and told where each begins. It is never told to pause one: version
3.0.12 forgets what it holds of a paused partition when another one's records were looked at last, and never fetches it again.

Kafka gives the records of a partition that nobody compacts and no transaction writes to without leaving out an offset. So the next one
is always known, and another one is a hole: it is fetched once more, and if it is still there, the log has lost something.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition, errors

from watertower.backends.kafka_client import OVERHEAD_BYTES, RECORD_BYTES_MAX, KafkaSettings, opened, translated
from watertower.backends.kafka_writer import APPENDED_AT
from watertower.errors import BackendRefused
from watertower.ports import Clock, LogRecord

FETCH_WAIT_MS_MAX = 50
"""ms that a broker keeps a fetch that finds nothing. A partition that is asked for anew waits so long for its turn."""

LOOK_MS = 20
"""ms that one look at the driver waits for a record where none is at hand: an idle reader looks less often, and a record still comes at
once. (Without it, 141 looks a second took 17 % of a core.)"""

POLL_RECORDS_MAX = 100
"""Records that are taken from the driver before the bytes at hand are looked at again."""

FETCHES_AT_HAND = 4
"""Fetches whose records fit into the room for what is at hand, about: a broker sends that part of it at a time."""

RECORD_BYTES_OVERHEAD = 256
"""Bytes that a record takes in memory beside its payload, about."""


def consumer(settings: KafkaSettings, clock: Clock, offset_reset: str) -> KafkaConsumer:
    """A consumer without a group, for partitions that are given to it. Raises StartRefused, BackendUnavailable."""
    return opened(
        settings,
        clock,
        KafkaConsumer,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset=offset_reset,
        fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
        fetch_max_bytes=max(settings.prefetch_bytes // FETCHES_AT_HAND, RECORD_BYTES_MAX),
        max_partition_fetch_bytes=RECORD_BYTES_MAX + OVERHEAD_BYTES,
        max_poll_records=POLL_RECORDS_MAX,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )


class Prefetch:
    """All partitions of one topic, for one thread."""

    def __init__(self, client: KafkaConsumer, topic: str, partitions: int, bytes_max: int) -> None:
        """`bytes_max`: bytes of records at hand, about. `client` must not reset offsets by itself."""
        self._client, self._topic, self._bytes_max = client, topic, bytes_max
        self._places = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._assigned: set[int] = set()
        self._queues: list[deque[LogRecord]] = [deque() for _ in range(partitions)]
        self._bytes = 0  # in the queues
        self._next: list[int | None] = [None] * partitions  # offset of the next record from the driver; None: it has to be told
        self._suspected: dict[int, int] = {}  # by partition: the offset of the record behind a hole
        self._turn = 0

    def take(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        """See ports.LogReader.read. The partitions take turns, record by record, another one first each time."""
        try:
            with translated("the log cannot be read"):
                self._assign(set(after))
                for partition, offset in after.items():
                    self._align(partition, offset + 1)
                self._fill()
        except Exception:
            self.forget()
            raise
        self._turn += 1
        active = deque(sorted(after, key=lambda partition: (partition + self._turn) % len(self._places)))
        records: list[LogRecord] = []
        size = 0
        while active and len(records) < records_max:
            partition = active.popleft()
            queue = self._queues[partition]
            if queue and (not records or size + len(queue[0].payload) <= bytes_max):
                records.append(self._pop(partition))
                size += len(records[-1].payload)
                active.append(partition)
        return records

    def record_at(self, partition: int, offset: int, timeout_s: float, clock: Clock) -> LogRecord | None:
        """The record at exactly this offset, which must lie within the log. None: it is gone."""
        self.forget()
        place = self._places[partition]
        deadline_s = clock.monotonic_s() + timeout_s
        self._assign({partition})
        self._client.seek(place, offset)
        try:
            while clock.monotonic_s() < deadline_s:
                for found in self._client.poll(FETCH_WAIT_MS_MAX, max_records=1).get(place, ()):
                    return _log_record(found) if found.offset == offset else None
        except errors.OffsetOutOfRangeError:
            return None  # dropped just now
        raise errors.KafkaTimeoutError(f"the record at offset {offset} of partition {partition} did not come within {timeout_s} s")

    def forget(self) -> None:
        """Drops what is at hand. The next `take` fetches anew."""
        for partition in range(len(self._places)):
            self._drop(partition)

    def _assign(self, partitions: set[int]) -> None:
        """Makes the driver fetch these partitions and no others."""
        if partitions == self._assigned:
            return
        for partition in self._assigned ^ partitions:
            self._drop(partition)
        self._client.assign([self._places[partition] for partition in sorted(partitions)])
        self._assigned = partitions

    def _align(self, partition: int, wanted: int) -> None:
        """Makes `wanted` the next offset of the partition."""
        queue = self._queues[partition]
        while queue and queue[0].offset < wanted:
            self._pop(partition)
        if (queue[0].offset if queue else self._next[partition]) != wanted:
            self._drop(partition)
            self._seek(partition, wanted)

    def _fill(self) -> None:
        """Takes from the driver what has arrived, as far as there is room; waits a little where nothing is at hand."""
        while self._bytes < self._bytes_max and (found := self._client.poll(0 if self._bytes else LOOK_MS)):
            for place, records in found.items():
                self._queue(place.partition, records)

    def _queue(self, partition: int, records: list[Any]) -> None:
        for found in records:
            expected = self._next[partition]
            if expected is None or found.offset < expected:
                continue  # of a place that nobody reads any more
            if found.offset > expected:
                if self._suspected.get(partition) == found.offset:
                    raise BackendRefused(
                        f"partition {partition} of topic {self._topic} has nothing at offset {expected}, the next record is at "
                        f"{found.offset}: records are lost (or the topic is compacted, or written to by transactions)"
                    )
                self._suspected[partition] = found.offset
                self._seek(partition, expected)
                return
            self._suspected.pop(partition, None)
            record = _log_record(found)
            self._queues[partition].append(record)
            self._bytes += len(record.payload) + RECORD_BYTES_OVERHEAD
            self._next[partition] = expected + 1

    def _pop(self, partition: int) -> LogRecord:
        record = self._queues[partition].popleft()
        self._bytes -= len(record.payload) + RECORD_BYTES_OVERHEAD
        return record

    def _seek(self, partition: int, offset: int) -> None:
        self._client.seek(self._places[partition], offset)
        self._next[partition] = offset

    def _drop(self, partition: int) -> None:
        """Forgets what is at hand of a partition, and where the driver is."""
        while self._queues[partition]:
            self._pop(partition)
        self._next[partition] = None


def _log_record(found: Any) -> LogRecord:
    """A record of the driver as the port has it. One that no ingest wrote carries the broker's time."""
    appended_at = next((int(value) for name, value in found.headers if name == APPENDED_AT and value.isdigit()), found.timestamp * 1_000)
    return LogRecord(found.partition, found.offset, appended_at, found.value or b"")
