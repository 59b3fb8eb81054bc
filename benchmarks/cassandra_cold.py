"""Cold reads of profiles from Cassandra: how many a query process can do, and what the layout of the counts has to do with it.

    python -m benchmarks.cassandra_cold [--entities 5000] [--shards 8 64] [--turns 5] [--in-flight 32] [--seed 1]

Three ways take turns on one node on the same cores, each reading the same profiles with as many shards: the product's `read_entities`
(a row per shard, and the actor's own counts in the partition of its edges), the rows per shard alone, and a map of shards in one row,
a cell each, as the design first had it.
"""

import argparse
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

from watertower.backends import cells
from watertower.backends.cassandra import CassandraConnection, CassandraReader, CassandraSettings, migrate
from watertower.clock import SystemClock
from watertower.core.model import Shard
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.engines import cassandra, unique_name

PARTITIONS = 64
PIECE = 100
"""Entities that one load reads, as the query process does."""


def filled(connection: CassandraConnection, entities: list[str], shards: int) -> tuple[Any, Any]:
    """Writes every profile in both layouts; the statements that read one."""
    table = "maps (entity text, metric tinyint, shards map<smallint, blob>, PRIMARY KEY ((entity), metric))"
    connection.query(f"CREATE TABLE IF NOT EXISTS {connection.settings.keyspace}.{table}")
    row = connection.prepare("INSERT INTO {keyspace}.counts (entity, metric, shard, cell) VALUES (?, 1, ?, ?) USING TIMESTAMP ?")
    cell = connection.prepare("UPDATE {keyspace}.maps USING TIMESTAMP ? SET shards[?] = ? WHERE entity = ? AND metric = 1")
    at = 2**52
    for number, entity in enumerate(entities):
        encoded = cells.encode_shards(Shard(number, number, (), number + shard) for shard in range(shards))
        connection.run(row.bind((entity, shard, data, at)) for shard, data in enumerate(encoded))
        connection.run(cell.bind((at, shard, data, entity)) for shard, data in enumerate(encoded))
    return (
        connection.prepare("SELECT metric, shard, cell FROM {keyspace}.counts WHERE entity = ?"),
        connection.prepare("SELECT metric, shards FROM {keyspace}.maps WHERE entity = ?"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=5_000)
    parser.add_argument("--shards", type=int, nargs="*", default=[8, 64])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=CassandraSettings.requests_in_flight_max)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    identity = StoreIdentity(LogIdentity("benchmark", PARTITIONS), 1)
    with ExitStack() as stack:
        host, _, port = stack.enter_context(cassandra()).contact_points.split(",")[0].rpartition(":")
        settings = CassandraSettings(contact_points=(host,), port=int(port), requests_in_flight_max=args.in_flight)
        for shards in args.shards:
            connection = CassandraConnection(replace(settings, keyspace=unique_name("cold")), SystemClock(), random.Random(args.seed))
            stack.callback(connection.close)
            migrate(connection, identity, {settings.local_dc: 1})
            entities = [f"profile-{number:06d}" for number in range(args.entities * 8 // shards)]
            by_row, by_map = filled(connection, entities, shards)
            reader = CassandraReader(connection, identity)

            def rows(some: list[str], connection: CassandraConnection = connection, statement: Any = by_row) -> int:
                found = connection.run(statement.bind((entity,)) for entity in some)
                return sum(len({(metric, shard): cells.decode_shard(cell) for metric, shard, cell in of}) for of in found)

            def maps(some: list[str], connection: CassandraConnection = connection, statement: Any = by_map) -> int:
                found = connection.run(statement.bind((entity,)) for entity in some)
                return sum(
                    len({(metric, shard): cells.decode_shard(cell) for shard, cell in of_metric.items()})
                    for of in found
                    for metric, of_metric in of
                )

            def product(some: list[str], reader: CassandraReader = reader) -> int:
                return sum(map(len, reader.read_entities(some)))

            ways: dict[str, Callable[[list[str]], int]] = {
                "read_entities": product, "a row per shard": rows, "a map of shards": maps
            }  # fmt: skip
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for turn in range(args.turns + 1):
                random.Random(args.seed + turn).shuffle(entities)
                for name, read in ways.items():
                    began, computed = time.perf_counter(), time.process_time()
                    seen = sum(read(entities[at : at + PIECE]) for at in range(0, len(entities), PIECE))
                    if seen != len(entities) * shards:
                        raise SystemExit(f"{name} saw {seen} shards, not {len(entities) * shards}")
                    if turn:  # the first warms up
                        taken[name].append((time.perf_counter() - began, time.process_time() - computed))
            for name, turns in taken.items():
                per_s = [len(entities) / took for took, _ in turns]
                cpu_us = median(computed for _, computed in turns) / len(entities) * 1e6
                print(f"{shards:2} shards, {name:16} {median(per_s):7,.0f} profiles/s ({min(per_s):,.0f} to {max(per_s):,.0f}), "
                      f"{cpu_us:5.0f} us of this process's CPU each")  # fmt: skip


if __name__ == "__main__":
    main()
