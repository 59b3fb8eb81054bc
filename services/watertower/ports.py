"""The contracts between the processes and their back ends. What a docstring here says, every back end keeps and the contract suites
(`contract_log`, `contract_store`, `contract_owners`, `contract_feed` in `watertower.testing`) check; what it does not say, nobody may
rely on.

Path of a follow: ingest -> LogWriter | LogReader -> projector -> Store, CountsFeed | StoreReader, FeedReader -> query.

Every method raises `errors.BackendUnavailable` where trying again may help and `errors.BackendRefused` where it cannot; no driver's
exception leaves a back end. Times are microseconds since 1970 UTC unless the name says otherwise.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from watertower.core.fold import Touched
from watertower.core.model import (
    Edge,
    EdgeKey,
    ListChange,
    ListKey,
    Progress,
    Shard,
    ShardKey,
)


class Clock(Protocol):
    """Time, so that a test or a simulator can own it."""

    def now_us(self) -> int:
        """Wall clock, microseconds since 1970 UTC. May jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back, from an arbitrary start."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class LogIdentity(NamedTuple):
    """Which log this is. Stored with the rows that were made from it; another identity is refused at start."""

    log_id: str  # made when the log is created, never reused: a re-created log is another log
    partitions: int  # fixed when the log is created: another number would move actors to other writers


class LogRecord(NamedTuple):
    """One record as it lies in the log."""

    partition: int
    offset: int  # its place in the partition; grows, may have gaps, is never used twice
    appended_at: int  # never falls along a partition as long as the ingest's clock does not
    payload: bytes


class LogWriter(Protocol):
    """The side of the log that ingest holds. One instance per process; any thread may call it."""

    @property
    def identity(self) -> LogIdentity: ...

    def append(self, partition: int, payload: bytes, appended_at: int, traceparent: str = "") -> "Future[int]":
        """Appends one record. The future gives its offset when the record is durable: it survives the death of the process and of
        the machine. Records of one partition get offsets in the order of the calls. A future that fails with BackendUnavailable
        means "not acknowledged": the record may or may not be in the log. Never blocks for the disk or the network.

        `traceparent` (W3C trace context) goes with the record where the log has headers.
        """
        ...

    def close(self) -> None:
        """Waits for what was appended, then lets go. Idempotent."""
        ...


class LogReader(Protocol):
    """The side of the log that a projector holds."""

    @property
    def identity(self) -> LogIdentity: ...

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        """Records of the given partitions with an offset greater than `after[partition]`, each partition's in order of offset and
        without leaving any out. At most `records_max` records and `bytes_max` bytes in all, but at least one record if any is at
        hand; no partition can starve another for good. Empty when nothing new is at hand: a log in other machines may have some on
        its way, `ends` tells. Only durable records are seen. Waits some milliseconds at most.
        """
        ...

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """Per partition the inclusive offset up to which the log goes now; -1 before the first record. Every record that was
        acknowledged before this call lies at or below it."""
        ...

    def owned(self) -> frozenset[int]:
        """The partitions that this reader may apply now. All of them, unless it is a member of a group: then they come and go, and one
        that was lost may be another's already."""
        ...

    def start(self, partition: int) -> int:
        """The smallest offset that may still be in the log: everything below is gone."""
        ...

    def record_at(self, partition: int, offset: int) -> LogRecord | None:
        """The record at exactly this offset; None if there is none (any more)."""
        ...

    def set_aside(self, record: LogRecord, reason: str) -> None:
        """Keeps a copy of a record that no ingest can have written where people look for such. Durable when it returns; may keep it
        twice. Raises BackendRefused where the log has no such place: then the record stops its partition."""
        ...

    def commit(self, ends: Mapping[int, int]) -> None:
        """Says that everything up to `ends[partition]` (inclusive) is applied, so that the log may drop what lies *before* those
        records; the records at `ends` stay, as proof of identity at the next start. A convenience: it may be lost or late."""
        ...

    def close(self) -> None: ...


class StoreIdentity(NamedTuple):
    """Which rows these are. Written when the store is created, checked whenever it is opened."""

    log: LogIdentity
    generation: int  # from 1; a changed fold rule or partition count is a new generation, never in place


