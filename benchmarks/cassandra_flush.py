"""The whole flush of new follows into Cassandra, step by step: what a projector spends per event, without the log.

    python -m benchmarks.cassandra_flush [--edges 100000] [--batch 10000] [--partitions 16] [--spread] [--address HOST:PORT]

Without an address a node is started (watertower.testing.engines). Prints for each step microseconds per event, and how many of them this
process computed (all of its threads), events/s, and the same again for the very same events once more (a replay).
"""

import argparse
import gc
import os
import random
import resource
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.flush import batches
from watertower.backends.cassandra import CassandraConnection, CassandraReader, CassandraSettings, CassandraStore, migrate
from watertower.clock import SystemClock
from watertower.core.fold import fold, touched
from watertower.core.model import Kind, Record
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.engines import cassandra, unique_name


def spread(flushes: list[list[Record]], rng: random.Random) -> list[list[Record]]:
    """The same actors, each following a subject of its own."""
    followed = [actor for flush in flushes for record in flush for actor in record.events.actors]
    rng.shuffle(followed)
    numbers = iter(followed)
    return [
        [record._replace(events=record.events._replace(subjects=[f"to-{next(numbers)}" for _ in record.events.actors])) for record in flush]
        for flush in flushes
    ]


def cpu_of(pid: int) -> float:
    """Seconds that a process has computed; 0 without one."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(store: CassandraStore, flushes: list[list[Record]], edges: int, name: str, node: int) -> None:
    """Applies the flushes and prints what each step took."""
    spent: dict[str, float] = defaultdict(float)
    computed: dict[str, float] = defaultdict(float)
    by_node: dict[str, float] = defaultdict(float)
    began, began_cpu = time.perf_counter(), time.process_time()
    mark, mark_cpu, mark_node = began, began_cpu, cpu_of(node)

    def lap(step: str) -> None:
        nonlocal mark, mark_cpu, mark_node
        now, now_cpu, now_node = time.perf_counter(), time.process_time(), cpu_of(node)
        spent[step] += now - mark
        computed[step] += now_cpu - mark_cpu
        by_node[step] += now_node - mark_node
        mark, mark_cpu, mark_node = now, now_cpu, now_node

    for records in flushes:
        keys = touched(records)
        lap("touched")
        found, shards = store.read_touched(keys)
        lap("read_touched")
        flush = fold(records, found, shards)
        lap("fold")
        store.write_derived(flush.shards, flush.lists)
        lap("write_derived")
        store.write_edges(flush.edges)
        lap("write_edges")
        store.write_progress(flush.progress)
        store.sync()
        lap("write_progress")
    total, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    print(f"--- {name}")
    per_event = 1e6 / edges
    for step, seconds in [*spent.items(), ("whole", total)]:
        here, there = (cpu, sum(by_node.values())) if step == "whole" else (computed[step], by_node[step])
        print(f"{step:14} {seconds * per_event:6.1f} us/event; computed here {here * per_event:5.1f}, by the node {there * per_event:5.1f}")
    print(f"{edges / total:,.0f} events/s")


def read(reader: CassandraReader, subject: str) -> None:
    """Prints what reading takes."""
    for what, call in (
        ("read_entities of 1", lambda: reader.read_entities([subject])),
        ("read_entities of 100", lambda: reader.read_entities([f"user-{i:08d}" for i in range(100)])),
        ("list_actors of 100", lambda: reader.list_actors(subject, Kind.FOLLOW, None, 100)),
    ):
        began = time.perf_counter()
        for _ in range(20):
            call()
        print(f"reader: {what} {(time.perf_counter() - began) / 20 * 1e3:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--spread", action="store_true", help="as many subjects as actors, in place of one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm", type=int, default=30_000, help="edges of a run before the one that counts: the node compiles meanwhile")
    parser.add_argument("--in-flight", type=int, default=CassandraSettings.requests_in_flight_max)
    parser.add_argument("--compression", action="store_true")
    parser.add_argument("--address", default="")
    parser.add_argument("--node-pid", type=int, default=0)
    args = parser.parse_args()
    identity = StoreIdentity(LogIdentity("benchmark", args.partitions), 1)
    with ExitStack() as stack:
        if args.address:
            address = args.address
        else:
            address = stack.enter_context(cassandra()).contact_points.split(",")[0]
        host, _, port = address.rpartition(":")
        settings = CassandraSettings(
            contact_points=(host,), port=int(port), requests_in_flight_max=args.in_flight, compression=args.compression
        )
        for edges, name in ((args.warm, ""), (args.edges, "new follows")):
            if not edges:
                continue
            flushes = batches(edges, args.batch, args.partitions, args.seed)
            if args.spread:
                flushes = spread(flushes, random.Random(args.seed))
            gc.collect()
            gc.freeze()
            connection = CassandraConnection(replace(settings, keyspace=unique_name("flush")), SystemClock(), random.Random(args.seed))
            stack.callback(connection.close)
            migrate(connection, identity, {settings.local_dc: 1})
            stack.callback(connection.query, f"DROP KEYSPACE IF EXISTS {connection.settings.keyspace}")
            store = CassandraStore(connection, identity)
            run(store, flushes, edges, name or "warming up", args.node_pid)
            if name:
                run(store, flushes, edges, "the same once more", args.node_pid)
                reader = CassandraReader(connection, identity)
                subject = flushes[0][0].events.subjects[0]
                read(reader, subject)
    print(f"resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


if __name__ == "__main__":
    main()
