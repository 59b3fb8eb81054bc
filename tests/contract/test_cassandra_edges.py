"""Which rows of actors' partitions one statement asks for."""

import random
from collections.abc import Collection
from typing import Any

import pytest

from watertower.backends.cassandra_edges import ActorRows, own_shards
from watertower.backends.cassandra_statements import OWN_COUNTS
from watertower.core.model import ACTOR_METRIC, EdgeKey, Kind, ShardKey


class Asking(ActorRows):
    """Says what would be asked, instead of asking."""

    def __init__(self) -> None:
        pass

    def _asking(self, actors: Collection[str], rows: Collection[Any], consistency: int | None) -> Any:
        return set(actors), set(rows)


@pytest.mark.parametrize("seed", range(50))
def test_an_edge_is_asked_for_with_the_count_that_it_moved(seed: int) -> None:
    """Of every actor of a statement, also of one that was to be asked for another edge: it may have this one as well."""
    rng = random.Random(seed)
    keys: list[EdgeKey] = [
        (f"a{rng.randrange(60)}", int(rng.choice([Kind.FOLLOW, Kind.LIKE])), f"s{rng.randrange(6)}", "") for _ in range(200)
    ]
    keys += [("loud", int(Kind.LIKE), f"post{n}", "") for n in range(rng.choice([0, 250]))]
    edges: dict[EdgeKey, ShardKey] = own_shards(keys, 8)
    shard_of = {actor: shard for actor, _, shard in edges.values()}
    asked: set[EdgeKey] = set()
    for actors, rows in Asking()._statements(edges, set(edges.values()), None):
        for actor in actors:
            for kind, subject, ref in rows:
                if kind != OWN_COUNTS:
                    assert (OWN_COUNTS, str(ACTOR_METRIC[kind]), str(shard_of[actor])) in rows
                    asked.add((actor, kind, subject, ref))
    assert asked >= set(keys)
