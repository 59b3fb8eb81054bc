"""How the tests open the log and the counts feed on a Kafka broker: each test has topics of its own."""

import gc
import json
import random
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TextIO, cast

import pytest
from kafka import TopicPartition

from tests.contract.store_harnesses import FEED_MESSAGES_MAX, IDENTITY, ROOT
from watertower.backends.kafka_client import KafkaSettings, admin
from watertower.backends.kafka_feed import KafkaFeed, KafkaFeedReader
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.backends.kafka_topics import TopicsPlan, create_topics, log_identity
from watertower.backends.kafka_writer import KafkaLogWriter
from watertower.backends.memory import MemoryRows, MemoryStore
from watertower.clock import SystemClock
from watertower.ports import FeedMessage, StoreScanner
from watertower.testing.contract_log import WAIT_S
from watertower.testing.contract_store import PARTITIONS as STORE_PARTITIONS
from watertower.testing.contract_store import Owner, Reading
from watertower.testing.engines import KafkaEngine, unique_name

PARTITIONS = 8
CLOCK = SystemClock()

IGNORE_SOCKETS = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""The driver leaves the sockets of attempts to connect that failed to the garbage collector. A harness calls it when it closes, so that
they are gone before tests of others."""


def new_settings(engine: KafkaEngine, **changes: Any) -> KafkaSettings:
    """Of a prefix that nobody used."""
    secure = {
        "security_protocol": "SASL_SSL",
        "sasl_username": engine.user,
        "sasl_password": engine.password,
        "ssl_ca_file": engine.ca_file,
    }
    settings = KafkaSettings(engine.bootstrap_servers, prefix=unique_name("watertower"))
    return replace(settings, **((secure if engine.user else {}) | changes))


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
        collect_sockets()


class KafkaFeedHarness:
    """The feed in topics of its own, of which only the last messages are kept; the store is in memory."""

    identity = IDENTITY
    feed_messages_max = FEED_MESSAGES_MAX

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        create_topics(settings, TopicsPlan(STORE_PARTITIONS), CLOCK)
        self._rows = MemoryRows(IDENTITY)
        self._opened: list[KafkaFeed | KafkaFeedReader] = []
        self._published: Counter[int] = Counter()
        self._admin = admin(settings, CLOCK)

    def owner(self) -> Owner:
        feed = TrimmedFeed(self)
        self._opened.append(feed)
        return Owner(MemoryStore(self._rows), feed)

    def reader(self) -> Reading:
        feed = KafkaFeedReader(self.settings, CLOCK, STORE_PARTITIONS)
        self._opened.append(feed)
        return Reading(MemoryStore(self._rows), feed)

    def scanner(self) -> StoreScanner:
        return MemoryStore(self._rows.copy())

    def trim(self, messages: Iterable[FeedMessage]) -> None:
        """Drops what lies before the last messages of each partition, as the retention would."""
        self._published.update(message.partition for message in messages)
        surplus = {
            TopicPartition(self.settings.subjects_topic, partition): published - self.feed_messages_max
            for partition, published in self._published.items()
            if published > self.feed_messages_max
        }
        if surplus:
            self._admin.delete_records(surplus)

    def close(self) -> None:
        self._admin.close()
        for one in self._opened:
            one.close()
        collect_sockets()


class TrimmedFeed(KafkaFeed):
    """A publisher after whose messages the oldest go."""

    def __init__(self, harness: KafkaFeedHarness) -> None:
        super().__init__(harness.settings, CLOCK, random.Random(), STORE_PARTITIONS)
        self._harness = harness

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        kept = list(messages)
        super().publish(kept)
        self._harness.trim(kept)


def collect_sockets() -> None:
    """See IGNORE_SOCKETS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class owner_process:  # noqa: N801 - reads as a function
    """A reader in a process of its own; killed on leaving."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.owned: frozenset[int] = frozenset()

    def __enter__(self) -> "owner_process":
        settings = self._settings
        arguments = [settings.bootstrap_servers, settings.prefix, str(settings.group_session_timeout_ms)]
        command = [sys.executable, "-m", "tests.contract.kafka_owner", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._follow, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _follow(self) -> None:
        with cast(TextIO, self.process.stdout) as lines:
            for line in lines:
                self.owned = frozenset(json.loads(line))


def until(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Waits for something that others do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
