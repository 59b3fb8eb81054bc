"""Owners of one partition of the log that stop where a schedule says, on a real store: fixed interleavings of real projectors' flushes.

An owner's flush runs in a greenlet, which gives way at a failpoint of the projector and goes on when it is told to: one thread, and the
same order every time.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet

from watertower import failpoints
from watertower.clock import SystemClock
from watertower.codec import encode_batch
from watertower.config import ProjectorSettings
from watertower.core.model import KINDS, EventBatch, Kind
from watertower.core.sharding import partition_of
from watertower.ports import FeedMessage, LogReader, LogRecord, LogWriter, Store, StoreScanner
from watertower.projector.projector import Projector

READ_S = 60.0
"""Seconds in which a log gives the records that it has."""

STEPS_MAX = 50
"""Steps that the owner at the end may take; a step is tried again after an error."""

Event = tuple[str, int, str, str, bool, int]
"""(actor, kind, subject, ref, active, occurred_at)."""

SCHEDULES = (
    # One owner dies at each step, and another one applies the same records again, with other boundaries.
    "A:read A! B B",
    "A:fold A! B B",
    "A:derived A! B B",
    "A:edges A! B B",
    "A:progress A! B B",
    # It wakes up when another one has applied a flush, and writes the rest late.
    "A:read B A B",
    "A:fold B A B",
    "A:derived B A B",
    "A:edges B A B",
    "A:progress B A B",
    # It wakes up when everything is applied.
    "A:read B B B A",
    "A:fold B B B A",
    "A:derived B B B A",
    "A:edges B B B A",
    # Two that hang, one that dies, three whose writes cross.
    "A:read B:derived B! C A C",
    "A:derived B:read A B C",
    "A:fold B:derived C:edges A B C",
    "A:edges B:edges A! B! C C",
    "C B:read A:derived C A B",
    "C A:fold C C C A B",
)
"""Twenty. In order: `A:read` - owner A begins a flush, or goes on with it, until projector.after_read; `A` - until its end; `A!` - A dies.

Afterwards one more owner applies what is left, and whoever still hangs writes the rest of its flush."""

RECORDS = {"A": 4, "B": 3, "C": 1, "last": 2}
"""Records that each owner takes in a flush."""


_CLOCK = SystemClock()


class NotOver(Exception):
    """The log was not given, or not applied, to its end."""


class OnePartition:
    """What an owner reads: one partition of a log, which keeps everything."""

    def __init__(self, log: LogReader, partition: int) -> None:
        self._log, self._partition = log, partition

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def owned(self) -> frozenset[int]:
        return frozenset({self._partition})

    def read(self, after: Mapping[int, int], records_max: int, bytes_max: int) -> list[LogRecord]:
        """As many as are asked for, or all that there are: a log that fetches ahead may give fewer at first."""
        if self._partition not in after:  # it was stopped
            return []
        deadline_s = _CLOCK.monotonic_s() + READ_S
        at, end = after[self._partition], self._log.ends([self._partition])[self._partition]
        found: list[LogRecord] = []
        while at < end and len(found) < records_max:
            if some := self._log.read({self._partition: at}, records_max - len(found), bytes_max):
                found += some
                at = some[-1].offset
            elif _CLOCK.monotonic_s() > deadline_s:
                raise NotOver(f"the log gives nothing after {at}, and ends at {end}")
            else:
                _CLOCK.sleep(0.01)
        return found

    def commit(self, ends: Mapping[int, int]) -> None:
        """Nothing: an owner may begin further back than another one ended."""


class NoFeed:
    """Nobody listens."""

    def publish(self, messages: Iterable[FeedMessage]) -> None:
        for _ in messages:
            pass


class Owner:
    """One projector, flush by flush."""

    def __init__(self, projector: Projector) -> None:
        self.projector = projector
        self._started = False
        self._flush: greenlet | None = None
        self._until = ""

    @property
    def hangs(self) -> bool:
        return self._flush is not None

    def go(self, until: str = "") -> None:
        """Begins a flush, or goes on with one, until it reaches the failpoint, or its end."""
        self._until = until
        if self._flush is None:
            self._flush = greenlet(self._step)
            self._flush.owner = self  # type: ignore[attr-defined]
        self._flush.switch()
        if self._flush.dead:
            self._flush = None

    def die(self) -> None:
        """Never goes on. (The greenlet ends here: nothing of the product cleans up after a GreenletExit.)"""
        if self._flush is not None:
            self._flush.throw()
            self._flush = None

    def reached(self, name: str) -> None:
        if name == self._until:
            self._until = ""
            getcurrent().parent.switch()

    def _step(self) -> None:
        if not self._started:
            self._started = True
            self.projector.start()
        self.projector.step()


@contextmanager
def stopping_at_failpoints() -> Iterator[None]:
    """Owners hear of the failpoints that they reach."""

    def heard(name: str) -> None:
        owner = getattr(getcurrent(), "owner", None)
        if owner is not None:
            owner.reached(name)

    failpoints.watcher = heard
    try:
        yield
    finally:
        failpoints.watcher = None


def names(partition: int, partitions: int) -> list[str]:
    """Three accounts whose events go to the partition."""
    found = (name for number in itertools.count() if partition_of(name := f"account-{number}", partitions) == partition)
    return list(itertools.islice(found, 3))


def events_of(partition: int, partitions: int) -> list[Event]:
    """What happened, a record each, between accounts and a subject that are this partition's own."""
    ann, bob, cid = names(partition, partitions)
    star, post = f"star-{partition}", f"post-{partition}"
    return [
        (ann, Kind.FOLLOW, star, "", True, 10),
        (bob, Kind.FOLLOW, star, "", True, 20),
        (ann, Kind.FOLLOW, star, "", False, 30),
        (cid, Kind.LIKE, post, "", True, 35),
        (ann, Kind.FOLLOW, star, "", True, 40),
        (bob, Kind.FOLLOW, star, "", False, 50),
        (cid, Kind.FOLLOW, star, "", True, 60),
        (ann, Kind.COMMENT, post, "1", True, 70),
        (bob, Kind.FOLLOW, star, "", True, 20),  # comes again, too late
        (bob, Kind.LIKE, post, "", True, 80),
    ]


