"""The counts feed on Kafka: one topic with the metrics of subjects, one with those of actors.

A message goes to the partition of its number in both topics, in slices (kafka_slices.py). Both topics get at least one record of each
message, so that whoever reads one of them sees every range.

Nothing here is the truth: a reader that missed something sees it by the ranges and reads the rows again. So messages are kept for an
hour, a reader that fell behind that goes on at what there is, and a record that cannot be decoded is left out.
"""

import random
from collections.abc import Iterable
from typing import Any

import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from watertower.backends.kafka_client import KafkaSettings, translated
from watertower.backends.kafka_prefetch import consumer
from watertower.backends.kafka_slices import ACTOR_METRICS, SUBJECT_METRICS, Assembly, Joint, SliceName, sliced
from watertower.backends.kafka_topics import checked
from watertower.backends.kafka_writer import SCHEMA, producer
from watertower.codec import COUNTS_FEED, UndecodableRecord, decode_feed, encode_feed
from watertower.errors import StartRefused
from watertower.ports import Clock, FeedMessage

SLICE = "slice"
"""The header with the SliceName."""

LINGER_MS = 2
"""ms that the first record of a publish waits for the others: they go out together instead of in two requests."""

FEED_POLL_RECORDS_MAX = 2_000
"""Records that one poll takes, about: what is left comes with the next one."""

SKIPPED_LOG_INTERVAL_S = 10.0
"""Seconds between two log lines about records that cannot be decoded."""

_SCHEMA_VALUE = f"{COUNTS_FEED.name}.v{COUNTS_FEED.version}".encode()


class KafkaFeed:
    """ports.CountsFeed on two topics. For one thread."""

    def __init__(self, settings: KafkaSettings, clock: Clock, rng: random.Random, partitions: int) -> None:
        """`partitions`: of the log. Raises StartRefused, BackendUnavailable."""
        self._topics = ((settings.subjects_topic, SUBJECT_METRICS), (settings.actors_topic, ACTOR_METRICS))
        for topic, _ in self._topics:
            _check_partitions(settings, topic, clock, partitions)
        self._name = f"{rng.getrandbits(64):016x}"  # of this publisher
        self._published = 0
        self._wait_s = (settings.delivery_timeout_ms + settings.request_timeout_ms) / 1e3  # seconds in which all is decided
        self._producer: KafkaProducer = producer(settings, clock, tuple(topic for topic, _ in self._topics), LINGER_MS)

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        """See ports.CountsFeed. Returns when everything is acknowledged; where that fails, any part of it may have been published."""
        with translated("the counts feed cannot be written"):
            sent = [future for message in messages for future in self._send(message)]
            for future in sent:
                future.get(self._wait_s)  # each ends by itself within the delivery timeout

    def close(self) -> None:
        """Lets go. Idempotent."""
        with translated("the counts feed cannot be closed"):
            self._producer.close(timeout=self._wait_s)

    def _send(self, message: FeedMessage) -> list[Any]:
        self._published += 1
        name = f"{self._name}.{self._published}"
        futures = []
        for topic, metrics in self._topics:
            parts = sliced(message, metrics)
            for number, part in enumerate(parts, 1):
                headers = [(SLICE, SliceName(number, len(parts), name).encode()), (SCHEMA, _SCHEMA_VALUE)]
                futures.append(self._producer.send(topic, encode_feed(part), headers=headers, partition=message.partition))
        return futures


class KafkaFeedReader:
    """ports.FeedReader on both topics. For one thread at a time."""

    def __init__(self, settings: KafkaSettings, clock: Clock, partitions: int) -> None:
        """`partitions`: of the log. Raises StartRefused, BackendUnavailable."""
        topics = (settings.subjects_topic, settings.actors_topic)
        for topic in topics:
            _check_partitions(settings, topic, clock, partitions)
        self._clock = clock
        self._timeout_ms = settings.request_timeout_ms
        # Where a place is too old, the driver goes on at the earliest record by itself.
        self._client: KafkaConsumer = consumer(settings, clock, offset_reset="earliest")
        self._places = [TopicPartition(topic, partition) for topic in topics for partition in range(partitions)]
        self._client.assign(self._places)
        self._started = False
        self._assembly = Assembly()
        self._joint = Joint(len(topics))
        self._numbers = {topic: number for number, topic in enumerate(topics)}
        self._skipped = 0
        self._log_skipped_at_s = 0.0

    def poll(self) -> list[FeedMessage]:
        """See ports.FeedReader. The first poll asks the brokers for the end, and waits for that."""
        with translated("the counts feed cannot be read"):
            if not self._started:
                ends = self._client.end_offsets(self._places, timeout_ms=self._timeout_ms)
                for place in self._places:
                    self._client.seek(place, ends[place])
                self._started = True
                return []
            found: list[Any] = []
            while len(found) < FEED_POLL_RECORDS_MAX and (records := self._client.poll(0)):
                found += (record for of_place in records.values() for record in of_place)
        return [message for record in found if (message := self._message(record)) is not None]

    def close(self) -> None:
        """Lets go. Idempotent."""
        self._client.close()

    def _message(self, record: Any) -> FeedMessage | None:
        """None for what cannot be decoded: the next range shows that something is missing."""
        try:
            name = SliceName.decode(dict(record.headers).get(SLICE, b""))
            part = decode_feed(record.value or b"")
        except (UndecodableRecord, ValueError) as error:
            self._skip(record, error)
            return None
        if part.partition != record.partition:
            self._skip(record, ValueError(f"a message of partition {part.partition}"))
            return None
        return self._joint.take(self._numbers[record.topic], self._assembly.take(name, part))

    def _skip(self, record: Any, error: Exception) -> None:
        self._skipped += 1
        now = self._clock.monotonic_s()
        if now >= self._log_skipped_at_s:
            self._log_skipped_at_s = now + SKIPPED_LOG_INTERVAL_S
            structlog.get_logger("watertower.feed").warning(
                "feed_record_skipped", partition=record.partition, offset=record.offset, reason=str(error), skipped=self._skipped
            )


def _check_partitions(settings: KafkaSettings, topic: str, clock: Clock, partitions: int) -> None:
    found = checked(settings, topic, clock).partitions
    if found != partitions:
        raise StartRefused(
            f"topic {topic} has {found} partitions, the log has {partitions}: delete the topic and run `watertower topics create` (nothing "
            "is lost with it)"
        )
