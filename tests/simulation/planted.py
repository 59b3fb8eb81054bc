"""Bugs that the design forbids, each as a small switch: what the simulator must be able to see.

A plant names the invariants of which one must break. `Caching` without a fault planted in it keeps the rules for cached shards, and is
there to show that it is the missing rule that is found, not the cache.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from watertower.backends import cassandra, cassandra_statements, cells
from watertower.backends.cassandra import CassandraStore
from watertower.backends.cassandra_edges import ActorRows
from watertower.backends.cassandra_statements import Partition
from watertower.client.batches import EventBatch as CallBatch
from watertower.client.peer import Peer
from watertower.client.retries import RetryBudget, Throttle
from watertower.client.seen import Seen
from watertower.codec import UndecodableRecord, record_id
from watertower.core import fold as fold_module
from watertower.core.fold import Flush, Touched
from watertower.core.model import KINDS, Edge, EdgeKey, EventBatch, ListChange, ListKey, Progress, Record, Shard, ShardKey
from watertower.errors import BackendUnavailable
from watertower.ports import FeedMessage, LogReader, LogRecord
from watertower.projector import projector as projector_module
from watertower.projector.projector import Projector
from watertower.query.cache import CountsCache, Entry, Load
from watertower.query.service import QueryService
from watertower.query.tail import FeedTail, Freshness
from watertower.testing.simulator import cassandra as simulated_cassandra
from watertower.testing.simulator import replicas
from watertower.testing.simulator import world as world_module
from watertower.testing.simulator.cluster import Cluster, Write
from watertower.testing.simulator.cql import Bound
from watertower.testing.simulator.embedded import EmbeddedStore, SecondaryReader
from watertower.testing.simulator.log import SimulatedLogWriter
from watertower.testing.simulator.replicas import ReplicatedStore
from watertower.testing.simulator.world import Parts, World
from watertower.v1 import reader_pb2, writer_pb2

ALARM = "no edge is ahead of its shards"
COUNTS, EDGES, LISTS = "counts are of their position", "edges are of their position", "lists are of their position"
MEMORY, ANSWERS = "memory is of its position", "answers are of their position"
AGE, BACK, NEGATIVE = "answers say how old they are", "positions never go back", "no count is negative"
ACKNOWLEDGED, REFUSED = "acknowledged events are in the log", "a wrong log is refused"
NEEDS, STALE_AGE = "a satisfied answer has what was asked for", "nothing is served past its age"
BUDGET, SESSION = "retries keep to their budget", "a session never goes backwards"
WATCH = "a watch goes on"
IN_TIME, GETS_THROUGH, UNEXPECTED = "a call of the client ends in time", "a client gets through in the end", "nothing unexpected is raised"
ONE_READ = "one read of an entity at a time"
UNDECODABLE, NEWER = "an undecodable record stops its partition", "no answer is newer than the log"

# the same fault, seen by the look at the end before any reader on the way came across it: which of them is first is the schedule's affair
SEEN_IN_THE_END = {
    "counts equal the log": COUNTS,
    "edges equal the log": EDGES,
    "lists equal the log": LISTS,
    "answers are right in the end": ANSWERS,
}


class Plant(NamedTuple):
    """One bug."""

    name: str
    invariants: Collection[str]  # one of them must break
    parts: Parts = Parts()
    patches: Sequence[tuple[Any, str, Any]] = ()  # object, attribute, what stands there instead

    def breaks(self, invariant: str) -> bool:
        return SEEN_IN_THE_END.get(invariant, invariant) in self.invariants


# --- the order of a flush


class ListsAfterEdges(ReplicatedStore):
    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        self._lists = lists
        super().write_derived(shards, {})

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        super().write_edges(edges)
        super().write_derived({}, self._lists)


class EdgesFirst(ReplicatedStore):
    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        self._derived = shards, lists

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        super().write_edges(edges)
        super().write_derived(*self._derived)


class ShardsReadFirst(ReplicatedStore):
    """What a store with a single owner may do."""

    def read_touched(self, keys: Touched) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        shards = self.read_shards(keys.shards)
        return self.read_edges(keys.edges), shards


class Pipelined(ReplicatedStore):
    """The next step, and the next flush, begin before this one is acknowledged."""

    def _write(self, writes: list[Write]) -> None:
        task = self._cluster._loop.create_task(self._cluster.all_of([self._cluster.writing([write]) for write in writes]))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


class ProgressFirst(Projector):
    """Claims the records before it writes what they change."""

    def _apply(self, records: Sequence[Record]) -> int:
        self._store.write_progress({r.partition: Progress(r.offset, r.record_id, r.appended_at) for r in records})
        return super()._apply(records)


# --- what a flush writes


def net_lists(records: Sequence[Record], edges: Mapping[EdgeKey, Edge], shards: Mapping[ShardKey, Shard]) -> Flush:
    """List rows only where the edge's state changed over the flush."""
    flush = fold_module.fold(records, edges, shards)

    def changed(row: ListKey) -> bool:
        subject, kind, _, _, _, actor, ref = row
        key = (actor, kind, subject, ref)
        return (key in edges and edges[key].active) != flush.edges[key].active

    return flush._replace(lists={row: change for row, change in flush.lists.items() if changed(row)})


