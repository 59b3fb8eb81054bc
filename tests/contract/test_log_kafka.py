"""What only the log on Kafka promises, and that it promises what every log does. On a shared broker; test_kafka_faults.py hurts one."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError

from tests.contract.kafka_harnesses import CLOCK, IGNORE_SOCKETS, PARTITIONS, KafkaLogHarness, new_settings, owner_process, until
from watertower.backends import kafka_member, kafka_reader
from watertower.backends.kafka_client import RECORD_BYTES_MAX, admin
from watertower.backends.kafka_reader import KafkaLogReader
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.testing.contract_log import WAIT_S, LogContract, append, at_hand, read_all
from watertower.testing.engines import KafkaEngine

pytestmark = [pytest.mark.slow, IGNORE_SOCKETS]

ALL = frozenset(range(PARTITIONS))


@pytest.fixture
def log(kafka_engine: KafkaEngine) -> Iterator[KafkaLogHarness]:
    """A log in a topic of its own, whose group notices a death quickly."""
    harness = KafkaLogHarness(new_settings(kafka_engine, group_session_timeout_ms=1_500, group_heartbeat_ms=200))
    yield harness
    harness.close()


class TestKafkaLog(LogContract):
    """A topic keeps every promise of a log."""


# --- records


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4"])
def test_records_come_back_whatever_compresses_them(kafka_engine: KafkaEngine, compression: str) -> None:
    """Writers may differ in it; a reader does not care. The moment comes back to the microsecond."""
    harness = KafkaLogHarness(new_settings(kafka_engine, compression=compression))
    try:
        payload = b"follow" * 10_000
        append(harness.writer(), 0, payload, appended_at=1_700_000_000_123_457)
        (record,) = read_all(harness.reader(), {0: -1})
        assert (record.payload, record.appended_at) == (payload, 1_700_000_000_123_457)
    finally:
        harness.close()


def test_a_record_says_what_it_is(log: KafkaLogHarness) -> None:
    """Its headers name the schema, and the trace where there is one; its time is the broker's."""
    before_ms = int(time.time() * 1e3)
    log.writer().append(1, b"x", 5, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").result(WAIT_S)
    consumer = KafkaConsumer(bootstrap_servers=log.settings.bootstrap_servers, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(log.settings.log_topic, 1)])
    (record,) = consumer.poll(10_000)[TopicPartition(log.settings.log_topic, 1)]
    consumer.close()
    assert record.headers == [
        ("appended_at", b"5"),
        ("schema", b"event_batch.v1"),
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
    assert record.key is None
    assert abs(record.timestamp - before_ms) < 60_000


def test_the_largest_record_is_taken_and_a_larger_one_refused(log: KafkaLogHarness) -> None:
    """RECORD_BYTES_MAX bytes that do not compress go through."""
    payload = bytes(range(256)) * (RECORD_BYTES_MAX // 256)
    append(log.writer(), 2, payload)
    with pytest.raises(BackendRefused, match="at most"):
        append(log.writer(), 2, payload + b"x")
    assert [record.payload for record in read_all(log.reader(), {2: -1})] == [payload]


def test_the_partitions_that_are_not_there_are_refused(log: KafkaLogHarness) -> None:
    """An append to a partition that the log does not have raises at once, one to a closed log fails."""
    with pytest.raises(ValueError, match=f"partition {PARTITIONS} of {PARTITIONS}"):
        log.writer().append(PARTITIONS, b"x", 1)
    writer = log.writer()
    writer.close()
    with pytest.raises(BackendRefused, match="closed"):
        writer.append(0, b"x", 1).result(WAIT_S)


def test_many_records_are_read_in_order_while_they_are_written(log: KafkaLogHarness) -> None:
    """With limits that cut anywhere, and steps back now and then, nothing is left out and nothing comes twice after a step."""
    writer, reader = log.writer(), log.reader()

    def write() -> None:
        for begin in range(0, 2_000, 100):
            futures = [writer.append(n % PARTITIONS, b"%d" % n * (n % 200 + 1), 1) for n in range(begin, begin + 100)]
            assert [future.result(WAIT_S) for future in futures]

    thread = threading.Thread(target=write)
    thread.start()
    reached, found = dict.fromkeys(ALL, -1), {partition: [] for partition in ALL}
    step = 0
    while thread.is_alive() or reached != reader.ends(ALL):
        step += 1
        for record in reader.read(reached, 17, 2_000):
            assert record.offset == reached[record.partition] + 1
            reached[record.partition] = record.offset
            found[record.partition].append(record.payload)
        if step % 50 == 0:  # as after a failed flush
            back = step // 50 % PARTITIONS
            reached[back] = max(reached[back] - 5, -1)
            del found[back][reached[back] + 1 :]
    thread.join()
    for partition in ALL:
        assert found[partition] == [b"%d" % n * (n % 200 + 1) for n in range(partition, 2_000, PARTITIONS)]


# --- lost input


def test_a_dropped_record_is_refused_and_the_start_tells(log: KafkaLogHarness) -> None:
    """A reader that asks for what the retention dropped is not sent on to what there is."""
    offsets = append(log.writer(), 4, *[b"%d" % n for n in range(10)])
    client = admin(log.settings, CLOCK)
    client.delete_records({TopicPartition(log.settings.log_topic, 4): 6})
    client.close()
    reader = log.reader()
    assert reader.start(4) == 6
    assert reader.record_at(4, 5) is None
    with pytest.raises(BackendRefused, match="OffsetOutOfRange"):
        at_hand(reader, {4: offsets[2]})
    assert [record.offset for record in at_hand(reader, {4: 5})] == [6, 7, 8, 9]


def test_an_offset_beyond_the_end_is_refused(log: KafkaLogHarness) -> None:
    """As after a log that was restored from something older: nothing is read again by itself."""
    append(log.writer(), 4, b"a", b"b")
    with pytest.raises(BackendRefused, match="OffsetOutOfRange"):
        at_hand(log.reader(), {4: 10})


def test_a_hole_is_refused(log: KafkaLogHarness) -> None:
    """An offset that gives no record, as behind the end of a transaction, is taken for a lost record."""
    append(log.writer(), 4, b"a")
    other = KafkaProducer(bootstrap_servers=log.settings.bootstrap_servers, transactional_id=log.settings.prefix)
    other.init_transactions()
    other.begin_transaction()
    other.send(log.settings.log_topic, b"b", partition=4)
    other.commit_transaction()
    other.close()
    reader = log.reader()
    until(lambda: reader.ends([4]) == {4: 2})  # the mark of the transaction's end comes after the call
    append(log.writer(), 4, b"c")
    with pytest.raises(BackendRefused, match="nothing at offset 2, the next record is at 3"):
        at_hand(reader, {4: 1})


# --- ownership


def test_readers_share_the_partitions(log: KafkaLogHarness) -> None:
    """Two, then three, then two: after a while each partition is owned by exactly one; a reader that stays keeps most of its own."""
    readers = [KafkaLogReader(log.settings, CLOCK) for _ in range(2)]

    def settled(*members: KafkaLogReader) -> bool:
        owned = [member.owned() for member in members]
        return sum(map(len, owned)) == PARTITIONS and frozenset().union(*owned) == ALL and min(map(len, owned)) >= 2

    try:
        until(lambda: settled(*readers))
        before = readers[0].owned()
        readers.append(KafkaLogReader(log.settings, CLOCK))
        until(lambda: settled(*readers))
        assert readers[0].owned() < before
        readers.pop(1).close()
        until(lambda: settled(*readers))
    finally:
        for reader in readers:
            reader.close()


def test_a_busy_projector_stays_a_member(log: KafkaLogHarness) -> None:
    """A flush that takes longer than the session timeout costs no partition."""
    reader = log.reader()
    until(lambda: reader.owned() == ALL)
    with owner_process(log.settings) as other:
        until(lambda: len(other.owned) == PARTITIONS // 2)  # this one answered the group without being asked anything
        time.sleep(2 * log.settings.group_session_timeout_ms / 1e3)  # the flush
        assert len(other.owned) == PARTITIONS // 2
        assert reader.owned() == ALL - other.owned


def test_a_frozen_process_loses_its_partitions(log: KafkaLogHarness) -> None:
    """SIGSTOP until others have them, SIGCONT: it joins again, and each partition is owned by exactly one."""
    reader = log.reader()
    with owner_process(log.settings) as other:
        until(lambda: len(other.owned) == len(reader.owned()) == PARTITIONS // 2)
        other.process.send_signal(signal.SIGSTOP)
        until(lambda: reader.owned() == ALL)
        other.process.send_signal(signal.SIGCONT)
        until(lambda: len(other.owned) == len(reader.owned()) == PARTITIONS // 2 and reader.owned() == ALL - other.owned)


def test_a_stuck_projector_leaves_the_group(kafka_engine: KafkaEngine) -> None:
    """One that does not ask for longer than group_poll_ms_max loses its partitions, and joins again when it asks."""
    log = KafkaLogHarness(new_settings(kafka_engine, group_session_timeout_ms=1_500, group_heartbeat_ms=200, group_poll_ms_max=1_500))
    try:
        stuck = log.reader()
        until(lambda: stuck.owned() == ALL)
        with owner_process(log.settings) as other:
            until(lambda: other.owned == ALL)
            until(lambda: stuck.owned() != frozenset() and stuck.owned() == ALL - other.owned)
    finally:
        log.close()


def test_a_group_that_is_refused_is_refused(kafka_engine: KafkaEngine) -> None:
    """A session timeout that the brokers do not allow would leave this reader without partitions for good."""
    log = KafkaLogHarness(new_settings(kafka_engine, group_session_timeout_ms=3_600_000))
    try:
        with pytest.raises(BackendRefused, match="InvalidSessionTimeout"):
            until(lambda: log.reader().owned() == ALL)
    finally:
        log.close()


def test_commits_show_in_the_group(log: KafkaLogHarness) -> None:
    """The next offset, for tools that show the lag; a closed reader has said its last."""
    offsets = append(log.writer(), 3, b"a", b"b", b"c")
    reader = log.reader()
    until(lambda: reader.owned() == ALL)
    client = admin(log.settings, CLOCK)

    def committed() -> object:
        found = client.list_group_offsets(log.settings.group)
        return {place.partition: offset.offset for places in found.values() for place, offset in places.items()}

    try:
        reader.commit({3: offsets[1]})
        until(lambda: committed() == {3: offsets[1] + 1})
        reader.commit({3: offsets[2]})
        reader.close()
        assert committed() == {3: offsets[2] + 1}
    finally:
        client.close()


def test_a_member_finishes_a_join_that_a_poll_has_left(kafka_engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls that end before the brokers answer, on a topic so new that the leader must assign twice: it owns all the same."""
    monkeypatch.setattr(kafka_member, "STEP_MS", 1)
    for _ in range(5):
        log = KafkaLogHarness(new_settings(kafka_engine, group_session_timeout_ms=1_500, group_heartbeat_ms=200))
        try:
            reader = log.reader()
            until(lambda reader=reader: reader.owned() == ALL)
        finally:
            log.close()


def test_a_client_that_is_never_answered_is_replaced(log: KafkaLogHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's client stops to work while brokers answer others: a new one takes over, with no record left out or given twice."""
    monkeypatch.setattr(kafka_reader, "REPLACE_AFTER_S", 0.2)
    append(log.writer(), 0, b"a", b"b")
    reader = log.reader()
    assert [record.payload for record in read_all(reader, {0: -1}, 2)] == [b"a", b"b"]
    stuck = reader._client

    def unanswered(*_: object, **__: object) -> None:
        raise KafkaTimeoutError("nobody answers")

    for question in ("poll", "beginning_offsets", "end_offsets"):
        monkeypatch.setattr(stuck, question, unanswered)
    append(log.writer(), 0, b"c")

    def answered() -> bool:
        try:
            return reader.start(0) == 0
        except BackendUnavailable:
            return False

    until(answered)
    assert reader._client is not stuck
    assert [record.payload for record in read_all(reader, {0: 1}, 1)] == [b"c"]
