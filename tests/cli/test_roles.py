"""How a role ends: the exit code and the line of its log."""

import math
import threading
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.cli.conftest import Watertower
from watertower import bootstrap, logs, role
from watertower.errors import BackendRefused, BackendUnavailable, StartRefused
from watertower.role import EXIT_REFUSED


class FakeRole(role.Role):
    """A role without its hold on the process: no signals, no niceness, no threads."""

    gc_thresholds: tuple[int, int, int]

    def __init__(self, niceness: int, gc_thresholds: tuple[int, int, int]) -> None:
        FakeRole.gc_thresholds = gc_thresholds
        self._logger = structlog.get_logger("watertower.role")
        self._stop_callbacks = []
        self._notify_fd = None
        self.stopping = threading.Event()


class Process:
    """What a role builds; each run ends with the next of `ends`."""

    def __init__(self, ends: list[Exception | int]) -> None:
        self.ends = ends

    def run(self, role: role.Role) -> int:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Exception | int]:
    ends: list[Exception | int] = []
    monkeypatch.setattr(role, "Role", FakeRole)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    for name in ("ingest", "projector", "query"):
        monkeypatch.setattr(bootstrap, name, lambda settings, health: Process(ends))
    monkeypatch.setattr(bootstrap, "health", lambda name, settings: None)
    return ends


@pytest.mark.parametrize("name", ["ingest", "projector", "query"])
@pytest.mark.parametrize("error", [StartRefused("another log"), BackendRefused("the store is damaged")])
def test_what_a_role_refuses_ends_it_with_3(watertower: Watertower, ends: list[Any], name: str, error: Exception) -> None:
    """At its start or while it runs: a supervisor must not start it again. Its log says why, in a line to alert on."""
    ends.append(error)
    with capture_logs() as lines:
        result = watertower(name)
    assert result.code == EXIT_REFUSED
    assert [line for line in lines if line["event"] == "refused"] == [{"event": "refused", "log_level": "error", "reason": str(error)}]


def test_a_role_waits_for_what_it_needs(watertower: Watertower, ends: list[Any]) -> None:
    """What may come by itself is waited for; then the role runs and ends with its own code."""
    ends += [BackendUnavailable("there is no store yet"), BackendUnavailable("there is no store yet"), 0]
    with capture_logs() as lines:
        assert watertower("query").code == 0
    assert [line["reason"] for line in lines if line["event"] == "not_ready"] == ["waiting: there is no store yet"] * 2


def test_who_answers_is_not_stopped_for_long_to_look_for_cycles(watertower: Watertower, ends: list[Any]) -> None:
    """The projector's work is rather done than answered in time. All objects are looked at as rarely here as there: a cache is large."""
    thresholds = {}
    for name in ("ingest", "query", "projector"):
        ends.append(0)
        assert watertower(name).code == 0
        thresholds[name] = FakeRole.gc_thresholds
    assert thresholds["ingest"] == thresholds["query"]
    assert thresholds["query"][0] < thresholds["projector"][0] / 10
    assert math.prod(thresholds["query"]) >= math.prod(thresholds["projector"])