def net_shards(records: Sequence[Record], edges: Mapping[EdgeKey, Edge], shards: Mapping[ShardKey, Shard]) -> Flush:
    """Shards only where the value changed over the flush."""
    flush = fold_module.fold(records, edges, shards)
    return flush._replace(
        shards={key: shard for key, shard in flush.shards.items() if shard.value != (shards[key].value if key in shards else 0)}
    )


def exclusive_end(records: Sequence[Record], edges: Mapping[EdgeKey, Edge], shards: Mapping[ShardKey, Shard]) -> Flush:
    """Shards carry the offset after the last one."""
    flush = fold_module.fold(records, edges, shards)
    return flush._replace(shards={key: shard._replace(offset=shard.offset + 1) for key, shard in flush.shards.items()})


def not_republished(records: Sequence[Record], edges: Mapping[EdgeKey, Edge], shards: Mapping[ShardKey, Shard]) -> Flush:
    """Shards that are found at their end already are not published again."""
    flush = fold_module.fold(records, edges, shards)
    return flush._replace(published=flush.shards)


def latest_bucket(crossings: tuple[tuple[int, int], ...], offset: int, index: int) -> int:
    """Of the running gained, wherever the event lies."""
    return len(crossings)


def untimed_delete(row: ListKey, change: ListChange, generation: int) -> Write:
    """A delete with the timestamp of nothing, as from a shell."""
    return Write(("lists", row[:2]), row, (1, None)) if not change.present else _list_write(row, change, generation)


_list_write = replicas.list_write


def wall_clock() -> Callable[..., int]:
    ticks = itertools.count(2**60)
    return lambda generation, offset, delete=False: next(ticks)


class Torn(ReplicatedStore):
    """A shard's value is a cell beside its position."""

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        writes = [replicas.shard_write(key, shard, 1) for key, shard in shards.items()]
        writes += [Write(("values", write.partition[1]), write.key, (write.cell[0], write.cell[1].value)) for write in writes]
        self._write([*writes, *(replicas.list_write(row, change, 1) for row, change in lists.items())])

    def read_shards(self, keys: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        shards = super().read_shards(keys)
        values = self._cells([(("values", key[0]), key) for key in keys])
        return {key: shard._replace(value=values.get(key, 0)) for key, shard in shards.items()}


# --- an actor's partition in Cassandra


Keys = Collection[EdgeKey]
Own = Collection[ShardKey]
ActorsRead = tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]


def counts_after_edges(rows: ActorRows, edges: Mapping[EdgeKey, ShardKey], own: Own) -> ActorsRead:
    """The edges by one statement, the own counts by another."""
    found = edges_alone(rows, edges, own)
    return found, rows._read({}, own)[1]


def counts_before_edges(rows: ActorRows, edges: Mapping[EdgeKey, ShardKey], own: Own) -> ActorsRead:
    """The other way round."""
    shards = rows._read({}, own)[1]
    return edges_alone(rows, edges, own), shards


