"""An engine goes away under a running service and comes back: what is promised meanwhile, and that nobody has to restart anything."""

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.calls import CLOCK, counts_request, follow, health, read_counts, reading, record, refusal, wait_visible, writing
from tests.engines.roles import READY_S, Roles
from tests.expected import Expected, assert_store_equals
from tests.traffic import World, Writers
from watertower.testing.engines import CassandraEngine, KafkaEngine, Node
from watertower.testing.service import Service, wait_until

# The rows are recounted in this process, and what Cassandra's driver leaves open the collector closes.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")

CAUGHT_UP_S = 120.0
"""Seconds in which a service is fresh again after its engine has come back. (Five of them are the longest pause between two attempts.)"""

AWAY_S = 60.0
AWAY_SLICE_S = 15.0
"""Seconds without the engine: as promised, and a part of it that `make test` has time for."""

STALE_AFTER_MS = 3_000

CALL_S = 4.0
"""Deadline of the callers here: shorter than the ingest's own patience with the log."""

AWAY = [
    pytest.param(AWAY_SLICE_S, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    pytest.param(AWAY_S, marks=[pytest.mark.storm, pytest.mark.timeout(900)]),
]

UNKNOWN_EVERY = 5
"""Reads from memory for one of what is not there."""

WRITER_PAUSE_S = 0.2
"""Between two calls of a writer: what is not applied meanwhile must not be what is waited for afterwards."""

WAYS = ("killed", "frozen")


@contextlib.contextmanager
def away(node: Node, way: str) -> Iterator[None]:
    """A node is away within: nobody listens, or what listens does not answer."""
    if way == "killed":
        node.kill()
        try:
            yield
        finally:
            node.start()
    else:
        node.pause()
        try:
            yield
        finally:
            node.resume()


@contextlib.contextmanager
def running(log: KafkaEngine, store: CassandraEngine, folder: Path, **settings: object) -> Iterator[Roles]:
    """One process of each role; the same at the end as at the beginning."""
    with Roles(log, store, folder, settings={"query_stale_after_ms": STALE_AFTER_MS, **settings}) as roles:
        roles.prepare()
        roles.start()
        yield roles
        roles.assert_none_ended()
        roles.stop()
        roles.assert_nothing_is_wrong()


def outcome(call: Callable[[], Any]) -> tuple[str, str, bool, float]:
    """(status, reason, whether it says when to come back, seconds it took) of one call; ("OK", "", False, seconds) when it is answered."""
    started_s = CLOCK.monotonic_s()
    try:
        call()
    except grpc.RpcError as error:
        reason, retry_s = refusal(error)
        return error.code().name, reason, retry_s is not None, CLOCK.monotonic_s() - started_s
    return "OK", "", False, CLOCK.monotonic_s() - started_s


def counts_of(stub: Any, entities: list[str]) -> Any:
    """One answer with counts."""
    return stub.BatchGetCounts(counts_request(entities), timeout=CALL_S)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("away_s", AWAY)
def test_kafka_away(
    away_s: float, way: str, own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path, rng: random.Random
) -> None:
    """Writes are refused within the caller's deadline and told when to come back; reads go on, from the store too, and say that they are
    stale. When Kafka is back, so are the writes, and everything that was acknowledged is there."""
    world = World()
    with running(own_kafka, own_cassandra, tmp_path) as roles, contextlib.ExitStack() as calls:
        writer = calls.enter_context(writing(roles.write_target))
        reader = calls.enter_context(reading(roles.queries[0].read_target))
        with Writers(roles.write_target, 2, rng, world, pause_s=WRITER_PAUSE_S) as writers:
            wait_until(partial(writers.acknowledged_more_than, 500), "events are acknowledged", CAUGHT_UP_S)
            wait_until(lambda: outcome(partial(read_counts, reader, world.entities[:20]))[0] == "OK", "counts are in memory", CAUGHT_UP_S)
            with away(own_kafka.nodes[0], way):
                until_s = CLOCK.monotonic_s() + away_s
                refused = answered = 0
                stale = False
                while CLOCK.monotonic_s() < until_s:
                    status, reason, told, took_s = outcome(lambda: record(writer, [follow("nobody", "nothing")], CALL_S))
                    assert (status, reason, told) == ("UNAVAILABLE", "LOG_UNAVAILABLE", True), took_s
                    assert took_s < CALL_S
                    refused += 1
                    entities = [*world.entities[:20], f"new-{answered}"]
                    stale = counts_of(reader, entities).freshness.stale
                    answered += 1
                assert stale, "answers do not say that they are stale"
            acknowledged = writers.acknowledged
            wait_until(partial(writers.acknowledged_more_than, acknowledged), "events are acknowledged again", CAUGHT_UP_S)
            expected = writers.finish()
        # Nobody knows whether the record of a call that was refused is in the log, so it is said once more, and then it is.
        events = [follow("nobody", "nothing")]
        expected.take(events, record(writer, events))
        recovered_s = fresh_again(roles.queries[0], expected)
        print(
            f"Kafka {way} for {away_s:g} s: {refused} writes refused, and {dict(writers.refusals)} of others; {answered} reads "
            f"answered, {expected.events} events acknowledged, fresh again after {recovered_s:.1f} s"
        )
        roles.assert_answers_equal(world.entities, expected)
    assert_store_equals(roles.settings, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("away_s", AWAY)
def test_cassandra_away(
    away_s: float, way: str, own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path, rng: random.Random
) -> None:
    """Writes go on being acknowledged; reads of what is in memory go on and say that they are stale, others are refused and told when to
    come back. When Cassandra is back, the projector catches up by itself."""
    world = World()
    subjects = [f"s{number}" for number in range(20)]
    with (
        running(own_kafka, own_cassandra, tmp_path, query_cache_age_ms_max=5_000) as roles,
        contextlib.ExitStack() as calls,
        Writers(roles.write_target, 2, rng, world, pause_s=WRITER_PAUSE_S) as writers,
    ):
        reader = calls.enter_context(reading(roles.queries[0].read_target))
        wait_until(partial(writers.acknowledged_more_than, 500), "events are acknowledged", CAUGHT_UP_S)
        known = counts_of(reader, subjects)
        with away(own_cassandra.nodes[0], way):
            started_s = CLOCK.monotonic_s()
            before, refusals = writers.acknowledged, writers.refusals.total()
            answered = refused = 0
            freshness = known.freshness
            while CLOCK.monotonic_s() < started_s + away_s:
                answer = counts_of(reader, subjects)
                freshness = answer.freshness
                answered += 1
                if answered % UNKNOWN_EVERY == 0:
                    status, reason, told, took_s = outcome(partial(read_counts, reader, [f"new-{answered}"]))
                    assert (status, reason, told) == ("UNAVAILABLE", "STORE_UNAVAILABLE", True), took_s
                    refused += 1
                CLOCK.sleep(0.2)
            during = writers.acknowledged - before
            assert freshness.stale, "answers from memory do not say that they are stale"
            assert during > 0, "nothing was acknowledged"
            assert writers.refusals.total() == refusals, f"writes were refused: {dict(writers.refusals)}"
        expected = writers.finish()
        recovered_s = fresh_again(roles.queries[0], expected)
        print(
            f"Cassandra {way} for {away_s:g} s: {during} events acknowledged meanwhile, {answered} reads answered from memory, {refused} "
            f"others refused, fresh again after {recovered_s:.1f} s"
        )
        roles.assert_answers_equal(world.entities, expected)
    assert_store_equals(roles.settings, expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines_that_come_late(own_kafka: KafkaEngine, own_cassandra: CassandraEngine, tmp_path: Path) -> None:
    """A role that is started before its engines goes on trying, is not ready, and says in its log what it waits for."""
    with Roles(own_kafka, own_cassandra, tmp_path) as roles:
        roles.prepare()
        with away(own_cassandra.nodes[0], "killed"), away(own_kafka.nodes[0], "killed"):
            for role in roles:
                role.start(ready=False)
            for role in roles.ingests:
                waits_for(role, f"Kafka at {own_kafka.bootstrap_servers}")
            for role in (*roles.projectors, *roles.queries):
                waits_for(role, f"Cassandra at {own_cassandra.contact_points}")
        roles.wait_ready()
        with away(own_kafka.nodes[0], "killed"):
            for role in (*roles.projectors, *roles.queries):
                assert role.stop() == 0
                role.start(ready=False)
                waits_for(role, f"Kafka at {own_kafka.bootstrap_servers}")
        roles.wait_ready()
        with writing(roles.write_target) as writer:
            position = record(writer, [follow("ann", "star")])
        wait_visible(roles.queries[0].read_target, position.offsets)
        roles.stop()


def waits_for(role: Service, what: str) -> None:
    """Waits until a role has said more than once that it waits for it; it is not ready, and says so."""

    def says() -> bool:
        return sum(event["reason"].startswith("waiting: ") and what in event["reason"] for event in role.events("not_ready")) > 1

    wait_until(says, f"{role.command} says that it waits for {what}", READY_S)
    assert not role.events("ready")
    assert role.process is not None
    assert role.process.poll() is None
    if role.command != "projector":
        assert health(role.write_target if role.command == "ingest" else role.read_target) == "NOT_SERVING"


def fresh_again(query: Service, expected: Expected) -> float:
    """Waits until the reader includes everything and no longer says that it is stale. Seconds that it took."""
    started_s = CLOCK.monotonic_s()
    wait_visible(query.read_target, expected.ends, CAUGHT_UP_S)
    with reading(query.read_target) as stub:
        wait_until(lambda: not counts_of(stub, ["s0"]).freshness.stale, "answers are fresh again", CAUGHT_UP_S)
    return CLOCK.monotonic_s() - started_s
