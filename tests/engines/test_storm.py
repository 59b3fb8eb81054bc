"""Everything is killed, frozen and restarted under load: nothing acknowledged is lost, nothing counts twice.

`make test` runs a slice; `make storm` the whole, which takes minutes.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.calls import CLOCK, wait_visible
from tests.engines.nemesis import Fault, Nemesis
from tests.engines.roles import Roles
from tests.expected import assert_store_equals
from tests.traffic import Readers, World, Writers
from watertower.testing.engines import CassandraEngine, KafkaEngine, cassandra, kafka
from watertower.testing.engines.fixtures import engine_or_skip

# The rows are recounted in this process, and what Cassandra's driver leaves open the collector closes.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")

DRAINED_S = 120.0
"""Seconds after the last fault in which the readers must include everything acknowledged."""

EVENTS_MIN = 1_000
"""Fewer are no load."""

WRITERS, WRITER_PAUSE_S = 4, 0.2
"""Callers, and the seconds that each waits between two calls: a backlog must not be what is tested."""

THREE_PAUSE_S = 1.0
"""The same on three nodes each, with what they need themselves of the machine."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slice_of_the_storm(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path, rng: random.Random) -> None:
    """Three SIGKILLs, a zombie, the broker and the node restarted."""

    def faults(nemesis: Nemesis) -> list[Fault]:
        return [*nemesis.kills(3), *nemesis.zombies(1), *restarts(nemesis, own_kafka, own_cassandra)]

    with cluster(own_kafka, own_cassandra, tmp_path) as roles:
        storm(roles, rng, faults)


@pytest.mark.storm
@pytest.mark.timeout(3_600)
def test_the_storm(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path, rng: random.Random) -> None:
    """Twelve SIGKILLs, three zombies, the broker and the node restarted."""

    def faults(nemesis: Nemesis) -> list[Fault]:
        return [*nemesis.kills(12), *nemesis.zombies(3), *restarts(nemesis, own_kafka, own_cassandra)]

    with cluster(own_kafka, own_cassandra, tmp_path) as roles:
        storm(roles, rng, faults)


@pytest.mark.storm
@pytest.mark.timeout(3_600)
def test_the_storm_on_three_nodes_each(tmp_path: Path, rng: random.Random) -> None:
    """Three copies of everything. One broker and one node are killed at the same time, and the service goes on without them; then each
    once more, and three roles and a zombie, in any order."""
    with (
        engine_or_skip(kafka(nodes=3, own=True)) as log,
        engine_or_skip(cassandra(nodes=3, own=True)) as store,
        cluster(log, store, tmp_path) as roles,
    ):
        broker, node = rng.choice(log.nodes), rng.choice(store.nodes)

        def faults(nemesis: Nemesis) -> list[Fault]:
            together = [lambda: nemesis.lose({"broker": broker, "node": node})]
            return [*together, *nemesis.kills(3), *nemesis.zombies(1), *restarts(nemesis, log, store)]

        storm(roles, rng, faults, pause_s=THREE_PAUSE_S)


@contextlib.contextmanager
def cluster(log: KafkaEngine, store: CassandraEngine, folder: Path) -> Iterator[Roles]:
    """Three projectors, two ingests, two query processes; all must end well."""
    with Roles(log, store, folder, projectors=3, ingests=2, queries=2) as roles:
        roles.prepare()
        roles.start()
        yield roles
        roles.assert_nothing_is_wrong()


def restarts(nemesis: Nemesis, log: KafkaEngine, store: CassandraEngine) -> list[Fault]:
    """A broker and a node, each for itself."""
    return [lambda: nemesis.restart("broker", log.nodes[0]), lambda: nemesis.restart("node", store.nodes[0])]


def storm(roles: Roles, rng: random.Random, faults: Callable[[Nemesis], Sequence[Fault]], pause_s: float = WRITER_PAUSE_S) -> None:
    """Load, faults, and when they are over the recount: of every edge, count and list."""
    world = World()
    with contextlib.ExitStack() as load:
        writers = load.enter_context(Writers(roles.write_target, WRITERS, rng, world, pause_s=pause_s))
        readers = [load.enter_context(Readers(query.read_target, 1, rng, world)) for query in roles.queries]
        started_s = CLOCK.monotonic_s()
        nemesis = Nemesis(roles, writers, rng)
        nemesis.run(faults(nemesis))
        expected = writers.finish()
        calm_s = CLOCK.monotonic_s()
        for query in roles.queries:
            wait_visible(query.read_target, expected.ends, DRAINED_S)
        drained_s = CLOCK.monotonic_s()
        for reader in readers:
            reader.finish()
    print(
        f"{expected.events:,} events acknowledged in {calm_s - started_s:.0f} s, drained in {drained_s - calm_s:.1f} s more; "
        f"{', '.join(f'{number} {what}' for what, number in sorted(nemesis.done.items()))}; {writers.repeated} calls repeated; "
        f"{sum(reader.answers for reader in readers):,} reads answered, {sum(reader.failures for reader in readers):,} not"
    )
    assert writers.unacknowledged == 0
    assert expected.events > EVENTS_MIN, "the load was no load"
    roles.assert_answers_equal(world.entities, expected)
    roles.assert_none_ended()
    roles.stop()
    assert_store_equals(roles.settings, expected)