def edges_alone(rows: ActorRows, edges: Keys, own: Own) -> dict[EdgeKey, Edge]:
    statements = [without_own_counts(one) for one in _actor_statements(rows, edges, own, None)]
    found = rows._connection.run(one for one in statements if asked_of(one)[1])
    read = {(actor, kind, subject, ref): cells.decode_edge(cell) for some in found for actor, kind, subject, ref, cell in some}
    return {key: edge for key, edge in read.items() if key in edges}


def asked_of(statement: Bound) -> tuple[list[str], list[tuple[int, str, str]]]:
    """(actors, rows)."""
    decoded = statement.prepared.table.decoded_list
    return decoded(("actor",), statement.values[0]), decoded(("kind", "subject", "ref"), statement.values[1])


def without_own_counts(statement: Bound) -> Bound:
    wanted = [row for row in asked_of(statement)[1] if row[0] != cassandra_statements.OWN_COUNTS]
    statement.values = [statement.values[0], cassandra_statements.encode_rows(wanted)]
    return statement


_actor_statements = ActorRows._statements


def counts_with_the_first_piece(partitions: Iterable[Partition]) -> Iterator[Any]:
    return _batches(partition._replace(repeated=0) for partition in partitions)


_batches = cassandra_statements.batches


class EdgesThenCounts(CassandraStore):
    """An actor's mutation in two, the edges first."""

    def write_edges(self, edges: Mapping[EdgeKey, Edge]) -> None:
        held, self._held = self._held, {}
        super().write_edges(edges)
        self._held = held
        super().write_edges({})


def timed_by_the_clock(mutations: cassandra_statements.Mutations, offset: int) -> bytes:
    return next(_ticks).to_bytes(8, "big")


_ticks = itertools.count(2**60)


def on_cassandra(*patches: tuple[Any, str, Any]) -> dict[str, Any]:
    return {"parts": Parts(cassandra=True), "patches": patches}


# --- cached shards


class Caching(ReplicatedStore):
    """Keeps shards between flushes, by the rules."""

    contiguity = True
    reload = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._cache: dict[ShardKey, Shard] = {}

    def read_progress(self) -> dict[int, Progress]:
        if self.contiguity:  # an owner begins here: where another one may have gone on meanwhile
            self._cache.clear()
        return super().read_progress()

    def abandon(self) -> None:
        self._cache.clear()

    def read_edges(self, keys: Collection[EdgeKey]) -> dict[EdgeKey, Edge]:
        edges = super().read_edges(keys)
        if self.reload:
            for (actor, kind, subject, _), edge in edges.items():
                of_subject, of_actor = (int(KINDS[kind].subject_metric), int(KINDS[kind].actor_metric))  # type: ignore[index]
                for key in [k for k in self._cache if k[:2] in ((subject, of_subject), (actor, of_actor))]:
                    if edge.offset > self._cache[key].offset:
                        del self._cache[key]
        return edges

    def read_shards(self, keys: Collection[ShardKey]) -> dict[ShardKey, Shard]:
        found = {key: self._cache[key] for key in keys if key in self._cache}
        read = super().read_shards([key for key in keys if key not in found])
        self._cache.update(read)
        return {**found, **read}

    def write_derived(self, shards: Mapping[ShardKey, Shard], lists: Mapping[ListKey, ListChange]) -> None:
        super().write_derived(shards, lists)
        self._cache.update(shards)


class CachingAcrossOwners(Caching):
    contiguity = False


class CachingWithoutReload(Caching):
    reload = False


# --- where a projector begins


class ResumesAtLatest(Projector):
    """Takes the end of the log where nothing says where to go on, and sometimes when something does."""

    def _take_up(self, partitions: Collection[int]) -> None:
        super()._take_up(partitions)
        for record in self._log.read(dict(self._read_to), 10_000, 10**9):
            self._read_to[record.partition] = record.offset


def anything_goes(
    log: LogReader, applied: Mapping[int, Progress], partitions: Collection[int], beat: Callable[[], None]
) -> dict[int, Progress]:
    return {partition: applied.get(partition, Progress(-1, b"", 0)) for partition in partitions}


