"""The report: what each figure is made of, and the same for people."""

import grpc
import pytest

from watertower.client import Attempt, Unavailable
from watertower.client.errors import Refusal
from watertower.load.herd import CALM_S, herd_figures, recovered_s
from watertower.load.measure import Recorder
from watertower.load.report import Run, markdown, one_line, report_of, sparkline
from watertower.load.scenarios import Options, Plan
from watertower.load.schedule import COUNTS, FOLLOW, LIST, Names, Phase

PHASES = (Phase("before", 0.0, 5.0), Phase("surge", 5.0, 10.0))
OPTIONS = Options("debut", "w:1", "r:1", 30.0, 200.0, 50.0, 100, 20.0, 100, 10, 5.0, 7)
RECOUNT = {"exact": True, "acknowledged": 2, "differences": 0, "visible_s": 0.1, "lost": 0, "doubled": 0, "examples": []}


def attempt(method: str, number: int = 0, status: grpc.StatusCode = grpc.StatusCode.OK, reason: str = "", items: int = 1) -> Attempt:
    return Attempt("r:1", method, number, items, 0.001, status, reason)


@pytest.fixture
def recorder() -> Recorder:
    """A read before; in the surge two that went well and one that did not, and two follows."""
    recorder = Recorder(PHASES)
    for call, at_s, took_s in ((COUNTS, 4.9, 1.0), (COUNTS, 5.0, 0.010), (LIST, 6.5, 0.020), (FOLLOW, 6.0, 0.030), (FOLLOW, 11.0, 0.040)):
        recorder.sent(at_s, 0.001)
        recorder.answered(call, at_s, took_s)
    recorder.failed(COUNTS, 7.0, Unavailable("stopping", Refusal(grpc.StatusCode.UNAVAILABLE, "stopping", "STOPPING")))
    recorder.attempt(6.0, attempt("BatchGetCounts", 0, grpc.StatusCode.UNAVAILABLE, "STOPPING", 3))
    recorder.attempt(6.1, attempt("BatchGetCounts", 1, grpc.StatusCode.UNAVAILABLE))
    recorder.attempt(6.2, attempt("ListActors"))
    recorder.attempt(6.3, attempt("RecordEvents", items=2))
    return recorder


def reported(recorder: Recorder, limits: dict[str, float] | None = None, recount: dict[str, object] | None = RECOUNT) -> dict[str, object]:
    plan = Plan(PHASES, "surge", iter(()), "star")
    return report_of(Run(OPTIONS, Names("run"), plan, recorder, 1_700_000_000_000_000, recount, 0, None), limits or {})


def test_figures_are_of_the_phase_that_is_judged(recorder: Recorder) -> None:
    """The slow read before is not in it; a press that came after the end is."""
    figures = reported(recorder)["figures"]
    assert isinstance(figures, dict)
    assert (figures["read.calls"], figures["read.failed"], figures["write.calls"], figures["write.failed"]) == (3, 1, 2, 0)
    assert figures["read.failed_percent"] == pytest.approx(33.3333)
    assert figures["read.max_ms"] == pytest.approx(20.0)
    assert figures["write.p50_ms"] == pytest.approx(30.0, rel=0.01)
    assert (figures["read.attempts"], figures["read.retries"], figures["read.raw_failed"], figures["read.raw_failed_items"]) == (3, 1, 2, 4)
    assert (figures["write.attempts"], figures["write.raw_failed"]) == (1, 0)
    assert figures["generator.late_p99_ms"] == pytest.approx(1.0)


def test_by_phase_and_call(recorder: Recorder) -> None:
    phases = reported(recorder)["phases"]
    assert isinstance(phases, dict)
    assert phases["before"]["read"]["max_ms"] == pytest.approx(1_000.0)
    assert set(phases["surge"]["calls"]) == {COUNTS, LIST, FOLLOW}
    assert phases["surge"]["calls"][COUNTS]["errors"] == {"Unavailable UNAVAILABLE/STOPPING": 1}
    assert phases["surge"]["read"]["raw_errors"] == {"UNAVAILABLE/STOPPING": 1, "UNAVAILABLE": 1}


def test_the_timeline_has_a_row_a_second(recorder: Recorder) -> None:
    """Without gaps, by when calls were due."""
    timeline = reported(recorder)["timeline"]
    assert isinstance(timeline, list)
    assert [row["second"] for row in timeline] == list(range(12))
    assert [row["reads"] for row in timeline] == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert [row["phase"] for row in timeline] == ["before"] * 5 + ["surge"] * 7
    assert (timeline[6]["raw_failed"], timeline[7]["reads_failed"], timeline[8]["read_p99_ms"]) == (2, 1, None)


