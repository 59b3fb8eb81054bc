"""The same follows twice on one Cassandra: by the projector's flush, and by native counter columns with a table of edges.

    python -m benchmarks.cassandra_counters [--edges 60000] [--piece 5000] [--in-flight 64] [--spread] [--seed 1]

The native way is what one would write first: for each follow an edge is inserted and two counters go up, the follower's and the
followed's, by prepared statements, many on their way at once, all at LOCAL_QUORUM. It knows no list in order of time, and a follow that is
sent twice, or retried after a timeout (as is done here, too), counts twice.
The two take turns, a piece of the follows each, on one node on the same cores.
"""

import argparse
import gc
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.cassandra_flush import spread
from benchmarks.flush import batches
from watertower.backends.cassandra import CassandraConnection, CassandraSettings, CassandraStore, migrate
from watertower.clock import SystemClock
from watertower.core.fold import fold, touched
from watertower.core.model import Record
from watertower.ports import LogIdentity, StoreIdentity
from watertower.testing.engines import cassandra, unique_name

PARTITIONS = 16
WARM_PIECES = 4


class Native:
    """Edges and counters."""

    def __init__(self, connection: CassandraConnection) -> None:
        self._connection = connection
        keyspace = connection.settings.keyspace
        for table in (
            "native_edges (actor text, subject text, occurred_at bigint, PRIMARY KEY (actor, subject))",
            "native_counts (entity text, metric tinyint, value counter, PRIMARY KEY (entity, metric))",
        ):
            connection.query(f"CREATE TABLE {keyspace}.{table}")
        self._edge = connection.prepare("INSERT INTO {keyspace}.native_edges (actor, subject, occurred_at) VALUES (?, ?, ?)")
        self._count = connection.prepare("UPDATE {keyspace}.native_counts SET value = value + 1 WHERE entity = ? AND metric = ?")

    def apply(self, records: list[Record]) -> None:
        """Follows, one after the other on their way."""
        self._connection.run(self._statements(records))

    def _statements(self, records: list[Record]) -> Iterator[Any]:
        for record in records:
            events = record.events
            for actor, subject, at in zip(events.actors, events.subjects, events.occurred_at, strict=True):
                yield self._edge.bind((actor, subject, at))
                yield self._count.bind((subject, 1))
                yield self._count.bind((actor, 2))

    def counted(self, entity: str) -> int:
        """Its followers."""
        query = f"SELECT value FROM {self._connection.settings.keyspace}.native_counts WHERE entity = '{entity}' AND metric = 1"
        return int(self._connection.query(query)[0][0])


def flush(store: CassandraStore, records: list[Record]) -> None:
    """As the projector does it."""
    keys = touched(records)
    edges, shards = store.read_touched(keys)
    written = fold(records, edges, shards)
    store.write_derived(written.shards, written.lists)
    store.write_edges(written.edges)
    store.write_progress(written.progress)
    store.sync()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=60_000)
    parser.add_argument("--piece", type=int, default=5_000)
    parser.add_argument("--in-flight", type=int, default=64, help="statements of the native way that are on their way at once")
    parser.add_argument("--spread", action="store_true", help="as many subjects as actors, in place of one")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    pieces = batches(args.edges + WARM_PIECES * args.piece, args.piece, PARTITIONS, args.seed)
    if args.spread:
        pieces = spread(pieces, rng)
    gc.collect()
    gc.freeze()
    identity = StoreIdentity(LogIdentity("benchmark", PARTITIONS), 1)
    with cassandra() as engine:
        host, _, port = engine.contact_points.rpartition(":")
        settings = CassandraSettings(contact_points=(host,), port=int(port), keyspace=unique_name("counters"))
        ours = CassandraConnection(settings, SystemClock(), rng)
        theirs = CassandraConnection(replace(settings, requests_in_flight_max=args.in_flight), SystemClock(), rng)
        try:
            migrate(ours, identity, {settings.local_dc: 1})
            store, native = CassandraStore(ours, identity), Native(theirs)
            ways = {"watertower": lambda records: flush(store, records), "native counters": native.apply}
            took: dict[str, list[float]] = {name: [] for name in ways}
            for number, records in enumerate(pieces):
                for name in sorted(ways, reverse=bool(number % 2)):
                    began = time.perf_counter()
                    ways[name](records)
                    took[name].append(time.perf_counter() - began)
            rates = {name: args.edges / sum(seconds[WARM_PIECES:]) for name, seconds in took.items()}
            for name, rate in rates.items():
                rounds = [args.piece / seconds for seconds in took[name][WARM_PIECES:]]
                print(f"{name}: {rate:,.0f} follows/s ({min(rounds):,.0f} to {max(rounds):,.0f} in {len(rounds)} rounds)")
            print(f"ratio {rates['watertower'] / rates['native counters']:.1f}")
            if not args.spread:
                print(f"the native counter says {native.counted('star'):,} of {args.edges + WARM_PIECES * args.piece:,}")
        finally:
            theirs.close()
            ours.close()


if __name__ == "__main__":
    main()
