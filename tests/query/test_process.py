"""Query as a process that tries again where the store is not to be had at first."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.query.fakes import FakeClock, FakeStore, unavailable
from watertower.config import QuerySettings, ServiceSettings
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.health import ALIVE, HealthServer, is_serving
from watertower.query.process import QueryProcess
from watertower.query.service import QueryService
from watertower.query.warm import WarmList
from watertower.role import Stopping
from watertower.testing.service import free_port, wait_until


class StubRole:
    """Tells the process to stop as soon as it is ready."""

    def __init__(self) -> None:
        self.stopping = Stopping()
        self.said: list[str] = []

    def ready(self, **fields: Any) -> None:
        self.said.append(f"ready at {fields['address']}")
        self.stopping.set()

    def not_ready(self, reason: str) -> None:
        self.said.append(reason)


def test_an_attempt_that_fails_leaves_the_port_to_the_next() -> None:
    """On a fixed port, in one process: the next attempt serves, and ends when it is told to."""
    role: Any = StubRole()
    settings = ServiceSettings(read_port=free_port())
    limits = QuerySettings()
    store = FakeStore()

    def attempt() -> int:
        service = QueryService(store, store, limits, FakeClock(), random.Random(0), store.identity.log.partitions)
        return QueryProcess(service, settings, limits, ExitStack()).run(role)

    store.broken = unavailable()
    with pytest.raises(BackendUnavailable):
        attempt()
    assert role.said == []
    store.broken = None
    assert attempt() == 0
    assert role.said == [f"ready at 127.0.0.1:{settings.read_port}", "stopping"]


def test_a_process_that_warms_up_is_alive_and_not_ready(tmp_path: Path) -> None:
    """For as long as that takes, on the port on which it then serves: a probe that heard nothing would end it."""
    role: Any = StubRole()
    port, limits, store = free_port(), QuerySettings(), FakeStore()
    warm = WarmList(tmp_path / "warm", 1, structlog.get_logger())
    warm.write(["star"])
    service = QueryService(store, store, limits, FakeClock(), random.Random(0), store.identity.log.partitions)
    stand_in, target = HealthServer("127.0.0.1", port), f"127.0.0.1:{port}"
    process = QueryProcess(service, ServiceSettings(read_port=port), limits, ExitStack(), warm, stand_in=stand_in)

    def look() -> tuple[bool, bool]:
        try:
            wait_until(lambda: store.reads, "it warms up")
            return is_serving(target, 5.0, ALIVE), is_serving(target, 5.0)
        finally:
            store.open.set()

    store.open.clear()
    with ThreadPoolExecutor(1) as other:
        looked = other.submit(look)
        assert process.run(role) == 0
        assert looked.result() == (True, False)
    assert role.said == [f"ready at {target}", "stopping"]


def test_a_store_that_looks_damaged_to_a_reader_is_looked_at_again() -> None:
    """Not 3: a supervisor starts it again, and what is damage is refused by that start."""
    role: Any = StubRole()
    store = FakeStore()
    store.broken = BackendRefused("Corruption: half a record")
    service = QueryService(store, store, QuerySettings(), FakeClock(), random.Random(0), store.identity.log.partitions)
    assert QueryProcess(service, ServiceSettings(read_port=free_port()), QuerySettings(), ExitStack()).run(role) == 1
    assert role.said == []
