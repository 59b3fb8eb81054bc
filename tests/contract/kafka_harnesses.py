"""How the tests open the log and the counts feed on a Kafka broker: each test has topics of its own."""

import os
from dataclasses import replace
from uuid import uuid4

from watertower.backends.kafka_client import KafkaSettings
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.backends.kafka_topics import TopicsPlan, create_topics, log_identity
from watertower.backends.kafka_writer import KafkaLogWriter
from watertower.clock import SystemClock

PARTITIONS = 8
CLOCK = SystemClock()
BOOTSTRAP = os.environ.get("KAFKA_TEST", "127.0.0.1:29292")


def new_settings(bootstrap_servers: str, **changes: object) -> KafkaSettings:
    """Of a prefix that nobody used."""
    return replace(KafkaSettings(bootstrap_servers, prefix=f"test-{uuid4().hex[:12]}"), **changes)  # type: ignore[arg-type]


class Writer(KafkaLogWriter):
    """A writer that knows whether it was closed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.closed = False
        super().__init__(settings, CLOCK)

    def close(self) -> None:
        super().close()
        self.closed = True


class KafkaLogHarness:
    """A log in a topic of its own."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        create_topics(settings, TopicsPlan(PARTITIONS), CLOCK)
        self.identity = log_identity(settings, CLOCK)
        self._writer: Writer | None = None
        self._reader: KafkaLogReader | None = None

    def writer(self) -> Writer:
        if self._writer is None or self._writer.closed:
            self._writer = Writer(self.settings)
        return self._writer

    def reader(self) -> KafkaLogReader:
        if self._reader is None or self._reader.closed:
            self._reader = KafkaLogReader(self.settings, CLOCK)
        return self._reader

    def settle(self) -> None:
        """Kafka drops by age, not by what was committed."""

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()
