"""What must hold for a run to pass: each figure at most so much."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

GENERATOR = "generator."
"""Figures that say whether the load was what it should have been."""

_SIDE = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "failed", "failed_percent", "raw_failed", "raw_failed_percent")
NAMES = (
    *(f"read.{name}" for name in _SIDE),
    *(f"write.{name}" for name in _SIDE),
    "generator.late_p99_ms",
    "generator.late_max_ms",
    "generator.unsent",
    "recount.differences",
    "recount.visible_s",
    "herd.recovered_s",
    "herd.retries_over_budget",
)
"""Every figure that can have a threshold."""

LATE_P99_MS = 100.0
_ALL = {"read.failed": 0.0, "write.failed": 0.0, "generator.late_p99_ms": LATE_P99_MS, "generator.unsent": 0.0, "recount.differences": 0.0}
DEFAULTS: dict[str, dict[str, float]] = {
    "steady": {**_ALL, "read.p99_ms": 100.0, "write.p99_ms": 500.0},
    "debut": {**_ALL, "read.p99_ms": 250.0, "write.p99_ms": 1_000.0, "recount.visible_s": 30.0},
    "read-storm": {"read.failed": 0.0, "read.p99_ms": 250.0, "generator.late_p99_ms": LATE_P99_MS, "generator.unsent": 0.0},
    # Some of the calls that meet the connections as they come back fail: the outage has used up the retry budget, as it is meant to.
    "herd": {
        "read.failed_percent": 5.0,
        "write.failed_percent": 5.0,
        "generator.late_p99_ms": LATE_P99_MS,
        "generator.unsent": 0.0,
        "recount.differences": 0.0,
        "herd.recovered_s": 15.0,
        "herd.retries_over_budget": 0.0,
    },
}
"""By scenario: meant for a service with cores of its own on a network of its own."""


_NOT_MEASURED = {"steady": ("herd.",), "debut": ("herd.",), "read-storm": ("herd.", "write.", "recount."), "herd": ()}


class BadThreshold(ValueError):
    """A threshold that says nothing. The message is one line."""


class Judged(NamedTuple):
    """One threshold, and what was measured; None where nothing was, which misses it."""

    name: str
    limit: float
    value: float | None

    @property
    def ok(self) -> bool:
        return self.value is not None and self.value <= self.limit

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {"name": self.name, "limit": self.limit, "value": self.value, "ok": self.ok}


def parse(assignments: Sequence[str]) -> dict[str, float | None]:
    """Limits by name from `NAME=NUMBER`; None for `NAME=off`. Raises BadThreshold, with the field and the rule."""
    limits: dict[str, float | None] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise BadThreshold(f"{assignment}: write it as NAME=NUMBER, as in read.p99_ms=50")
        if name not in NAMES:
            raise BadThreshold(f"{name}: no such figure; there are {', '.join(NAMES)}")
        if name in limits:
            raise BadThreshold(f"{name}: is there twice")
        limits[name] = None if text == "off" else _number(name, text)
    return limits


def chosen(scenario: str, given: Mapping[str, float | None]) -> dict[str, float]:
    """The scenario's limits, with those that were given in place of its own. Raises BadThreshold for one that it cannot measure."""
    for name in given:
        if name.startswith(_NOT_MEASURED[scenario]):
            raise BadThreshold(f"{name}: {scenario} does not measure it")
    limits: dict[str, float | None] = {**DEFAULTS[scenario], **given}
    return {name: limit for name, limit in limits.items() if limit is not None}


def judge(limits: Mapping[str, float], figures: Mapping[str, float | None]) -> list[Judged]:
    """Every limit with what was measured."""
    return [Judged(name, limit, figures.get(name)) for name, limit in limits.items()]


def verdict(judged: Sequence[Judged], exact: bool | None) -> str:
    """In one or two words; the worst thing first."""
    missed = [one.name for one in judged if not one.ok]
    if exact is False:
        return "not exact"
    if any(name.startswith(GENERATOR) for name in missed):
        return "generator behind"
    return "thresholds missed" if missed else "pass"


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not isfinite(number) or number < 0.0:
        raise BadThreshold(f"{name}={text}: must be a number of 0 or more, or off")
    return number
