"""Answers with counts, put together from bytes that are ready.

An entity's row, a `Counts` as it lies in a BatchGetCountsResponse, is kept with its entry until its counts change: an answer for a
thousand warm entities is a join, not a thousand messages. tests/query/test_answers.py holds every answer against the generated messages.
"""

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter

from google.protobuf.timestamp_pb2 import Timestamp

from watertower.query.cache import Entry
from watertower.query.tail import Freshness
from watertower.v1 import common_pb2, reader_pb2

_COUNTS = b"\x0a"  # BatchGetCountsResponse.counts: field 1, with a length
_EXCEPTION = b"\x12"  # .exceptions: field 2, with a length
_FRESHNESS = b"\x1a"  # .freshness, in either response: field 3, with a length
_KNOWN = b"\x10\x01"  # GetCountsResponse.known: field 2, true
_COUNTS_HEAD = 2  # bytes of a row before the `Counts` itself: its tag, and a length that is below 128 for all metrics there are


class Shape:
    """The metrics of a request, in its order: how rows look in its answer."""

    __slots__ = ("unknown", "values_of")

    def __init__(self, metrics: tuple[int, ...]) -> None:
        self.values_of: Callable[[Sequence[int]], Sequence[int]]
        """Picks the metrics out of an entry's totals."""
        if len(metrics) == 1:
            self.values_of = itemgetter(slice(metrics[0], metrics[0] + 1))
        else:
            self.values_of = itemgetter(*metrics)
        self.unknown = self._made(Entry())
        """The row of whatever was never seen."""

    def row(self, entry: Entry) -> bytes:
        """An entry's row; made if it is not there. That of an entity that was never seen is not kept with it: whether one is there tells
        that there is nothing unusual."""
        if entry.row_of is self:
            return entry.row
        if not entry.shards:
            return self.unknown
        entry.row, entry.row_of = self._made(entry), self
        return entry.row

    def _made(self, entry: Entry) -> bytes:
        counts = reader_pb2.Counts(values=self.values_of(entry.totals)).SerializeToString()
        return _COUNTS + bytes((len(counts),)) + counts


@cache  # bounded: there are 1,956 ways to name each of six metrics at most once
def shape_of(metrics: tuple[int, ...]) -> Shape:
    """The one Shape of some metrics, which were checked: each of this version, none twice."""
    return Shape(metrics)


def single_answer(shape: Shape, entry: Entry, freshness: bytes) -> bytes:
    """A GetCountsResponse."""
    # Its `values` are written as those of Counts are.
    return shape.row(entry)[_COUNTS_HEAD:] + (_KNOWN if entry.shards else b"") + _FRESHNESS + _length(freshness) + freshness


def batch_answer(shape: Shape, entries: Sequence[Entry], freshness: bytes) -> bytes:
    """A BatchGetCountsResponse."""
    others = [entry for entry in entries if entry.row_of is not shape]
    if not others:
        parts = [entry.row for entry in entries]
    else:
        parts = [shape.row(entry) for entry in entries]
        parts += [_exception(index) for index, entry in enumerate(entries) if not entry.shards]
    parts += (_FRESHNESS, _length(freshness), freshness)
    return b"".join(parts)


def freshness_message(freshness: Freshness) -> common_pb2.Freshness:
    """What an answer claims, as the API says it."""
    as_of, position, stale, satisfied = freshness
    return common_pb2.Freshness(as_of=None if as_of is None else timestamp(as_of), position=position, stale=stale, satisfied=satisfied)


def timestamp(microseconds: int) -> Timestamp:
    """Of microseconds since 1970."""
    # By hand: FromMicroseconds takes 90 ns more, an eighth, for each of up to 1,000 items of a page.
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


@cache  # bounded: an index is one of ENTITIES_MAX
def _exception(index: int) -> bytes:
    message = reader_pb2.CountsException(index=index, known=False).SerializeToString()
    return _EXCEPTION + bytes((len(message),)) + message


def _length(message: bytes) -> bytes:
    """A varint; of a Freshness, which takes less than 2**14 bytes."""
    size = len(message)
    return bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