def anything_goes_everywhere() -> list[tuple[Any, str, Any]]:
    return [(projector_module, "resume_points", anything_goes), (projector_module, "check_identity", lambda log, store: None)]


# --- the read side


def merge_blindly(entry: Entry, key: tuple[int, int], value: int, offset: int) -> None:
    """Takes whatever comes."""
    entry.totals[key[0]] += value - entry.shards.get(key, (0, -1))[0]
    entry.shards[key] = (value, offset)
    entry.row_of = None


def forgetful_merge(entry: Entry, key: tuple[int, int], value: int, offset: int) -> None:
    """Keeps the old value with the new position."""
    held = entry.shards.get(key)
    _merge(entry, key, value if held is None else held[0], offset)


_merge = Entry.merge


def merge_beside_the_row(entry: Entry, key: tuple[int, int], value: int, offset: int) -> None:
    """Changes the counts, and leaves the bytes that are ready."""
    row_of = entry.row_of
    _merge(entry, key, value, offset)
    entry.row_of = row_of


async def claimed_afterwards(
    service: QueryService, entities: Sequence[str], freshness: Freshness | None = None, patience_s: float = math.inf
) -> tuple[list[Entry], Freshness]:
    """What is claimed is of the moment after the counts were taken."""
    entries, claim = await _look(service, entities, freshness, patience_s)
    copies = []
    for entry in entries:
        copy = Entry()
        copy.shards, copy.totals = dict(entry.shards), list(entry.totals)
        copies.append(copy)
    await asyncio.sleep(0.1)
    return copies, service._tail.freshness()._replace(satisfied=claim.satisfied)


_look = QueryService._look


def overwrite(cache: CountsCache, load: Load, rows: Sequence[Mapping[tuple[int, int], Shard]]) -> None:
    """A load replaces what the feed brought meanwhile."""
    for entry, row in zip(load.entries, rows, strict=True):
        entry.shards.clear()
        entry.totals = [0] * len(entry.totals)
        for key, shard in row.items():
            entry.merge(key, shard.value, shard.offset)
        entry.epoch, entry.expires_s, entry.row_of = load.epoch, load.began_s + 20.0, None
    cache.abandon(load)


def aged_when_asked() -> list[tuple[Any, str, Any]]:
    """Whether an answer is stale is decided when the question comes."""
    freshness = FeedTail.freshness
    return [
        (FeedTail, "freshness", lambda tail: FeedTail_aged(tail, freshness(tail))),
        (FeedTail, "aged", lambda tail, claim, need: claim),
    ]


FeedTail_aged: Callable[[FeedTail, Freshness], Freshness] = FeedTail.aged


# --- the client


def retry_at_will(budget: RetryBudget) -> bool:
    return True


def stamped_anew(batch: CallBatch) -> writer_pb2.RecordEventsRequest:
    """A retry carries another moment than the attempt before."""
    request = _request(batch)
    stamps = vars(batch).setdefault("attempts", itertools.count())
    for event in request.events:
        event.occurred_at.nanos = (event.occurred_at.nanos + next(stamps) * 1_000) % 1_000_000_000
    return request


_request = CallBatch.request


# --- ingest


_append = SimulatedLogWriter.append


def acknowledge_at_once(
    writer: SimulatedLogWriter, partition: int, payload: bytes, appended_at: int, traceparent: str = ""
) -> "Future[int]":
    """Says that a record is durable when it is sent."""
    _append(writer, partition, payload, appended_at)
    future: Future[int] = Future()
    future.set_result(writer._log.next_offsets[partition])
    return future


# --- the embedded store


class StepsOutOfOrder(EmbeddedStore):
    """Its batch may be cut anywhere, and the edges are first in it."""

    def sync(self) -> None:
        if len(self._held) > 1:
            self._held[:2] = reversed(self._held[:2])
        super().sync()


class FeedAheadOfRows(SecondaryReader):
    """Messages are taken before the rows are caught up with: the rows that a read sees are those of the look before."""

    _newer: Mapping[Any, Any] = {}

    def poll(self) -> list[FeedMessage]:
        self.catch_up()
        self._tables, self._newer = dict(self._newer), self._tables
        return self._messages.poll()


