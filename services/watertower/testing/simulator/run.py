"""One run: a bad day from a seed, then calm, then everything is recounted."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import structlog

from watertower import failpoints
from watertower.codec import record_id
from watertower.config import ProjectorSettings
from watertower.core import buckets
from watertower.core.model import Metric, Progress
from watertower.errors import StartRefused
from watertower.ports import LogIdentity, LogRecord
from watertower.testing.simulator import cassandra
from watertower.testing.simulator.cassandra import RowScanner
from watertower.testing.simulator.clients import ENTITIES, METRIC_NUMBERS, Callers, Deadline, Readers
from watertower.testing.simulator.cluster import REPLICAS
from watertower.testing.simulator.faults import Faults
from watertower.testing.simulator.kernel import Deadlock, blocking
from watertower.testing.simulator.log import SimulatedLogReader
from watertower.testing.simulator.processes import PROJECTORS, IngestNode, Node, ProjectorNode, QueryNode, reached
from watertower.testing.simulator.reference import METRICS_OF_KIND
from watertower.testing.simulator.replicas import progress_write
from watertower.testing.simulator.users import Users
from watertower.testing.simulator.watchers import Watchers
from watertower.testing.simulator.world import CLOCK_OFF_US_MAX, Broken, Parts, World, events_in
from watertower.v1 import reader_pb2

CALLS = 45
"""Calls of a run, of all its callers together."""

DRAINED_S = 300.0
"""Within this long after the last fault everything is applied."""

LATE_S = 35.0
"""Longer than any write is late: what still comes must change nothing."""


QUORUMS = ((0, 1), (0, 2), (1, 2))


class Scenario(NamedTuple):
    """Everything that a run depends on."""

    seed: int
    calls: int = CALLS
    without: tuple[str, ...] = ()  # kinds of faults


class Outcome(NamedTuple):
    """What a run came to."""

    scenario: Scenario
    invariant: str  # that broke; empty for none
    detail: str
    events: int  # in the log
    simulated_s: float
    faults: Counter[str]
    digest: str  # of the trace


def simulate(scenario: Scenario, parts: Parts | None = None, show: Callable[[str], object] | None = None) -> Outcome:
    """Runs a scenario. The same scenario gives the same outcome, digest included. `show` gets the trace's lines."""
    faults = Faults(scenario.seed, scenario.without)
    with _surroundings() as heard:
        world = World(scenario.seed, faults, parts or Parts(), show)
        heard.append(world)
        invariant = detail = ""
        try:
            world.loop.run_until_complete(_until_broken(world, scenario))
        except Broken as broken:
            invariant, detail = broken.invariant, broken.detail
        except Deadlock as deadlock:
            invariant, detail = "everything goes on", str(deadlock)
        except Exception as error:
            invariant, detail = "nothing unexpected is raised", repr(error)
        finally:
            simulated_s, digest = world.loop.now_s, world.trace.digest  # what ends below ends in no particular order
            world.close()
    return Outcome(scenario, invariant, detail, world.events, simulated_s, faults.fired, digest)


