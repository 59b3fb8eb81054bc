"""Flushes that the design forbids, on the real store for Cassandra: each is the projector's flush with one thing changed."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from watertower import failpoints
from watertower.backends import cassandra_statements
from watertower.clock import SystemClock
from watertower.core.fold import Flush, ShardBehindEdge, fold, touched
from watertower.core.model import Record
from watertower.projector.projector import Projector, messages


class Reordered(Projector):
    """A flush whose steps a subclass puts in another order."""

    def _apply(self, records: Sequence[Record]) -> int:
        keys = touched(records)
        try:
            flush = self._folded(records, keys)
        except ShardBehindEdge as error:
            self._stop_partition(error.shard[2], str(error))
            return 0
        failpoints.reach("projector.after_fold")
        self._write(flush)
        self._store.write_progress(flush.progress)
        failpoints.reach("projector.after_progress")
        self._feed.publish(messages(flush, self._progress, self._as_of))
        self._store.sync()
        self._progress.update(flush.progress)
        return len(records)

    def _folded(self, records: Sequence[Record], keys: Any) -> Flush:
        edges, shards = self._store.read_touched(keys)
        failpoints.reach("projector.after_read")
        return fold(records, edges, shards)

    def _write(self, flush: Flush) -> None:
        self._store.write_derived(flush.shards, flush.lists)
        failpoints.reach("projector.after_derived")
        self._store.write_edges(flush.edges)
        failpoints.reach("projector.after_edges")


class EdgesBeforeCounts(Reordered):
    """The own counts of actors, too, come after the edges: nothing is held back yet when those are written."""

    def _write(self, flush: Flush) -> None:
        self._store.write_edges(flush.edges)
        failpoints.reach("projector.after_edges")
        self._store.write_derived(flush.shards, flush.lists)
        failpoints.reach("projector.after_derived")


class CountsReadBeforeEdges(Reordered):
    """It may hang in between."""

    def _folded(self, records: Sequence[Record], keys: Any) -> Flush:
        shards = self._store.read_shards(keys.shards)
        failpoints.reach("projector.after_read")
        return fold(records, self._store.read_edges(keys.edges), shards)


class ListsAfterEdges(Reordered):
    def _write(self, flush: Flush) -> None:
        self._store.write_derived(flush.shards, {})
        failpoints.reach("projector.after_derived")
        self._store.write_edges(flush.edges)
        failpoints.reach("projector.after_edges")
        self._store.write_derived({}, flush.lists)


def clock_timestamps() -> Callable[..., int]:
    """As from a shell: microseconds, each later than the one before."""
    clock, last = SystemClock(), itertools.count(1)
    return lambda *_, **__: clock.now_us() + next(last)


_wall_clock = clock_timestamps()


def _clock_bytes(mutations: cassandra_statements.Mutations, offset: int) -> bytes:
    return _wall_clock().to_bytes(8, "big")


class Variant(NamedTuple):
    """One of them."""

    name: str
    projector: type[Projector] = Projector
    patches: Sequence[tuple[Any, str, Any]] = ()  # object, attribute, what stands there instead


RIGHT = Variant("as it is")
REORDERED = Variant("in its order, but written out in this module", Reordered)
WRONG = (
    Variant("edges before counts", EdgesBeforeCounts),
    Variant("counts read before edges", CountsReadBeforeEdges),
    Variant("list rows after edges", ListsAfterEdges),
    Variant(
        "wall-clock timestamps",
        patches=[(cassandra_statements.Mutations, "_timestamp", _clock_bytes), (cassandra_statements, "write_timestamp", _wall_clock)],
    ),
)
