"""The log's reading side on Kafka, for a projector.

Two clients of the driver: a member of the consumer group, which says what this process may apply (kafka_member.py), and one without a
group, which fetches what it is asked for from the offsets it is given (kafka_prefetch.py). Kept apart, because a rebalance must not
touch what is fetched, and because no offset may come from anywhere but the store's progress: neither from the group's commits nor from
a reset to the log's start or end.
"""

from collections.abc import Collection, Mapping

from kafka import KafkaConsumer, TopicPartition

from watertower.backends.kafka_client import KafkaSettings, translated
from watertower.backends.kafka_dead_letters import DeadLetter, DeadLetters
from watertower.backends.kafka_member import Member
from watertower.backends.kafka_prefetch import Prefetch, consumer
from watertower.backends.kafka_topics import log_identity
from watertower.ports import Clock, LogIdentity, LogRecord


class KafkaLogReader:
    """ports.LogReader on a topic. For one thread."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        """Raises StartRefused: no such topic, an unsafe one, no access; BackendUnavailable: no broker answers."""
        self._clock, self._topic = clock, settings.log_topic
        self._timeout_ms = settings.request_timeout_ms
        self._identity = log_identity(settings, clock)
        self._client: KafkaConsumer = consumer(settings, clock, offset_reset="none")
        self._dead_letters = DeadLetters(settings, clock)
        self.closed = False
        try:
            self._prefetch = Prefetch(self._client, self._topic, self._identity.partitions, settings.prefetch_bytes)
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
        return self._prefetch.take(after, records_max, bytes_max) if after else []

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """See ports.LogReader. A request to the brokers. (What they call the end is the high watermark, and a leader that does not know
        it yet says so instead of giving an older one.)"""
        if not partitions:
            return {}
        with translated("the log's ends cannot be read"):
            found = self._client.end_offsets([self._place(partition) for partition in partitions], timeout_ms=self._timeout_ms)
        return {place.partition: offset - 1 for place, offset in found.items()}

    def owned(self) -> frozenset[int]:
        """See ports.LogReader. What the group has given to this member, as far as it knows."""
        return self._member.owned()

    def start(self, partition: int) -> int:
        """See ports.LogReader."""
        place = self._place(partition)
        with translated("the log's start cannot be read"):
            return int(self._client.beginning_offsets([place], timeout_ms=self._timeout_ms)[place])

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
