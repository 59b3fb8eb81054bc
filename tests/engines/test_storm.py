"""Everything is killed, frozen and restarted under load: nothing acknowledged is lost, nothing counts twice."""

import random
from pathlib import Path

import pytest

from tests.calls import CLOCK, wait_visible
from tests.engines.nemesis import Nemesis
from tests.engines.roles import Roles
from tests.expected import assert_reader_equals, assert_store_equals
from tests.traffic import Readers, World, Writers
from watertower.testing.engines import CassandraEngine, KafkaEngine

DRAINED_S = 120.0
"""Seconds after the last fault in which the readers must include everything acknowledged."""


@pytest.mark.slow
def test_a_slice_of_the_storm(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path, rng: random.Random) -> None:
    storm(own_kafka, own_cassandra, tmp_path, rng, kills=3, zombies=1)


def storm(log: KafkaEngine, store: CassandraEngine, folder: Path, rng: random.Random, *, kills: int, zombies: int) -> None:
    world = World()
    with Roles(log, store, folder, projectors=3, ingests=2, queries=2, settings={"query_cache_age_ms_max": 2_000}) as roles:
        roles.prepare()
        roles.start()
        started_s = CLOCK.monotonic_s()
        with (
            Writers(roles.write_target, 4, rng, world, pause_s=0.05) as writers,
            Readers(roles.queries[0].read_target, 1, rng, world) as some,
            Readers(roles.queries[1].read_target, 1, rng, world) as others,
        ):
            nemesis = Nemesis(roles, writers, rng)
            nemesis.run(kills=kills, zombies=zombies, nodes={"broker": log.nodes[0], "node": store.nodes[0]})
            expected = writers.finish()
            stormed_s = CLOCK.monotonic_s() - started_s
            drain_s = CLOCK.monotonic_s()
            for query in roles.queries:
                wait_visible(query.read_target, expected.ends, DRAINED_S)
            drain_s = CLOCK.monotonic_s() - drain_s
            some.finish()
            others.finish()
        print(
            f"{expected.events:,} events acknowledged in {stormed_s:.0f} s, {writers.repeated} calls repeated, drained in {drain_s:.1f} s; "
            f"{dict(sorted(nemesis.done.items()))}; {some.answers + others.answers:,} reads answered, {some.failures + others.failures} not"
        )
        for query in roles.queries:
            assert_reader_equals(query.read_target, world.entities, expected)
        roles.assert_none_ended()
        roles.stop()
        roles.assert_nothing_is_wrong()
    assert_store_equals(roles.settings, expected)