class Store(Protocol):
    """The rows, as the projector that owns their partitions sees them. One flush calls, in this order, `read_touched`, `write_derived`,
    `write_edges`, `write_progress`, `CountsFeed.publish`, `sync`.

    A reader never sees a later step's rows without the earlier steps' rows. A back end may hold writes back until `sync` and then
    apply them all at once; it may not reorder them. Every write carries positions.write_timestamp of its generation and offset; a
    write that is older than the row it meets loses. (A back end that guarantees one owner at a time, by refusing to be opened
    twice, needs no such comparison.)
    """

    @property
    def identity(self) -> StoreIdentity: ...

    def read_touched(self, keys: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        """What one flush needs, fresh: of the edges and shards those that exist. With more than one owner about, a shard is never older
        than an edge that moved it: the edges are read first, the shards after them or in the same breath (core/fold.py says why)."""
        ...

    def read_edges(self, keys: Collection[EdgeKey]) -> dict[EdgeKey, Edge]:
        """The edges that exist, as of now or later (never older than a write that was synced). Removed edges exist."""
        ...

    def read_shards(self, keys: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        """The shards that exist, as of now or later. A value and its position are one cell: never torn."""
        ...

    def read_progress(self) -> dict[int, Progress]:
        """Per partition how far it has been applied; a partition that never was is absent."""
        ...

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        """Step 3: absolute values and final states of list rows, deletes included."""
        ...

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        """Step 4, after write_derived."""
        ...

    def write_progress(self, progress: Mapping[int, Progress]) -> None:
        """Step 5, after write_edges."""
        ...

    def sync(self) -> None:
        """When this returns, everything written before is durable and visible to readers. When it raises, or the process dies
        first, any prefix of the steps may be."""
        ...

    def abandon(self) -> None:
        """Forgets what was written but not synced, after an error within a flush. What another step already made durable stays."""
        ...

    def close(self) -> None: ...


class ListCursor(NamedTuple):
    """A place in a list, between two rows: right after the row that it names."""

    occurred_at: int
    other: str  # the actor in a list of actors, the subject in a list of subjects
    ref: str


class EdgeRow(NamedTuple):
    """An edge with its key, from a scan."""

    key: EdgeKey
    edge: Edge


class StoreReader(Protocol):
    """The rows, as the query process sees them. Answers from the moment of the last `catch_up` or later, never earlier. Any thread
    may call it."""

    @property
    def identity(self) -> StoreIdentity: ...

    def catch_up(self) -> None:
        """Makes everything that was synced before this call visible to the calls after it."""
        ...

    def read_entities(self, entities: Sequence[str]) -> list[dict[tuple[int, int], Shard]]:
        """All shards of each entity by (metric, shard), each as of now or later, in order. Empty for one that was never seen."""
        ...

    def read_progress(self) -> dict[int, Progress]: ...

    def check_edges(self, actor: str, kind: int, subjects: Sequence[str]) -> list[bool]:
        """Whether an active edge exists, with any ref, per subject, in order. Takes time for each removed edge of (actor, kind, subject)
        that comes before an active one."""
        ...

    def list_actors(self, subject: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        """The active edges of a subject, newest occurred_at first; ties in an order that never changes. Starts right after the place
        `after`, whether or not its row still exists. At most `limit` rows; fewer only at the end of the list."""
        ...

    def list_subjects(self, actor: str, kind: int, after: ListCursor | None, limit: int) -> list[ListCursor]:
        """The active edges of an actor, in the same order and with the same promise as list_actors."""
        ...

    def close(self) -> None: ...


class StoreScanner(Protocol):
    """All rows, for audits and exports. Of one moment, the same one for every method, where the back end has such a thing
    (`testing.contract_owners.SnapshotContract`); elsewhere of one moment only while nobody writes."""

    @property
    def identity(self) -> StoreIdentity: ...

    def progress(self) -> dict[int, Progress]: ...

    def edges(self) -> Iterator[EdgeRow]:
        """Every edge, removed ones included, an actor's edges next to each other."""
        ...

    def shards(self) -> Iterator[tuple[ShardKey, Shard]]:
        """Every shard, an entity's shards next to each other."""
        ...

    def subject_lists(self) -> Iterator[ListKey]:
        """Every row of every list of actors, in any order."""
        ...

    def actor_lists(self) -> Iterator[EdgeKey]:
        """Every row of every list of subjects, in any order. A back end that lists them from the edges themselves yields the active
        edges."""
        ...

    def close(self) -> None: ...


class FeedMessage(NamedTuple):
    """What one flush did to one partition, or that nothing happened there.

    `entities`, `metrics`, `values` and `offsets` are columns of equal length: the shards that were touched, absolute values with
    their positions.
    """

    partition: int
    after: int  # the covered range is (after, end]: inclusive end; after == end for a heartbeat
    end: int
    as_of: int  # everything acknowledged before this moment, of this partition, is applied
    entities: Sequence[str]
    metrics: bytes
    values: Sequence[int]
    offsets: Sequence[int]


class CountsFeed(Protocol):
    """The side of the counts feed that a projector holds."""

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        """Publishes in order. With a back end that holds writes back, visible at the store's next sync together with the flush."""
        ...


class FeedReader(Protocol):
    """The side of the counts feed that a query process holds."""

    def poll(self) -> list[FeedMessage]:
        """The messages since the last poll, each partition's in order; one may come a little later than its publish. The first poll
        starts at the feed's end. Messages may be missing (they are kept for a bounded time): the ranges show the gap. Never ahead of
        the rows: whatever a StoreReader of the same process reads after this returned, it sees at least what the messages say. A
        message may come in parts, of which only the last one has its range and its `as_of`; the others, with 0 for `as_of` and nothing
        between `after` and `end`, claim nothing. Does not wait."""
        ...