# --- errors taken for answers


class WritesThatNeverFail(ReplicatedStore):
    def _write(self, writes: list[Write]) -> None:
        with contextlib.suppress(BackendUnavailable):
            super()._write(writes)


def decoded_or_empty(raw: LogRecord) -> Record:
    """A record that cannot be decoded is one without events."""
    with contextlib.suppress(UndecodableRecord):
        return _decoded(raw)
    return Record(raw.partition, raw.offset, record_id(raw.payload), raw.appended_at, EventBatch((), b"", (), (), b"", ()))


_decoded = projector_module._decoded


async def watch_with_a_fault(service: QueryService, request: reader_pb2.WatchCountsRequest, context: Any) -> AsyncGenerator[bytes, None]:
    """Ends after its first message with an error that is none of the service's own."""
    async for message in _watch_counts(service, request, context):
        yield message
        raise KeyError("planted")


async def watch_that_falls_silent(
    service: QueryService, request: reader_pb2.WatchCountsRequest, context: Any
) -> AsyncGenerator[bytes, None]:
    """Sends one message, and then waits for nothing."""
    async for message in _watch_counts(service, request, context):
        yield message
        await asyncio.Event().wait()


_watch_counts = QueryService.watch_counts


async def look_that_waits(
    service: QueryService, entities: Sequence[str], freshness: Freshness | None = None, patience_s: float = math.inf
) -> tuple[list[Entry], Freshness]:
    """A watch waits for the store however long that takes."""
    return await _look(service, entities, freshness, math.inf if freshness is None else patience_s)


def one_further(tail: FeedTail, partition: int, end: int, as_of: int) -> None:
    """Claims the record after the last one, too."""
    _advance(tail, partition, end + 1, as_of)


_advance = FeedTail._advance


def no_read_repair(world: World) -> None:
    world.cluster.read_repair = False


