"""Query as a process that tries again where the store is not to be had at first."""

import random
from contextlib import ExitStack
from typing import Any

import pytest

from tests.query.fakes import FakeClock, FakeStore, unavailable
from watertower.config import QuerySettings, ServiceSettings
from watertower.errors import BackendRefused, BackendUnavailable
from watertower.query.process import QueryProcess
from watertower.query.service import QueryService
from watertower.role import Stopping
from watertower.testing.service import free_port


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


def test_a_store_that_looks_damaged_to_a_reader_is_looked_at_again() -> None:
    """Not 3: a supervisor starts it again, and what is damage is refused by that start."""
    role: Any = StubRole()
    store = FakeStore()
    store.broken = BackendRefused("Corruption: half a record")
    service = QueryService(store, store, QuerySettings(), FakeClock(), random.Random(0), store.identity.log.partitions)
    assert QueryProcess(service, ServiceSettings(read_port=free_port()), QuerySettings(), ExitStack()).run(role) == 1
    assert role.said == []
