"""Every scenario, small, on a real service in processes of its own."""

import re
from typing import Any

import pytest

from tests.client.fake import run
from tests.docs.test_load_testing import fields
from watertower.clock import SystemClock
from watertower.load.run import run as run_load
from watertower.load.scenarios import SCENARIOS, Options
from watertower.testing.service import Service

pytestmark = pytest.mark.slow


def loaded(service: Service, scenario: str, **changed: Any) -> dict[str, Any]:
    """The report of a run without thresholds: what is looked at is that it works, on however busy a machine."""
    options = Options(scenario, service.write_target, service.read_target, 3.0, 100.0, 50.0, 2_000, 20.0, 100, 10, 2.0, 7)
    report: dict[str, Any] = {}

    async def test() -> None:
        report.update(await run_load(options._replace(**changed), {}, SystemClock(), print))

    run(test)
    return report


def assert_documented(report: dict[str, Any], *parts: str) -> None:
    """The page names every field of the report, and of these parts of it; no other field is named."""
    documented = fields()
    assert set(report) == set(documented)
    for part in parts:
        assert set(report[part]) - {"exact", "clients", "outage_s"} <= set(re.findall(r"`(\w+)`", documented[part])), part


def test_a_debut_is_counted_exactly(service: Service) -> None:
    """Twice on one service: each run has a star of its own."""
    for _ in range(2):
        report = loaded(service, "debut")
        assert_documented(report, "recount")
        assert (report["exact"], report["acknowledged"], report["recount"]["counted"]) == (True, 2_000, 2_000)
        assert (report["recount"]["listed"], report["recount"]["listed_all"], report["recount"]["actors_checked"]) == (2_000, True, 2_000)
        assert report["figures"]["write.failed"] == report["figures"]["read.failed"] == 0
        assert report["figures"]["write.calls"] > 2_000
        assert report["phases"]["before"]["write"]["calls"] == 0
        assert report["figures"]["read.p50_ms"] <= report["figures"]["read.p99_ms"] <= report["figures"]["read.max_ms"]


def test_steady(service: Service) -> None:
    report = loaded(service, "steady")
    assert (report["verdict"], report["exact"]) == ("pass", True)
    assert set(report["phases"]["steady"]["calls"]) == {"follow", "counts", "check", "list"}
    assert report["recount"]["actors_checked"] == report["acknowledged"] == report["figures"]["write.calls"]


def test_a_read_storm_writes_nothing(service: Service) -> None:
    report = loaded(service, "read-storm", rate=500.0)
    assert (report["verdict"], report["exact"], report["recount"]) == ("pass", None, None)
    assert report["figures"]["read.failed"] == report["figures"]["write.calls"] == 0
    assert report["figures"]["read.calls"] > 1_000


def test_a_herd_loses_the_service_and_nothing_else(service: Service) -> None:
    """The clients are cut off and try again within their budget; what was acknowledged counts; afterwards reads go well again."""
    report = loaded(service, "herd", seconds=8.0)
    assert_documented(report, "herd", "recount")
    assert report["exact"] is True
    outage, after = report["phases"]["outage"], report["phases"]["after"]
    assert outage["read"]["raw_failed"] > 0
    assert set(outage["read"]["raw_errors"]) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
    assert report["phases"]["before"]["read"]["raw_failed"] == 0
    assert after["read"]["calls"] > after["read"]["failed"]
    herd = report["herd"]
    assert herd["retries"] > 0
    assert herd["retries_over_budget"] == 0
    assert report["phases"]["outage"]["read"]["max_ms"] > 1_000.0  # from when they were due, not from when they got through


def test_a_debut_of_more_than_the_recount_looks_at(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at so many rows and actors, and holds the count against what was acknowledged."""
    from watertower.load import recount

    monkeypatch.setattr(recount, "LISTED_MAX", 1_000)
    monkeypatch.setattr(recount, "ACTORS_CHECKED_MAX", 100)
    report = loaded(service, "debut")
    found = report["recount"]
    assert (report["exact"], found["listed"], found["listed_all"], found["actors_checked"]) == (True, 1_000, False, 100)


def test_every_scenario_has_a_test_here() -> None:
    assert set(SCENARIOS) == {"steady", "debut", "read-storm", "herd"}
