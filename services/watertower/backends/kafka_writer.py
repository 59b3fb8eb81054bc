"""The log's writing side on Kafka: one record of one partition per append.

Theory of operation. `KafkaProducer.send` puts a record into a queue in memory and returns; a thread of the driver sends what waits for
one broker as one request. It would wait only for the topic's metadata, so these are fetched when the writer is opened and the driver is
told to wait for nothing from then on. A request is acknowledged when all replicas in sync have it (acks=all).

Order. One request per broker is under way at a time, and a partition whose record is under way takes no other one until its fate is
known (the driver "mutes" it). So a retry cannot overtake, and the acknowledged offsets of a partition are in the order of the calls.

Why not the driver's idempotent producer: nothing here needs it. A retry after a lost answer may write a record twice, and a second copy
of an event changes nothing (section 3 of the design: an edge is a last-writer-wins register). What it would cost: a producer id has to
be asked for before the first record and again after some failures, so one more request that can fail stands between the return of a
broker and the next append (docs/decisions/0010).

A record that is not acknowledged within `delivery_timeout_ms` fails with BackendUnavailable, and may be in the log or not. The driver
connects again by itself.
"""

from concurrent.futures import Future
from functools import partial
from typing import Any

import structlog
from kafka import KafkaProducer, errors

from watertower.backends.kafka_client import RECORD_BYTES_MAX, KafkaSettings, meaning, opened
from watertower.backends.kafka_topics import log_identity
from watertower.codec import EVENT_BATCH
from watertower.errors import BackendRefused
from watertower.ports import Clock, LogIdentity

BATCH_BYTES = 256 * 2**10
"""Bytes up to which records of one partition that wait go out as one batch. (A larger record goes alone.)"""

REQUEST_BYTES_MAX = 4 * 2**20
"""Bytes of one request to a broker, about."""

APPENDED_AT = "appended_at"
"""The header with LogRecord.appended_at: microseconds in decimal digits. Kafka's own timestamp has milliseconds and is the broker's."""

SCHEMA = "schema"
"""The header that names the schema and its version, for whoever looks at the topic with another tool."""

TRACEPARENT = "traceparent"
"""The header of W3C trace context, where the caller has one."""

_SCHEMA_VALUE = f"{EVENT_BATCH.name}.v{EVENT_BATCH.version}".encode()


def producer(settings: KafkaSettings, clock: Clock, topics: tuple[str, ...], linger_ms: int = 0) -> KafkaProducer:
    """A producer that never waits in `send`. Raises StartRefused, BackendUnavailable."""
    made = opened(
        settings,
        clock,
        KafkaProducer,
        acks="all",
        enable_idempotence=False,
        max_in_flight_requests_per_connection=1,
        compression_type=None if settings.compression == "none" else settings.compression,
        delivery_timeout_ms=settings.delivery_timeout_ms,
        request_timeout_ms=min(settings.request_timeout_ms, settings.delivery_timeout_ms - linger_ms),
        max_block_ms=settings.connect_timeout_ms,
        batch_size=BATCH_BYTES,
        linger_ms=linger_ms,
        max_request_size=REQUEST_BYTES_MAX,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )
    try:
        for topic in topics:
            made.partitions_for(topic)
    except errors.KafkaError as error:
        made.close(timeout=0)
        raise meaning(error, f"no metadata of topics {topics}") from error
    made.config["max_block_ms"] = 0
    return made


class KafkaLogWriter:
    """ports.LogWriter on a topic. Any number of them may write at once, from any number of processes."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        """Raises StartRefused: no such topic, an unsafe one, no access; BackendUnavailable: no broker answers."""
        self._identity = log_identity(settings, clock)
        self._topic = settings.log_topic
        self._close_s = (settings.delivery_timeout_ms + settings.request_timeout_ms) / 1e3
        self._producer: KafkaProducer = producer(settings, clock, (self._topic,))
        self._closed = False

    @property
    def identity(self) -> LogIdentity:
        return self._identity

    def append(self, partition: int, payload: bytes, appended_at: int, traceparent: str = "") -> "Future[int]":
        """See ports.LogWriter. The future cannot be cancelled: its record is on its way. It fails with BackendRefused when the log is
        closed or the record larger than RECORD_BYTES_MAX. Raises ValueError for a partition that the log does not have."""
        if not 0 <= partition < self._identity.partitions:
            raise ValueError(f"partition {partition} of {self._identity.partitions}")
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        if self._closed:
            future.set_exception(BackendRefused("the log is closed"))
        elif len(payload) > RECORD_BYTES_MAX:
            future.set_exception(BackendRefused(f"a record of {len(payload)} bytes; at most {RECORD_BYTES_MAX} can be"))
        else:
            headers = [(APPENDED_AT, b"%d" % appended_at), (SCHEMA, _SCHEMA_VALUE)]
            if traceparent:
                headers.append((TRACEPARENT, traceparent.encode()))
            self._send(partition, payload, headers, future)
        return future

    def close(self) -> None:
        """See ports.LogWriter. Bounded: an append that is not acknowledged in time has failed."""
        if self._closed:
            return
        self._closed = True
        try:
            self._producer.close(timeout=self._close_s)
        except errors.KafkaError as error:
            structlog.get_logger("watertower.log").warning("log_close_failed", error=str(error))

    def _send(self, partition: int, payload: bytes, headers: list[tuple[str, bytes]], future: "Future[int]") -> None:
        try:
            sent = self._producer.send(self._topic, payload, headers=headers, partition=partition)
        except (errors.KafkaError, ValueError) as error:  # ValueError: the topic has lost this partition
            _fail(future, error)
            return
        sent.add_callback(partial(_acknowledge, future))
        sent.add_errback(partial(_fail, future))


def _acknowledge(future: "Future[int]", metadata: Any) -> None:
    future.set_result(metadata.offset)


def _fail(future: "Future[int]", error: BaseException) -> None:
    future.set_exception(meaning(error, "not acknowledged"))
