"""What ports.LogWriter and ports.LogReader promise, as tests. A back end subclasses LogContract and says how it is opened."""

import threading
from collections.abc import Mapping
from typing import Protocol

from watertower.ports import LogIdentity, LogReader, LogRecord, LogWriter
from watertower.testing.service import wait_until

WAIT_S = 60.0
"""Seconds that a future may take before a test gives up on it."""

LARGE = 2**30
"""A limit that is not reached."""


class LogHarness(Protocol):
    """How a test opens the log of one back end. Closing what it opened is the harness's business too."""

    identity: LogIdentity

    def writer(self) -> LogWriter:
        """The one writer: a new one if the last was closed."""
        ...

    def reader(self) -> LogReader:
        """A new reader, or the same again."""
        ...

    def settle(self) -> None:
        """Lets the log drop now what it is told that it may drop."""
        ...


def append(log: LogWriter, partition: int, *payloads: bytes, appended_at: int = 1) -> list[int]:
    """Appends one record after the other and waits for them. Returns their offsets."""
    return [future.result(WAIT_S) for future in [log.append(partition, payload, appended_at) for payload in payloads]]


def read_all(log: LogReader, after: Mapping[int, int], records_max: int = LARGE, bytes_max: int = LARGE) -> list[LogRecord]:
    """Reads up to where the log goes now, and once more."""
    ends = log.ends(after)
    reached = dict(after)
    records: list[LogRecord] = []
    while True:
        arrived = all(reached[partition] >= end for partition, end in ends.items())
        found = log.read(reached, records_max, bytes_max) if arrived else at_hand(log, reached, records_max, bytes_max)
        records += found
        for record in found:
            reached[record.partition] = record.offset
        if arrived and not found:
            return records


def at_hand(log: LogReader, after: Mapping[int, int], records_max: int = LARGE, bytes_max: int = LARGE) -> list[LogRecord]:
    """One read that finds something: what is on its way may take a moment."""
    found: list[LogRecord] = wait_until(lambda: log.read(after, records_max, bytes_max), f"a record after {after}", WAIT_S)
    return found


