"""How a message of the counts feed travels as several records in two topics, and what a reader may say when some are missing. Pure.

A flush can touch more shards than one record should hold. So a message is cut into slices, which say which one of how many they are,
and of which message. A reader gives each slice on as it comes, so that it keeps nothing back, but only the last one moves the claim of
freshness, and only when all before it were seen:

    slice 1 of 3     (after, after]   as_of 0     nothing is claimed
    slice 2 of 3     (after, after]   as_of 0
    slice 3 of 3     (after, end]     as_of       all of it; or (end, end] where one was missing: the gap shows

A reader of both topics claims no more than both have said (`Joint`).
"""

from collections import OrderedDict
from itertools import compress
from typing import NamedTuple

from watertower.core.model import KINDS
from watertower.ports import FeedMessage

SLICE_ENTRIES_MAX = 500
"""Shards in one slice."""

UNFINISHED_MAX = 1_000
"""Messages of which not all slices have come that a reader remembers. The oldest is forgotten: its last slice shows a gap."""

ACTOR_METRICS = bytes(rule.actor_metric for rule in KINDS.values())
SUBJECT_METRICS = bytes(rule.subject_metric for rule in KINDS.values())


class SliceName(NamedTuple):
    """What a record says of the slice that it holds."""

    number: int  # from 1
    total: int
    message: str  # the same for the slices of one message, and for no others'

    def encode(self) -> bytes:
        return f"{self.number}/{self.total} {self.message}".encode()

    @classmethod
    def decode(cls, value: bytes) -> "SliceName":
        """Raises ValueError."""
        place, _, message = value.decode("ascii").partition(" ")
        number, _, total = place.partition("/")
        name = cls(int(number), int(total), message)
        if not 1 <= name.number <= name.total:
            raise ValueError(f"slice {name.number} of {name.total}")
        return name


def sliced(message: FeedMessage, metrics: bytes, entries_max: int = SLICE_ENTRIES_MAX) -> list[FeedMessage]:
    """What a message says of these metrics, in slices of at most `entries_max` shards with its whole range each; at least one."""
    if message.metrics.translate(None, metrics):
        wanted = [metric in metrics for metric in message.metrics]
        message = message._replace(
            entities=list(compress(message.entities, wanted)),
            metrics=bytes(compress(message.metrics, wanted)),
            values=list(compress(message.values, wanted)),
            offsets=list(compress(message.offsets, wanted)),
        )
    return [
        message._replace(
            entities=message.entities[begin : begin + entries_max],
            metrics=message.metrics[begin : begin + entries_max],
            values=message.values[begin : begin + entries_max],
            offsets=message.offsets[begin : begin + entries_max],
        )
        for begin in range(0, max(len(message.metrics), 1), entries_max)
    ]


class Assembly:
    """What a reader has seen of each message."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()  # by message: slices that came without one missing

    def take(self, name: SliceName, part: FeedMessage) -> FeedMessage:
        """The slice as it may be given on. Slices of one message come in order; some may be missing, or come twice."""
        if name.total == 1:
            return part
        seen = self._seen.pop(name.message, 0)
        if name.number == seen + 1:
            seen = name.number
        if name.number < name.total:
            self._seen[name.message] = seen
            if len(self._seen) > UNFINISHED_MAX:
                self._seen.popitem(last=False)
            return part._replace(end=part.after, as_of=0)
        return part if seen == name.total else part._replace(after=part.end)


class _Said(NamedTuple):
    """What one topic has claimed of a partition."""

    first_after: int  # where its first claim began
    end: int
    as_of: int


class Joint:
    """What several topics with the same ranges say together. Their messages come in any order between topics, in order within each."""

    def __init__(self, topics: int) -> None:
        self._said: dict[int, list[_Said | None]] = {}  # by partition: of each topic
        self._claimed: dict[int, _Said] = {}  # by partition: what was given on
        self._topics = topics

    def take(self, topic: int, message: FeedMessage) -> FeedMessage | None:
        """The message as it may be given on: with what all topics have said since the last claim, or with no claim; None when there is
        nothing in it then. One that shows a gap in its topic is given on with its claim, which is true of rows that are read anew, and
        as a gap up to there: another topic's gap may have brought the reader beyond where this one begins."""
        partition = message.partition
        if message.as_of == 0:
            return self._unclaimed(message)
        said = self._said.setdefault(partition, [None] * self._topics)
        before = said[topic]
        if before is None:
            said[topic] = _Said(message.after, message.end, message.as_of)
        else:
            said[topic] = _Said(before.first_after, max(before.end, message.end), max(before.as_of, message.as_of))
            if message.after > before.end:
                return message._replace(after=message.end)
        heard = [one for one in said if one is not None]
        end, as_of = min(one.end for one in heard), min(one.as_of for one in heard)
        claimed = self._claimed.get(partition)
        after = max(one.first_after for one in heard) if claimed is None else claimed.end
        if len(heard) < self._topics or end < after or (claimed is not None and (end, as_of) == (claimed.end, claimed.as_of)):
            return self._unclaimed(message)
        self._claimed[partition] = _Said(after, end, as_of)
        return message._replace(after=after, end=end, as_of=as_of)

    @staticmethod
    def _unclaimed(message: FeedMessage) -> FeedMessage | None:
        return message._replace(after=-1, end=-1, as_of=0) if message.metrics else None
