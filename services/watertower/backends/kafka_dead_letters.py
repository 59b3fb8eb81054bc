"""Records of the log that no ingest can have written: somebody else wrote to the topic. They are kept in a topic of their own, as they
were, with where they lay and why they were set aside, until the retention drops them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from kafka import KafkaProducer, TopicPartition

from watertower.backends.kafka_client import KafkaSettings, translated
from watertower.backends.kafka_prefetch import consumer
from watertower.backends.kafka_topics import checked
from watertower.backends.kafka_writer import APPENDED_AT, producer
from watertower.ports import Clock, LogRecord

OFFSET, REASON = "offset", "reason"
"""Headers: where the record lay in its partition, in decimal digits; why it was set aside."""

LOOK_MS = 500
"""ms that one look for dead letters waits."""

REASON_CHARACTERS_MAX = 500
"""Characters of a reason that are kept."""


class DeadLetter(NamedTuple):
    """A record that was set aside."""

    record: LogRecord  # as it lay in the log
    reason: str


class DeadLetters:
    """Writes them. For one thread; reaches for a broker at the first one."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._wait_s = (settings.delivery_timeout_ms + settings.request_timeout_ms) / 1e3
        self._producer: KafkaProducer | None = None

    def keep(self, letter: DeadLetter) -> None:
        """Durable when it returns. Raises StartRefused where the topic is missing; BackendUnavailable."""
        topic = self._settings.dead_letters_topic
        if self._producer is None:
            self._producer = producer(self._settings, self._clock, (topic,))
        headers = [
            (APPENDED_AT, b"%d" % letter.record.appended_at),
            (OFFSET, b"%d" % letter.record.offset),
            (REASON, letter.reason[:REASON_CHARACTERS_MAX].encode()),
        ]
        with translated("the record cannot be set aside"):
            sent = self._producer.send(topic, letter.record.payload, headers=headers, partition=letter.record.partition)
            sent.get(self._wait_s)

    def close(self) -> None:
        """Idempotent."""
        if self._producer is not None:
            self._producer.close(timeout=self._wait_s)
            self._producer = None


def dead_letters(settings: KafkaSettings, clock: Clock) -> Iterator[DeadLetter]:
    """All that are kept now, each partition's in order. Raises StartRefused, BackendUnavailable."""
    topic = settings.dead_letters_topic
    places = [TopicPartition(topic, partition) for partition in range(checked(settings, topic, clock).partitions)]
    client = consumer(settings, clock, offset_reset="earliest")
    try:
        with translated("the dead letters cannot be read"):
            client.assign(places)
            ends = client.end_offsets(places, timeout_ms=settings.request_timeout_ms)
            starts = client.beginning_offsets(places, timeout_ms=settings.request_timeout_ms)
            waiting = {place for place in places if starts[place] < ends[place]}
            while waiting:
                for place, records in client.poll(LOOK_MS).items():
                    for found in records:
                        headers = dict(found.headers)
                        record = LogRecord(place.partition, int(headers[OFFSET]), int(headers[APPENDED_AT]), found.value or b"")
                        yield DeadLetter(record, headers[REASON].decode())
                        if found.offset + 1 >= ends[place]:
                            waiting.discard(place)
    finally:
        client.close()
