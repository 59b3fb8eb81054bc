"""The log's reading side on Kafka, for a projector.

Two clients of the driver: a member of the consumer group, which says what this process may apply (kafka_member.py), and one without a
group, which fetches what it is asked for from the offsets it is given (kafka_prefetch.py). Kept apart, because a rebalance must not
touch what is fetched, and because no offset may come from anywhere but the store's progress: neither from the group's commits nor from
a reset to the log's start or end.

The driver reconnects by itself, but it was seen not to: a projector that had been frozen for a minute while a broker restarted asked for
offsets in vain for two minutes more, while others were answered. So a client that fails for long is replaced as soon as a new one can
be opened.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import structlog
from kafka import KafkaConsumer, TopicPartition

from watertower.backends.kafka_client import KafkaSettings, translated
from watertower.backends.kafka_dead_letters import DeadLetter, DeadLetters
from watertower.backends.kafka_member import Member
from watertower.backends.kafka_prefetch import Prefetch, consumer
from watertower.backends.kafka_topics import log_identity
from watertower.errors import BackendUnavailable, StartRefused
from watertower.ports import Clock, LogIdentity, LogRecord

REPLACE_AFTER_S = 15.0
"""Seconds for which the brokers may not answer the client that fetches before a new one is tried: several request timeouts."""


class KafkaLogReader:
    """ports.LogReader on a topic. For one thread."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        """Raises StartRefused: no such topic, an unsafe one, no access; BackendUnavailable: no broker answers."""
        self._settings, self._clock, self._topic = settings, clock, settings.log_topic
        self._timeout_ms = settings.request_timeout_ms
        self._identity = log_identity(settings, clock)
        self._client = self._opened()
        self._failing_since_s: dict[int, float] = {}  # by partition: since when its brokers have not answered
        self._dead_letters = DeadLetters(settings, clock)
        self.closed = False
        try:
            self._prefetch = self._new_prefetch()
            self._member = Member(settings, clock)
        except Exception:
            self._client.close()
            raise

    @property
    def identity(self) -> LogIdentity:
        return self._identity

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        """See ports.LogReader. Raises BackendRefused where the log no longer has, or does not have yet, what comes next: `start` and
        `ends` tell which."""
        if not after:
            return []
        with self._watched(after):
            records = self._prefetch.take(after, records_max, bytes_max)
        self._answered(record.partition for record in records)
        return records

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """See ports.LogReader. A request to the brokers. (What they call the end is the high watermark, and a leader that does not know
        it yet says so instead of giving an older one.)"""
        if not partitions:
            return {}
        with self._watched(partitions), translated("the log's ends cannot be read"):
            found = self._client.end_offsets([self._place(partition) for partition in partitions], timeout_ms=self._timeout_ms)
        self._answered(partitions)
        return {place.partition: offset - 1 for place, offset in found.items()}

    def owned(self) -> frozenset[int]:
        """See ports.LogReader. What the group has given to this member, as far as it knows."""
        return self._member.owned()

    def start(self, partition: int) -> int:
        """See ports.LogReader."""
        place = self._place(partition)
        with self._watched([partition]), translated("the log's start cannot be read"):
            found = self._client.beginning_offsets([place], timeout_ms=self._timeout_ms)
        self._answered([partition])
        return int(found[place])

    def record_at(self, partition: int, offset: int) -> LogRecord | None:
        """See ports.LogReader. What was fetched ahead is fetched again afterwards: for the start, not for every step."""
        if not self.start(partition) <= offset <= self.ends([partition])[partition]:
            return None
        with translated("the log cannot be read"):
            return self._prefetch.record_at(partition, offset, self._timeout_ms / 1e3, self._clock)

    def set_aside(self, record: LogRecord, reason: str) -> None:
        """See ports.LogReader. In the topic of dead letters."""
        self._dead_letters.keep(DeadLetter(record, reason))

    def commit(self, ends: Mapping[int, int]) -> None:
        """See ports.LogReader. Drops nothing: the topic's retention does."""
        self._member.commit(ends)

    def close(self) -> None:
        """Leaves the group. Bounded. Idempotent."""
        if not self.closed:
            self.closed = True
            self._member.close()
            self._client.close()
            self._dead_letters.close()

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def _opened(self) -> KafkaConsumer:
        return consumer(self._settings, self._clock, offset_reset="none")

    def _new_prefetch(self) -> Prefetch:
        return Prefetch(self._client, self._topic, self._identity.partitions, self._settings.prefetch_bytes)

    @contextmanager
    def _watched(self, partitions: Collection[int]) -> Iterator[None]:
        """Notes that these were not answered for; replaces the client where one of them has not been for too long."""
        try:
            yield
        except BackendUnavailable:
            now = self._clock.monotonic_s()
            if now - min(self._failing_since_s.setdefault(partition, now) for partition in partitions) >= REPLACE_AFTER_S:
                self._failing_since_s.clear()
                self._replace_client()
            raise

    def _answered(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._failing_since_s.pop(partition, None)

    def _replace_client(self) -> None:
        log = structlog.get_logger("watertower.log")
        try:
            opened = self._opened()
        except (BackendUnavailable, StartRefused) as error:
            log.warning("log_client_not_replaced", error=str(error))
            return
        stuck, self._client = self._client, opened
        self._prefetch = self._new_prefetch()
        log.warning("log_client_replaced", unanswered_s=REPLACE_AFTER_S)
        with suppress(Exception):  # it is thrown away, in whatever state it is
            stuck.close()