class Visible(NamedTuple):
    """What anybody can see of the rows of one partition of the log."""

    edges: dict[tuple[str, int, str, str], tuple[bool, int]]
    counts: dict[tuple[str, int], int]  # by (entity, metric); zeros left out
    lists: list[tuple[str, int, int, str, str]]  # (subject, kind, occurred_at, actor, ref), sorted


def recount(events: Iterable[Event]) -> Visible:
    """What is right: no rule is shared with the fold."""
    newest: dict[tuple[str, int, str, str], tuple[int, bool]] = {}
    for actor, kind, subject, ref, active, at in events:
        key = (actor, int(kind), subject, ref)
        newest[key] = max(newest.get(key, (-1, False)), (at, not active))
    counts: dict[tuple[str, int], int] = defaultdict(int)
    lists = []
    for (actor, kind, subject, ref), (at, removed) in newest.items():
        if not removed:
            counts[subject, int(KINDS[Kind(kind)].subject_metric)] += 1
            counts[actor, int(KINDS[Kind(kind)].actor_metric)] += 1
            lists.append((subject, kind, at, actor, ref))
    return Visible({key: (not removed, at) for key, (at, removed) in newest.items()}, dict(counts), sorted(lists))


def seen(scanner: StoreScanner, partition: int) -> Visible:
    """What a store holds of a partition."""
    partitions = scanner.identity.log.partitions
    return Visible(
        {key: (edge.active, edge.occurred_at) for key, edge in scanner.edges() if partition_of(key[0], partitions) == partition},
        {(entity, metric): shard.value for (entity, metric, at), shard in scanner.shards() if at == partition and shard.value},
        sorted((subject, kind, at, actor, ref) for subject, kind, p, _, at, actor, ref in scanner.subject_lists() if p == partition),
    )


def append(log: LogWriter, partition: int, events: Sequence[Event]) -> None:
    for number, (actor, kind, subject, ref, active, at) in enumerate(events):
        batch = EventBatch((actor,), bytes([kind]), (subject,), (ref,), bytes([active]), (at,))
        log.append(partition, encode_batch(batch), 1_000 + number).result(60)


def violation(
    schedule: str,
    partition: int,
    log: LogReader,
    store: Callable[[], Store],
    scanner: StoreScanner,
    events: Sequence[Event],
    projector: type[Projector] = Projector,
    between: Mapping[str, Callable[[], object]] | None = None,
) -> str:
    """Runs a schedule on a partition that holds these events; says what came out wrong, if anything did.

    `between`: what a move `@name` does to the engine.
    """
    owners: dict[str, Owner] = {}

    def owner(name: str) -> Owner:
        if name not in owners:
            settings = ProjectorSettings.model_construct(flush_records_max=RECORDS[name], flush_events_max=RECORDS[name])
            reader: Any = OnePartition(log, partition)
            owners[name] = Owner(projector(reader, store(), NoFeed(), settings, _CLOCK, random.Random(1)))
        return owners[name]

    with stopping_at_failpoints():
        for move in schedule.split():
            name, _, point = move.partition(":")
            if name.startswith("@"):
                (between or {})[name[1:]]()
            elif name.endswith("!"):
                owners.pop(name[:-1]).die()
            else:
                owner(name).go(f"projector.after_{point}" if point else "")
        last = owner("last")
        for _ in range(STEPS_MAX):
            last.go()
            if last.projector.stopped or last.projector.positions[partition] == log.ends([partition])[partition]:
                break
        else:
            raise NotOver(f"{last.projector.positions}, not {log.ends([partition])}")
        for other in owners.values():
            if other.hangs:
                other.go()
    stopped = [reason for other in owners.values() for reason in other.projector.stopped.values()]
    if stopped:
        return f"alarm: {stopped[0]}"
    wanted, found = recount(events), seen(scanner, partition)
    return "; ".join(
        f"{what}: {there}, not {right}" for what, there, right in zip(Visible._fields, found, wanted, strict=True) if there != right
    )
