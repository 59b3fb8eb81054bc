"""What callers hand in and get back, as plain values; and how those are made from the messages of the API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from watertower.core.model import Kind, Metric
from watertower.core.positions import MalformedToken, Position, decode_position
from watertower.v1 import common_pb2

ALL_METRICS: tuple[Metric, ...] = tuple(Metric)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """One edge set to a state by its actor."""

    actor: str
    kind: Kind
    subject: str
    ref: str = ""
    """The comment's own id for COMMENT; empty otherwise."""
    active: bool = True
    occurred_at: datetime | None = None
    """When the user acted, with a time zone; None: when the call is made."""


class Written(NamedTuple):
    """Events that are durable and will be counted, once."""

    token: bytes
    """Where in the log they are: a session that is opened with it reads what was written."""
    occurred_at: tuple[datetime, ...]
    """Of each event, as it was sent."""


class Freshness(NamedTuple):
    """How fresh an answer is."""

    as_of: datetime | None
    """Everything that was acknowledged before this moment is included; None: the service cannot say."""
    position: bytes
    """How much of the log is included; a token."""
    stale: bool
    """Further back than the service promises, or the last known values."""
    satisfied: bool
    """As fresh as the call, or its session, has asked for."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of one entity."""

    entity: str
    values: Mapping[Metric, int]
    """Of the metrics that were asked for."""
    known: bool
    """False when the entity was never seen: its zeros mean "nothing known"."""
    freshness: Freshness

    @property
    def followers(self) -> int:
        return self.values[Metric.FOLLOWERS]

    @property
    def following(self) -> int:
        return self.values[Metric.FOLLOWING]

    @property
    def likes(self) -> int:
        return self.values[Metric.LIKES]

    @property
    def likes_given(self) -> int:
        return self.values[Metric.LIKES_GIVEN]

    @property
    def comments(self) -> int:
        return self.values[Metric.COMMENTS]

    @property
    def comments_written(self) -> int:
        return self.values[Metric.COMMENTS_WRITTEN]


class Checked(NamedTuple):
    """Whether an actor has an active edge to each subject."""

    active: tuple[bool, ...]
    """In the order of the subjects."""
    freshness: Freshness


class Item(NamedTuple):
    """One row of a list."""

    id: str
    """The other end of the edge: the actor in a list of actors, the subject in a list of subjects."""
    ref: str
    occurred_at: datetime


class Page(NamedTuple):
    """A part of a list, newest first."""

    items: tuple[Item, ...]
    next_page_token: str
    """Empty on the last page."""
    freshness: Freshness


class Update(NamedTuple):
    """One message of a watch."""

    counts: tuple[Counts, ...]
    """Of every entity in the first message, and in the first one after the connection was lost; then of those that changed."""
    freshness: Freshness


def freshness_of(message: common_pb2.Freshness, satisfied: bool = True) -> Freshness:
    """`satisfied`: as the client knows it."""
    as_of = datetime_of(message.as_of) if message.HasField("as_of") else None
    return Freshness(as_of, message.position, message.stale, satisfied)


def position_of(token: bytes) -> Position | None:
    """A token's position; None for an empty one, or one that this version cannot read: it covers nothing."""
    try:
        return decode_position(token)
    except MalformedToken:
        return None


def covers(position: Position | None, wanted: Position | None) -> bool:
    """Whether an answer at a position includes what is wanted."""
    return wanted is None or (position is not None and position.covers(wanted))


def values_of(metrics: Sequence[Metric], values: Sequence[int]) -> dict[Metric, int]:
    """Values by metric."""
    return dict(zip(metrics, values, strict=True))


def datetime_of(timestamp: Timestamp) -> datetime:
    """In UTC, to the microsecond."""
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1_000)


def datetime_of_us(microseconds: int) -> datetime:
    """Microseconds since 1970, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def microseconds_of(moment: datetime) -> int:
    """Microseconds since 1970. Raises ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone: datetime.now(UTC), not datetime.now()")
    return (moment - _EPOCH) // timedelta(microseconds=1)
