"""Reading an actor's partition: edges, and the actor's own counts, by the same statement.

An edge and the own count that it moved are one mutation of one partition: a replica has both or neither. A flush that broke off may have
left them on one replica alone. A quorum read that meets that replica repairs the other one, but only the rows that it asked for: one that
asked for the edge alone would leave a replica with an edge and without its count, and a later quorum of that replica and the third one
would show the edge ahead of the count; a replay would then skip what the count never got. So whoever reads edges asks for the own counts
in the same breath. Where that cannot be done (further pages of a long partition), and should an edge be found ahead of its count all the
same, all replicas are asked: the one that took the mutation has the count, and the read repairs the others. If it does not answer, the
flush waits.
"""

from collections.abc import Collection, Iterator, Mapping

from watertower.backends import cells
from watertower.backends.cassandra_connection import ALL, CassandraConnection
from watertower.backends.cassandra_requests import Statement
from watertower.backends.cassandra_statements import OWN_COUNTS, EdgeRow, encode_rows, encode_texts
from watertower.core.model import ACTOR_METRIC, NO_SHARD, Edge, EdgeKey, Shard, ShardKey
from watertower.core.sharding import partition_of
from watertower.errors import BackendUnavailable

READ_ROWS_MAX = 400
"""Rows that one statement asks for, which asks each of its actors for the same ones: 200 actors of a surge, each with the edge to the star
and a count; or 19 actors, each with an edge of its own and those of the eighteen others, which costs less than 19 statements."""

READ_KEYS_MAX = 100
"""Edges of one actor that one statement asks for."""


def own_shards(edges: Collection[EdgeKey], partitions: int) -> dict[EdgeKey, ShardKey]:
    """Which own count each edge moves."""
    return {key: (key[0], ACTOR_METRIC[key[1]], partition_of(key[0], partitions)) for key in edges}


class ActorRows:
    """Reads actors' partitions of the table `edges`."""

    def __init__(self, connection: CassandraConnection) -> None:
        self._connection = connection
        self._select = connection.prepare(
            "SELECT actor, kind, subject, ref, cell FROM {keyspace}.edges WHERE actor IN ? AND (kind, subject, ref) IN ?"
        )

    def read(self, edges: Mapping[EdgeKey, ShardKey], own: Collection[ShardKey]) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        """Of the edges and own counts those that exist. `edges` says which own count each edge moved; `own` has all of those, at least."""
        found, shards = self._read(edges, own)
        behind = {edges[key][0] for key, edge in found.items() if edge.offset > shards.get(edges[key], NO_SHARD).offset}
        if behind:
            now = self._ask_all({key: of for key, of in edges.items() if key[0] in behind}, [key for key in own if key[0] in behind])
            found.update(now[0])
            shards.update(now[1])
        return found, shards

    def settle(self, changed_at: Mapping[ShardKey, int]) -> None:
        """To be called with own counts and the offsets of edges that moved them, after those edges were read without the counts."""
        shards = self._read({}, changed_at)[1]
        behind = [key for key, offset in changed_at.items() if offset > shards.get(key, NO_SHARD).offset]
        if behind:
            self._ask_all({}, behind)

    def _ask_all(self, edges: Collection[EdgeKey], own: Collection[ShardKey]) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        """Reads from every replica, which repairs them."""
        try:
            return self._read(edges, own, consistency=ALL)
        except BackendUnavailable as error:
            raise BackendUnavailable(f"an edge is ahead of its actor's count; waiting for every replica of it: {error}") from error

    def _read(
        self, edges: Collection[EdgeKey], own: Collection[ShardKey], consistency: int | None = None
    ) -> tuple[dict[EdgeKey, Edge], dict[ShardKey, Shard]]:
        found: dict[EdgeKey, Edge] = {}
        shards: dict[ShardKey, Shard] = {}
        for rows in self._connection.run(self._statements(edges, own, consistency)):
            for actor, kind, subject, ref, cell in rows:
                if kind != OWN_COUNTS:
                    if (actor, kind, subject, ref) in edges:  # it may be the row that another actor of the statement was asked for
                        found[actor, kind, subject, ref] = cells.decode_edge(cell)
                    continue
                # An actor with many edges is read in several statements, each with the counts: the newest is right for all of them.
                key, shard = (actor, int(subject), int(ref)), cells.decode_shard(cell)
                if shard.offset > shards.get(key, NO_SHARD).offset:
                    shards[key] = shard
        return found, shards

    def _statements(self, edges: Collection[EdgeKey], own: Collection[ShardKey], consistency: int | None) -> Iterator[Statement]:
        by_actor: dict[str, list[EdgeRow]] = {}
        for actor, metric, shard in own:
            by_actor.setdefault(actor, []).append((OWN_COUNTS, str(metric), str(shard)))
        counts = {actor: len(rows) for actor, rows in by_actor.items()}
        for actor, kind, subject, ref in edges:
            by_actor[actor].append((kind, subject, ref))
        # Only actors whose own counts are of the same shards go into one statement: each is asked for the rows of all of them, and where it
        # has another one's edge, the row of the count that this edge moved must be among those.
        by_shards: dict[frozenset[str], dict[tuple[EdgeRow, ...], list[str]]] = {}
        for actor, rows in by_actor.items():
            shards = frozenset(ref for _, _, ref in rows[: counts[actor]])
            by_shards.setdefault(shards, {}).setdefault(tuple(rows), []).append(actor)
        for actors_by_rows in by_shards.values():
            yield from self._packed(actors_by_rows, counts, consistency)

    def _packed(
        self, actors_by_rows: Mapping[tuple[EdgeRow, ...], list[str]], counts: Mapping[str, int], consistency: int | None
    ) -> Iterator[Statement]:
        """Few statements for many actors, by the rows that they are asked for."""
        packed: list[str] = []
        asked: dict[EdgeRow, None] = {}
        for wanted, actors in actors_by_rows.items():
            if len(wanted) > READ_KEYS_MAX:  # few have so many
                for actor in actors:
                    of_edges = wanted[counts[actor] :]
                    for at in range(0, max(len(of_edges), 1), READ_KEYS_MAX):
                        yield self._asking([actor], [*wanted[: counts[actor]], *of_edges[at : at + READ_KEYS_MAX]], consistency)
                continue
            new = 0 if asked.keys() >= set(wanted) else len(asked.keys() | set(wanted))
            for actor in actors:
                if packed and (len(packed) + 1) * (new or len(asked)) > READ_ROWS_MAX:
                    yield self._asking(packed, asked, consistency)
                    packed, asked, new = [], {}, len(wanted)
                packed.append(actor)
                if new:
                    asked.update(dict.fromkeys(wanted))
                    new = 0
        if packed:
            yield self._asking(packed, asked, consistency)

    def _asking(self, actors: Collection[str], rows: Collection[EdgeRow], consistency: int | None) -> Statement:
        statement = self._select.bind(())
        statement.values = [encode_texts(actors), encode_rows(rows)]  # at a fifth of the price of the driver's own
        statement.consistency_level = consistency
        return statement
