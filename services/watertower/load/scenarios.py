"""The scenarios: what arrives in which phase, which phase is judged, and who sends it."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from watertower.load import schedule
from watertower.load.schedule import Arrival, Names, Phase, Population

BEFORE, OUTAGE, AFTER = "before", "outage", "after"
"""Phases of a herd."""

BEFORE_S = 5.0
"""Seconds of reads alone before a debut, for the comparison."""


class Options(NamedTuple):
    """What a run was asked for. `rate` and `follow_rate` are calls a second."""

    scenario: str
    write_target: str
    read_target: str
    seconds: float
    rate: float
    follow_rate: float
    followers: int
    times: float
    profiles: int
    clients: int
    outage_s: float
    seed: int

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {"follows_2019_per_s": round(schedule.RATE_2019, 2), **self._asdict()}


class Plan(NamedTuple):
    """A scenario, ready to be sent."""

    phases: tuple[Phase, ...]
    main: str  # the phase that the thresholds are about
    arrivals: Iterator[Arrival]
    star: str | None = None  # whose followers are recounted


def _rng(seed: int, stream: int) -> random.Random:
    return random.Random(seed * 10 + stream)  # noqa: S311 - a reproducible load, not secrets


def _mixed(options: Options, names: Names, population: Population, seconds: float) -> Iterator[Arrival]:
    """Profile reads and follows of profiles, at fixed rates."""
    reads, follows = _rng(options.seed, 1), _rng(options.seed, 2)
    return schedule.merged(
        schedule.profile_reads(schedule.poisson(options.rate, 0.0, seconds, reads), population.by_zipf, reads),
        schedule.follows(schedule.poisson(options.follow_rate, 0.0, seconds, follows), names, population.by_zipf, follows),
    )


def steady(options: Options, names: Names, population: Population) -> Plan:
    """Profile reads and follows at fixed rates."""
    phases = (Phase("steady", 0.0, options.seconds),)
    return Plan(phases, "steady", _mixed(options, names, population, options.seconds))


def debut(options: Options, names: Names, population: Population) -> Plan:
    """A star joins: the curve of 2019 at N times its rate, read meanwhile."""
    end = BEFORE_S + schedule.debut_seconds(options.followers, options.times)
    reads, follows = _rng(options.seed, 1), _rng(options.seed, 2)
    pick = schedule.star_or_profile(names.star, population)
    arrivals = schedule.merged(
        schedule.profile_reads(schedule.poisson(options.rate, 0.0, end, reads), pick, reads),
        schedule.debut(options.followers, options.times, BEFORE_S, names, follows),
    )
    return Plan((Phase("before", 0.0, BEFORE_S), Phase("surge", BEFORE_S, end)), "surge", arrivals, names.star)


def read_storm(options: Options, names: Names, population: Population) -> Plan:
    """Many readers of a few hot profiles, and of all the cold ones."""
    reads = _rng(options.seed, 1)
    moments = schedule.poisson(options.rate, 0.0, options.seconds, reads)
    phases = (Phase("storm", 0.0, options.seconds),)
    return Plan(phases, "storm", schedule.count_reads(moments, population.hot_or_cold, reads))


def herd(options: Options, names: Names, population: Population) -> Plan:
    """Many clients lose the service for a while, and all come back at once."""
    back = options.seconds + options.outage_s
    end = back + options.seconds
    phases = (Phase(BEFORE, 0.0, options.seconds), Phase(OUTAGE, options.seconds, back), Phase(AFTER, back, end))
    return Plan(phases, AFTER, _mixed(options, names, population, end))


SCENARIOS: Mapping[str, Callable[[Options, Names, Population], Plan]] = {
    "steady": steady,
    "debut": debut,
    "read-storm": read_storm,
    "herd": herd,
}