@contextlib.contextmanager
def _surroundings() -> Iterator[list[World]]:
    """What the product takes from its process: small list buckets, so that they turn; failpoints; logs, which go to the trace."""
    worlds: list[World] = []

    def say(logger: Any, method: str, event: Any) -> Any:
        if worlds:
            worlds[0].trace.say("says", f"{method} {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    sizes = buckets.SHARED_GAINED_MAX, buckets.BUCKET_GAINED_MAX
    structlog.configure(processors=[say], wrapper_class=structlog.BoundLogger, context_class=dict, cache_logger_on_first_use=False)
    buckets.SHARED_GAINED_MAX, buckets.BUCKET_GAINED_MAX = 2, 3
    failpoints.watcher = lambda name: reached(worlds[0], name)
    try:
        with cassandra.surroundings():
            yield worlds
    finally:
        failpoints.watcher = None
        buckets.SHARED_GAINED_MAX, buckets.BUCKET_GAINED_MAX = sizes
        structlog.configure(**before)


async def _until_broken(world: World, scenario: Scenario) -> None:
    run = world.loop.create_task(_day(world, scenario))
    await asyncio.wait([run, world.failed], return_when=asyncio.FIRST_COMPLETED)
    if world.failed.done():
        run.cancel()
        await asyncio.wait([run])
        world.failed.result()
    world.failed.cancel()
    await run


async def _day(world: World, scenario: Scenario) -> None:
    ingests = [IngestNode(world, f"ingest-{n}") for n in range(2)]
    projectors = [ProjectorNode(world, name) for name in PROJECTORS]
    queries = [QueryNode(world, f"query-{n}") for n in range(2)]
    for partition in range(world.partitions):
        world.owners.assigned[partition] = PROJECTORS[0 if world.embedded else partition % len(PROJECTORS)]
    for node in (*projectors, *queries):
        node.start()
    callers, readers = Callers(world, ingests, scenario.calls), Readers(world, queries)
    calling = [world.spawn(callers.run(n)) for n in range(3)]
    reading = [world.spawn(readers.run(n)) for n in range(3)]
    if world.cassandra:
        reading.append(world.spawn(readers.run_lists()))
    watchers, users = Watchers(world, queries), Users(world, ingests, queries)
    reading += [world.spawn(watchers.run(n)) for n in range(2)]
    using = world.spawn(users.run(0))
    observer = world.spawn(_observe(world, queries))
    nemesis = world.spawn(_nemesis(world, ingests, projectors, queries))
    await asyncio.gather(*calling)
    await callers.redelivered()
    using.cancel()
    await asyncio.sleep(10.0)

    world.trace.say("day", "the faults are over")
    world.faults.over = True
    nemesis.cancel()
    world.cluster.slow_until_s = 0.0
    world.owners.beside.clear()
    for clock in world.clocks.values():
        clock.off_us = 0
    for node in (*ingests, *projectors, *queries):
        node.kill()
        node.start()
    await _drained(world)
    _check_rows(world)
    await users.last()
    await asyncio.sleep(LATE_S)
    if world.undecodable.keys() - world.stopped:
        raise Broken("an undecodable record stops its partition", f"{world.undecodable}, not {sorted(world.stopped)}")
    observer.cancel()
    check_now(world, queries)
    _check_rows(world)
    for node in queries:
        for entity in ENTITIES:
            await _check_served(world, node, entity)
    await watchers.last()
    for task in reading:
        task.cancel()
    for node in (*projectors, *queries):
        node.kill()
    await _check_refusals(world)


# --- what happens meanwhile


async def _nemesis(world: World, ingests: list[IngestNode], projectors: list[ProjectorNode], queries: list[QueryNode]) -> None:
    """Every few seconds, something happens to a process, to the whole store or to a clock."""
    faults, rng = world.faults, world.rng("nemesis")
    while True:
        await asyncio.sleep(rng.uniform(2.0, 6.0))
        for kind, nodes in (("crash_ingest", ingests), ("crash_projector", projectors), ("crash_query", queries)):
            if faults.strikes(kind):
                world.spawn(_crash(world, faults.stream(kind).choice(nodes), faults.stream(kind).uniform(0.1, 8.0)))
        if faults.strikes("clock_jump"):
            name = faults.stream("clock_jump").choice(list(world.clocks))
            world.clocks[name].off_us = faults.stream("clock_jump").randint(-CLOCK_OFF_US_MAX, CLOCK_OFF_US_MAX)
            world.trace.say("nemesis", f"the clock of {name} is off by {world.clocks[name].off_us} us")
        if world.loop.now_s > 15.0 and not world.undecodable and faults.strikes("record_undecodable"):
            world.log.land(faults.stream("record_undecodable").randrange(world.partitions), b"\xff of a later version", 0)
        if world.embedded and faults.strikes("log_truncated"):
            _truncate(world)
        if world.embedded:
            continue  # one owner, whatever happens, and one disk
        if faults.strikes("store_slow"):
            world.cluster.slow_until_s = world.loop.now_s + faults.stream("store_slow").uniform(1.0, 8.0)
            world.trace.say("nemesis", f"the store is slow until {world.cluster.slow_until_s:.3f}")
        if faults.strikes("rebalance"):
            for partition in range(world.partitions):
                world.owners.assigned[partition] = faults.stream("rebalance").choice(PROJECTORS)
            faults.fired["rebalance in a flush"] += bool(world.flushing)
            world.trace.say("nemesis", f"rebalances {world.owners.assigned}")
        alone = [partition for partition in range(world.partitions) if partition not in world.owners.beside]
        if alone and faults.strikes("two_owners"):
            partition = faults.stream("two_owners").choice(alone)
            others = [name for name in PROJECTORS if name != world.owners.assigned[partition]]
            world.owners.beside[partition] = faults.stream("two_owners").choice(others)
            world.loop.call_later(faults.stream("two_owners").uniform(2.0, 15.0), world.owners.beside.pop, partition, None)
            world.trace.say("nemesis", f"two owners of p{partition}: {world.owners.assigned[partition]}, {world.owners.beside[partition]}")
        if faults.strikes("ping_pong"):
            world.spawn(_ping_pong(world, faults.stream("ping_pong").randrange(world.partitions)))
        older = _older_progress(world)
        if older and faults.strikes("replay_from_old_offset"):
            _put_back_progress(world, faults.stream("replay_from_old_offset").choice(older))


async def _crash(world: World, node: Node, down_s: float) -> None:
    node.kill()
    await asyncio.sleep(down_s)
    if not world.faults.over:
        world.trace.say(node.name, "starts")
        node.start()


async def _ping_pong(world: World, partition: int) -> None:
    """One partition goes to and fro between two owners that keep what they have in memory."""
    rng = world.faults.stream("ping_pong")
    pair = rng.sample(PROJECTORS, 2)
    for turn in range(rng.randint(2, 8)):
        world.owners.assigned[partition] = pair[turn % 2]
        await asyncio.sleep(rng.uniform(0.3, 2.0))


def _older_progress(world: World) -> list[LogRecord]:
    """The records behind what is applied, from which a replay can begin."""
    applied = world.scanner().progress()
    return [
        record
        for partition, progress in applied.items()
        for record in world.log.records[partition]
        if world.log.starts[partition] <= record.offset < progress.end and events_in(record)
    ]


def _put_back_progress(world: World, record: LogRecord) -> None:
    """An operator puts an older row of progress back, whatever its timestamp, and has another projector begin there."""
    rng, partition = world.faults.stream("replay_from_old_offset"), record.partition
    write = (cassandra.progress_write if world.cassandra else progress_write)(
        partition, Progress(record.offset, record_id(record.payload), record.appended_at), 1
    )
    for replica in world.cluster.replicas:
        replica.tables[write.partition][write.key] = write.cell
    world.owners.assigned[partition] = rng.choice([name for name in PROJECTORS if name != world.owners.assigned[partition]])
    world.trace.say("nemesis", f"progress of p{partition} is put back to {record.offset}")


def _truncate(world: World) -> None:
    """The log drops what is applied, as it may: up to the record at progress, which it keeps or (as by age) drops, too."""
    for partition, progress in world.scanner().progress().items():
        start = progress.end + world.faults.stream("log_truncated").choice((0, 1))
        world.log.starts[partition] = max(world.log.starts[partition], start)
    world.trace.say("nemesis", f"the log begins at {world.log.starts}")


async def _observe(world: World, queries: list[QueryNode]) -> None:
    while True:
        await asyncio.sleep(1.0)
        check_now(world, queries)


# --- what must hold


def check_now(world: World, queries: list[QueryNode]) -> None:
    """What must hold at every moment, on every replica and in every memory."""
    reference, ends = world.reference, world.log.ends()
    for number in range(REPLICAS):
        scanner = world.scanner([number])
        for key, shard in scanner.shards():
            if shard.value < 0:
                raise Broken("no count is negative", f"{key} {shard} on replica {number}")
            wanted = reference.counts[key].at(shard.offset) if key in reference.counts else None
            if shard.offset > ends[key[2]] or shard.value != (wanted or 0):
                raise Broken("counts are of their position", f"{key} {shard} on replica {number}; the log says {wanted or 0}")
        for name, edge in scanner.edges():
            state: Any = reference.edges[name].at(edge.offset) if name in reference.edges else None
            if state is None or (edge.occurred_at, not edge.active) != tuple(state):
                raise Broken("edges are of their position", f"{name} {edge} on replica {number}; the log says {state}")
    _check_alarm(world)
    for node in queries:
        if node.service is None:
            continue
        for entity, entry in node.service._cache._entries.items():
            for (metric, partition), (value, offset) in entry.shards.items():
                wanted = reference.counts[entity, metric, partition].at(offset) if (entity, metric, partition) in reference.counts else None
                if value != (wanted or 0):
                    detail = f"{node.name}: {entity} {Metric(metric).name} p{partition} is {value} at {offset}; the log says {wanted or 0}"
                    raise Broken("memory is of its position", detail)


def _check_alarm(world: World) -> None:
    """No edge that anybody could read lies ahead of what a quorum would read of its shards.

    An own count in Cassandra is in the mutation of its edge: where the edge is on one replica alone, the count is there, too, and whoever
    reads the one reads the other; so of own counts it is asked that any replica has them. That readers keep to it is what a projector's own
    alarm shows.
    """
    edges = list(world.scanner().edges())
    everywhere = world.scanner()
    own = dict(everywhere.own_counts()) if isinstance(everywhere, RowScanner) else {}
    for pair in QUORUMS:
        shards = {**dict(world.scanner(pair).shards()), **own}
        for (actor, kind, subject, ref), edge in edges:
            partition = world.reference.partition_of[actor, kind, subject, ref]
            for entity, metric in zip((subject, actor), METRICS_OF_KIND[kind], strict=True):
                shard = shards.get((entity, metric, partition))
                if shard is None or shard.offset < edge.offset:
                    raise Broken("no edge is ahead of its shards", f"{(actor, kind, subject, ref)} {edge}; {entity} {metric}: {shard}")


async def _drained(world: World) -> None:
    deadline_s = world.loop.now_s + DRAINED_S
    while True:
        progress = world.scanner().progress()
        if all(end < 0 or (p in progress and progress[p].end == end) for p, end in world.ends().items()):
            return
        if world.loop.now_s > deadline_s:
            raise Broken("everything is applied in the end", f"{progress}, not {world.ends()}")
        await asyncio.sleep(0.5)


def _check_rows(world: World) -> None:
    """Whatever quorum is asked, the rows are those of the log."""
    ends = world.ends()
    edges = {name: tuple(state) for name, state in world.reference.edges_at(ends)}
    active = {name: state.occurred_at for name, state in world.reference.active_at(ends)}
    lists = sorted((s, k, at, a, r) for (a, k, s, r), at in active.items())
    counts = {key: history.at(ends[key[2]]) for key, history in world.reference.counts.items()}
    for pair in QUORUMS:
        scanner = world.scanner(pair)
        found = {name: (edge.occurred_at, not edge.active) for name, edge in scanner.edges()}
        _compare("edges equal the log", found, edges)
        _compare("counts equal the log", {key: shard.value for key, shard in scanner.shards()}, counts)
        rows = sorted((s, k, at, actor, r) for s, k, _, _, at, actor, r in scanner.subject_lists())
        if rows != lists:
            raise Broken("lists equal the log", f"too much: {_minus(rows, lists)}, missing: {_minus(lists, rows)}")
    _check_acknowledged(world)


def _check_acknowledged(world: World) -> None:
    """Every event that a caller was told is durable lies in the log."""
    found = {event for records in world.log.records for record in records for event in events_in(record)}
    lost = [event for event in world.acknowledged_events if event not in found]
    if lost:
        raise Broken("acknowledged events are in the log", f"{len(lost)} are not: {lost[:3]}")


def _minus(these: list[Any], those: list[Any]) -> list[Any]:
    return list((Counter(these) - Counter(those)).elements())[:4]


def _compare(invariant: str, found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    differ = [key for key in {**found, **wanted} if (found.get(key) or 0) != (wanted.get(key) or 0)]
    if differ:
        shown = {key: (found.get(key), wanted.get(key)) for key in differ[:3]}
        raise Broken(invariant, f"{len(differ)} differ (found, in the log): {shown}")


async def _check_served(world: World, node: QueryNode, entity: str) -> None:
    """In the end, every query process answers the truth and says that it is fresh."""
    if node.service is None:
        raise Broken("everything goes on", f"{node.name} is not ready")
    request = reader_pb2.GetCountsRequest(entity=entity, metrics=METRIC_NUMBERS)
    context: Any = Deadline(world)
    answer = reader_pb2.GetCountsResponse.FromString(await asyncio.wait_for(node.service.get_counts(request, context), 60.0))
    position = node.saw(answer.freshness, node.seen()).offsets
    ends = world.ends()
    if any(position.get(p, -1) != end for p, end in ends.items()) or (answer.freshness.stale and not world.undecodable):
        raise Broken("answers get fresh in the end", f"{node.name}: {dict(position)}, not {ends}; stale: {answer.freshness.stale}")
    for metric, value in zip(Metric, answer.values, strict=True):
        wanted = sum(
            int(history.at(ends[p]) or 0)  # type: ignore[call-overload]
            for (e, m, p), history in world.reference.counts.items()
            if (e, m) == (entity, metric)
        )
        if value != wanted:
            raise Broken("answers are right in the end", f"{node.name}: {entity} {metric.name} is {value}, not {wanted}")


async def _check_refusals(world: World) -> None:
    """What an operator must not do to a log: each is refused at the next start."""
    applied = world.scanner().progress()
    full = [partition for partition, progress in applied.items() if progress.end >= 0 and partition not in world.undecodable]
    kinds = ["log_starts_past_progress", "log_tail_rewound", "log_tail_lost", "log_recreated", "log_repartitioned"]
    rng = world.rng("operator")
    rng.shuffle(kinds)
    world.faults.over = False
    kind = next((kind for kind in kinds if full and world.faults.strikes(kind)), None)
    world.faults.over = True
    if kind is None:
        return
    partition, log = rng.choice(full), world.log
    end = applied[partition].end
    kept = [record for record in log.records[partition] if record.offset < end]
    if kind == "log_starts_past_progress":
        log.starts[partition], log.records[partition] = end + 2, []
    elif kind == "log_tail_rewound":
        log.records[partition] = [*kept, log.records[partition][-1]._replace(offset=end, payload=b"another record")]
        log.starts[partition] = 0
    elif kind == "log_tail_lost":
        log.records[partition], log.starts[partition] = kept, 0
    elif kind == "log_recreated":
        log.identity = LogIdentity("another log", world.partitions)
    else:
        log.identity = log.identity._replace(partitions=world.partitions + 1)

    def start() -> None:
        projector = world.parts.projector(
            SimulatedLogReader(log, lambda: range(world.partitions)),
            store := world.store(),
            world.feed_writer(store),
            ProjectorSettings.model_construct(),
            world.clock("operator"),
            world.rng("operator"),
        )
        projector.start()

    try:
        await blocking(start, "operator")
    except StartRefused as refused:
        world.trace.say("operator", f"{kind}: refused: {refused}")
    else:
        raise Broken("a wrong log is refused", f"{kind} of p{partition} was not noticed")
