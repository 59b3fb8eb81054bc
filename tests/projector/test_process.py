"""The projector as a process: ready, alive, stalled, stopping, as its health says."""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import health
from tests.projector.test_projector import LOG, GroupLog, batch
from watertower.backends.rocksdb import RocksDbStore
from watertower.clock import SystemClock
from watertower.codec import encode_batch
from watertower.config import ProjectorSettings, ServiceSettings
from watertower.errors import BackendUnavailable
from watertower.health import ALIVE_INTERVAL_S, HealthServer
from watertower.metrics import projector_samples
from watertower.ports import StoreIdentity
from watertower.projector.process import ProjectorProcess
from watertower.projector.projector import Projector
from watertower.pulse import Pulse
from watertower.role import Stopping
from watertower.testing.service import wait_until


class Word:
    """As much of a role as the process looks at."""

    def __init__(self) -> None:
        self.stopping = Stopping()
        self.said: list[str] = []

    def ready(self, **_: Any) -> None:
        self.said.append("ready")

    def not_ready(self, reason: str) -> None:
        self.said.append(reason)


class Running:
    """A projector in a thread, and where its health is asked."""

    def __init__(self, home: Path, **settings: Any) -> None:
        clock, limits = SystemClock(), ProjectorSettings(**settings)
        self.log, self.role, self.pulse = GroupLog(LOG), Word(), Pulse(clock)
        self.health = HealthServer("127.0.0.1", 0)
        held = ExitStack()
        self.store = RocksDbStore(home / "store", StoreIdentity(LOG, 1), 1 << 22, 1 << 22, 100)
        held.callback(self.store.close)
        self.projector = Projector(self.log, self.store, self.store.feed, limits, clock, random.Random(1), self.pulse)
        self.process = ProjectorProcess(self.projector, ServiceSettings(), limits, clock, held, self.pulse, self.health)
        role: Any = self.role
        self.thread = threading.Thread(target=self.process.run, args=(role,), daemon=True)

    def say(self) -> tuple[str, str]:
        """(ready, alive)"""
        target = f"127.0.0.1:{self.health.port}"
        return health(target), health(target, "alive")


@contextmanager
def running(home: Path, **settings: Any) -> Iterator[Running]:
    one = Running(home, **settings)
    one.health.start()
    one.thread.start()
    try:
        yield one
    finally:
        one.role.stopping.set()
        one.thread.join(30)
        one.health.stop()
        assert not one.thread.is_alive()


def test_a_step_that_hangs_is_not_alive_and_an_answer_of_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready or not has nothing to do with it. While a long flush hears from its store, it is alive; when it hears nothing, it is not."""
    with running(tmp_path, stalled_ms_max=500) as one:
        wait_until(lambda: one.say() == ("SERVING", "SERVING"), "it runs")
        goes_on, real = threading.Event(), one.store.read_touched

        def hangs(keys: Any) -> Any:
            goes_on.wait(60)
            return real(keys)

        monkeypatch.setattr(one.store, "read_touched", hangs)
        one.log.append(0, encode_batch(batch("a")), 1)
        wait_until(lambda: one.say() == ("SERVING", "NOT_SERVING"), "it hangs")
        one.pulse.beat(30.0)  # as the store's answers would, for so long
        wait_until(lambda: one.say() == ("SERVING", "SERVING"), "something is heard of it")
        one.pulse.beat()
        wait_until(lambda: one.say() == ("SERVING", "NOT_SERVING"), "it hangs again")
        goes_on.set()
        wait_until(lambda: one.say() == ("SERVING", "SERVING"), "it goes on")
        assert one.projector.counters.events == 1


def test_an_engine_that_is_away_does_not_make_it_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits longer between two attempts than it may stall, and is alive: a restart would not help."""
    with running(tmp_path, stalled_ms_max=500, retry_base_ms=3_600_000, retry_cap_ms=3_600_000) as one:
        wait_until(lambda: one.say() == ("SERVING", "SERVING"), "it runs")

        def away(*_: Any) -> Any:
            raise BackendUnavailable("away")

        monkeypatch.setattr(one.store, "read_touched", away)
        one.log.append(0, encode_batch(batch("a")), 1)
        wait_until(lambda: one.projector.counters.failures == 1, "it fails")
        wait_until(lambda: one.pulse.age_s() < -60.0, "it waits for longer than a minute")
        looked = threading.Event()
        with one.health.alive_where(lambda: looked.set() or one.pulse.age_s() <= 0.5):  # type: ignore[func-returns-value]
            assert looked.wait(30)  # it has looked since
            assert one.say() == ("SERVING", "SERVING")