PLANTS = [
    Plant("list rows after edges", {LISTS}, Parts(store=ListsAfterEdges)),
    Plant("list rows only when the net state changed", {LISTS}, patches=[(projector_module, "fold", net_lists)]),
    Plant("edges before counts", {ALARM, COUNTS}, Parts(store=EdgesFirst)),
    Plant("counts read before edges", {ALARM, COUNTS, NEGATIVE}, Parts(store=ShardsReadFirst)),
    Plant("cached shards without the contiguity rule", {ALARM, COUNTS, NEGATIVE, ANSWERS}, Parts(store=CachingAcrossOwners)),
    Plant("cached shards without the reload rule", {ALARM, COUNTS, NEGATIVE}, Parts(store=CachingWithoutReload)),
    Plant("shards with net zero skipped", {ALARM, COUNTS}, patches=[(projector_module, "fold", net_shards)]),
    Plant("read repair off", {ALARM, COUNTS, EDGES, BACK, NEGATIVE, ANSWERS}, Parts(prepare=no_read_repair)),
    Plant("value and position torn", {COUNTS, NEGATIVE}, Parts(store=Torn)),
    Plant("pipelined flushes", {ALARM, COUNTS, NEGATIVE, EDGES, ANSWERS}, Parts(store=Pipelined)),
    Plant("exclusive end", {COUNTS}, patches=[(projector_module, "fold", exclusive_end)]),
    Plant("resume at latest", {COUNTS, EDGES, LISTS, ANSWERS}, Parts(projector=ResumesAtLatest)),
    Plant("claimed before the write", {COUNTS, LISTS, EDGES, ANSWERS}, Parts(projector=ProgressFirst)),
    Plant("delete without timestamp", {LISTS}, patches=[(replicas, "list_write", untimed_delete)]),
    Plant("wall-clock timestamps", {ALARM, COUNTS, EDGES, NEGATIVE}, patches=[(replicas, "write_timestamp", wall_clock())]),
    Plant("replay that does not republish", {ANSWERS}, patches=[(projector_module, "fold", not_republished)]),
    Plant("feed applied without the position check", {ANSWERS}, patches=[(Entry, "merge", merge_blindly)]),
    Plant("load that overwrites", {ANSWERS}, patches=[(CountsCache, "finish", overwrite)]),
    Plant("gap in the feed unnoticed", {ANSWERS}, patches=[(CountsCache, "gap", lambda cache: None)]),
    Plant("stale decided when asked", {AGE}, patches=aged_when_asked()),
    Plant("acknowledged when sent", {ACKNOWLEDGED}, patches=[(SimulatedLogWriter, "append", acknowledge_at_once)]),
    Plant("started on any log", {REFUSED, COUNTS}, patches=anything_goes_everywhere()),
    Plant("a cut batch without its order", {ALARM, COUNTS}, Parts(embedded_store=StepsOutOfOrder)),
    Plant("feed ahead of the rows", {ANSWERS, LISTS, EDGES}, patches=[(world_module, "SecondaryReader", FeedAheadOfRows)]),
    Plant("writes that never fail", {ALARM, COUNTS, EDGES, LISTS}, Parts(store=WritesThatNeverFail)),
    Plant("undecodable record skipped", {UNDECODABLE, EDGES, COUNTS}, patches=[(projector_module, "_decoded", decoded_or_empty)]),
    Plant("position one too far", {NEWER, ANSWERS, LISTS, EDGES}, patches=[(FeedTail, "_advance", one_further)]),
    Plant("bucket from the running gained", {LISTS}, patches=[(fold_module, "bucket_of", latest_bucket)]),
    Plant("own counts read after the edges", {ALARM}, **on_cassandra((ActorRows, "read", counts_after_edges))),
    Plant("own counts read before the edges", {ALARM}, **on_cassandra((ActorRows, "read", counts_before_edges))),
    Plant("own counts in a mutation of their own", {ALARM}, **on_cassandra((simulated_cassandra, "CassandraStore", EdgesThenCounts))),
    Plant("own counts with the first piece only", {ALARM}, **on_cassandra((cassandra, "batches", counts_with_the_first_piece))),
    Plant(
        "rows in Cassandra timed by the clock",
        {ALARM, COUNTS, EDGES, NEGATIVE, LISTS},
        **on_cassandra((cassandra_statements.Mutations, "_timestamp", timed_by_the_clock)),
    ),
    Plant("satisfied without waiting", {NEEDS}, patches=[(FeedTail, "meets", lambda tail, need: True)]),
    Plant("a ready row that is not made anew", {ANSWERS}, patches=[(Entry, "merge", merge_beside_the_row)]),
    Plant("a claim made after the look", {ANSWERS}, patches=[(QueryService, "_look", claimed_afterwards)]),
    Plant("standing in at any age", {STALE_AGE}, patches=[(CountsCache, "may_stand_in", lambda cache, entry, _: entry.epoch >= 0)]),
    Plant("a read for each caller", {ONE_READ}, patches=[(CountsCache, "under_way", lambda cache, entity: None)]),
    Plant("retries without a budget", {BUDGET}, patches=[(RetryBudget, "take", retry_at_will)]),
    Plant("a stamp for each attempt", {ACKNOWLEDGED}, patches=[(CallBatch, "request", stamped_anew)]),
    Plant("a session that takes any answer", {SESSION}, patches=[(Seen, "included_in", lambda seen, token: True)]),
    Plant("calls without a deadline", {IN_TIME}, patches=[(Peer, "left_s", lambda peer, deadline_s: 3_600.0)]),
    Plant("a throttle that never lets go", {GETS_THROUGH}, patches=[(Throttle, "probability", 1.0)]),
    Plant("a watch that fails", {UNEXPECTED}, patches=[(QueryService, "watch_counts", watch_with_a_fault)]),
    Plant("a watch that falls silent", {WATCH}, patches=[(QueryService, "watch_counts", watch_that_falls_silent)]),
    Plant("a watch that waits for the store", {WATCH}, patches=[(QueryService, "_look", look_that_waits)]),
    Plant("memory that loses a shard", {MEMORY, ANSWERS}, patches=[(Entry, "merge", forgetful_merge)]),
]