def test_a_verdict_and_what_it_stands_on(recorder: Recorder) -> None:
    """Exactness is no matter of thresholds."""
    report = reported(recorder, {"read.failed": 0.0, "write.failed": 0.0})
    assert (report["verdict"], report["passed"], report["exact"]) == ("thresholds missed", False, True)
    assert report["thresholds"] == [
        {"name": "read.failed", "limit": 0.0, "value": 1, "ok": False},
        {"name": "write.failed", "limit": 0.0, "value": 0, "ok": True},
    ]
    assert reported(recorder, {}, RECOUNT | {"exact": False})["verdict"] == "not exact"
    assert reported(recorder, {}, None)["exact"] is None


def test_for_people(recorder: Recorder) -> None:
    """Every threshold, phase, call and error is in it; tables are tables whatever is in them."""
    text = markdown(reported(recorder, {"read.failed": 0.0}))
    for wanted in (
        "**thresholds missed**",
        "| read.failed | 0 | 1 | **missed** |",
        "| surge | list | 1 |",
        "UNAVAILABLE/STOPPING",
    ):
        assert wanted in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_one_line_has_no_timeline(recorder: Recorder) -> None:
    assert set(reported(recorder)) - set(one_line(reported(recorder))) == {"timeline"}


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([0, 0], "▁▁"), ([1, None, 8], "▂·█"), ([None], "·"), ([0.0, 3.5, 7.0], "▁▅█"), ([1] * 81, "█" * 41)],
)
def test_sparklines(values: list[float | None], line: str) -> None:
    """At most 80 columns: of a longer timeline the largest of several seconds."""
    assert sparkline(values) == line


def row(second: int, p99: float | None, failed: int = 0) -> dict[str, object]:
    return {"second": second, "read_p99_ms": p99, "reads_failed": failed}


def test_recovered_is_calm_for_some_seconds() -> None:
    """A calm second between bad ones is no recovery, nor is one without an answer, nor with one that failed."""
    assert CALM_S == 3
    bad = [row(0, 900.0), row(1, 5.0), row(2, 5.0), row(3, None), row(4, 5.0), row(5, 5.0), row(6, 5.0, 1)]
    assert recovered_s(bad, 0, 20.0) is None
    assert recovered_s([*bad, row(7, 20.0), row(8, 5.0), row(9, 5.0)], 0, 20.0) == 7
    assert recovered_s([row(n, 5.0) for n in range(10)], 4, 20.0) == 0


HERD = (Phase("before", 0.0, 5.0), Phase("outage", 5.0, 10.0), Phase("after", 10.0, 15.0))


def herd_of(retries: dict[tuple[int, str], int], last_s: float = 9.0) -> dict[str, object]:
    """Fifty clients that send 25 requests each, and so many retries by client and method, from 5 s to `last_s`."""
    recorder = Recorder(HERD)
    for client in range(50):
        for number in range(25):
            recorder.attempt(number / 5, attempt("BatchGetCounts"), client)
    for (client, method), count in retries.items():
        recorder.attempt(5.0, attempt(method, 0, grpc.StatusCode.UNAVAILABLE), client)
        for number in range(count):
            recorder.attempt(last_s if number == count - 1 else 6.0, attempt(method, 1, grpc.StatusCode.UNAVAILABLE), client)
    return herd_figures(recorder, OPTIONS._replace(scenario="herd", clients=50))


def test_a_retry_budget_is_held_against_each_client_and_server() -> None:
    """10 % of 26 requests and a reserve of 10 are 12; to the writer 10. What others have left is no excuse."""
    figures = herd_of({(3, "BatchGetCounts"): 12, (3, "RecordEvents"): 10})
    assert (figures["retries"], figures["retries_over_budget"]) == (22, 0)
    figures = herd_of({(3, "BatchGetCounts"): 13, (4, "RecordEvents"): 12})
    assert (figures["retries"], figures["retries_over_budget"]) == (25, 3)


def test_a_retry_budget_has_its_reserve_again_after_its_window() -> None:
    figures = herd_of({(3, "BatchGetCounts"): 22}, last_s=14.9)
    assert figures["retries_over_budget"] == 0
