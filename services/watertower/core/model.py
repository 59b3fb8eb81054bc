"""The words of the service as types: kinds, metrics, edges, shards, list rows, batches of events.

Keys are plain tuples (they are built once per event, and a tuple costs a tenth of a class instance); rows are named
tuples. Times are microseconds since 1970 UTC, offsets are places in one partition of the log.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias


class Kind(IntEnum):
    """What an actor does to a subject. The numbers are those of the API and of the log: never reused."""

    FOLLOW = 1
    LIKE = 2
    COMMENT = 3


class Metric(IntEnum):
    """A count that an entity has. The numbers are those of the API and of the store: never reused."""

    FOLLOWERS = 1
    FOLLOWING = 2
    LIKES = 3
    LIKES_GIVEN = 4
    COMMENTS = 5
    COMMENTS_WRITTEN = 6


class KindRule(NamedTuple):
    """What one kind adds to, and which edges it allows."""

    subject_metric: Metric
    actor_metric: Metric
    needs_ref: bool  # the edge is told apart by a ref of its own (a comment's id)
    allows_self: bool  # actor and subject may be the same id


# The one table. A new kind is one row here, one number in Kind, two in Metric, and their twins in the API.
KINDS: dict[Kind, KindRule] = {
    Kind.FOLLOW: KindRule(Metric.FOLLOWERS, Metric.FOLLOWING, needs_ref=False, allows_self=False),
    Kind.LIKE: KindRule(Metric.LIKES, Metric.LIKES_GIVEN, needs_ref=False, allows_self=True),
    Kind.COMMENT: KindRule(Metric.COMMENTS, Metric.COMMENTS_WRITTEN, needs_ref=True, allows_self=True),
}

SUBJECT_METRIC: dict[int, int] = {int(kind): int(rule.subject_metric) for kind, rule in KINDS.items()}
ACTOR_METRIC: dict[int, int] = {int(kind): int(rule.actor_metric) for kind, rule in KINDS.items()}
"""What an edge of a kind adds to, by number: looked up once per event, where an enum member would cost."""

EdgeKey: TypeAlias = tuple[str, int, str, str]
"""(actor, kind, subject, ref). `ref` is empty for kinds that need none."""

ShardKey: TypeAlias = tuple[str, int, int]
"""(entity, metric, shard). The shard number is the partition of the log from which its share comes."""

ListKey: TypeAlias = tuple[str, int, int, int, int, str, str]
"""(subject, kind, shard, bucket, occurred_at, actor, ref): one row of the list behind a count.

Only (subject, kind, occurred_at, actor, ref) identifies and orders the row; (shard, bucket) says in which bounded part of the
list it is kept (see buckets.py).
"""

Crossing: TypeAlias = tuple[int, int]
"""(offset, index within the record) of the event at which a shard's lifetime gained crossed a bucket boundary."""


class Edge(NamedTuple):
    """The truth about one edge. A last-writer-wins register over (occurred_at, REMOVED > ACTIVE)."""

    active: bool
    occurred_at: int  # microseconds; of the event that won
    bucket: int  # where its list row is, while active (buckets.py)
    offset: int  # of the log record that last changed it


class Shard(NamedTuple):
    """The share of one count that comes from one partition, with the position up to which it is right."""

    value: int
    gained: int  # activations over the shard's whole life; never falls
    crossings: tuple[Crossing, ...]
    offset: int  # inclusive: every event of its partition up to here is in `value`


NO_SHARD = Shard(0, 0, (), -1)
"""What a shard is before anything was written to it."""


class ListChange(NamedTuple):
    """The final state of one list row within a flush."""

    present: bool
    offset: int  # of the log record that decided it


class Progress(NamedTuple):
    """How far one partition has been applied: the watermark, and where a new owner resumes."""

    end: int  # inclusive offset of the last applied record; -1 before the first
    record_id: bytes  # a hash of that record; a rewound or restored log does not carry it at `end`
    appended_at: int  # microseconds; when that record was appended


NO_PROGRESS = Progress(-1, b"", 0)


class EventBatch(NamedTuple):
    """The events of one log record, all of one partition, as columns of equal length."""

    actors: Sequence[str]
    kinds: bytes  # one Kind per byte
    subjects: Sequence[str]
    refs: Sequence[str]
    actives: bytes  # 1 ACTIVE, 0 REMOVED
    occurred_at: Sequence[int]  # microseconds


class Record(NamedTuple):
    """One record of the log, decoded."""

    partition: int
    offset: int
    record_id: bytes
    appended_at: int  # microseconds, by the clock of the ingest that appended it
    events: EventBatch