def test_an_attempt_to_start_that_failed_is_not_watched_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process waits for the engine then, with another projector to come: nothing of the first one beats."""

    def away() -> Any:
        raise BackendUnavailable("away")

    one = Running(tmp_path, stalled_ms_max=1)
    monkeypatch.setattr(one.projector, "start", away)
    one.health.start()
    try:
        with pytest.raises(BackendUnavailable):
            one.process.run(cast(Any, one.role))
        looked = health_pb2.HealthCheckRequest(service="alive")
        with grpc.insecure_channel(f"127.0.0.1:{one.health.port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(looked, timeout=5 * ALIVE_INTERVAL_S)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError) as ended:  # meanwhile it was looked at several times
                next(watch)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        one.health.stop()


def test_a_partition_that_stops_is_not_ready_and_alive(tmp_path: Path) -> None:
    """A restart would stop it again."""
    with running(tmp_path) as one:
        wait_until(lambda: one.say() == ("SERVING", "SERVING"), "it runs")
        payload = bytearray(encode_batch(batch("a")))
        payload[2] += 1  # of a later version
        one.log.append(1, bytes(payload), 1)
        wait_until(lambda: one.say() == ("NOT_SERVING", "SERVING"), "it is not ready")
        samples = {(name, labels): value for name, labels, value in projector_samples(one.projector, SystemClock())}
        assert samples["watertower_projector_partitions_owned", ()] == 2
        assert samples["watertower_projector_partitions_stopped", ()] == 1


def test_while_it_drains_it_is_not_ready_and_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at readiness sends nobody there; what looks at life does not kill it before it is done."""
    with running(tmp_path) as one:
        wait_until(lambda: one.say() == ("SERVING", "SERVING"), "it runs")
        goes_on, real = threading.Event(), one.projector.close

        def held() -> None:
            goes_on.wait(60)
            real()

        monkeypatch.setattr(one.projector, "close", held)
        one.role.stopping.set()
        wait_until(lambda: one.say() == ("NOT_SERVING", "SERVING"), "it drains")
        goes_on.set()
    assert one.role.said == ["ready", "stopping"]


def test_lag_is_what_the_log_has_and_the_store_has_not(tmp_path: Path) -> None:
    """By partition, as of the last look; what is let go of is not said any more."""
    one = Running(tmp_path)
    one.projector.start()
    for actor in "abc":
        one.log.append(0, encode_batch(batch(actor)), 1)
    assert one.projector.behind() == one.projector.lag == {0: 3, 1: 0}
    one.projector.step()
    one.projector.behind()
    assert one.projector.lag == {0: 0, 1: 0}
    samples = {(name, labels): value for name, labels, value in projector_samples(one.projector, SystemClock())}
    assert samples["watertower_projector_events_applied_total", ()] == 3
    assert samples["watertower_projector_lag_records", ("0",)] == 0
    flushes: Any = samples["watertower_projector_flush_duration_seconds", ()]
    assert sum(flushes.counts) == 1
    one.log.assigned = frozenset({1})
    one.projector.step()
    assert one.projector.lag == {1: 0}
    assert set(one.projector.as_of) == {1}
    one.store.close()