class LogContract:
    """The promises. Every back end passes all of them."""

    def test_the_log_knows_which_one_it_is(self, log: LogHarness) -> None:
        """Writer and reader say the identity they were opened with."""
        assert log.writer().identity == log.reader().identity == log.identity

    def test_what_was_appended_is_read_as_it_was(self, log: LogHarness) -> None:
        """A record comes back with its partition, offset, moment and bytes, also when those are empty or large."""
        payloads = [b"", b"\x00\xff" * 3, b"x" * 1_000_000]
        offsets = append(log.writer(), 3, *payloads, appended_at=1_556_000_000_000_000)
        expected = [LogRecord(3, offset, 1_556_000_000_000_000, payload) for offset, payload in zip(offsets, payloads, strict=True)]
        assert read_all(log.reader(), {3: -1}) == expected

    def test_offsets_follow_the_order_of_the_calls(self, log: LogHarness) -> None:
        """Records of one partition get growing offsets in the order of the calls, whatever goes to other partitions."""
        writer = log.writer()
        futures = [(number % 3, number, writer.append(number % 3, b"%d" % number, 1)) for number in range(300)]
        for partition in range(3):
            offsets = [future.result(WAIT_S) for place, _, future in futures if place == partition]
            assert offsets == sorted(set(offsets))
            found = [int(record.payload) for record in read_all(log.reader(), {partition: -1})]
            assert found == [number for place, number, _ in futures if place == partition]

    def test_any_thread_may_append(self, log: LogHarness) -> None:
        """Appends of several threads at once are all there, no offset is given twice, and each thread's own are in its order."""
        writer = log.writer()
        given: dict[int, list[int]] = {}

        def work(thread: int) -> None:
            futures = [writer.append(0, b"%d" % thread, 1) for _ in range(100)]
            given[thread] = [future.result(WAIT_S) for future in futures]

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert all(offsets == sorted(offsets) for offsets in given.values())
        assert len({offset for offsets in given.values() for offset in offsets}) == 400
        records = read_all(log.reader(), {0: -1})
        assert {(int(record.payload), record.offset) for record in records} == {
            (t, offset) for t, offsets in given.items() for offset in offsets
        }

    def test_a_read_begins_after_the_offset_it_is_given(self, log: LogHarness) -> None:
        """Only records after the given offset are read, and only of the given partitions."""
        offsets = append(log.writer(), 1, b"a", b"b", b"c")
        append(log.writer(), 2, b"other")
        reader = log.reader()
        assert [record.payload for record in read_all(reader, {1: offsets[0]})] == [b"b", b"c"]
        assert read_all(reader, {1: offsets[2], 4: -1}) == []
        assert reader.read({}, LARGE, LARGE) == []

    def test_an_idle_log_gives_nothing_and_then_what_is_new(self, log: LogHarness) -> None:
        """A reader that has found nothing finds what was appended since, from any place it asks for."""
        writer, reader = log.writer(), log.reader()
        assert reader.read({0: -1, 1: -1}, LARGE, LARGE) == []
        assert reader.read({0: -1, 1: -1}, LARGE, LARGE) == []
        (first,) = append(writer, 1, b"a")
        assert [record.payload for record in read_all(reader, {0: -1, 1: -1})] == [b"a"]
        assert read_all(reader, {0: -1, 1: first}) == []
        assert [record.payload for record in read_all(reader, {0: -1, 1: -1})] == [b"a"]
        append(writer, 0, b"b")
        assert [record.payload for record in read_all(reader, {0: -1, 1: first})] == [b"b"]

    def test_the_ends_include_what_was_acknowledged(self, log: LogHarness) -> None:
        """-1 before the first record; afterwards the offset of the last one, of exactly the partitions asked for."""
        writer, reader = log.writer(), log.reader()
        assert reader.ends([0, 5]) == {0: -1, 5: -1}
        for number in range(20):
            (offset,) = append(writer, 5, b"%d" % number)
            assert reader.ends([0, 5]) == {0: -1, 5: offset}
        assert reader.ends([]) == {}

    def test_a_lone_reader_owns_all_partitions(self, log: LogHarness) -> None:
        """At once, or, where readers find each other first, after a while."""
        reader = log.reader()
        everything = set(range(log.identity.partitions))
        wait_until(lambda: reader.owned() == everything, "it owns all partitions", WAIT_S)

    def test_a_read_keeps_to_its_limits(self, log: LogHarness) -> None:
        """No more records and bytes than asked for; several such reads leave nothing out."""
        writer, reader = log.writer(), log.reader()
        written = {partition: [b"%d:%d" % (partition, number) for number in range(25)] for partition in range(4)}
        for partition, payloads in written.items():
            append(writer, partition, *payloads)
        start = dict.fromkeys(written, -1)
        for records_max, bytes_max in ((1, LARGE), (7, LARGE), (LARGE, 4), (LARGE, 31), (9, 40)):
            found = at_hand(reader, start, records_max, bytes_max)
            assert len(found) <= records_max
            assert sum(len(record.payload) for record in found) <= bytes_max
            everything = read_all(reader, start, records_max, bytes_max)
            for partition, payloads in written.items():
                assert [record.payload for record in everything if record.partition == partition] == payloads

    def test_one_record_is_read_however_large_it_is(self, log: LogHarness) -> None:
        """A record above bytes_max comes alone instead of never."""
        writer, reader = log.writer(), log.reader()
        append(writer, 0, b"x" * 1_000)
        append(writer, 1, b"y" * 1_000)
        assert len(at_hand(reader, {0: -1, 1: -1}, LARGE, 10)) == 1
        assert sorted(record.partition for record in read_all(reader, {0: -1, 1: -1}, LARGE, 10)) == [0, 1]

    def test_no_partition_starves(self, log: LogHarness) -> None:
        """While one partition always has more than a read takes, a record of another one is read after a few reads."""
        writer, reader = log.writer(), log.reader()
        append(writer, 5, b"quiet")
        for records_max, bytes_max in ((1, LARGE), (5, LARGE), (LARGE, 20)):
            reached = dict.fromkeys(range(8), -1)
            for _ in range(20):
                append(writer, 2, *[b"loud" for _ in range(10)])
                found = at_hand(reader, reached, records_max, bytes_max)
                for record in found:
                    reached[record.partition] = record.offset
                if reached[5] >= 0:
                    break
            assert reached[5] >= 0

    def test_a_large_record_does_not_starve(self, log: LogHarness) -> None:
        """A record that is larger than an even share of the bytes is read after a few reads, though the others would fill them all."""
        writer, reader = log.writer(), log.reader()
        append(writer, 5, b"x" * 60)
        reached = dict.fromkeys(range(8), -1)
        for _ in range(20):
            for partition in set(reached) - {5}:
                append(writer, partition, *[b"loud" for _ in range(10)])
            found = at_hand(reader, reached, LARGE, 100)
            assert sum(len(record.payload) for record in found) <= 100
            for record in found:
                reached[record.partition] = record.offset
            if reached[5] >= 0:
                break
        assert reached[5] >= 0

    def test_a_record_is_found_at_its_offset(self, log: LogHarness) -> None:
        """record_at gives exactly the record there, and None where there is none."""
        first, second = append(log.writer(), 6, b"a", b"b", appended_at=7)
        reader = log.reader()
        assert reader.record_at(6, first) == LogRecord(6, first, 7, b"a")
        assert reader.record_at(6, second) == LogRecord(6, second, 7, b"b")
        assert reader.record_at(6, second + 1) is None
        assert reader.record_at(5, first) is None

    def test_a_new_log_starts_at_its_first_offset(self, log: LogHarness) -> None:
        """Before anything was appended or dropped, nothing is said to be gone."""
        writer, reader = log.writer(), log.reader()
        assert reader.start(0) == 0
        (first,) = append(writer, 0, b"a")
        assert reader.start(0) <= first

    def test_a_commit_drops_only_what_lies_before_it(self, log: LogHarness) -> None:
        """What is before a committed end may go; the record at the end and all after it stay, and other partitions are left alone."""
        writer, reader = log.writer(), log.reader()
        offsets = append(writer, 0, *[b"%d" % number for number in range(10)])
        others = append(writer, 1, b"other", b"another")
        reader.commit({0: offsets[6]})
        log.settle()
        assert reader.start(0) <= offsets[6]
        assert [reader.record_at(0, offset) is not None for offset in offsets[6:]] == [True] * 4
        assert [record.offset for record in read_all(reader, {0: offsets[5]})] == offsets[6:]
        assert [record.offset for record in read_all(reader, {1: -1})] == others
        for offset in offsets:
            assert offset >= reader.start(0) or reader.record_at(0, offset) is None

    def test_a_commit_may_be_repeated_and_go_back(self, log: LogHarness) -> None:
        """A late commit brings nothing back, and loses nothing."""
        writer, reader = log.writer(), log.reader()
        offsets = append(writer, 0, b"a", b"b", b"c")
        for end in (offsets[1], offsets[1], offsets[0]):
            reader.commit({0: end})
            log.settle()
        assert [record.offset for record in read_all(reader, {0: offsets[0]})] == offsets[1:]

    def test_an_end_that_is_not_in_the_log_drops_nothing(self, log: LogHarness) -> None:
        """A commit that was not made from this log's records is not believed."""
        writer, reader = log.writer(), log.reader()
        offsets = append(writer, 0, b"a", b"b")
        reader.commit({0: offsets[-1] + 1_000, 1: 5})
        log.settle()
        assert [record.offset for record in read_all(reader, {0: -1})] == offsets

    def test_an_offset_is_never_used_twice(self, log: LogHarness) -> None:
        """After records were dropped, and after the log was closed and opened again, offsets go on growing."""
        seen = -1
        for number in range(4):
            offsets = append(log.writer(), 0, b"a%d" % number, b"b%d" % number)
            assert seen < offsets[0] < offsets[1]
            seen = offsets[1]
            log.reader().commit({0: seen})
            log.settle()
            log.reader().close()
            log.writer().close()
        assert log.reader().start(0) <= seen
        assert log.reader().record_at(0, seen) is not None

    def test_close_waits_for_what_was_appended(self, log: LogHarness) -> None:
        """After close every future is done and its record is there. Closing again does nothing."""
        writer = log.writer()
        futures = [writer.append(0, b"x" * 1_000, 1) for _ in range(200)]
        writer.close()
        writer.close()
        assert all(future.done() for future in futures)
        assert [record.offset for record in read_all(log.reader(), {0: -1})] == [future.result(0) for future in futures]
        log.reader().close()
        log.reader().close()
