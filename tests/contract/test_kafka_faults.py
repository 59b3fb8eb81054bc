"""A broker that freezes, dies and comes back under a log and a feed."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing

import pytest

from tests.contract.kafka_harnesses import CLOCK, IGNORE_SOCKETS, PARTITIONS, KafkaLogHarness, new_settings, until
from watertower.backends.kafka_feed import KafkaFeed, KafkaFeedReader
from watertower.errors import BackendUnavailable
from watertower.testing.contract_feed import assert_same, claims, entries, message, polled
from watertower.testing.contract_log import WAIT_S, append, read_all
from watertower.testing.engines import KafkaEngine, kafka
from watertower.testing.engines.fixtures import engine_or_skip

pytestmark = [pytest.mark.slow, IGNORE_SOCKETS]

ALL = frozenset(range(PARTITIONS))
TIMEOUT_MS = 2_000


@pytest.fixture(scope="module")
def engine() -> Iterator[KafkaEngine]:
    """A broker of our own, to be hurt; it runs again after each test."""
    with engine_or_skip(kafka(own=True)) as engine:
        yield engine


@pytest.fixture
def log(engine: KafkaEngine) -> Iterator[KafkaLogHarness]:
    """A log whose clients give up after TIMEOUT_MS."""
    harness = KafkaLogHarness(
        new_settings(engine, connect_timeout_ms=20_000, request_timeout_ms=TIMEOUT_MS, delivery_timeout_ms=TIMEOUT_MS)
    )
    yield harness
    harness.close()


def test_an_append_does_not_wait_and_fails_in_time(engine: KafkaEngine, log: KafkaLogHarness) -> None:
    """Frozen, the broker keeps connections open and answers nothing. A thousand appends return at once; each fails within the delivery
    timeout and a little, and what is appended afterwards is acknowledged in the order of the calls."""
    writer, reader = log.writer(), log.reader()
    append(writer, 0, b"before")
    engine.nodes[0].pause()
    try:
        began = time.monotonic()
        futures = [writer.append(number % PARTITIONS, b"x" * 10_000, 1) for number in range(1_000)]
        assert time.monotonic() - began < TIMEOUT_MS / 1e3 / 2
        for future in futures:
            with pytest.raises(BackendUnavailable, match="not acknowledged"):
                future.result(WAIT_S)
        assert time.monotonic() - began < 3 * TIMEOUT_MS / 1e3
        with pytest.raises(BackendUnavailable, match="ends cannot be read"):
            reader.ends(ALL)
    finally:
        engine.nodes[0].resume()
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            offsets = [future.result(WAIT_S) for future in [writer.append(0, b"%d" % n, 1) for n in range(50)]]
            break
        except BackendUnavailable:
            assert time.monotonic() < deadline
    assert offsets == sorted(set(offsets))
    found = {record.offset: record.payload for record in read_all(reader, {0: -1})}
    assert [found[offset] for offset in offsets] == [b"%d" % n for n in range(50)]


def test_nothing_acknowledged_is_lost_when_a_broker_dies(engine: KafkaEngine, log: KafkaLogHarness) -> None:
    """SIGKILL in the middle, away for longer than the delivery timeout, back again: appends fail or are acknowledged, the same writer and
    the same reader go on, and every acknowledged record is read at its offset."""
    writer, reader = log.writer(), log.reader()
    until(lambda: reader.owned() == ALL)
    acknowledged: dict[tuple[int, int], bytes] = {}
    failures, stop = [0], threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            futures: list[tuple[int, bytes, Future[int]]] = []
            for partition in ALL:
                payload = b"%d:%d" % (partition, number)
                futures.append((partition, payload, writer.append(partition, payload, number)))
            for partition, payload, future in futures:
                try:
                    acknowledged[partition, future.result(WAIT_S)] = payload
                except BackendUnavailable:
                    failures[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: len(acknowledged) > 100)
        engine.nodes[0].kill()
        until(lambda: failures[0] >= 2 * PARTITIONS)
        reader.read(dict.fromkeys(ALL, -1), 1, 1)  # neither raises nor waits
        engine.nodes[0].start()
        before = len(acknowledged)
        until(lambda: len(acknowledged) > before + 100)
    finally:
        stop.set()
        thread.join()
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            reader.ends(ALL)
            break
        except BackendUnavailable:
            assert time.monotonic() < deadline
    found = {(record.partition, record.offset): record.payload for record in read_all(reader, dict.fromkeys(ALL, -1))}
    assert {place: found.get(place) for place in acknowledged} == acknowledged
    until(lambda: reader.owned() == ALL)


def test_a_publish_fails_and_the_feed_goes_on(engine: KafkaEngine, log: KafkaLogHarness) -> None:
    """Where not all is acknowledged, publish raises in time; with the broker back, the same publisher and reader go on, and the ranges
    show what did not arrive."""
    with (
        closing(KafkaFeed(log.settings, CLOCK, random.Random(1), PARTITIONS)) as feed,
        closing(KafkaFeedReader(log.settings, CLOCK, PARTITIONS)) as reader,
    ):
        publish_through_a_death(engine, feed, reader)


def publish_through_a_death(engine: KafkaEngine, feed: KafkaFeed, reader: KafkaFeedReader) -> None:
    assert reader.poll() == []
    feed.publish([message(0, -1, 0)])
    assert_same(polled(reader, 1), [message(0, -1, 0)])
    engine.nodes[0].kill()
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="feed cannot be written"):
        feed.publish([message(0, 0, 1)])
    assert time.monotonic() - began < 3 * TIMEOUT_MS / 1e3
    assert reader.poll() == []
    engine.nodes[0].start()

    def publish() -> bool:
        try:
            feed.publish([message(0, 1, 2)])
        except BackendUnavailable:
            return False
        return True

    until(publish)
    found, wanted = polled(reader, 1), [message(0, 1, 2)]
    last = claims(found)[-1]
    assert last.after > 0, "the range does not show that something is missing"
    assert (last.end, last.as_of) == (2, wanted[0].as_of)
    assert set(entries(found, 0)) == set(entries(wanted, 0))  # an attempt that failed may have left some of it, too
