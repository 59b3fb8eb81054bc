"""Thresholds: what can be said, what is refused and how, and what a run is then called."""

import pytest

from watertower.load.scenarios import SCENARIOS
from watertower.load.thresholds import DEFAULTS, NAMES, BadThreshold, chosen, judge, parse, verdict


def test_every_scenario_has_some_of_names_that_there_are() -> None:
    assert set(DEFAULTS) == set(SCENARIOS)
    for scenario, limits in DEFAULTS.items():
        assert set(limits) <= set(NAMES)
        assert {"generator.late_p99_ms", "generator.unsent"} <= set(limits)
        assert chosen(scenario, limits) == limits  # none that it does not measure


def test_what_is_given_replaces_the_default() -> None:
    limits = chosen("steady", parse(["read.p99_ms=50", "write.p999_ms = 1e3", "read.failed=off"]))
    assert limits["read.p99_ms"] == 50.0
    assert limits["write.p999_ms"] == 1_000.0
    assert "read.failed" not in limits
    assert limits["write.failed"] == 0.0


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("read.p99_ms", "read.p99_ms: write it as NAME=NUMBER, as in read.p99_ms=50"),
        ("read.p98_ms=1", "read.p98_ms: no such figure; there are read.p50_ms, "),
        ("read.p99_ms=fast", "read.p99_ms=fast: must be a number of 0 or more, or off"),
        ("read.p99_ms=-1", "read.p99_ms=-1: must be a number of 0 or more, or off"),
        ("read.p99_ms=nan", "read.p99_ms=nan: must be a number"),
        ("read.p99_ms=inf", "read.p99_ms=inf: must be a number"),
        ("read.p99_ms=", "read.p99_ms=: must be a number"),
    ],
)
def test_what_says_nothing_is_refused(assignment: str, said: str) -> None:
    """With the figure and the rule, in one line."""
    with pytest.raises(BadThreshold) as refused:
        parse([assignment])
    assert str(refused.value).startswith(said)


def test_one_that_is_there_twice_is_refused() -> None:
    with pytest.raises(BadThreshold, match=r"read.p99_ms: is there twice"):
        parse(["read.p99_ms=50", "read.p99_ms=60"])


@pytest.mark.parametrize(
    ("scenario", "name"), [("steady", "herd.recovered_s"), ("read-storm", "write.p99_ms"), ("read-storm", "recount.differences")]
)
def test_one_that_the_scenario_does_not_measure_is_refused(scenario: str, name: str) -> None:
    with pytest.raises(BadThreshold, match=f"{name}: {scenario} does not measure it"):
        chosen(scenario, {name: 1.0})


def test_at_most_so_much() -> None:
    """What was not measured misses its threshold: a run without a single answer is no fast one."""
    limits = {"read.p99_ms": 50.0, "write.p99_ms": 50.0, "read.failed": 0.0}
    judged = judge(limits, {"read.p99_ms": 50.0, "read.failed": 1, "write.p99_ms": None})
    assert [one.ok for one in judged] == [True, False, False]


def test_the_worst_thing_first() -> None:
    """A load that was late says nothing about the service; a count that is wrong always does."""
    fine, missed, late = ({name: 1.0} for name in ("write.failed", "read.p99_ms", "generator.late_p99_ms"))
    measured = {"write.failed": 1.0, "read.p99_ms": 2.0, "generator.late_p99_ms": 2.0}
    assert verdict(judge(fine, measured), None) == verdict(judge(fine, measured), True) == "pass"
    assert verdict(judge(missed, measured), True) == "thresholds missed"
    assert verdict(judge(missed | late, measured), True) == "generator behind"
    assert verdict(judge(missed | late, measured), False) == verdict(judge(fine, measured), False) == "not exact"
